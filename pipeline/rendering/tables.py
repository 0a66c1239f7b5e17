"""Rows as text, JSON, CSV and Parquet: what `query`, `sql`, `suspects` and the like hand out."""

import csv
import datetime
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.labels.kept import arrow_type, names_beside
from transforms.parquet.files import ParquetFile, open_sealed
from transforms.rows.lookup import StoredRow
from transforms.text import one_line, printable

_MOST_LETTERS = 100
# So many are in memory at once.
_TABLE_ROWS = 2**16
_ROW_FIELDS = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "label", "source")),
        ("position", pa.int64()),
        ("sha256", pa.binary()),
        *((name, pa.int32()) for name in ("width", "height")),
    ]
)


def write_stored_rows(
    path: str,
    own: Iterable[tuple[str, pa.DataType]],
    kept: Mapping[str, str],
    rows: Iterable[tuple[Mapping[str, Any], StoredRow]],
) -> None:
    """Writes stored rows as `write_rows` does: a command's own columns, those of a row, and those that came along.

    Args:
        own: The command's columns.
        kept: {column that came along: name of its type}.
        rows: The command's values, and the row.

    Raises:
        FeaturemillError: It can't be written there.
    """
    schema = pa.schema([*own, *_ROW_FIELDS])
    names = names_beside(kept, schema.names)
    schema = pa.schema([*schema, *((names[name], arrow_type(kind)) for name, kind in kept.items())])

    def tables() -> Iterator[pa.Table]:
        values = (_values(*pair) for pair in rows)
        while some := list(islice(values, _TABLE_ROWS)):
            yield pa.Table.from_pylist(some, schema)

    write_rows(path, tables(), schema)


def _values(own: Mapping[str, Any], row: StoredRow) -> dict[str, Any]:
    values = {**own, **{field.name: getattr(row, field.name) for field in _ROW_FIELDS}}
    names = names_beside(row.kept, values)
    return values | {names[name]: value for name, value in row.kept.items()}


def row_json(own: Mapping[str, Any], row: StoredRow) -> dict[str, Any]:
    """Returns a command's own values, a row's, and those that came along with it, for programs."""
    return {name: value if name in own else as_json(value) for name, value in _values(own, row).items()}


def as_json(value: Any) -> Any:
    """Returns a value as JSON has it: bytes as hexadecimal digits, NaN and infinity as null, times as text.

    Decimals are text, but those without a fraction, such as DuckDB's sums of integers, are integers.
    """
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def text_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table for the terminal; text of others' is made printable, and long text cut in its middle."""
    table = [tuple(names), *(tuple(map(cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def cell(value: Any) -> str:
    value = as_json(value)
    return "–" if value is None else printable(f"{value:.6g}" if isinstance(value, float) else value, _MOST_LETTERS)


def write_csv(stream: TextIO, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the rows as CSV with a header; null is empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([as_json(value) for value in row] for row in rows)


def _write_text(file: BinaryIO, path: str, tables: Iterable[pa.Table | pa.RecordBatch], names: Sequence[str]) -> None:
    rows = (row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True))
    # Keys may hold what is no text.
    stream = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    if path.lower().endswith(".csv"):
        # Lists as JSON, which readers know; Python's own form is nobody else's.
        write_csv(stream, names, ([json.dumps(as_json(v)) if isinstance(v, list) else v for v in row] for row in rows))
    else:
        for row in rows:
            values = {name: as_json(value) for name, value in zip(names, row, strict=True)}
            stream.write(json.dumps(values, ensure_ascii=False) + "\n")
    stream.detach()


def write_rows_of(parts: Sequence[str], path: str) -> int:
    """Writes the rows of Parquet files, all of one schema, to one file as `write_rows` does; returns how many.

    Raises:
        FeaturemillError: A part can't be read, or the file can't be written.
    """
    opened = partial(open_sealed, cure="predict again with --overwrite")
    rows = 0

    def batches(first: ParquetFile) -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for part in parts:
            with nullcontext(first) if part == parts[0] else opened(part) as parquet:
                for batch in parquet.iter_batches(16_384):
                    rows += len(batch)
                    yield batch

    with opened(parts[0]) as first:
        write_rows(path, batches(first), first.schema_arrow.remove_metadata())
    return rows


def write_rows(path: str, tables: Iterable[pa.Table | pa.RecordBatch], schema: pa.Schema) -> None:
    """Writes tables to one file, whole or not at all: CSV, JSON lines or Parquet, as its ending says.

    Raises:
        FeaturemillError: It can't be written there, or Parquet has no such type.
    """
    path = os.path.abspath(os.path.expanduser(path))
    try:
        with committed_file(path) as file:
            if not path.lower().endswith(".parquet"):
                _write_text(file, path, tables, schema.names)
                return
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
                for table in tables:
                    writer.write(table)
    except OSError as error:
        raise FeaturemillError(f"cannot write {path}: {one_line(error)}; choose another --output") from error
    except pa.ArrowException as error:
        raise FeaturemillError(f"cannot write {path}: {one_line(error)}; leave that column out, or cast it") from error
