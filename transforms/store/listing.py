"""Lists OUT/features: a part per unit, known by its name, and merged parts, known by their footers."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.parquet.seals import Broken, content_of, read_metadata
from transforms.records import UnitReport
from transforms.store.layout import MERGED, OUTPUT_FOLDERS, is_own
from transforms.text import one_line

# No unit's id has this form: it ends in nine digits, a hyphen and sixteen hexadecimal ones.
MERGED_STEM = re.compile(MERGED)
_ENDING = ".parquet"
# Nothing shorter is Parquet.
_SHORTEST = 12


@dataclass(frozen=True)
class Footer:
    """The facts in a part's footer.

    Attributes:
        fingerprint: Of the spec.
        reports: Of the one unit; of a merged part's units, in the order in which `row_units` numbers them.
        rows: N.
        row_units: A merged part's: which unit each row is of, see `pack_row_units`.
    """

    fingerprint: str
    reports: tuple[UnitReport, ...]
    rows: int
    row_units: bytes = b""

    @property
    def rows_embedded(self) -> int:
        """N, as the reports have it."""
        return sum(report.rows_embedded for report in self.reports)

    def unit_numbers(self) -> np.ndarray:
        """Returns for each of the N rows the index of its unit's report."""
        if not self.row_units:
            return np.zeros(self.rows, "<u2")
        return np.frombuffer(zlib.decompress(base64.b64decode(self.row_units)), "<u2")


def pack_row_units(numbers: np.ndarray) -> bytes:
    """Returns N numbers below 65,536 as text, which is all that every reader of Parquet takes in a footer."""
    return base64.b64encode(zlib.compress(numbers.astype("<u2").tobytes()))


def read_footer(part: str) -> Footer:
    """Reads a part's footer, not its rows, and checks that it is that of this part.

    Raises:
        FeaturemillError: Not a part, or not readable, or another one's under this name.
    """
    try:
        with storage.open_read(part) as file:
            return footer_of(read_metadata(file), part)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"{part} is not a readable part ({one_line(error)}); delete it and run extract again"
        ) from error


def footer_of(metadata: pq.FileMetaData, part: str) -> Footer:
    """Returns what a file's metadata says, if it is a part's, and that of this name.

    Raises:
        KeyError, TypeError, ValueError, OSError: It isn't.
    """
    values = metadata.metadata or {}
    merged = values.get(b"featuremill.reports")
    reports = json.loads(merged) if merged else [json.loads(values[b"featuremill.report"])]
    if not merged:
        # One that was written anew says in its report what it was at first.
        reports = [{"part_sha256": content_of(metadata), **report} for report in reports]
    ids = [report["unit_id"] for report in reports]
    own_name = merged_name(ids) if merged else f"{ids[0]}{_ENDING}"
    if part.rsplit("/", 1)[-1] != own_name:
        raise Broken(f"its footer calls it {own_name.removesuffix(_ENDING)}")
    return Footer(
        values[b"featuremill.fingerprint"].decode(),
        tuple(UnitReport(**report) for report in reports),
        metadata.num_rows,
        values[b"featuremill.row_units"] if merged else b"",
    )


def own_report(report: UnitReport) -> dict[str, Any]:
    """Returns a report as its part carries it from the first: without what is only known afterwards."""
    return {name: value for name, value in vars(report).items() if name not in ("part_sha256", "part_bytes")}


def later_report(report: UnitReport) -> dict[str, Any]:
    """Returns a report as a part carries it that was written anew: with the hash of the first one."""
    return {name: value for name, value in vars(report).items() if name != "part_bytes"}


def read_footers(parts: Sequence[str]) -> Iterator[Footer]:
    """Yields the footers of the parts, in their order."""
    return ahead(read_footer, parts)


def try_footers(parts: Sequence[str]) -> Iterator[Footer | str]:
    """Yields the footers of the parts, in their order, or why one isn't what was written under its name.

    Raises:
        FeaturemillError: One can't be reached, or may not be read.
    """

    def attempt(part: str) -> Footer | str:
        try:
            return read_footer(part)
        except FeaturemillError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, Broken):
                raise
            return one_line(error.__cause__)

    return ahead(attempt, parts)


def is_merged(name: str) -> bool:
    """Returns whether it is the name of a merged part's file."""
    return MERGED_STEM.fullmatch(name.removesuffix(_ENDING)) is not None


