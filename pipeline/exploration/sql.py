"""SQL over an OUT or a PRED: one query on views such as `features` and `predictions`, in a sandbox."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.rendering.tables import as_json, text_table, write_csv, write_rows
from transforms import storage
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.parquet.beside import ROW_IDENTITY
from transforms.parquet.files import check_headers, open_sealed
from transforms.rows.sandbox import check_query, explained, interruptibly, sandbox
from transforms.store.features import Features, open_features
from transforms.store.layout import failures_uri
from transforms.store.listing import read_footers
from transforms.store.output import Output, check_failures
from transforms.store.predictions import Predictions, are_predictions, output_behind
from transforms.store.reports import parts_sha256, units_table
from transforms.store.schema import failures_schema, part_schema
from transforms.text import one_line

# More rows than that are for --csv, --json or --output.
SHOWN_ROWS = 200
_BATCH_ROWS = 16_384
# What the parts' own rows are called where features were added.
_OWN = "features_own"
# A number takes 4 bytes in a batch and 32 as a Python value.
_PYTHON_ROWS = 64
# DuckDB reads through Arrow, which checks the pages.
_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@dataclass(frozen=True)
class Answer:
    """The result of a query, read once.

    Attributes:
        schema: Of the columns.
        batches: The rows.
        complete: Whether OUT's run is finished.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    complete: bool

    @property
    def names(self) -> list[str]:
        return self.schema.names

    def rows(self) -> Iterator[tuple]:
        """Yields the rows as Python values.

        Raises:
            FeaturemillError: The query fails on the way, or Python has no such value.
        """
        for batch in self.batches:
            for start in range(0, len(batch), _PYTHON_ROWS):
                some = batch.slice(start, _PYTHON_ROWS)
                yield from zip(*map(_values, self.names, some.columns), strict=True)


@contextmanager
def sql(output: str, text: str) -> Iterator[Answer]:
    """Asks an OUT on a local disk, or a PRED; the query sees nothing but their views.

    A PRED has the view `predictions`, its `failures`, and `features` and `units` as far as they are known.

    Args:
        output: OUT or PRED.
        text: One query in DuckDB's SQL.

    Raises:
        FeaturemillError: Not an OUT, not one query, or what DuckDB says of it.
    """
    check_query(text)
    if not storage.is_local(output):
        raise FeaturemillError(f"{output}: sql reads folders on this machine; copy OUT here first")
    views: dict[str, Any] = {}
    joined = ""
    complete, out = True, output_behind(output)
    is_predicted = are_predictions(output)
    if is_predicted:
        # Failures of the images; those of the features, where these were kept, are the same.
        predictions = Predictions(output)
        parts = predictions.part_files
        _check_headers(parts)
        views |= {"predictions": ds.dataset(parts, format=_CHECKED), "failures": _failures_of(predictions)}
    if not is_predicted or out.folder != storage.absolute(output):
        features = open_features(out)
        _check_headers([part for each in (features, *features.added) for part in each.parts])
        views, complete = _views(out, features) | views, features.complete
        joined = _joined(features)
    with sandbox(views) as database, explained("SQL"):
        if joined:
            database.execute(joined)
        reader = interruptibly(database, lambda: database.sql(text).to_arrow_reader(_BATCH_ROWS))
        yield Answer(reader.schema, _explained_batches(database, reader), complete)


def _failures_of(predictions: Predictions) -> pa.Table | ds.Dataset:
    infos = storage.list_infos(predictions.path("failures"))
    failed = [info.uri for info in infos if info.uri.endswith(".parquet")]
    return ds.dataset(failed, failures_schema(), format=_CHECKED) if failed else failures_schema().empty_table()


def _check_headers(parts: Sequence[str]) -> None:
    """Checks the headers of all pages: of one that is damaged, DuckDB would just get no rows.

    Footers were checked, and pages are as they are read.

    Raises:
        FeaturemillError: One isn't what was written.
    """

    def check(part: str) -> None:
        try:
            check_headers(part)
        except (OSError, pa.ArrowException) as error:
            raise FeaturemillError(
                f"{part} can't be read ({one_line(error)}); delete it and run extract again"
            ) from error

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(check, parts))


def _values(name: str, column: pa.Array) -> list:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError) as error:
        raise FeaturemillError(
            f"SQL: column {name} holds what Python has no value for ({one_line(error)}); cast it to text, "
            "such as d::VARCHAR"
        ) from error


