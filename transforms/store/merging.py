"""Parts written anew: several merged into one, sorted by key; one taken apart, a part for each unit; other keys in one.

All hold a row group in memory and not a part: a window of the rows that come next is gathered from wherever they lie.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import storage
from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.parquet.files import open_sealed
from transforms.parquet.seals import SealedWriter, content_of, sealed, values_for_copy
from transforms.store.layout import part_uri
from transforms.store.listing import Footer, footer_of, later_report, merged_name, pack_row_units
from transforms.store.output import Output
from transforms.store.parts import PART_OPTIONS, ROW_GROUP_BYTES, ROW_GROUP_ROWS, writing_part
from transforms.store.schema import vector_bytes
from transforms.store.units import RELOCATION

# Units of one merged part; each has half a kilobyte in the footer, which whoever lists OUT reads.
MOST_UNITS = 4096
# Rows are taken from batches of this many bytes of vectors.
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PartFacts:
    """The facts that a merge is planned by.

    Attributes:
        name: File name.
        first_key: The smallest key, empty where there are no rows.
        data_bytes: Of the compressed columns: what the rows add to a merged part.
        units: How many it holds.
    """

    name: str
    first_key: str
    data_bytes: int
    units: int


def part_facts(output: Output, name: str, units: int) -> PartFacts:
    """Reads a part's facts from its footer.

    Raises:
        FeaturemillError: It isn't readable.
    """
    with _open(output.path("features", name)) as parquet:
        metadata = parquet.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        data_bytes = sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
        # A key of several kilobytes has no statistics.
        found = [group.column(0).statistics for group in groups]
        keys = [statistics.min for statistics in found if statistics is not None and statistics.has_min_max]
        return PartFacts(name, min(keys, default=""), data_bytes, units)


def merge_parts(output: Output, names: Sequence[str], *, before_commit: Callable[[], None]) -> str:
    """Writes the rows of several parts as one, sorted by key, and commits it. The parts themselves stay.

    Args:
        names: File names of parts, merged ones too.
        before_commit: Is called when all is written, and may raise to leave nothing behind.

    Returns:
        The file name of the merged part.

    Raises:
        FeaturemillError: Parts that can't be read, or don't belong together, or the output can't be written.
    """
    uris = [output.path("features", name) for name in names]
    parts, order = _sort(uris)
    reports = [report for part in parts for report in part.footer.reports]
    firsts = np.cumsum([0, *(len(part.footer.reports) for part in parts)])
    numbers = [_unit_numbers(uri, part.footer) for uri, part in zip(uris, parts, strict=True)]
    row_units = np.concatenate([of_part + first for of_part, first in zip(numbers, firsts, strict=False)])[order]
    merged = merged_name([report.unit_id for report in reports])
    with _committed(output, output.path("features", merged), parts[0].schema, before_commit) as (writer, values):
        for table in _rows_in_order(uris, [part.footer.rows for part in parts], order, parts[0].schema):
            writer.write(table)
        values |= {
            **parts[0].settings,
            "featuremill.reports": json.dumps([later_report(report) for report in reports]),
            "featuremill.row_units": pack_row_units(row_units),
        }
    return merged


@dataclass(frozen=True)
class _Part:
    footer: Footer
    schema: pa.Schema
    # What the footer says of the spec.
    settings: dict[str, bytes]


def _part(parquet: pq.ParquetFile, uri: str) -> _Part:
    values = parquet.metadata.metadata
    settings = {name: values[name.encode()] for name in ("featuremill.fingerprint", "featuremill.spec")}
    return _Part(footer_of(parquet.metadata, uri), parquet.schema_arrow.remove_metadata(), settings)


def _sort(uris: Sequence[str]) -> tuple[list[_Part], np.ndarray]:
    """Returns what the footers say, and the order of all rows by key, int64 N."""
    parts, keys = [], []
    for uri in uris:
        with _open(uri) as parquet:
            part = _part(parquet, uri)
            keys += parquet.read(["key"]).column(0).chunks
        parts.append(part)
        if (part.schema, part.settings) != (parts[0].schema, parts[0].settings):
            raise FeaturemillError(f"{uri} was written with other settings than {uris[0]}; move it elsewhere")
    # Equal keys stay in the order of the parts: the sort is stable.
    return parts, pc.sort_indices(pa.chunked_array(keys, pa.string())).to_numpy().astype(np.int64)


def split_part(output: Output, name: str) -> None:
    """Gives each unit of a merged part one of its own again, as it was; removes the merged one.

    Rows come back in the order of their source: by position, and those of a listing, whose positions are 0, by key.
    Until the very end the merged part counts, so this can be cut off anywhere.

    Raises:
        FeaturemillError: It can't be read, or the output can't be written.
    """
    uri = output.path("features", name)
    with _open(uri) as parquet:
        part = _part(parquet, uri)
        positions = parquet.read(["position"]).column(0).to_numpy()
    # Stable, and the rows are sorted by key already.
    order = np.lexsort((positions, _unit_numbers(uri, part.footer)))
    tables = _Rows(_rows_in_order([uri], [part.footer.rows], order, part.schema))
    for report in part.footer.reports:
        with _committed(output, part_uri(output.folder, report.unit_id), part.schema, lambda: None) as (writer, values):
            for table in tables.take(report.rows_embedded):
                writer.write(table)
            values |= {**part.settings, "featuremill.report": json.dumps(later_report(report))}
    with output.removing_parts():
        storage.delete([uri])


def merge_as(main: Output, side: Output) -> None:
    """Merges and splits the parts of an added feature until they have the rows of OUT's parts, in the same order.

    A merged part of OUT that has a unit which the added feature lacks is left for later.

    Raises:
        FeaturemillError: A part can't be read or written.
    """
    side.remove_leftovers()
    for name in side.listing.merged.keys() - main.listing.merged.keys():
        split_part(side, name)
    side.relist()
    for name, footer in main.listing.merged.items():
        names = [f"{report.unit_id}.parquet" for report in footer.reports]
        if name not in side.listing.names and set(names) <= set(side.listing.names):
            # In the order in which OUT's were merged, which decides between equal keys.
            merge_parts(side, names, before_commit=lambda: None)
            with side.removing_parts():
                storage.delete(side.path("features", name) for name in names)
    side.relist()


def rewrite(
    output: Output, uri: str, *, token: str, rows: Callable[[pa.Table], pa.Table], report: Callable[[dict], dict]
) -> bool:
    """Writes a part or a unit's failures anew under the same name, at once, with other values in the same rows.

    Args:
        uri: The file.
        token: Is put into the footer. A file that has it is left as it is, so this can be cut off and run again.
        rows: Changes a row group.
        report: Changes the report of a unit, as JSON.

    Returns:
        Whether it was written.

    Raises:
        FeaturemillError: It can't be read or written.
    """
    with _open(uri) as parquet:
        values, content = values_for_copy(parquet.metadata), content_of(parquet.metadata)
        if values.get(RELOCATION.encode()) == token.encode():
            return False
        schema = parquet.schema_arrow.remove_metadata()
        values[RELOCATION.encode()] = token.encode()
        for name, change in (
            (b"featuremill.report", lambda one: report({"part_sha256": content, **one})),
            (b"featuremill.reports", lambda all: [*map(report, all)]),
        ):
            if name in values:
                values[name] = json.dumps(change(json.loads(values[name]))).encode()
        # Until the new file is there, whole, the old one is.
        with _committed(output, uri, schema, lambda: None) as (writer, of_footer):
            for group in range(parquet.num_row_groups):
                table = rows(parquet.read_row_group(group).replace_schema_metadata(None)).cast(schema)
                writer.write(table)
            of_footer |= values
    return True


def _unit_numbers(uri: str, footer: Footer) -> np.ndarray:
    numbers = footer.unit_numbers().astype(np.int64)
    counts = np.bincount(numbers, minlength=len(footer.reports)).tolist()
    if counts != [report.rows_embedded for report in footer.reports]:
        raise FeaturemillError(f"{uri} doesn't hold the rows that its footer says; delete it and run extract again")
    return numbers


class _Rows:
    """Tables one after the other, handed out by numbers of rows."""

    def __init__(self, tables: Iterator[pa.Table]):
        self._tables = tables
        self._rest: pa.Table | None = None

    def take(self, count: int) -> Iterator[pa.Table]:
        """Yields the next `count` rows."""
        while count:
            table = self._rest if self._rest is not None else next(self._tables)
            yield table.slice(0, count)
            self._rest = table.slice(count) if count < len(table) else None
            count -= min(count, len(table))


def _rows_in_order(
    uris: Sequence[str], rows: Sequence[int], order: np.ndarray, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yields the rows of several parts, numbered through from 0, in the given order, a row group at a time."""
    size = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // max(1, vector_bytes(schema, schema.names))))
    firsts = np.cumsum([0, *rows])
    for start in range(0, len(order), size):
        window = order[start : start + size]
        ascending = np.sort(window)
        ends = np.searchsorted(ascending, firsts)
        tables = [_take(uris[i], ascending[ends[i] : ends[i + 1]] - firsts[i]) for i in np.flatnonzero(np.diff(ends))]
        yield pa.concat_tables(tables).take(np.searchsorted(ascending, window))


