"""Parquet with encoded images: a column of bytes, or Hugging Face's struct of `bytes` and `path`."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.isolated import Crashed
from transforms.labels.folders import LABEL_NAMES
from transforms.labels.kept import KEPT_BYTES, type_name
from transforms.labels.values import as_label
from transforms.parquet.files import APART, Footer, look_at_footer
from transforms.parquet.pages import Pages, check_header, chunk_of, chunks_of, read_header
from transforms.records import EncodedImage, Failure, FileInfo, Shard, Unit
from transforms.shards.fields import OPTIONS, Fields, NoImageError, choose, missing, name_or, usual
from transforms.shards.format import Format
from transforms.shards.stream import MAX_ENCODED_BYTES, failure
from transforms.text import clean, one_line

IMAGE_COLUMNS = ("image", "image/encoded", "bytes", "img", "jpg", "png", "content")
NAME_COLUMNS = ("file_name", "filename", "path", "key")
# Rows in memory at a time: this many, or fewer where they may be large.
_BATCH_ROWS = 64
_BATCH_BYTES = 256 << 20
# More than a dictionary's header ever has.
_DICTIONARY_HEADER_BYTES = 256
# What is read at once of a column: without a limit, Arrow reads the column of a whole row group.
_BUFFER_BYTES = 4 << 20
# Footers that are remembered, since a plan asks for each up to three times: so many, of so many columns and groups.
_FOOTERS, _FOOTER_ITEMS = 4096, 256
_TIMES = {pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")}
_FLOATS = {pa.float16(): np.float16, pa.float32(): np.float32}


class _Watched:
    """A file that remembers its own errors: Arrow reports damaged data as OSError too."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: Exception | None = None

    def _call(self, method, *arguments):
        try:
            return method(*arguments)
        except Exception as error:
            self.error = error
            raise

    def read(self, count: int = -1) -> bytes:
        return self._call(self._file.read, count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._call(self._file.seek, offset, whence)


class _DamagedError(Exception):
    """Arrow can't read what is in the file."""


@contextmanager
def _damage(watched: _Watched) -> Iterator[None]:
    """Turns Arrow's errors about the data into _DamagedError; an error of the file itself rises as it is."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, Crashed) as error:
        if watched.error is not None:
            raise watched.error from error
        raise _DamagedError(one_line(error)) from error


def _open(watched: _Watched) -> tuple[pq.ParquetFile, Pages]:
    with _damage(watched):
        pages = Pages(watched, in_parts=True)
        opened = pq.ParquetFile(
            pages, buffer_size=_BUFFER_BYTES, pre_buffer=False, memory_map=False, page_checksum_verification=True
        )
        # Here, because it fails where a name isn't UTF-8.
        _kinds(opened.schema_arrow)
        return opened, pages


_footers: dict[FileInfo, Footer] = {}


def _footer(shard: Shard) -> Footer:
    """Returns the facts of a shard's footer; raises _DamagedError if there are none to be had."""
    # Of this version of the file; on a store, looking is a request, too.
    if shard.file in _footers:
        return _footers[shard.file]
    with storage.open_read(shard.file.uri) as file:
        watched = _Watched(file)
        with _damage(watched):
            footer = look_at_footer(watched)
    if len(footer.schema) + len(footer.rows) <= _FOOTER_ITEMS and shard.file.version:
        if len(_footers) >= _FOOTERS:
            _footers.clear()
        _footers[shard.file] = footer
    return footer


def resolve(shard: Shard, fields: Fields) -> tuple[str, str, str]:
    """Returns the columns of the image, label and name, from the schema; `image.bytes` is a field of a struct.

    Where the footer is damaged, what was asked for is taken, and reading reports the damage.

    Raises:
        FeaturemillError: A column that was asked for isn't there or holds no bytes, or several could be the image.
    """
    try:
        schema = _footer(shard).schema
    except _DamagedError:
        return fields.image or "", fields.label or "", fields.name or ""
    leaves = _leaves(schema)
    image = _image_column(shard, leaves, fields.image)
    # In a struct, the name lies beside the bytes.
    beside = (f"{image.rpartition('.')[0]}.path",) if "." in image else ()
    return (
        image,
        _optional(shard, schema, "label", asked=fields.label, names=LABEL_NAMES),
        _optional(shard, schema, "name", asked=fields.name, names=(*beside, *NAME_COLUMNS)),
    )


def _leaves(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Returns the columns and the fields of structs, by dotted path."""
    leaves = {}
    todo = [(field.name, field.type) for field in reversed(schema)]
    while todo:
        path, kind = todo.pop()
        if pa.types.is_struct(kind):
            todo += [(f"{path}.{kind.field(i).name}", kind.field(i).type) for i in reversed(range(kind.num_fields))]
        else:
            leaves[path] = kind
    return leaves


def _kinds(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Returns the columns, structs as well as what is in them, by dotted path."""
    return {field.name: field.type for field in schema} | _leaves(schema)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _image_column(shard: Shard, leaves: dict[str, pa.DataType], asked: str | None) -> str:
    """Returns the path of the column with the image's bytes."""
    found = {path: path for path, kind in leaves.items() if _is_bytes(kind)}
    # A struct goes by its own name: `image` stands for `image.bytes`.
    found |= {path.removesuffix(".bytes"): path for path in found if path.endswith(".bytes")}
    name = asked if asked in found else "" if asked else usual(IMAGE_COLUMNS, found)
    if name:
        return found[name]
    candidates = sorted(set(found.values()))
    for name in (asked,) if asked else IMAGE_COLUMNS:
        _check_kind(shard, leaves, name)
    if asked or not candidates:
        wanted = asked or "a column of bytes or a struct with a field bytes"
        raise missing(shard.file.uri, role="image", wanted=wanted, present=list(leaves))
    if len(candidates) > 1:
        raise FeaturemillError(
            f"{clean(shard.file.uri)} has several columns of bytes: {', '.join(map(clean, candidates))}; "
            f"pass {OPTIONS['image']} NAME for the one with the image"
        )
    return candidates[0]


def _check_kind(shard: Shard, leaves: dict[str, pa.DataType], name: str) -> None:
    """Raises where the column that should hold images holds something else than bytes, with what would help."""
    kind = leaves.get(name)
    if kind is None:
        inner = ", ".join(path for path in leaves if path.startswith(f"{name}."))
        what, cure = f"a struct of {inner}", "write the images' bytes into its field bytes, or into a plain column"
        if not inner:
            return
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        what, cure = f"lists ({kind})", "write a row for each image, with its encoded bytes"
    elif pa.types.is_dictionary(kind):
        what, cure = f"a dictionary ({kind})", "write the images' bytes into a plain column"
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        what, cure = "text", "of paths make a list and pass it as @FILE; base64 must be decoded into a column of bytes"
    else:
        what, cure = str(kind), f"pass {OPTIONS['image']} NAME for another column"
    raise NoImageError(
        f"no image in {clean(shard.file.uri)}: looked for {clean(name)}, found that it holds {clean(what)}, not the "
        f"bytes of image files; {cure}"
    )


def _optional(shard: Shard, schema: pa.Schema, role: str, *, asked: str | None, names: tuple[str, ...]) -> str:
    kinds = _kinds(schema)
    if asked and asked in kinds and not _is_text(kinds[asked]):
        raise FeaturemillError(
            f"{asked} in {clean(shard.file.uri)} is {kinds[asked]}, neither text nor a number; "
            f"pass {OPTIONS[role]} NAME for another column, or '' for none"
        )
    usable = [name for name, kind in kinds.items() if _is_text(kind)]
    return choose(shard, role, asked=asked, names=names, present=list(kinds), usable=usable)


def _is_text(kind: pa.DataType) -> bool:
    """Returns whether `as_text` can write it: text, bytes and numbers, plain or in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not pa.types.is_nested(kind) and not pa.types.is_temporal(kind)


def split(shard: Shard, unit_bytes: int) -> list[Unit]:
    """Returns units that are runs of row groups (`start` and `stop` count those), sized by their compressed bytes."""
    try:
        footer = _footer(shard)
    except _DamagedError:
        return [Unit(shard, input_bytes=shard.file.size)]
    sizes = footer.sizes
    starts, total = [0], 0
    for i, size in enumerate(sizes):
        if total and total + size > unit_bytes:
            starts.append(i)
            total = 0
        total += size
    first_rows = list(accumulate(footer.rows, initial=0))
    return [
        Unit(
            shard,
            start,
            stop,
            first_index=first_rows[start],
            input_bytes=sum(sizes[start : stop if stop > 0 else None]),
        )
        for start, stop in zip(starts, [*starts[1:], -1], strict=True)
    ]


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a unit, in order. A damaged row group is one failure; the next one is read all the same."""
    shard = unit.shard
    with storage.open_read(shard.file.uri) as file:
        watched = _Watched(file)
        try:
            parquet, pages = _open(watched)
        except _DamagedError as error:
            # The footer is at the end, and without it nothing can be found.
            offset = shard.file.size
            message = f"cannot read {shard.file.uri}: its footer (before byte {offset}) is cut or damaged: {error}"
            yield failure(shard, key=f"@{offset}", position=offset, error="bad footer", message=message)
            return
        row = unit.first_index
        for group in range(unit.start, parquet.num_row_groups if unit.stop < 0 else unit.stop):
            yield from _row_group(shard, parquet, pages, watched, group=group, first_row=row)
            row += parquet.metadata.row_group(group).num_rows


def _row_group(
    shard: Shard, parquet: pq.ParquetFile, pages: Pages, watched: _Watched, *, group: int, first_row: int
) -> Iterator[EncodedImage | Failure]:
    class_names = _class_names(parquet, shard.label_field)
    unusable = _why_unusable(parquet.schema_arrow, shard.label_field)
    kinds = _kinds(parquet.schema_arrow)
    kept = [column.name if column.name in kinds else "" for column in shard.keep]
    paths = (shard.image_field, "" if unusable else shard.label_field, shard.name_field, *kept)
    columns = list(dict.fromkeys(path for path in paths if path))
    row = first_row
    try:
        with _damage(watched):
            pages.watch(chunks_of(parquet.metadata, [group]))
            size = _batch_rows(parquet, watched, [group], columns)
            batches = parquet.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)
        while True:
            with _damage(watched):
                batch = next(batches, None)
                if batch is None:
                    return
                images, labels, keys, *others = (_column(batch, path) for path in paths)
            records = []
            for i in range(batch.num_rows):
                key = name_or(None if keys is None else _value(keys[i]), str(row))
                label = (None, unusable) if labels is None else _label(_value(labels[i]), class_names)
                along = tuple(None if values is None else _value(values[i]) for values in others)
                records.append(_row(shard, row, data=images[i], key=key, label=label, kept=along))
                row += 1
            # While these are decoded and the next batch is read, this one would be a second copy.
            del batch, images, labels, keys, others
            while records:
                yield records.pop(0)
    except _DamagedError as error:
        rows = parquet.metadata.row_group(group).num_rows
        lost = f"{first_row + rows - row} of its rows ({row} to {first_row + rows - 1})"
        message = f"row group {group} of {shard.file.uri} is damaged, {lost} are lost: {error}"
        yield failure(shard, key=f"@{row}", position=row, error="bad row group", message=message)


def _batch_rows(parquet: pq.ParquetFile, watched: _Watched, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Returns how many rows of some columns can be held at a time.

    A value may be as large as all that its column stores, and a dictionary hands it out for every row: the mean, or
    what the last rows took, says nothing of the next ones.
    """
    most = 1
    for group in groups:
        info = parquet.metadata.row_group(group)
        for chunk in map(info.column, range(info.num_columns)):
            if any(f"{chunk.path_in_schema}.".startswith(f"{path}.") for path in columns):
                most = max(most, chunk.total_uncompressed_size, _dictionary_bytes(chunk, watched))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // most))


def _dictionary_bytes(column: pq.ColumnChunkMetaData, watched: _Watched) -> int:
    """Returns the unpacked size of a column's dictionary as its own header has it, 0 if it has none.

    Raises:
        OSError: The header is damaged, or states far more than images take.
    """
    if not column.has_dictionary_page or not column.num_values:
        return 0
    watched.seek(chunk_of(column).start)
    header = read_header(watched.read(_DICTIONARY_HEADER_BYTES))
    if header is None:
        return 0
    check_header(header)
    return header.unpacked


def _column(batch: pa.RecordBatch, path: str) -> pa.Array | None:
    """Returns the values at a dotted path (null where a struct around them is null), None for an empty path."""
    if not path:
        return None
    for name in batch.schema.names:
        if name == path:
            return batch.column(name)
        if path.startswith(f"{name}."):
            return pc.struct_field(batch.column(name), path.removeprefix(f"{name}.").split("."))
    raise KeyError(f"no column {path}")


def _class_names(parquet: pq.ParquetFile, label_field: str) -> tuple[str, ...] | None:
    """Returns the class names that Hugging Face's `datasets` keeps in the schema for an integer label."""
    metadata = parquet.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_field]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _row(
    shard: Shard, row: int, *, data: pa.Scalar, key: str, label: tuple[str | None, str], kept: tuple[object, ...]
) -> EncodedImage | Failure:
    place = f"row {row} of {shard.file.uri}"
    text, unusable = label
    size = len(data.as_buffer()) if data.is_valid else 0
    if size > MAX_ENCODED_BYTES:
        reason, message = "too large", f"{place} has {size} bytes; at most {MAX_ENCODED_BYTES} are read"
    elif not data.is_valid:
        reason, message = "no image", f"{place}: {shard.image_field} is null; only bytes inside the file are read"
    else:
        source = clean(shard.file.uri)
        return EncodedImage(f"{source}#{key}", text, source, row, data.as_py(), unusable, kept=kept)
    return failure(shard, key=key, position=row, error=reason, message=message, label=text)


def _why_unusable(schema: pa.Schema, label_field: str) -> str:
    """Returns why no value of a column can be a label, empty if some can: then it isn't even read."""
    kind = _kinds(schema).get(label_field)
    if kind is None or _is_text(kind):
        return ""
    if pa.types.is_temporal(kind):
        return "a time"
    return "an object" if pa.types.is_struct(kind) or pa.types.is_map(kind) else "a list"


def _value(scalar: pa.Scalar) -> object:
    if not scalar.is_valid:
        return None
    kind = scalar.type.value_type if pa.types.is_dictionary(scalar.type) else scalar.type
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return {}
    if isinstance(scalar, pa.ListScalar):
        # One more than can come along.
        return [_value(each) for each in scalar.values[: KEPT_BYTES // 8 + 1]]
    if pa.types.is_temporal(kind) and kind not in _TIMES:
        # Python has no nanoseconds, and for time zones it needs a database.
        return str(scalar.value if pa.types.is_dictionary(scalar.type) else scalar)
    try:
        value = scalar.as_py()
    except ValueError:
        # Text that isn't UTF-8: nobody checks it when it is written.
        return scalar.as_buffer().to_pybytes()
    # Arrow hands out float64, with the digits that it adds.
    return _FLOATS[kind](value) if kind in _FLOATS else value


def _label(value: object, class_names: tuple[str, ...] | None) -> tuple[str | None, str]:
    """Returns the label, and why one that is there can't be used."""
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return as_label(class_names[value])
    return as_label(value)


def narrow(unit: Unit, positions: Sequence[int]) -> Iterator[tuple[Unit, int]]:
    """Yields the row groups of a file that hold the rows of these sorted numbers, and how many each holds.

    Raises:
        FeaturemillError: The footer is damaged.
    """
    try:
        footer = _footer(unit.shard)
    except _DamagedError as error:
        raise FeaturemillError(str(error)) from error
    first = at = 0
    for group, rows in enumerate(footer.rows):
        end = first + rows
        after = bisect_left(positions, end)
        if after > at:
            yield replace(unit, start=group, stop=group + 1, first_index=first, limit=None), after - at
        first, at = end, after
    if at < len(positions):
        # Nothing of the file, so that each of them is told that it is no longer there.
        yield replace(unit, start=len(footer.rows), stop=len(footer.rows)), len(positions) - at


def look(shard: Shard, records: int) -> tuple[list[str | None], bool]:
    """Returns the labels of the first records, and whether there are no more; only their column is read."""
    try:
        return APART.call(_look, shard, records)
    except Crashed:
        # Whoever reads it says so.
        return [], False


def _look(shard: Shard, records: int) -> tuple[list[str | None], bool]:
    with storage.open_read(shard.file.uri) as file:
        watched = _Watched(file)
        try:
            parquet, pages = _open(watched)
            rows = parquet.metadata.num_rows
            if not shard.label_field or _why_unusable(parquet.schema_arrow, shard.label_field):
                return [None] * min(rows, records), rows <= records
            names, labels = _class_names(parquet, shard.label_field), []
            with _damage(watched):
                pages.watch(chunks_of(parquet.metadata))
                size = _batch_rows(parquet, watched, range(parquet.num_row_groups), [shard.label_field])
                for batch in parquet.iter_batches(size, columns=[shard.label_field], use_threads=False):
                    labels += [_label(_value(value), names)[0] for value in _column(batch, shard.label_field)]
                    if len(labels) >= records:
                        break
        except _DamagedError:
            return [], False
    return labels[:records], rows <= records


def _count(shard: Shard) -> int | None:
    try:
        return sum(_footer(shard).rows)
    except (OSError, _DamagedError):
        return None


def table_columns(shard: Shard) -> dict[str, str]:
    """Returns {column: name of its type, see `Format.columns`}; raises FeaturemillError where they can't be read."""
    try:
        return {path: type_name(kind) for path, kind in _kinds(_footer(shard).schema).items()}
    except _DamagedError as error:
        raise _unreadable(shard, error) from error


def table_rows(shard: Shard, columns: Sequence[str]) -> Iterator[list[tuple[object, ...]]]:
    """Yields the rows of a table, some at a time, with the values of these columns; `Shard.label_field` in words.

    Raises:
        FeaturemillError: They can't be read.
    """
    with storage.open_read(shard.file.uri) as file:
        watched = _Watched(file)
        try:
            parquet, pages = _open(watched)
            names = _class_names(parquet, shard.label_field)
            with _damage(watched):
                pages.watch(chunks_of(parquet.metadata))
                size = _batch_rows(parquet, watched, range(parquet.num_row_groups), columns)
                for batch in parquet.iter_batches(size, columns=list(dict.fromkeys(columns)), use_threads=False):
                    found = [[_value(value) for value in _column(batch, path)] for path in columns]
                    if names and shard.label_field:
                        at = columns.index(shard.label_field)
                        found[at] = [_label(value, names)[0] for value in found[at]]
                    yield list(zip(*found, strict=True))
        except _DamagedError as error:
            raise _unreadable(shard, error) from error


def _unreadable(shard: Shard, error: Exception) -> FeaturemillError:
    return FeaturemillError(f"cannot read {clean(shard.file.uri)}: {clean(str(error))}; write it again")


FORMAT = Format(
    name="parquet",
    title="Parquet",
    sign="PAR1",
    ending=re.compile(r"\.(parquet|parq|pq)$", re.IGNORECASE),
    gzip=False,
    matches=lambda head, named: head.startswith(b"PAR1"),
    resolve=resolve,
    split=split,
    read=read,
    narrow=narrow,
    look=look,
    count=_count,
    is_native=True,
    columns=table_columns,
)
