"""Plain image files: listings cut into units, and read ahead by a few threads; tables that name them."""

import csv
import errno
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.isolated import Crashed
from transforms.labels.folders import LABEL_NAMES
from transforms.labels.kept import as_plain
from transforms.labels.values import as_label
from transforms.machine import ahead
from transforms.object_stores import is_answer
from transforms.parquet.files import APART
from transforms.records import LISTING, EncodedImage, Failure, FileInfo, ListedFile, Shard, Unit
from transforms.shards import parquet
from transforms.shards.fields import Fields, missing, usual
from transforms.shards.names import common_folder
from transforms.shards.stream import MAX_ENCODED_BYTES
from transforms.text import clean, one_line

# Enough to hide the latency of an object store; a local disk gains little and loses nothing.
_THREADS = 8
_AHEAD_FILES = 32
_AHEAD_BYTES = 64 << 20
# The machine's trouble, not the file's: going on would list good images as failures.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def slice_files(files: Sequence[ListedFile], per_unit: int) -> list[Unit]:
    """Cuts a listing into units of at most `per_unit` files, in order.

    Each unit is a listing of its own: it starts at 0, and its shard names the deepest common folder of its files, their
    bytes and a version made of their URIs, sizes and versions. So a unit's identity doesn't change when files are added
    elsewhere in the listing. A unit never crosses from one store or bucket to another.
    """
    units = []
    for _, group in groupby(files, key=lambda listed: _root(listed.file.uri)):
        listing = tuple(group)
        units += [_unit(listing[i : i + per_unit]) for i in range(0, len(listing), per_unit)]
    return units


def _root(uri: str) -> str:
    return "/" if storage.is_local(uri) else "/".join(uri.split("/", 3)[:3])


def _unit(files: tuple[ListedFile, ...]) -> Unit:
    size = sum(listed.file.size for listed in files)
    version = hashlib.sha256()
    for listed in files:
        info = listed.file
        version.update(f"{info.uri}\0{info.size}\0{info.version}\0".encode("utf-8", "surrogateescape"))
    uris = [listed.file.uri for listed in files]
    folder = FileInfo(common_folder(min(uris), max(uris)) or "/", size, version.hexdigest())
    return Unit(Shard(folder, LISTING), 0, len(files), input_bytes=size, files=files)


@dataclass(frozen=True)
class TableRow:
    """A row of a table of paths: the path as it stands there, the label, and the rest as `ListedFile.kept` has it."""

    path: str
    label: str | None
    kept: str


def read_table(file: FileInfo, fields: Fields) -> tuple[list[TableRow], dict[str, str]]:
    """Reads a table of paths, Parquet by its ending, else CSV or TSV.

    Returns:
        Its rows, and {column: name of its type} of what can come along.

    Raises:
        FeaturemillError: It can't be read, lacks a column, or has a row without a path or with no usable label.
    """
    table = Shard(file, "parquet")
    is_parquet = parquet.FORMAT.ending.search(file.uri) is not None
    types = parquet.table_columns(table) if is_parquet else dict.fromkeys(_csv_header(file), "string")
    for role, name in (("path", fields.path), ("label", fields.label)):
        if name and name not in types:
            raise missing(file.uri, role=role, wanted=name, present=types)
    label = usual(LABEL_NAMES, types) if fields.label is None else fields.label
    # A column that only some tables have is missing in the others' rows.
    kept = [name for name in fields.keep if name in types]
    columns = [fields.path, *([label] if label else []), *kept]
    if is_parquet:
        try:
            found = chain.from_iterable(APART.iterate(parquet.table_rows, replace(table, label_field=label), columns))
            rows = [_table_row(file, n, row, label, kept) for n, row in enumerate(found)]
        except Crashed as error:
            raise FeaturemillError(f"cannot read {clean(file.uri)}: {error}; write it again") from error
    else:
        rows = [_table_row(file, n, row, label, kept) for n, row in enumerate(_csv_rows(file, columns))]
    return rows, types


