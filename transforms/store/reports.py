"""units.parquet: what each unit came to, written, read and added up."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.records import UnitReport
from transforms.store.layout import write_file
from transforms.store.manifest import Totals
from transforms.text import one_line

UNITS_PER_GROUP = 65_536


def add_up(reports: Iterable[UnitReport]) -> Totals:
    """Returns the sums over the reports."""
    reports = list(reports)
    sums = {f.name: sum(getattr(report, f.name) for report in reports) for f in fields(Totals) if f.name != "units"}
    return Totals(units=len(reports), **sums)


def units_uri(output: str) -> str:
    return storage.join(output, "units.parquet")


def read_units(output: str) -> list[UnitReport]:
    """Returns what units.parquet holds; nothing if it isn't there yet."""
    uri = units_uri(output)
    if storage.stat(uri) is None:
        return []
    try:
        with storage.open_read(uri) as file:
            batches = pq.ParquetFile(file).iter_batches(columns=[f.name for f in fields(UnitReport)])
            # By columns: a million rows as dictionaries would take two gigabytes.
            columns = ((batch.schema.names, [column.to_pylist() for column in batch.columns]) for batch in batches)
            # By name: what an earlier version didn't count isn't there.
            return [
                UnitReport(**dict(zip(names, row, strict=True)))
                for names, some in columns
                for row in zip(*some, strict=True)
            ]
    except (OSError, TypeError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"cannot read {uri}: {one_line(error)}; delete it and run featuremill extract again"
        ) from error


def write_units(output: str, reports: Sequence[UnitReport]) -> None:
    """Writes units.parquet, one row per unit; what no unit counted has no column, as in an OUT made earlier."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    there = [f for f in fields(UnitReport) if any(getattr(report, f.name) != f.default for report in reports)]
    schema = pa.schema([(f.name, arrow[f.type]) for f in fields(UnitReport) if f in there or f.default is MISSING])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for first in range(0, len(reports), UNITS_PER_GROUP):
            some = reports[first : first + UNITS_PER_GROUP]
            columns = [pa.array([getattr(report, f.name) for report in some], f.type) for f in schema]
            writer.write_table(pa.table(columns, schema=schema))
    write_file(output, "units.parquet", buffer.getvalue())


def parquet_rows(uri: str) -> int:
    """Returns the rows of a Parquet file by its footer, 0 if it can't be read."""
    try:
        with storage.open_read(uri) as file:
            return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return 0
