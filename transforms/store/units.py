"""Units by name: the id that makes a part's presence mean "done", and the plan file that keeps them."""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet.files import open_sealed
from transforms.parquet.seals import read_metadata, sealed
from transforms.records import FileInfo, ListedFile, Shard, Unit
from transforms.store.layout import plan_uri

# In a footer: the token of the relocation that last rewrote the file.
RELOCATION = "featuremill.relocation"
# Units per element of a graph's first step: a hundred thousand units are a hundred elements.
CHUNK_UNITS = 1000
_JSON = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True)
class PlannedUnit:
    """A unit and its id, as it travels through a graph: some hundred bytes, so without a listing's files."""

    unit_id: str
    unit: Unit


@dataclass(frozen=True)
class Chunk:
    """A row group of the file that says what a run is to do."""

    uri: str
    number: int


def unit_id(unit: Unit, fingerprint: str) -> str:
    """Returns a readable name with a hash of all that decides the unit's rows.

    Same input, same range, same spec: same id, on any machine. A changed file, range, label or spec: another id.
    """
    digest = hashlib.sha256(fingerprint.encode())
    if unit.files:
        digest.update(_JSON.encode([_decisive(listed) for listed in unit.files]).encode())
    else:
        # By hand: `asdict` copies everything, which takes four fifths of the time of a plan of a million units.
        shard = {**vars(unit.shard), "file": vars(unit.shard.file)}
        # It is no matter of a plan.
        del shard["keep"]
        decisive = {**vars(unit), "shard": shard, "first_index": 0, "input_bytes": 0}
        digest.update(_JSON.encode(decisive).encode())
    name = (
        re.sub(r"[^A-Za-z0-9._-]+", "_", unit.shard.file.uri.rstrip("/").rsplit("/", 1)[-1])[-60:].lstrip(".") or "root"
    )
    return f"{name}-{unit.first_index:09d}-{digest.hexdigest()[:16]}"


def _decisive(listed: ListedFile) -> dict:
    values = asdict(listed)
    if listed.split is None:
        # As before there were sides: the id stays what it was.
        del values["split"]
    if listed.kept is None:
        del values["kept"]
    return values


def _schema(planned: Sequence[PlannedUnit]) -> pa.Schema:
    # Bytes, because a local file's name need not be text.
    file = [("uri", pa.binary()), ("size", pa.int64()), ("version", pa.string())]
    shard = [("format", pa.string()), ("compression", pa.string())]
    # Only where there are sides: the plan of an OUT without them stays as it was.
    has_split = any(listed.split is not None for p in planned for listed in p.unit.files)
    split = [("split", pa.string())] if has_split else []
    kept = [("kept", pa.string())] if any(listed.kept is not None for p in planned for listed in p.unit.files) else []
    fields = [("image_field", pa.string()), ("label_field", pa.string()), ("name_field", pa.string())]
    return pa.schema(
        [
            ("unit_id", pa.string()),
            *file,
            *shard,
            *fields,
            ("start", pa.int64()),
            ("stop", pa.int64()),
            ("first_index", pa.int64()),
            ("input_bytes", pa.int64()),
            ("limit", pa.int64()),
            ("files", pa.list_(pa.struct([*file, ("label", pa.string()), *split, *kept]))),
        ]
    )


def _row(planned: PlannedUnit) -> dict:
    unit, shard = planned.unit, planned.unit.shard
    return {
        "unit_id": planned.unit_id,
        **_file_row(shard.file),
        "format": shard.format,
        "compression": shard.compression,
        "image_field": shard.image_field,
        "label_field": shard.label_field,
        "name_field": shard.name_field,
        "start": unit.start,
        "stop": unit.stop,
        "first_index": unit.first_index,
        "input_bytes": unit.input_bytes,
        "limit": unit.limit,
        "files": [{**vars(listed), **_file_row(listed.file)} for listed in unit.files],
    }


def _file_row(file: FileInfo) -> dict:
    return {"uri": os.fsencode(file.uri), "size": file.size, "version": file.version}


def _file(row: dict) -> FileInfo:
    return FileInfo(os.fsdecode(row["uri"]), row["size"], row["version"])


