"""Checks whether sources still hold the bytes that OUT's rows were made of, by the hashes stored with the rows."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from transforms import shards
from transforms.errors import FeaturemillError
from transforms.isolated import Isolated
from transforms.machine import ahead
from transforms.parquet.files import open_sealed
from transforms.records import EncodedImage, Failure, Unit
from transforms.rows.sources import cause_of
from transforms.store.listing import footer_of
from transforms.store.output import Output
from transforms.text import clean

# The files of a listing are read by threads of their own.
_PARTS_AT_ONCE = 4
_COLUMNS = ["key", "source", "position", "sha256"]
_NONE = object()


@dataclass(frozen=True)
class Compared:
    """The result for one unit.

    Attributes:
        records: How many there are, rows and failures.
        difference: The first one that was found, in words; empty if all is what it was.
    """

    unit_id: str
    records: int
    difference: str


def compare_contents(
    output: Output, units: Mapping[str, tuple[Unit, Unit]], *, unread_pass: bool = False
) -> Iterator[Compared]:
    """Reads units again and compares the hashes of their records with the stored ones, in no particular order.

    Nothing is decoded. Up to four parts are under way at once, each with the keys and hashes of its rows in memory.

    Args:
        units: {id: (the unit as OUT knows it, the same where and as it is now)}; all have a part. Both may have but
            some of a listing's files; then only these are compared.
        unread_pass: Let it pass if a file that couldn't be read now can be; else it is a difference.

    Raises:
        FeaturemillError: A part that can't be read. A source that can't be is a difference.
    """
    by_part: dict[str, set[str]] = defaultdict(set)
    holders = {report.unit_id: name for name, footer in output.listing.merged.items() for report in footer.reports}
    for unit_id in units:
        by_part[holders.get(unit_id, f"{unit_id}.parquet")].add(unit_id)
    with ExitStack() as stack:
        # One for each thread; a start costs more than to read a small unit.
        free = [stack.enter_context(shards.reading_child()) for _ in range(_PARTS_AT_ONCE)]

        def compare(part: tuple[str, set[str]]) -> list[Compared]:
            child = free.pop()
            try:
                return _compare_part(output, *part, units, unread_pass, child)
            finally:
                free.append(child)

        for compared in stack.enter_context(closing(ahead(compare, by_part.items(), threads=_PARTS_AT_ONCE))):
            yield from compared


def _compare_part(
    output: Output,
    name: str,
    unit_ids: set[str],
    units: Mapping[str, tuple[Unit, Unit]],
    unread_pass: bool,
    child: Isolated,
) -> list[Compared]:
    part = output.path("features", name)
    with open_sealed(part, cure="delete it and run extract again") as parquet:
        footer = footer_of(parquet.metadata, part)
        table, numbers = parquet.read(_COLUMNS), footer.unit_numbers()
    compared = []
    for number, report in enumerate(footer.reports):
        if report.unit_id not in unit_ids:
            continue
        stored = table.take(np.flatnonzero(numbers == number)).to_pylist()
        if report.unit_id in output.failed_ids:
            stored += output.failures(report, _COLUMNS)
        old, new = units[report.unit_id]
        places = dict(zip(_sources(old), _sources(new), strict=True))
        # A key begins with its source.
        expected = {
            (places[row["source"]] + row["key"].removeprefix(row["source"]), row["position"]): row["sha256"]
            for row in stored
            if row["source"] in places
        }
        compared.append(Compared(report.unit_id, len(expected), _difference(expected, new, unread_pass, child)))
    return compared


def _difference(expected: dict[tuple[str, int], bytes | None], new: Unit, unread_pass: bool, child: Isolated) -> str:
    """Returns the first difference to these hashes; takes out what is the same."""
    try:
        for record in shards.read(new, apart=child):
            there = expected.pop((record.key, record.position), _NONE)
            if there is _NONE:
                return f"{record.key} was not there before"
            now = record.sha256 if isinstance(record, Failure) else hashlib.sha256(record.data).digest()
            if now != there and not (there is None and unread_pass):
                return f"{record.key} {_change(record, there)}"
    except FeaturemillError as error:
        return f"{clean(new.shard.file.uri)} can't be read: {cause_of(error)}"
    return f"{next(iter(expected))[0]} is gone" if expected else ""


def _change(record: EncodedImage | Failure, there: bytes | None) -> str:
    if isinstance(record, Failure):
        return f"can't be read any more: {record.message}"
    return "could not be read before, and now can" if there is None else "has other bytes than were embedded"


def _sources(unit: Unit) -> list[str]:
    return [clean(file.uri) for file in unit.inputs]