def _take(uri: str, rows: np.ndarray) -> pa.Table:
    """Reads rows of a part, whose numbers ascend; only row groups and batches that hold some are kept."""
    found = []
    with _open(uri) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
        size = max(1, min(ROW_GROUP_ROWS, _BATCH_BYTES // max(1, vector_bytes(schema, schema.names))))
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if np.searchsorted(rows, first) < np.searchsorted(rows, end):
                for batch in parquet.iter_batches(size, row_groups=[group]):
                    low, high = np.searchsorted(rows, [first, first + len(batch)])
                    if low < high:
                        found.append(batch.take(pa.array(rows[low:high] - first)))
                    first += len(batch)
            first = end
    return pa.Table.from_batches(found, found[0].schema).replace_schema_metadata(None).cast(schema)


def _open(uri: str) -> AbstractContextManager[pq.ParquetFile]:
    # Column chunks in pieces: a whole one is as large as its row group.
    return open_sealed(uri, cure="delete it and run extract again", buffer_size=2**20)


@contextmanager
def _committed(
    output: Output, final: str, schema: pa.Schema, before_commit: Callable[[], None]
) -> Iterator[tuple[SealedWriter, dict[str | bytes, str | bytes]]]:
    """Yields the writer of a part that appears under its name, whole, once the block ends without an error.

    With it comes what is to be filled with the values of its footer.
    """
    name = final.rsplit("/", 1)[-1]
    temporary = output.path("_tmp", f"{name.removesuffix('.parquet')}.{uuid.uuid4().hex}.parquet")
    values: dict[str | bytes, str | bytes] = {}
    with writing_part(name, output):
        storage.make_folder(output.path("_tmp"))
        with committed_file(final, temporary) as file:
            with sealed(file, schema, values, **PART_OPTIONS) as writer:
                yield writer, values
            storage.sync(file)
            # On an object store closing commits.
            before_commit()
        if storage.written_as(final, temporary) == final:
            # The upload took its time.
            try:
                before_commit()
            except FeaturemillError:
                # The parts that it was made of are all still there.
                storage.delete([final])
                raise
