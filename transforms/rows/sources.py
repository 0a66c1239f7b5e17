"""Rows of an OUT, read and decoded again from the sources that they came from."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from transforms import shards, storage
from transforms.errors import FeaturemillError
from transforms.images.decode import PIXEL_CEILING, ImageError, decode_image
from transforms.isolated import Isolated
from transforms.parquet.files import open_parquet, open_sealed
from transforms.records import EncodedImage, Failure, FileInfo, Unit
from transforms.rows.vectors import StoredPart
from transforms.spec import FeatureSpec
from transforms.store.layout import part_uri
from transforms.store.listing import Listing, footer_of, list_parts, read_footer
from transforms.store.output import Output
from transforms.text import clean, one_line

# Decoded images are handed on in batches of this many bytes.
_BATCH_BYTES = 2**23
_GONE, _CHANGED = "its source no longer holds it", "its content changed since it was embedded"


def planned_unit(units: Mapping[str, Unit], unit_id: str, part: str) -> Unit:
    """Returns the unit of a part's rows, by OUT's plan; raises FeaturemillError if that doesn't know it."""
    if unit_id not in units:
        raise FeaturemillError(
            f"plan.parquet doesn't know unit {unit_id} of {part}; run featuremill extract again, with the same inputs"
        )
    return units[unit_id]


class Placed(Protocol):
    """A stored row, as far as reading it again goes.

    Attributes:
        key: Of the row.
        position: In its shard.
        sha256: SHA-256 of the encoded bytes.
    """

    @property
    def key(self) -> str: ...

    @property
    def position(self) -> int: ...

    @property
    def sha256(self) -> bytes: ...


_Row = TypeVar("_Row", bound=Placed)


def reread(unit: Unit, rows: Iterable[_Row], *, apart: Isolated | None = None) -> Iterator[tuple[_Row, bytes | str]]:
    """Yields each row with its image's encoded bytes, or else with why they can't be had any more.

    Args:
        unit: Where the rows lie, perhaps a part of their unit. It isn't read any further than to the last of them.
        rows: In any order; they come in that of the source.
        apart: As for `shards.read`.
    """
    # Files all have position 0, and the name of a record that has none depends on where reading began.
    place = attrgetter("key" if unit.files else "position")
    wanted: dict[str | int, list[_Row]] = defaultdict(list)
    for row in rows:
        wanted[place(row)].append(row)
    if unit.files:
        files = tuple(listed for listed in unit.files if clean(listed.file.uri) in wanted)
        unit = replace(unit, files=files, start=0, stop=len(files))
    reason = _GONE
    try:
        for record in shards.read(unit, apart=apart):
            here = wanted.pop(place(record), ())
            if isinstance(record, Failure):
                # A shard that can't be read any further says so last.
                reason = _GONE if unit.files else record.message
                yield from ((row, record.message) for row in here)
            else:
                reason = _GONE
                sha256 = hashlib.sha256(record.data).digest() if here else b""
                yield from ((row, record.data if row.sha256 == sha256 else _CHANGED) for row in here)
            if not wanted:
                return
    except (FeaturemillError, OSError) as error:
        reason = unreadable(error)
    yield from ((row, reason) for row in chain.from_iterable(wanted.values()))


def stored_rows(output: str, unit_id: str) -> list[dict[str, Any]]:
    """Returns the rows that OUT has of a unit: key, label, source, position and sha256 of each."""
    part = storage.stat(part_uri(output, unit_id))
    if part is None:
        folder = storage.join(output, "features")
        part = storage.stat(
            storage.join(folder, *_listing(output, frozenset(storage.list_folder(folder))).merged_with([unit_id]))
        )
    if part is None:
        raise FeaturemillError(f"{output} has lost the part of unit {unit_id}; run extract again, then add the feature")
    table, unit_ids, numbers = _rows_of(part)
    return table.filter(pa.array(numbers == unit_ids.index(unit_id))).to_pylist()


# A merged part has the rows of many units. Another content under its name has another time or ETag, and which units it
# has follows from the name.
@lru_cache(maxsize=1)
def _rows_of(part: FileInfo) -> tuple[pa.Table, list[str], np.ndarray]:
    with open_sealed(part.uri, cure="run extract again, then add the feature") as parquet:
        footer = footer_of(parquet.metadata, part.uri)
        table = parquet.read(["key", "label", "source", "position", "sha256"])
    return table, [report.unit_id for report in footer.reports], footer.unit_numbers()


@lru_cache(maxsize=1)
def _listing(output: str, names: frozenset[str]) -> Listing:
    return list_parts(output, names)


def stored_only(
    unit: Unit, rows: Iterable[dict[str, Any]], read: Callable[[Unit], Iterator[EncodedImage | Failure]]
) -> Iterator[EncodedImage | Failure]:
    """Yields those records of a unit that there are rows of, in the order of the rows, and nothing else.

    What is gone or has another content is a failure: it must not get the row's place.

    Args:
        unit: The one that is read again.
        rows: From `stored_rows`.
        read: Reads a unit.
    """
    place = "key" if unit.files else "position"
    wanted = {row[place]: row for row in rows}
    if unit.files:
        by_key = {clean(listed.file.uri): listed for listed in unit.files}
        files = tuple(by_key[key] for key in wanted if key in by_key)
        unit = replace(unit, files=files, start=0, stop=len(files))
    for record in read(unit) if wanted else ():
        row = wanted.pop(getattr(record, place), None)
        if row is not None and isinstance(record, EncodedImage):
            is_same = record.key == row["key"] and hashlib.sha256(record.data).digest() == row["sha256"]
            yield record if is_same else Failure(**row, stage="read", error="changed", message=_CHANGED)
        elif row is not None:
            yield record
        if not wanted:
            return
    yield from (Failure(**row, stage="read", error="gone", message=_GONE) for row in wanted.values())