def merged_name(unit_ids: Collection[str]) -> str:
    """Returns the file name of the merged part that holds these units."""
    return f"compact-{hashlib.sha256(chr(10).join(sorted(unit_ids)).encode()).hexdigest()[:32]}{_ENDING}"


@dataclass(frozen=True)
class Listing:
    """The files that hold OUT's rows, each row in one of them.

    Attributes:
        names: File names of the parts, sorted.
        merged: {file name: footer} of the merged ones among them.
        leftovers: Files whose rows are in a merged part as well, sorted: a compaction was cut off before it removed
            them. They aren't in `names`.
    """

    names: tuple[str, ...]
    merged: dict[str, Footer]
    leftovers: tuple[str, ...]

    def unit_ids(self) -> set[str]:
        """Returns the ids of the units that are done."""
        single = {name.removesuffix(_ENDING) for name in self.names if name not in self.merged}
        return single.union(report.unit_id for footer in self.merged.values() for report in footer.reports)

    def merged_with(self, unit_ids: Collection[str]) -> list[str]:
        """Returns the names of the merged parts that hold any of these units."""
        return [name for name, footer in self.merged.items() if any(r.unit_id in unit_ids for r in footer.reports)]


def list_parts(output: str, names: Collection[str] | None = None) -> Listing:
    """Says which files hold OUT's rows, by one small read for each merged part.

    Args:
        names: Of the files in its folder of parts that count; by default all, which are listed now.

    Raises:
        FeaturemillError: A merged part that can't be read, or two that hold the same unit.
    """
    folder = storage.join(output, "features")
    names = storage.list_folder(folder) if names is None else names
    names = {name for name in names if name.endswith(_ENDING)}
    candidates = sorted(filter(is_merged, names))
    footers = dict(zip(candidates, read_footers([storage.join(folder, name) for name in candidates]), strict=True))
    merged: dict[str, Footer] = {}
    holders: dict[str, str] = {}
    leftovers = []
    # The one with more units first: merged parts may be merged again.
    for name in sorted(footers, key=lambda name: (-len(footers[name].reports), name)):
        unit_ids = {report.unit_id for report in footers[name].reports}
        shared = unit_ids & holders.keys()
        if shared and len(shared) < len(unit_ids):
            raise FeaturemillError(
                f"{folder}: {name} and {holders[min(shared)]} both hold unit {min(shared)}; two runs of compact were "
                f"at work: delete {name} and run extract again"
            )
        if shared:
            leftovers.append(name)
        else:
            merged[name] = footers[name]
            holders.update(dict.fromkeys(unit_ids, name))
    leftovers += names & {f"{unit_id}{_ENDING}" for unit_id in holders}
    return Listing(tuple(sorted(names.difference(leftovers))), merged, tuple(sorted(leftovers)))


@dataclass(frozen=True)
class Looked:
    """Findings of a look at the parts, without opening those whose size is as it was.

    Attributes:
        broken: {file name: why it isn't the part of that name}.
        reports: {unit id: report} of the parts that were opened.
    """

    broken: Mapping[str, str]
    reports: Mapping[str, UnitReport]


def look_at_parts(
    output: str, there: Mapping[str, int], known: Mapping[str, int], fingerprint: str, planned: Collection[str]
) -> Looked:
    """Finds parts that were cut off, emptied, or put there from elsewhere.

    Opened are merged parts, and those whose size isn't known or another one: their footers would be read anyway.

    Args:
        there: {file name: bytes} of its folder of parts.
        known: {unit id: bytes of its part}, as far as known; 0 for a part of an earlier version, which is trusted.
        fingerprint: OUT's.
        planned: Ids of the units in its plan.

    Raises:
        FeaturemillError: A part can't be reached, or may not be read.
    """
    folder = storage.join(output, "features")
    suspects = sorted(
        name
        for name, size in there.items()
        if is_own(OUTPUT_FOLDERS, "features", name)
        and (size < _SHORTEST or is_merged(name) or known.get(name.removesuffix(_ENDING), -1) not in (0, size))
    )
    broken, reports = {}, {}
    for name, found in zip(suspects, try_footers([storage.join(folder, name) for name in suspects]), strict=True):
        if isinstance(found, str):
            broken[name] = found
        elif found.fingerprint != fingerprint and any(report.unit_id in planned for report in found.reports):
            broken[name] = f"it was written with other settings (fingerprint {found.fingerprint[:12]})"
        else:
            reports.update((report.unit_id, report) for report in found.reports if not is_merged(name))
    return Looked(broken, reports)
