"""units.parquet and skipped.parquet: what each unit came to, and which files are in none; read, written, added up."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import pyarrow as pa

from transforms import storage
from transforms.parquet.files import open_sealed
from transforms.parquet.seals import sealed
from transforms.records import FileInfo, SkippedFile, UnitReport
from transforms.store.manifest import Totals
from transforms.text import clean, counted

UNITS_PER_GROUP = 65_536
_CONTENT = ("unit_id", "source", "start", "stop", "rows_read", "rows_embedded", "rows_failed")
_CONTENT += ("part_sha256", "failures_sha256")
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(f.name, _ARROW.get(f.type, pa.string())) for f in fields(UnitReport)])
_SKIPPED = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("reason", pa.string())])


def add_up(reports: Iterable[UnitReport]) -> Totals:
    """Returns the sums over the reports."""
    reports = list(reports)
    sums = {f.name: sum(getattr(report, f.name) for report in reports) for f in fields(Totals) if f.name != "units"}
    return Totals(units=len(reports), **sums)


def parts_sha256(reports: Iterable[UnitReport]) -> str:
    """Returns the SHA-256 (hex) over what all reports say of their parts' content, in whatever order they come.

    Merging, splitting and compacting parts doesn't change it, nor does a worker that does a unit once more.
    """
    lines = (json.dumps({name: getattr(report, name) for name in _CONTENT}) for report in reports)
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(line.encode()).digest() for line in lines))).hexdigest()


def add_notes(reports: Iterable[UnitReport]) -> dict[str, int]:
    """Returns {note: records} summed over the reports, the commonest first."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.notes)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def note_lines(notes: Mapping[str, int]) -> list[str]:
    """Returns the notes for people."""
    return [f"{counted(count, 'image')} {note}" for note, count in notes.items()]


def read_units(uri: str) -> list[UnitReport]:
    """Returns what units.parquet holds; nothing if it isn't there yet."""
    if storage.stat(uri) is None:
        return []
    with open_sealed(uri, cure="delete it and run featuremill extract again") as parquet:
        # What earlier versions didn't write has a default.
        names = [name for name in _SCHEMA.names if name in parquet.schema_arrow.names]
        # By columns: a million rows as dictionaries would take two gigabytes.
        batches = parquet.iter_batches(columns=names)
        columns = (
            [[json.loads(v) for v in batch[n].to_pylist()] if n == "notes" else batch[n].to_pylist() for n in names]
            for batch in batches
        )
        return [UnitReport(**dict(zip(names, row, strict=True))) for some in columns for row in zip(*some, strict=True)]


def units_table(reports: Sequence[UnitReport]) -> pa.Table:
    """Returns the reports as a table, one row per unit; the notes are JSON."""
    values = [
        [json.dumps(r.notes) if f.name == "notes" else getattr(r, f.name) for r in reports] for f in fields(UnitReport)
    ]
    return pa.table([pa.array(v, f.type) for v, f in zip(values, _SCHEMA, strict=True)], schema=_SCHEMA)


def units_file(reports: Sequence[UnitReport]) -> bytes:
    """Returns units.parquet, one row per unit."""
    buffer = io.BytesIO()
    with sealed(buffer, _SCHEMA) as writer:
        for first in range(0, len(reports), UNITS_PER_GROUP):
            writer.write(units_table(reports[first : first + UNITS_PER_GROUP]))
    return buffer.getvalue()


def read_skipped(uri: str) -> list[SkippedFile]:
    """Returns the files that a list names, without their versions; none where nothing was skipped.

    Raises:
        FeaturemillError: The list can't be read.
    """
    if storage.stat(uri) is None:
        return []
    with open_sealed(uri, cure="delete it and run extract again") as parquet:
        columns = parquet.read(_SKIPPED.names).cast(_SKIPPED).to_pydict().values()
    return [SkippedFile(FileInfo(uri, size, ""), reason) for uri, size, reason in zip(*columns, strict=True)]


def skipped_file(skipped: Sequence[SkippedFile]) -> bytes:
    """Returns the list, one row per file."""
    columns = [
        [clean(each.file.uri) for each in skipped],
        [each.file.size for each in skipped],
        [clean(each.reason) for each in skipped],
    ]
    buffer = io.BytesIO()
    table = pa.table([pa.array(column, f.type) for column, f in zip(columns, _SKIPPED, strict=True)], schema=_SKIPPED)
    with sealed(buffer, _SKIPPED) as writer:
        writer.write(table)
    return buffer.getvalue()
