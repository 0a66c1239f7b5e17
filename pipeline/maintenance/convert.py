"""Convert: a copy of stored features for readers that can't take OUT as it is. Totals and failures stay with OUT."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv

from pipeline.rendering.tables import write_rows, write_rows_of
from pipeline.rendering.targets import check_replaceable, check_targets
from transforms import storage
from transforms.committed import committed_folder, held
from transforms.declared import check, declared
from transforms.errors import FeaturemillError, UsageError
from transforms.storage import readable
from transforms.store.features import Features, choose_feature, open_features
from transforms.store.predictions import Predictions, are_predictions
from transforms.store.schema import matrix_of, part_schema
from transforms.text import counted, one_line, size_text

_DTYPES = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
VECTORS, METADATA, CONFIG = "vectors.tsv", "metadata.tsv", "projector_config.pbtxt"


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `convert`.

    Attributes:
        source: OUT, complete; or PRED, whose rows then go into a .parquet, .csv or .jsonl file.
    """

    source: str
    output: str = declared(help="FILE.parquet, or a folder for TSV", flags=("--output", "-o"), metavar="COPY")
    feature: str | None = declared(
        None, help="Copy only this column of vectors", metavar="NAME", unset="all; for TSV embedding"
    )
    dtype: str | None = declared(
        None, help="Type of the numbers, for Parquet", choices=tuple(_DTYPES), unset="as stored"
    )
    overwrite: bool = declared(False, help="Replace an earlier COPY")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Converted:
    """The files that were written, and their rows.

    Attributes:
        source: The folder that was read.
        output: The Parquet file, or the projector's folder.
        rows: N.
        columns: The vectors that are in it.
        dtype: Of their numbers.
        bytes: Of what was written.
    """

    source: str
    output: str
    rows: int
    columns: tuple[str, ...]
    dtype: str
    bytes: int


def convert(options: ConvertOptions) -> Converted:
    """Writes the rows of an OUT anew, in its order, batch by batch.

    Into `FILE.parquet` go all columns, vectors as plain lists; into a folder for TensorBoard's projector one feature as
    tab-separated text, and what is known of the rows.

    Raises:
        UsageError: A place that can't be, or a dtype for text.
        FeaturemillError: OUT isn't complete, no such feature, something is there already, a number that the narrower
            dtype can't hold, or a part that can't be read or a file that can't be written.
    """
    source, dtype = options.source, options.dtype
    if are_predictions(source):
        if options.feature or dtype:
            raise UsageError(f"{source} holds predictions, which have no vectors; leave out --feature and --dtype")
        return _convert_predictions(source, options.output, overwrite=options.overwrite)
    as_parquet = _is_parquet(options.output)
    if dtype is not None and not as_parquet:
        raise UsageError("--dtype is for .parquet; the projector's numbers are text")
    output = storage.absolute(options.output)
    with held(output):
        features = _open_complete(source)
        _check_place(features.output, output, as_parquet=as_parquet, overwrite=options.overwrite)
        names = _chosen(features, options.feature, one=not as_parquet)
        # The widest of those that are stored: float16 < float32.
        stored = {f.name: each.spec.dtype for each in (features, *features.added) for f in each.spec.features}
        dtype = dtype or max(stored[name] for name in names)
        if as_parquet:
            schema = _plain_schema(features, names, dtype)
            write_rows(output, _plain_batches(features, schema, names, dtype), schema)
        else:
            _write_projector(features, names[0], output)
        files = [output] if as_parquet else [storage.join(output, name) for name in (VECTORS, METADATA, CONFIG)]
        return Converted(features.output, output, features.rows, names, dtype, sum(map(os.path.getsize, files)))


def _convert_predictions(source: str, output: str, *, overwrite: bool) -> Converted:
    check_targets([source], rows=output, overwrite=overwrite)
    predictions, output = Predictions(source), storage.absolute(output)
    with held(output):
        rows = write_rows_of(predictions.part_files, output)
    return Converted(predictions.folder, output, rows, (), "", os.path.getsize(output))


def _is_parquet(output: str) -> bool:
    if not storage.is_local(output):
        raise UsageError(f"--output {output}: copies are written on this machine; copy it there afterwards")
    suffix = os.path.splitext(output.rstrip("/"))[1].lower()
    if suffix not in ("", ".parquet"):
        raise UsageError(
            f"--output {output}: neither a .parquet file nor a folder for the projector, without an ending"
        )
    return suffix == ".parquet"


def _open_complete(source: str) -> Features:
    features = open_features(source)
    if not features.complete:
        raise FeaturemillError(f"{features.output} is not finished; finish it with the same extract command first")
    if not features.rows:
        raise FeaturemillError(f"{features.output} has no rows; there is nothing to convert")
    return features


