"""DuckDB as a sandbox: SQL of others' sees the tables that it is given, and no file, network or setting.

The connection is in memory and gets Arrow tables or data sets. Before any SQL of others' runs, access to anything
outside is switched off for good: DuckDB refuses to open files, to attach databases and to load extensions, and its
configuration is locked.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from transforms.errors import FeaturemillError, UsageError
from transforms.machine import available_cores

if TYPE_CHECKING:
    import duckdb

_T = TypeVar("_T")
# What a sort or a join holds before it goes to a temporary folder.
_MEMORY = "1GB"
_ROW = "featuremill_row"


@contextmanager
def sandbox(tables: Mapping[str, Any]) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Opens a connection that sees these tables and nothing else.

    Args:
        tables: {name: Arrow table, data set or reader of batches}.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="featuremill-sql-") as folder, duckdb.connect(":memory:") as database:
        database.execute(f"SET memory_limit = '{_MEMORY}'")
        database.execute(f"SET threads = {available_cores()}")
        database.execute(f"SET temp_directory = '{folder.replace(chr(39), chr(39) * 2)}'")
        # Else a table's name could be that of a Python variable.
        database.execute("SET python_enable_replacements = false")
        database.execute("SET enable_progress_bar = false")
        database.execute("SET autoinstall_known_extensions = false")
        database.execute("SET autoload_known_extensions = false")
        for name, table in tables.items():
            database.register(name, table)
        database.execute("SET enable_external_access = false")
        database.execute("SET lock_configuration = true")
        yield database


def interruptibly(database: "duckdb.DuckDBPyConnection", ask: Callable[[], _T]) -> _T:
    """Returns what DuckDB is asked for, in a thread: in the main one it hears of Ctrl-C when it is done."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            return asked.result()
        except KeyboardInterrupt:
            database.interrupt()
            raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises what DuckDB says as one line, after what it was about."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        # The lines behind draw a caret under the place.
        message = str(error).split("\n\nLINE ", 1)[0]
        raise FeaturemillError(f"{what}: {' '.join(message.split())}") from error


def check_query(text: str) -> None:
    """Checks that a text is one query, and nothing that would change anything.

    Raises:
        FeaturemillError: It isn't.
    """
    import duckdb

    with explained("SQL"):
        statements = duckdb.extract_statements(text)
    if len(statements) != 1:
        raise FeaturemillError(
            f"SQL: {len(statements)} statements; give one query, such as SELECT count(*) FROM features"
        )
    if statements[0].type != duckdb.StatementType.SELECT:
        raise FeaturemillError(f"SQL: {statements[0].type.name} is not a query; only SELECT and the like can be asked")


def check_condition(text: str) -> None:
    """Checks that a text is one expression on a row, without a query inside.

    Raises:
        UsageError: It isn't.
        FeaturemillError: It is too deeply nested to be looked at.
    """
    if not text.strip():
        raise UsageError("the condition is empty; write one, such as label = 'cat'")
    try:
        _check_condition(text)
    except RecursionError:
        raise FeaturemillError(f"condition {text!r} is too deeply nested; simplify it") from None


def _check_condition(text: str) -> None:
    several = UsageError(f"condition {text!r} is more than one condition; write one, such as label = 'cat'")
    bare, wrapped, empty = (f"SELECT 1 FROM rows WHERE {middle}" for middle in (f"\n{text}\n", f"(\n{text}\n)", "true"))
    with sandbox({}) as database, explained(f"condition {text!r}"):
        asked = "SELECT json_serialize_sql(?::VARCHAR)"
        trees = [json.loads(database.execute(asked, [sql]).fetchone()[0]) for sql in (bare, wrapped, empty)]
    for tree in trees:
        if tree["error"]:
            message = " ".join(tree["error_message"].split())
            raise several if message.startswith("Only SELECT") else UsageError(f"condition {text!r}: {message}")
    conditions = [_take_condition(tree) for tree in trees]
    # In brackets and without, the text must be all of the condition and nothing but it.
    if not trees[0] == trees[1] == trees[2] or conditions[0] != conditions[1]:
        raise several
    if _has_query(conditions[0]):
        raise UsageError(f"condition {text!r} has a query inside; only the row's own columns can be asked for")


