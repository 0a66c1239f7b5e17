"""Register: OUT's parts as a table of Iceberg or Delta Lake, as they lie, without a row written again."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from transforms import storage
from transforms.declared import declared
from transforms.errors import FeaturemillError, UsageError
from transforms.parquet.files import open_sealed
from transforms.storage import readable
from transforms.store.features import Features, open_features
from transforms.store.listing import read_footer
from transforms.store.output import Output
from transforms.text import clean, counted, one_line

if TYPE_CHECKING:
    from pyiceberg.table import Table

_LOG = "_delta_log"


@dataclass(frozen=True)
class Registered:
    """The table, and the parts that came and went.

    Attributes:
        table: `CATALOG.NS.TABLE`, or the folder of a Delta table.
        added, removed: Parts that the table has since, and that it has no more; none if there was nothing to do.
        parts: That it has now.
        rows: N.
        left_out: Added features, which lie in parts of their own.
    """

    output: str
    table: str
    added: int
    removed: int
    parts: int
    rows: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegisterOptions:
    """The options of `register`, on OUT: complete and on a disk."""

    output: str
    # PyIceberg knows the catalog by its own configuration.
    iceberg: str | None = declared(
        None, help="Make a table of a catalog that PyIceberg knows by this name", metavar="CATALOG.NS.TABLE"
    )
    delta: bool = declared(False, help="Make a Delta table, whose log is in OUT/features")

    def __post_init__(self) -> None:
        if self.delta == (self.iceberg is not None):
            raise UsageError("say what table it becomes: --iceberg CATALOG.NS.TABLE or --delta, one of them")
        if self.iceberg is not None and (self.iceberg.count(".") < 2 or not all(self.iceberg.split("."))):
            raise UsageError(f"--iceberg {self.iceberg!r} is not of the form CATALOG.NS.TABLE")


def register(options: RegisterOptions) -> Registered:
    """Makes a table of OUT's parts, or brings it up to date by one commit: what is gone is removed, what is new added.

    Raises:
        FeaturemillError: OUT can't be registered, a library is missing or refuses, or the table isn't OUT's.
    """
    iceberg, out = options.iceberg, Output(options.output)
    _check(out)
    with out.locked():
        features = open_features(out)
        with _refusals(f"the table {iceberg}" if iceberg else f"the Delta log of {out}"):
            made = _register_delta(features, out) if iceberg is None else _register_iceberg(features, iceberg)
        return replace(made, left_out=tuple(out.manifest.added_features))


def _check(out: Output) -> None:
    manifest = out.manifest
    if not out.is_local:
        raise FeaturemillError(f"{out} is on a store, and register takes an OUT on a disk; copy it there")
    if not manifest.is_complete:
        raise FeaturemillError(f"{out} is not finished; finish it with {manifest.cure} first")
    if manifest.spec.dtype == "float16":
        raise FeaturemillError(
            f"{out} holds float16, which tables don't have; featuremill convert --dtype float32 makes a copy for them"
        )


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turns what the libraries raise, of many kinds, into one line."""
    try:
        yield
    except FeaturemillError:
        raise
    except Exception as error:
        cause, cure = clean(one_line(error)), "correct that, or choose another table"
        if isinstance(error, ImportError):
            cure = f"pip install 'featuremill[{'iceberg' if what.startswith('the table') else 'delta'}]'"
        raise FeaturemillError(f"{what} can't be written: {cause}; {cure}") from error


def _changes(features: Features, there: set[str], own: set[str], what: str) -> tuple[set[str], set[str]]:
    """Returns what is to be removed from a table and what added, of the URIs of its files and of OUT's parts."""
    gone, new = there - own, own - there
    folder = os.path.dirname(features.parts[0]) if features.parts else ""
    strange = sorted(uri for uri in gone if os.path.dirname(uri.removeprefix("file://")) != folder)
    if strange:
        raise FeaturemillError(
            f"{what} has {counted(len(strange), 'file')} that {features.output} never had, such as {strange[0]}; "
            "choose another table, or drop this one if OUT was moved"
        )
    return gone, new