def _table_row(file: FileInfo, number: int, row: Sequence[object], label: str, kept: Sequence[str]) -> TableRow:
    path, *values = row
    path = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    text, why = as_label(values.pop(0)) if label else (None, "")
    if why or not isinstance(path, str) or not path:
        what = f"a {label} that can't be a label ({why})" if why else "no path"
        option = "--label-field NAME for another column, or ''" if why else "--path-field NAME for another column"
        raise FeaturemillError(f"row {number} of {clean(file.uri)} has {what}; correct it, or pass {option}")
    return TableRow(path, text, json.dumps(dict(zip(kept, values, strict=True)), sort_keys=True, default=as_plain))


@contextmanager
def _csv(file: FileInfo) -> Iterator[Iterator[list[str]]]:
    delimiter = "\t" if file.uri.lower().endswith(".tsv") else ","
    try:
        with io.TextIOWrapper(storage.open_read(file.uri), "utf-8-sig", newline="") as text:
            yield csv.reader(text, delimiter=delimiter, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        cause = clean(one_line(error))
        raise FeaturemillError(f"cannot read {clean(file.uri)}: {cause}; save it as CSV in UTF-8") from error


def _csv_header(file: FileInfo) -> list[str]:
    with _csv(file) as lines:
        return next(lines, [])


def _csv_rows(file: FileInfo, columns: Sequence[str]) -> Iterator[list[str | None]]:
    with _csv(file) as lines:
        header = next(lines)
        at = [header.index(name) for name in columns]
        for number, line in enumerate(filter(None, lines)):
            if len(line) != len(header):
                raise FeaturemillError(
                    f"row {number} of {clean(file.uri)} has {len(line)} values, and its header {len(header)} names; "
                    "put values with commas in quotes"
                )
            yield [line[i] or None for i in at]


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the files of a unit, in order; one that has vanished or can't be read is a failure.

    Raises:
        FeaturemillError: The folder of the listing can't be reached any more, a store is in trouble, or the machine
            runs out of file handles.
    """
    limits = {"threads": _THREADS, "most": _AHEAD_FILES, "most_bytes": _AHEAD_BYTES}
    with closing(ahead(_read, unit.files, size=lambda listed: listed.file.size, **limits)) as found:
        for listed, data in zip(unit.files, found, strict=True):
            yield _row(unit.shard, listed, data)


def _read(listed: ListedFile) -> bytes | OSError:
    try:
        with storage.open_read(listed.file.uri) as file:
            return file.read(MAX_ENCODED_BYTES + 1)
    except OSError as error:
        return error


def _row(shard: Shard, listed: ListedFile, data: bytes | OSError) -> EncodedImage | Failure:
    uri = listed.file.uri
    key = clean(uri)
    if isinstance(data, OSError):
        error = data
        if not listed.is_missing and not _is_files_own(error, shard.file.uri, uri):
            folder = clean(shard.file.uri)
            cure = f"bring its folder {folder} back (or free the machine's resources)"
            if not storage.is_local(uri):
                cure = f"see that {folder} can be reached"
            message = f"cannot read {key}: {clean(one_line(error))}; {cure}"
            raise FeaturemillError(f"{message} and run the same command again: it resumes") from error
        reason = "vanished" if isinstance(error, FileNotFoundError) or error.errno == errno.ENOENT else "unreadable"
        message = f"cannot read {key}: {clean(one_line(error))}"
    else:
        if len(data) <= MAX_ENCODED_BYTES:
            values = json.loads(listed.kept) if listed.kept and shard.keep else {}
            kept = tuple(values.get(column.name) for column in shard.keep)
            return EncodedImage(key, listed.label, key, 0, data, split=listed.split, kept=kept)
        reason, message = "too large", f"{key} has over {MAX_ENCODED_BYTES} bytes, the most that is read"
    return Failure(key, listed.label, key, 0, "read", reason, message)


def _is_files_own(error: OSError, folder: str, uri: str) -> bool:
    """Returns whether only this file can't be read; with the machine or a store in trouble, good images can't be."""
    if error.errno in _OUT_OF_RESOURCES:
        return False
    try:
        # Stores other than S3 and Google's don't say that a file isn't there; they are asked.
        is_own = storage.is_local(uri) or is_answer(error) or storage.stat(uri) is None
        return is_own and storage.is_folder(folder)
    except FeaturemillError:
        return False