def _take_condition(tree: dict[str, Any]) -> Any:
    """Takes the condition out of a parsed query, and its places out of both."""
    _forget_places(tree)
    node = tree["statements"][0]["node"]
    return node.pop("where_clause", None)


def _forget_places(node: Any) -> None:
    if isinstance(node, dict):
        for name in ("query_location", "query_location_length"):
            node.pop(name, None)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _forget_places(child)


def _has_query(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get("class") == "SUBQUERY" or any(map(_has_query, node.values()))
    return isinstance(node, list) and any(map(_has_query, node))


def matching_rows(batches: Iterator[pa.RecordBatch], schema: pa.Schema, condition: str, rows: int) -> np.ndarray:
    """Returns N booleans: for which rows the condition is true.

    Args:
        batches: All N rows, in order.
        schema: Of the batches.
        condition: SQL on the columns of the batches.
        rows: N.

    Raises:
        UsageError: Not a condition, or columns or functions that aren't there.
        FeaturemillError: The condition fails on a row. What `batches` raises passes, too.
    """
    import duckdb

    check_condition(condition)
    numbered = schema.append(pa.field(_ROW, pa.int64()))
    broken: list[BaseException] = []

    def with_numbers() -> Iterator[pa.RecordBatch]:
        first = 0
        try:
            for batch in batches:
                numbers = pa.array(np.arange(first, first + len(batch)))
                yield pa.RecordBatch.from_arrays([*batch.columns, numbers], schema=numbered)
                first += len(batch)
        except (Exception, KeyboardInterrupt) as error:
            broken.append(error)
            raise

    found = np.zeros(rows, bool)
    reader = pa.RecordBatchReader.from_batches(numbered, with_numbers())
    try:
        with sandbox({"rows": reader}) as database, explained(f"condition {condition!r}"):
            result = database.execute(f'SELECT "{_ROW}" FROM rows WHERE (\n{condition}\n)')
            while chunk := result.fetchmany(65_536):
                found[[row for (row,) in chunk]] = True
    except FeaturemillError as error:
        if broken:
            # DuckDB would tell its whole traceback.
            raise broken[0] from None
        if isinstance(error.__cause__, (duckdb.BinderException, duckdb.CatalogException)):
            raise UsageError(_misnamed(str(error), schema.names)) from error
        raise
    return found


def _misnamed(message: str, columns: list[str]) -> str:
    """Returns what DuckDB says of a name that it doesn't know, with our columns instead of its candidates."""
    missing = re.search(r'Binder Error: Referenced column "(.*)" not found', message)
    if not missing:
        return re.sub(r"!? Candidate.*", "", message)
    name = missing[1]
    return (
        f'{message[: missing.start()]}there is no column "{name}"; the columns are {", ".join(columns)}, '
        f"and text goes in single quotes: '{name}'"
    )


def nearest_texts(texts: pa.ChunkedArray, text: str) -> list[str]:
    """Returns three texts like another: those that contain it first, then those with a third changed at most."""
    # A key of some kilobytes would take long, and nobody would see the difference.
    away = "levenshtein(left(text, 300), left($text, 300))"
    near = f"contains(text, $text) OR 3 * {away} <= least(300, length($text))"
    order = f"NOT contains(text, $text), {away}, text"
    with sandbox({"texts": pa.table({"text": texts})}) as database:
        sql = f"SELECT text FROM texts WHERE {near} GROUP BY text ORDER BY {order} LIMIT 3"
        return [found for (found,) in database.execute(sql, {"text": text}).fetchall()]