def _check_place(source: str, output: str, *, as_parquet: bool, overwrite: bool) -> None:
    """Checks that the copy may be written here, before any work is done for it."""
    if storage.is_local(source) and os.path.realpath(output).startswith(os.path.realpath(source) + os.sep):
        raise FeaturemillError(f"{output} lies in {source}, where its rows would count twice; choose another --output")
    names = () if as_parquet else (VECTORS, METADATA, CONFIG)
    check_replaceable(output, names, what="no copy of convert's alone", overwrite=overwrite)


def _chosen(features: Features, feature: str | None, *, one: bool) -> tuple[str, ...]:
    """Returns the vector columns that are wanted."""
    if feature is None and (not one or len(features.names) == 1):
        return features.names
    return (choose_feature(features, feature or "embedding"),)


def _plain_schema(features: Features, names: Sequence[str], dtype: str) -> pa.Schema:
    stored = part_schema(features.spec, dict.fromkeys(features.names, 1), features.added_columns)
    rows = [stored.field(name) for name in features.row_columns]
    return pa.schema([*rows, *(pa.field(name, pa.list_(_DTYPES[dtype]), nullable=False) for name in names)])


def _plain_batches(features: Features, schema: pa.Schema, names: Sequence[str], dtype: str) -> Iterator[pa.RecordBatch]:
    for batch in features.batches(schema.names):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in names:
            matrix = matrix_of(columns[name])
            ends = np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32)
            numbers = pa.array(_as_width(matrix, dtype, batch, name, features.output).ravel())
            columns[name] = pa.ListArray.from_arrays(pa.array(ends), numbers)
        yield pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _as_width(matrix: np.ndarray, dtype: str, batch: pa.RecordBatch, name: str, source: str) -> np.ndarray:
    """Returns the numbers in another width; one that it can't hold is an error, not an infinity."""
    with np.errstate(over="ignore"):
        converted = matrix.astype(dtype, copy=False)
    lost = np.isinf(converted) & np.isfinite(matrix)
    if lost.any():
        row, column = np.argwhere(lost)[0].tolist()
        raise FeaturemillError(
            f"{source}: {name} of {batch.column('key')[row]} has {matrix[row, column]:g}, but {dtype} ends at "
            f"{np.finfo(dtype).max:g}; choose a wider --dtype"
        )
    return converted


def _write_projector(features: Features, name: str, output: str) -> None:
    """Writes the folder, whole or not at all."""
    try:
        with committed_folder(output) as new:
            _write_tables(features, name, new)
            config = f'embeddings {{ tensor_name: "{name}" tensor_path: "{VECTORS}" metadata_path: "{METADATA}" }}\n'
            with open(storage.join(new, CONFIG), "w", encoding="utf-8") as file:
                file.write(config)
    except OSError as error:
        raise FeaturemillError(f"cannot write {output}: {one_line(error)}; choose another --output") from error


def _write_tables(features: Features, name: str, folder: str) -> None:
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    # What the projector shows beside a point; a content hash says nothing there.
    shown = tuple(name for name in features.row_columns if name != "sha256")
    writer = None
    with open(storage.join(folder, VECTORS), "wb") as vectors, open(storage.join(folder, METADATA), "wb") as metadata:
        metadata.write(("\t".join(shown) + "\n").encode())
        for batch in features.batches([*shown, name]):
            # Arrow has no text for float16.
            matrix = matrix_of(batch.column(name)).astype(np.float32, copy=False)
            table = pa.table({str(column): numbers for column, numbers in enumerate(matrix.T)})
            writer = writer or csv.CSVWriter(vectors, table.schema, write_options=options)
            writer.write_table(table)
            _write_facts(batch.select(shown), metadata)
        if writer:
            writer.close()


def _write_facts(batch: pa.RecordBatch, metadata: BinaryIO) -> None:
    columns = (column.to_pylist() for column in batch.columns)
    for row in zip(*columns, strict=True):
        metadata.write(("\t".join("" if value is None else _cell(value) for value in row) + "\n").encode())


def _cell(value: object) -> str:
    """Returns a value without the characters that end a cell or a line."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda letter: repr(letter[0])[1:-1], str(value))


def converted_text(converted: Converted) -> str:
    """Returns the result for people."""
    if not converted.columns:
        size = size_text(converted.bytes)
        return f"{readable(converted.output)}: {counted(converted.rows, 'row')} of predictions, {size}"
    what = f"plain lists of {converted.dtype}" if converted.output.endswith(".parquet") else "TSV for the projector"
    return (
        f"{readable(converted.output)}: {counted(converted.rows, 'row')}, {', '.join(converted.columns)} as {what}, "
        f"{size_text(converted.bytes)}\n"
        f"a copy for readers: totals, failures and fingerprint stay in {readable(converted.source)}"
    )