def reread_pixels(
    unit: Unit, rows: Iterable[_Row], spec: FeatureSpec, problems: list[str]
) -> Iterator[tuple[_Row, np.ndarray]]:
    """Yields rows with their pixels, read and decoded as `extract` does, in the order of the source.

    Args:
        unit: Where they lie.
        rows: In any order.
        spec: Says how to decode.
        problems: Gets a line for each row that can't be read any more, or isn't what it was.
    """
    for row, found in reread(unit, rows):
        if isinstance(found, str):
            problems.append(f"{row.key}: {found}")
            continue
        try:
            # The limit of the run isn't known any more, and these images were within it.
            yield row, decode_image(found, spec, max_pixels=PIXEL_CEILING).pixels
        except ImageError as error:
            problems.append(f"{row.key}: can't be decoded any more: {error}")


def unreadable(error: Exception) -> str:
    """Returns in words that a row's source can't be read."""
    return f"cannot read its source: {cause_of(error)}"


def cause_of(error: Exception) -> str:
    """Returns why nothing more could be read: not the file where that showed, and not the cure, which is extract's."""
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or clean(one_line(cause))


@dataclass(frozen=True)
class _Wanted:
    number: int
    key: str
    position: int
    sha256: bytes


@dataclass(frozen=True)
class ImageRows:
    """The images of an OUT's rows: pixels where `StoredVectors` has what was stored of them."""

    output: Output

    @property
    def spec(self) -> FeatureSpec:
        """Says how to decode."""
        return self.output.manifest.spec

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, uint8."""
        return self.spec.image_size, self.spec.image_size, 3

    @cached_property
    def _units(self) -> dict[str, Unit]:
        return {planned.unit_id: planned.unit for planned in self.output.plan}

    def check(self, parts: Iterable[StoredPart]) -> None:
        """Checks that the sources of these parts are still there, without reading them.

        Raises:
            FeaturemillError: They aren't; how many, and the first.
        """
        gone = []
        for unit in (unit for part in parts for unit in self._units_of(part)[1]):
            uris = [file.uri for file in unit.inputs]
            gone += [clean(uri) for uri in uris if not storage.stat(uri)]
        if gone:
            raise FeaturemillError(
                f"{len(gone):,} sources of {self.output} are gone, the first is {gone[0]}; bring them back, or "
                "extract the features again from what is there"
            )

    def read(self, part: StoredPart, group: int, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (rows of the part, int64 n; pixels, uint8 n×S×S×3) of a row group, in the order of their sources.

        Args:
            part: One of OUT's.
            group: Which of its row groups.
            wanted: Booleans, one for each row of the part.

        Raises:
            FeaturemillError: Rows that can't be read again; how many, and the first.
        """
        problems: list[str] = []
        rows = self._wanted(part, group, wanted)
        count = sum(map(len, rows.values()))
        size = max(1, _BATCH_BYTES // int(np.prod(self.shape)))
        found: list[tuple[_Wanted, np.ndarray]] = []
        _, units = self._units_of(part)
        pairs = (reread_pixels(units[number], some, self.spec, problems) for number, some in sorted(rows.items()))
        for pair in chain.from_iterable(pairs):
            found.append(pair)
            if len(found) == size:
                yield _stack(found)
                found = []
        if problems:
            raise FeaturemillError(
                f"{len(problems):,} of {count:,} images wanted of {part.uri} can't be read again, such as "
                f"{problems[0]}; bring them back, or extract the features again from what is there"
            )
        if found:
            yield _stack(found)

    def _units_of(self, part: StoredPart) -> tuple[np.ndarray, list[Unit]]:
        """Returns which of its units each row of a part is of, and the units: one, or a merged part's."""
        footer = read_footer(part.uri)
        units = [planned_unit(self._units, report.unit_id, part.uri) for report in footer.reports]
        return footer.unit_numbers(), units

    def _wanted(self, part: StoredPart, group: int, wanted: np.ndarray) -> dict[int, list[_Wanted]]:
        """Returns the wanted rows of a row group, by the number of their unit."""
        with open_parquet(part.uri) as parquet:
            table = parquet.read_row_group(group, ["key", "position", "sha256"])
        first = sum(part.group_rows[:group])
        numbers, _ = self._units_of(part)
        found: dict[int, list[_Wanted]] = defaultdict(list)
        for number, row in enumerate(table.to_pylist(), first):
            if wanted[number]:
                found[int(numbers[number])].append(_Wanted(number, **row))
        return found


def _stack(found: list[tuple[_Wanted, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row.number for row, _ in found]), np.stack([pixels for _, pixels in found])
