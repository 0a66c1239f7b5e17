"""units.parquet and skipped.parquet: what each unit came to, and which files are in none; read, written, added up."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.records import FileInfo, SkippedFile, UnitReport
from transforms.store.layout import SKIPPED_FILE, write_file
from transforms.store.manifest import Totals
from transforms.text import clean, counted, one_line

UNITS_PER_GROUP = 65_536
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(f.name, _ARROW.get(f.type, pa.string())) for f in fields(UnitReport)])
_SKIPPED = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("reason", pa.string())])


def add_up(reports: Iterable[UnitReport]) -> Totals:
    """Returns the sums over the reports."""
    reports = list(reports)
    sums = {f.name: sum(getattr(report, f.name) for report in reports) for f in fields(Totals) if f.name != "units"}
    return Totals(units=len(reports), **sums)


def add_notes(reports: Iterable[UnitReport]) -> dict[str, int]:
    """Returns {note: records} summed over the reports, the commonest first."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.notes)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def note_lines(notes: Mapping[str, int]) -> list[str]:
    """Returns the notes for people."""
    return [f"{counted(count, 'image')} {note}" for note, count in notes.items()]


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
            columns = ([column.to_pylist() for column in batch.columns] for batch in batches)
            return [_report(row) for some in columns for row in zip(*some, strict=True)]
    except (OSError, TypeError, ValueError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"cannot read {uri}: {one_line(error)}; delete it and run featuremill extract again"
        ) from error


def _report(row: tuple) -> UnitReport:
    """Returns the report of a row of units.parquet; one of an earlier version has no notes."""
    *values, last = row
    return UnitReport(*row) if len(row) < len(_SCHEMA) else UnitReport(*values, json.loads(last))


def units_table(reports: Sequence[UnitReport]) -> pa.Table:
    """Returns the reports as a table, one row per unit; the notes are JSON."""
    values = [
        [json.dumps(r.notes) if f.name == "notes" else getattr(r, f.name) for r in reports] for f in fields(UnitReport)
    ]
    return pa.table([pa.array(v, f.type) for v, f in zip(values, _SCHEMA, strict=True)], schema=_SCHEMA)


def write_units(output: str, reports: Sequence[UnitReport]) -> None:
    """Writes units.parquet, one row per unit."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, _SCHEMA, compression="zstd") as writer:
        for first in range(0, len(reports), UNITS_PER_GROUP):
            writer.write_table(units_table(reports[first : first + UNITS_PER_GROUP]))
    write_file(output, "units.parquet", buffer.getvalue())


def parquet_rows(uri: str) -> int:
    """Returns the rows of a Parquet file by its footer, 0 if it can't be read."""
    try:
        with storage.open_read(uri) as file:
            return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return 0


def read_skipped(output: str) -> list[SkippedFile]:
    """Returns the files that OUT lists, without their versions; none where nothing was skipped.

    Raises:
        FeaturemillError: The list can't be read.
    """
    uri = storage.join(output, SKIPPED_FILE)
    if storage.stat(uri) is None:
        return []
    try:
        with storage.open_read(uri) as file:
            columns = pq.read_table(file, schema=_SKIPPED).to_pydict().values()
    except (OSError, pa.ArrowException) as error:
        raise FeaturemillError(f"cannot read {uri}: {one_line(error)}; delete it and run extract again") from error
    return [SkippedFile(FileInfo(uri, size, ""), reason) for uri, size, reason in zip(*columns, strict=True)]


def write_skipped(output: str, skipped: Sequence[SkippedFile]) -> None:
    """Writes the list, one row per file; no files, no list."""
    if not skipped:
        storage.delete([storage.join(output, SKIPPED_FILE)])
        return
    columns = [
        [clean(each.file.uri) for each in skipped],
        [each.file.size for each in skipped],
        [clean(each.reason) for each in skipped],
    ]
    buffer = io.BytesIO()
    table = pa.table([pa.array(column, f.type) for column, f in zip(columns, _SKIPPED, strict=True)], schema=_SKIPPED)
    pq.write_table(table, buffer, compression="zstd")
    write_file(output, SKIPPED_FILE, buffer.getvalue())
