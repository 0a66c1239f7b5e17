"""Rows as text, JSON, CSV and Parquet: what `query`, `sql`, `duplicates` and `outliers` hand out."""

import csv
import datetime
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.rows.lookup import StoredRow
from transforms.text import one_line, printable

_MOST_LETTERS = 100


def row_fields() -> list[pa.Field]:
    """Returns the Arrow fields of `row_values`."""
    texts = [pa.field(name, pa.string()) for name in ("key", "label", "source")]
    sizes = [pa.field(name, pa.int32()) for name in ("width", "height")]
    return [*texts, pa.field("position", pa.int64()), pa.field("sha256", pa.binary()), *sizes]


def row_values(row: StoredRow) -> dict[str, Any]:
    """Returns a row's own columns."""
    return {name: value for name, value in asdict(row).items() if name not in ("row", "part", "part_row")}


def row_json(row: StoredRow) -> dict[str, Any]:
    """Returns a row's own columns for programs."""
    return {name: as_json(value) for name, value in row_values(row).items()}


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
    table = [tuple(names), *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    value = as_json(value)
    return "–" if value is None else printable(f"{value:.6g}" if isinstance(value, float) else value, _MOST_LETTERS)


def write_csv(stream: TextIO, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the rows as CSV with a header; null is empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([as_json(value) for value in row] for row in rows)


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def write_parquet(path: str, tables: Iterable[pa.Table | pa.RecordBatch], schema: pa.Schema) -> None:
    """Writes tables to one Parquet file, whole or not at all.

    Raises:
        FeaturemillError: It can't be written there, or Parquet has no such type.
    """
    path = os.path.abspath(os.path.expanduser(path))
    try:
        with committed_file(path) as file, _writer(file, schema) as writer:
            for table in tables:
                writer.write(table)
    except OSError as error:
        raise FeaturemillError(f"cannot write {path}: {one_line(error)}; choose another --output") from error
    except pa.ArrowException as error:
        raise FeaturemillError(f"cannot write {path}: {one_line(error)}; leave that column out, or cast it") from error
