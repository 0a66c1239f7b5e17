"""Label files as people have them (CSV of any delimiter, JSON lines, Parquet), recognised by their bytes."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet.files import ParquetFile
from transforms.shards import fields
from transforms.shards.detect import foreign_packing
from transforms.text import marked_encoding, one_line, short

VALID = "CSV with a header, JSON lines or Parquet"
# The header, the delimiter and the names of JSON's columns are found in so many bytes.
_LOOKED_AT = 2**18
_ROWS_LOOKED_AT = 200
_DELIMITERS = ",;\t|"
# Rows longer than this are refused by Arrow.
_BLOCK_BYTES = 2**23
_JSON_ROWS = 100_000
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0", "is an old spreadsheet (.xls); save the sheet as CSV (UTF-8)"),
    (b"ARROW1", "is an Arrow file; write it as Parquet"),
)

# From the names of a file's columns, those that are wanted by what they are.
Choose = Callable[[list[str]], Mapping[str, str]]


class _Unreadable(Exception):
    """A file can't be read; cause and cure, as the end of a sentence that begins with its name."""


def read_columns(path: str, choose: Choose) -> tuple[dict[str, pa.ChunkedArray], Mapping[str, str]]:
    """Reads some columns of a label file.

    Args:
        path: The file, or an object. What it is shows in its bytes; gzip around it is opened.
        choose: Gets the names of all columns, without blanks around them, and returns {role: name}; may raise.

    Returns:
        {role: column} as the file has them, text but for Parquet; and what was chosen.

    Raises:
        FeaturemillError: Not there, not readable, in an encoding that isn't known, or with a column twice.
    """
    try:
        with storage.open_read(path) as file:
            return _read(file, _checked(choose, path))
    except FileNotFoundError as error:
        raise FeaturemillError(f"there is no file of labels {path}; check the path") from error
    except _Unreadable as error:
        raise FeaturemillError(f"{path} can't be read as labels: it {error}") from error
    except (OSError, EOFError, zlib.error, ValueError, KeyError, RecursionError, csv.Error, pa.ArrowException) as error:
        # What is damaged fails in as many ways as there are layers: gzip, letters, Parquet's names of columns.
        raise FeaturemillError(f"{path} can't be read as labels ({one_line(error)}); pass {VALID}") from error


def _checked(choose: Choose, path: str) -> Choose:
    def chosen(names: list[str]) -> Mapping[str, str]:
        columns = choose(names)
        for name in columns.values():
            if names.count(name) > 1:
                raise FeaturemillError(f"{path} has several columns {name!r}; rename all but one")
        return columns

    return chosen


def _read(file: BinaryIO, choose: Choose) -> tuple[dict[str, pa.ChunkedArray], Mapping[str, str]]:
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as packed:
            return _read(packed, choose)
    packing = foreign_packing(start)
    if packing == "zip":
        raise _Unreadable("is a spreadsheet or a zip file; save the sheet as CSV (UTF-8)")
    if packing:
        raise _Unreadable("is packed in a way that isn't read; unpack it, or pack it with gzip")
    for magic, cure in _FOREIGN:
        if start.startswith(magic):
            raise _Unreadable(cure)
    if start.startswith(b"PAR1"):
        return _read_parquet(file, choose)
    file = _as_utf8(file, start)
    origin = file.tell()
    sample = file.read(_LOOKED_AT)
    file.seek(origin)
    if not sample.strip():
        raise _Unreadable(f"is empty; pass {VALID}")
    if b"\0" in sample:
        raise _Unreadable("holds NUL bytes, as UTF-16 without its mark and binary files do; save it as UTF-8 text")
    first = sample.lstrip()[:1]
    if first == b"[":
        raise _Unreadable("is one JSON list; write an object to a line (jq -c '.[]' FILE > labels.jsonl), or CSV")
    return (_read_json if first == b"{" else _read_csv)(file, sample, choose)


def _as_utf8(file: BinaryIO, start: bytes) -> BinaryIO:
    """Returns the file at its first letter, with UTF-16 and UTF-32 made UTF-8 in memory: spreadsheets are small."""
    encoding = marked_encoding(start)
    if encoding == "utf-8-sig":
        file.seek(len(codecs.BOM_UTF8))
    if encoding.startswith("utf-8"):
        return file
    try:
        return io.BytesIO(file.read().decode(encoding).encode())
    except UnicodeError as error:
        raise _Unreadable(f"begins as {encoding.upper()} and isn't ({error}); save it as UTF-8") from error


def _read_parquet(file: BinaryIO, choose: Choose) -> tuple[dict[str, pa.ChunkedArray], Mapping[str, str]]:
    parquet = ParquetFile(file)
    names = parquet.schema_arrow.names
    columns = choose(names)
    table = parquet.read([*dict.fromkeys(columns.values())])
    return {role: table.column(name) for role, name in columns.items()}, columns


