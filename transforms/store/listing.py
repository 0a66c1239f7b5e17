"""Lists OUT/features: a part per unit, known by its name, and merged parts, known by their footers."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.records import UnitReport
from transforms.store.layout import MERGED
from transforms.text import one_line

# No unit's id has this form: it ends in nine digits, a hyphen and sixteen hexadecimal ones.
MERGED_STEM = re.compile(MERGED)
_ENDING = ".parquet"


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
    """Reads a part's footer, not its rows.

    Raises:
        FeaturemillError: Not a part, or not readable.
    """
    try:
        with storage.open_read(part) as file:
            return footer_of(pq.read_metadata(file))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"{part} is not a readable part ({one_line(error)}); delete it and run extract again"
        ) from error


def footer_of(metadata: pq.FileMetaData) -> Footer:
    """Returns what a file's metadata says, if it is a part's.

    Raises:
        KeyError, TypeError, ValueError: It isn't.
    """
    values = metadata.metadata or {}
    merged = values.get(b"featuremill.reports")
    reports = json.loads(merged) if merged else [json.loads(values[b"featuremill.report"])]
    return Footer(
        values[b"featuremill.fingerprint"].decode(),
        tuple(UnitReport(**report) for report in reports),
        metadata.num_rows,
        values[b"featuremill.row_units"] if merged else b"",
    )


def read_footers(parts: Sequence[str]) -> Iterable[Footer]:
    """Yields the footers of the parts, in their order. A footer is one small read; threads hide a store's latency."""
    with ThreadPoolExecutor(16) as pool:
        # A thousand at a time: all that are asked for at once wait in memory.
        for first in range(0, len(parts), 1000):
            yield from pool.map(read_footer, parts[first : first + 1000])


def is_merged(name: str) -> bool:
    """True for the name of a merged part's file."""
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


def list_parts(output: str) -> Listing:
    """Lists OUT's parts: one listing, and one small read for each merged part.

    Raises:
        FeaturemillError: A merged part that can't be read, or two that hold the same unit.
    """
    folder = storage.join(output, "features")
    names = {name for name in storage.list_folder(folder) if name.endswith(_ENDING)}
    candidates = sorted(filter(is_merged, names))
    try:
        footers = dict(zip(candidates, read_footers([storage.join(folder, name) for name in candidates]), strict=True))
    except FeaturemillError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not set(candidates) <= storage.list_folder(folder):
            # Merged again, or taken apart, since it was listed.
            return list_parts(output)
        raise
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