def _planned(row: dict) -> PlannedUnit:
    file = _file(row)
    shard = Shard(file, row["format"], row["compression"], row["image_field"], row["label_field"], row["name_field"])
    files = tuple(ListedFile(_file(f), f["label"], f.get("split"), f.get("kept")) for f in row["files"] or ())
    unit = Unit(shard, row["start"], row["stop"], row["first_index"], row["input_bytes"], row["limit"], files)
    return PlannedUnit(row["unit_id"], unit)


def plan_file(planned: Sequence[PlannedUnit], relocation: str) -> bytes:
    """Returns plan.parquet; if a relocation changed it, with the token of that, else empty."""
    schema = _schema(planned)
    buffer = io.BytesIO()
    # A worker looks up one listing at a time: small row groups keep that read small. Shards' rows are never looked up.
    rows_per_group = 8 if any(p.unit.files for p in planned) else 65_536
    with sealed(buffer, schema, {RELOCATION: relocation} if relocation else {}) as writer:
        for first in range(0, len(planned), rows_per_group):
            rows = [_row(p) for p in planned[first : first + rows_per_group]]
            writer.write(pa.Table.from_pylist(rows, schema))
    return buffer.getvalue()


def write_todo(uri: str, planned: Sequence[PlannedUnit]) -> list[Chunk]:
    """Writes what a run is to do to a file of its own, for its workers to read.

    Returns:
        The chunks of the file, in order: what a graph has as elements, so that its size doesn't grow with the units'.
    """
    schema = _schema([])
    starts = range(0, len(planned), CHUNK_UNITS)
    with storage.open_write(uri) as file, sealed(file, schema) as writer:
        for start in starts:
            # A listing's files stay in the plan, from which the worker that has its unit reads them.
            light = [PlannedUnit(p.unit_id, replace(p.unit, files=())) for p in planned[start : start + CHUNK_UNITS]]
            writer.write(pa.Table.from_pylist([_row(p) for p in light], schema))
    return [Chunk(uri, number) for number in range(len(starts))]


def read_todo(chunk: Chunk) -> list[PlannedUnit]:
    """Returns the units of a chunk, without the files of listings.

    Raises:
        FeaturemillError: The file is gone or can't be read.
    """
    cure = "workers must reach the output under the same name as the launching machine: run again with such a one"
    with open_sealed(chunk.uri, cure=cure) as parquet:
        return [_planned(row) for row in parquet.read_row_group(chunk.number).to_pylist()]


def relocation_of(uri: str) -> str:
    """Returns the token of the relocation that a plan was written by; empty if none did."""
    with storage.open_read(uri) as file:
        return (read_metadata(file).metadata or {}).get(RELOCATION.encode(), b"").decode()


def read_plan(uri: str) -> list[PlannedUnit]:
    """Returns the units of a plan, with the files of its listings; none if there is no plan yet."""
    if storage.stat(uri) is None:
        return []
    cure = "delete it and run again with all inputs: parts of unchanged input are found again, others are named"
    with open_sealed(uri, cure=cure) as parquet:
        return [_planned(row) for batch in parquet.iter_batches(batch_size=64) for row in batch.to_pylist()]


def load_files(output: str, planned: PlannedUnit) -> Unit:
    """Returns the unit with its listing's files, looked up in OUT's plan.

    Raises:
        FeaturemillError: The plan doesn't know the unit: it was replaced while this run was under way.
    """
    if not planned.unit.shard.is_listing:
        return planned.unit
    with open_sealed(plan_uri(output), cure=f"bring {output} back and run again") as parquet:
        for group in range(parquet.num_row_groups):
            ids = parquet.metadata.row_group(group).column(0).statistics
            if ids is not None and ids.has_min_max and not ids.min <= planned.unit_id <= ids.max:
                continue
            for row in parquet.read_row_group(group).to_pylist():
                if row["unit_id"] == planned.unit_id:
                    return _planned(row).unit
    raise FeaturemillError(
        f"{plan_uri(output)} no longer knows unit {planned.unit_id}: another run replaced it; run again"
    )