def _explained_batches(database: Any, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        while (batch := interruptibly(database, lambda: next(reader, None))) is not None:
            yield batch
    except (OSError, pa.ArrowException) as error:
        message = str(error).split("\n\nLINE ", 1)[0]
        raise FeaturemillError(f"SQL: {' '.join(message.split())}") from error


def _views(output: Output, features: Features) -> dict[str, Any]:
    reports = output.reports if features.complete else []
    if reports and output.manifest.parts_sha256 and output.manifest.parts_sha256 != parts_sha256(reports):
        raise FeaturemillError(
            f"{output}: units.parquet isn't the one that it was finished with; delete it and run extract again"
        )
    reports = reports or [report for footer in read_footers(features.parts) for report in footer.reports]
    failed = [failures_uri(features.output, report.unit_id) for report in reports if report.rows_failed]
    failed = [uri for uri in failed if storage.stat(uri)]
    by_uri = {failures_uri(features.output, report.unit_id): report for report in reports}
    for uri in failed:
        with open_sealed(uri, cure="delete it and its part, and run extract again") as parquet:
            check_failures(parquet.metadata, by_uri[uri])
    return {
        "features" if not features.added else _OWN: _rows(replace(features, added=())),
        **{f"{_OWN}_{side.names[0]}": _rows(side) for side in features.added},
        "failures": ds.dataset(failed, failures_schema(), format=_CHECKED)
        if failed
        else failures_schema().empty_table(),
        "units": units_table(reports),
    }


def _joined(features: Features) -> str:
    """Returns SQL that makes the view `features` of the parts and of added features; empty where none was added.

    Both have the same rows in the same order, and a row that says otherwise ends the query.
    """
    if not features.added:
        return ""
    columns, tables = [f"{_OWN}.*"], [_OWN]
    for number, side in enumerate(features.added):
        [name] = side.names
        wrong = f"the added feature {name} has other rows; delete its parts and add it again".replace("'", "''")
        same = " AND ".join(f"{_OWN}.{column} = a{number}.{column}" for column in ROW_IDENTITY)
        columns.append(f'CASE WHEN {same} THEN a{number}."{name}" ELSE error(\'{wrong}\') END AS "{name}"')
        tables.append(f'"{_OWN}_{name}" AS a{number}')
    return f"CREATE VIEW features AS SELECT {', '.join(columns)} FROM {' POSITIONAL JOIN '.join(tables)}"


def _rows(features: Features) -> pa.Table | ds.Dataset:
    """Returns the rows with vectors as float32, because DuckDB takes no float16 from Arrow."""
    if not features.parts:
        spec, sizes = replace(features.spec, dtype="float32"), dict.fromkeys(features.names, 1)
        return part_schema(spec, sizes, features.added_columns).empty_table()
    stored = ds.dataset(list(features.parts), format=_CHECKED).schema
    wide = {name: pa.list_(pa.float32(), stored.field(name).type.list_size) for name in features.names}
    schema = pa.schema([field.with_type(wide.get(field.name, field.type)) for field in stored])
    return ds.dataset(list(features.parts), schema, format=_CHECKED)


def answer_text(answer: Answer) -> str:
    """Returns the rows for people; of many, the first."""
    rows = list(islice(answer.rows(), SHOWN_ROWS + 1))
    lines = [text_table(answer.names, rows[:SHOWN_ROWS])]
    if len(rows) > SHOWN_ROWS:
        lines.append(f"… and more than these {SHOWN_ROWS} rows; --csv, --json or --output FILE.parquet give all")
    return "\n".join(lines)


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise FeaturemillError(f"SQL: several columns are named {twice[0]}, one would hide the other; rename with AS")


def write_answer_json(answer: Answer, stream: TextIO) -> None:
    """Writes the rows for programs, one after the other: a list of objects.

    Raises:
        FeaturemillError: Two columns have the same name, or the query fails on the way.
    """
    _check_names(answer.names)
    before = "["
    for row in answer.rows():
        values = {n: as_json(v) for n, v in zip(answer.names, row, strict=True)}
        stream.write(before + "\n  " + json.dumps(values, indent=2).replace("\n", "\n  "))
        before = ","
    stream.write("[]\n" if before == "[" else "\n]\n")
    stream.flush()


def write_answer_csv(answer: Answer, stream: TextIO) -> None:
    """Writes the rows as CSV, one after the other.

    Raises:
        FeaturemillError: The query fails on the way.
    """
    write_csv(stream, answer.names, answer.rows())
    stream.flush()


def write_answer(answer: Answer, path: str) -> int:
    """Writes the rows as Parquet, batch by batch; returns how many.

    Raises:
        FeaturemillError: It can't be written there, the query fails on the way, or two columns have the same name.
    """
    _check_names(answer.names)
    count = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for batch in answer.batches:
            count += len(batch)
            yield batch

    write_rows(path, counted(), answer.schema)
    return count