def _read_csv(file: BinaryIO, sample: bytes, choose: Choose) -> tuple[dict[str, pa.ChunkedArray], Mapping[str, str]]:
    # Latin-1 only to look for what is ASCII in UTF-8 too: a letter is a byte, so places are the file's.
    text = sample.decode("latin-1")
    names, delimiter, rows_at = _header(text, cut=len(sample) == _LOOKED_AT)
    try:
        columns = choose([name.encode("latin-1").decode().strip() for name in names])
        raw = {name.encode("latin-1").decode().strip(): str(number) for number, name in enumerate(names)}
        file.seek(file.tell() + rows_at)
        # As text: 007 is a label, not 7. Only an empty field is none; the default also takes "NA" and "null" for that.
        wanted = list(dict.fromkeys(raw[name] for name in columns.values()))
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(
                column_names=[str(number) for number in range(len(names))], block_size=_BLOCK_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                # Comments have other numbers of columns.
                invalid_row_handler=lambda row: "skip" if row.text.startswith("#") else "error",
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: pa.string() for name in wanted},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except UnicodeDecodeError as error:
        raise _Unreadable(_not_utf8()) from error
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise _Unreadable(_not_utf8()) from error
        if "Empty CSV" in str(error):
            table = pa.table({name: pa.array([], pa.string()) for name in wanted})
        else:
            raise
    for name in wanted:
        _check_quotes(table.column(name), delimiter)
    return {role: table.column(raw[name]) for role, name in columns.items()}, columns


def _check_quotes(column: pa.ChunkedArray, delimiter: str) -> None:
    """Raises where a value is of several lines that look like rows: a quote isn't closed, and they would be lost."""
    swallowed = column.filter(pc.match_substring_regex(column, rf"[\r\n][^\r\n]*[{delimiter}]"))
    if len(swallowed):
        raise _Unreadable(
            f"has a quote that isn't closed, before {short(swallowed[0].as_py())!r}; close it, or double it "
            "where it is meant"
        )


def _not_utf8() -> str:
    return (
        "isn't UTF-8; save it as UTF-8 (of a file from Windows: iconv -f WINDOWS-1252 -t UTF-8 FILE > labels.csv), "
        "since a guess could spell names wrong"
    )


def _header(text: str, *, cut: bool) -> tuple[list[str], str, int]:
    """Returns (names, delimiter, length of what stands before the rows); lines with # before the header are passed.

    Args:
        text: The beginning of the file.
        cut: Whether it goes on after that, so that the last row may be half.
    """
    start = 0
    for line in io.StringIO(text, newline=""):
        if line.strip() and not line.startswith("#"):
            break
        start += len(line)
    best = None
    for delimiter in _DELIMITERS:
        lines = io.StringIO(text[start:], newline="")
        try:
            reader = csv.reader(lines, delimiter=delimiter)
            names = next(reader, [])
            end = lines.tell()
            rows = [row for row in islice(reader, _ROWS_LOOKED_AT) if row]
        except csv.Error:
            continue
        rows = rows[:-1] if cut and len(rows) > 1 else rows
        fitting = sum(len(row) == len(names) for row in rows)
        rank = len(names) > 1, fitting == len(rows), fitting, len(names)
        if best is None or rank > best[0]:
            best = rank, names, delimiter, start + end
    if best is None:
        raise _Unreadable(f"has no header that can be read; pass {VALID}")
    return best[1], best[2], best[3]


def _read_json(file: BinaryIO, sample: bytes, choose: Choose) -> tuple[dict[str, pa.ChunkedArray], Mapping[str, str]]:
    rows = _json_rows(file)
    first = list(islice(rows, _ROWS_LOOKED_AT))
    columns = choose(list(dict.fromkeys(name for row in first for name in row)))
    rows = enumerate(chain(first, rows), 1)
    chunks: dict[str, list[pa.Array]] = {role: [] for role in columns}
    while some := list(islice(rows, _JSON_ROWS)):
        for role, name in columns.items():
            chunks[role].append(pa.array([_json_text(row, name, number) for number, row in some], pa.string()))
    return {role: pa.chunked_array(arrays) for role, arrays in chunks.items()}, columns


def _json_rows(file: BinaryIO) -> Iterator[dict]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise _Unreadable(_not_utf8()) from error
        except (ValueError, RecursionError) as error:
            raise _Unreadable(
                f"holds no JSON in line {number} ({one_line(error)}); write an object to a line (jq -c . FILE), or CSV"
            ) from error
        if not isinstance(row, dict):
            raise _Unreadable(f"holds no JSON object in line {number}; write an object to a line, or CSV")
        yield row


def _json_text(row: dict, name: str, number: int) -> str | None:
    try:
        return fields.as_text(row.get(name))
    except fields.WrongFieldError as error:
        raise _Unreadable(
            f"has a {name!r} in row {number} that can't be used ({error}); give text or a number"
        ) from error