def _schema(part: str) -> pa.Schema:
    with open_sealed(part, cure="delete it and run extract again") as parquet:
        return parquet.schema_arrow


def _register_iceberg(features: Features, name: str) -> Registered:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchTableError
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    catalog_name, _, identifier = name.partition(".")
    catalog = load_catalog(catalog_name)
    try:
        table: Table = catalog.load_table(identifier)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(identifier.rpartition(".")[0])
        table = catalog.create_table(identifier, schema=_schema(features.parts[0]))
    files = {task.file.file_path: task.file for task in table.scan().plan_files()}
    own = {f"file://{part}" for part in features.parts}
    gone, new = _changes(features, set(files), own, name)
    if not files and new:
        table.add_files(sorted(new))
    elif gone or new:
        # As `add_files` does, but with what is gone in the same snapshot.
        with table.transaction() as transaction, transaction.update_snapshot().overwrite() as snapshot:
            for uri in gone:
                snapshot.delete_data_file(files[uri])
            for uri in sorted(new):
                snapshot.append_data_file(parquet_file_to_data_file(table.io, transaction.table_metadata, uri))
    return Registered(features.output, name, len(new), len(gone), len(own), features.rows)


def _register_delta(features: Features, out: Output) -> Registered:
    from deltalake import DeltaTable, Schema, convert_to_deltalake

    folder = out.path("features")
    own = set(features.parts)
    if begins := not DeltaTable.is_deltatable(folder):
        convert_to_deltalake(folder)
    table = DeltaTable(folder)
    there = {os.path.join(folder, os.path.basename(uri)) for uri in table.file_uris()}
    gone, new = _changes(features, there, own, folder)
    if new and Schema.from_arrow(_schema(min(new))) != table.schema():
        raise FeaturemillError(
            f"{storage.join(folder, _LOG)} is that of other columns; remove this folder and register again"
        )
    if gone or new:
        _commit_delta(out, table.version() + 1, gone, new)
    return Registered(out.folder, folder, len(own) if begins else len(new), len(gone), len(own), features.rows)


def _commit_delta(out: Output, version: int, gone: set[str], new: set[str]) -> None:
    """Writes one commit, which the library has no call for: its overwriting removes and adds what stays as well.

    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Actions".
    """
    now = int(time.time() * 1000)
    info = {"timestamp": now, "operation": "WRITE", "operationParameters": {"mode": "Overwrite"}}
    actions: list[dict[str, Any]] = [{"commitInfo": {**info, "engineInfo": "featuremill"}}]
    for part in sorted(gone):
        actions.append({"remove": {"path": os.path.basename(part), "deletionTimestamp": now, "dataChange": True}})
    for part in sorted(new):
        file, rows = os.stat(part), read_footer(part).rows
        values = {"size": file.st_size, "modificationTime": int(file.st_mtime * 1000), "dataChange": True}
        stats = json.dumps({"numRecords": rows})
        actions.append({"add": {"path": os.path.basename(part), "partitionValues": {}, **values, "stats": stats}})
    temporary = out.path("_tmp", f"delta.{uuid.uuid4().hex}")
    with out.writing():
        storage.make_folder(out.path("_tmp"))
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(action)}\n" for action in actions))
            storage.sync(file.buffer)
        try:
            # Whoever comes second of two with one number fails here.
            os.link(temporary, storage.join(out.path("features"), _LOG, f"{version:020d}.json"))
        finally:
            os.unlink(temporary)


def registered_text(registered: Registered) -> str:
    """Returns the result for people."""
    r = registered
    what = f"{counted(r.added, 'part')} added, {r.removed} removed" if r.added or r.removed else "nothing to do"
    text = f"{readable(r.table)}: {what}; it has {counted(r.parts, 'part')}, {counted(r.rows, 'row')}"
    return f"{text}; without {', '.join(r.left_out)}, which lie beside the parts" if r.left_out else text
