"""The rows of a map with their vectors, and the columns that can colour them."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet.files import open_sealed
from transforms.similarity.unit_vectors import unit_length
from transforms.spec import ROW_COLUMNS
from transforms.store.features import Features
from transforms.store.predictions import Predictions
from transforms.store.schema import matrix_of

# The vectors of all rows are held in memory, about three times.
MOST_BYTES = 2**31
_Column = pa.Array | pa.ChunkedArray
_PREDICTED = ["key", "position", "label", "score"]


@dataclass
class MapRows:
    """Rows of OUT with their vectors and what a map colours them by.

    Attributes:
        numbers: N int64: which rows of OUT.
        facts: N rows: what `extract` knows of an image, `ROW_COLUMNS`.
        vectors: N×D float32 of length 1, or zeros: neighbours are found by cosine, and places are to agree with them.
        columns: {name: N values}, to colour by: strings (null if unknown) or float32 numbers, in the order shown.
    """

    numbers: np.ndarray
    facts: pa.Table
    vectors: np.ndarray
    columns: dict[str, pa.Array] = field(default_factory=dict)


def read_map_rows(features: Features, name: str, *, limit: int) -> MapRows:
    """Reads at most `limit` rows, evenly drawn, with the vectors of one feature.

    Raises:
        FeaturemillError: There is no row, a vector isn't finite, or the vectors don't fit in memory.
    """
    if not features.rows:
        why = "see its failures" if features.complete else "the run is not finished: run the same extract command again"
        raise FeaturemillError(f"{features.output} holds no rows, so there is nothing to map; {why}")
    numbers = np.unique(np.linspace(0, features.rows - 1, min(limit, features.rows)).astype(np.int64))
    facts, vectors, first, filled = [], None, 0, 0
    for batch in features.batches([*ROW_COLUMNS, name]):
        here = numbers[(numbers >= first) & (numbers < first + len(batch))] - first
        first += len(batch)
        if not len(here):
            continue
        batch = batch.take(pa.array(here))
        found = matrix_of(batch.column(name))
        _check_finite(features, batch, found)
        if vectors is None:
            vectors = _room(features, name, len(numbers), found.shape[1])
        vectors[filled : filled + len(found)] = found
        filled += len(found)
        facts.append(batch.select(list(ROW_COLUMNS)))
    rows = MapRows(numbers, pa.Table.from_batches(facts).combine_chunks(), vectors)
    rows.columns = _own_columns(rows)
    for part in _parts(vectors):
        part[:] = unit_length(part)
    return rows


def _room(features: Features, name: str, rows: int, dims: int) -> np.ndarray:
    if rows * dims * 4 > MOST_BYTES:
        fits = MOST_BYTES // (dims * 4)
        raise FeaturemillError(
            f"{rows:,} vectors of {name} ({dims:,} numbers each) don't fit in memory; pass --limit {fits}, or a "
            f"smaller feature of {', '.join(features.names)}"
        )
    return np.empty((rows, dims), np.float32)


def _check_finite(features: Features, batch: pa.RecordBatch, vectors: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise FeaturemillError(
            f"{features.output}: {len(bad)} of {len(batch)} vectors hold NaN or infinity, the first is that of "
            f"{batch.column('key')[int(bad[0])].as_py()}; extract its source again"
        )


def _own_columns(rows: MapRows) -> dict[str, pa.Array]:
    facts = rows.facts
    norms = np.concatenate([np.linalg.norm(part, axis=1) for part in _parts(rows.vectors)])
    return {
        "label": facts["label"].combine_chunks(),
        "source": pa.array(_folders(facts), pa.string()),
        "width": facts["width"].combine_chunks().cast(pa.float32()),
        "height": facts["height"].combine_chunks().cast(pa.float32()),
        "vector length": pa.array(norms, pa.float32()),
    }


def _parts(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), 65_536):
        yield vectors[start : start + 65_536]


def _folders(facts: pa.Table) -> list[str]:
    """Returns the shard of each row, or the folder of a plain file: there, no two rows have the same source."""
    pairs = zip(facts["key"].to_pylist(), facts["source"].to_pylist(), strict=True)
    return [posixpath.dirname(source) or source if key == source else source for key, source in pairs]


def add_predictions(rows: MapRows, output: Predictions) -> int:
    """Adds the columns `prediction`, `score` and `agreement` from what `predict` wrote.

    A key may repeat inside a shard, so rows are found by key and position. Predictions of plain Parquet know no
    position: these are found by the key alone, and none is taken where their labels disagree.

    Args:
        rows: Get them, null where PRED has no row of that key.

    Returns:
        How many rows have a prediction.

    Raises:
        FeaturemillError: PRED holds no predictions, or none of these rows.
    """
    keys, positions = rows.facts["key"].combine_chunks(), rows.facts["position"].combine_chunks()
    predictions = _read_predictions(output)
    there = _unambiguous(predictions)
    at = pc.coalesce(
        pc.index_in(_places(keys, positions), there["place"]),
        pc.index_in(_places(keys, pa.nulls(len(keys), positions.type)), there["place"]),
    )
    if at.null_count == len(at):
        first = f"has {predictions['key'][0].as_py()!r}" if len(predictions) else "is empty"
        raise FeaturemillError(
            f"{output} predicts none of these rows: it {first}, the features have {keys[0].as_py()!r}; "
            "pass what predict wrote for these features"
        )
    taken = there.take(at)
    label, predicted = rows.columns.pop("label"), taken["label"].combine_chunks()
    agrees = pc.if_else(pc.equal(predicted, label), "agrees", "differs")
    score = taken["score"].combine_chunks().cast(pa.float32())
    rows.columns = {"label": label, "prediction": predicted, "agreement": agrees, "score": score, **rows.columns}
    return len(predicted) - predicted.null_count


def _places(keys: _Column, positions: _Column) -> _Column:
    """Returns keys with their positions, as strings; of an unknown position only what sets it off is there."""
    return pc.binary_join_element_wise(keys, positions.cast(pa.string()), "@", null_handling="replace")


def _unambiguous(predictions: pa.Table) -> pa.Table:
    """Returns the columns `place`, `label` and `score`, each place once; null for one with several labels."""
    places = predictions.append_column("place", _places(predictions["key"], predictions["position"]))
    columns = [("label", "first"), ("score", "first"), ("label", "count_distinct")]
    # In order, so that the first one is the same each time.
    found = places.group_by("place", use_threads=False).aggregate(columns)
    clear = pc.equal(found["label_count_distinct"], 1)
    known = {name: pc.if_else(clear, found[f"{name}_first"], None) for name in ("label", "score")}
    return pa.table({"place": found["place"], **known}).combine_chunks()


def _read_predictions(output: Predictions) -> pa.Table:
    """Returns keys, positions, labels and scores of PRED."""
    folder = output.path("predictions")
    names = sorted(name for name in storage.list_folder(folder) if name.endswith(".parquet"))
    if not names:
        raise FeaturemillError(f"{output} holds no predictions; pass the folder that featuremill predict wrote to")
    tables = []
    for name in names:
        with open_sealed(storage.join(folder, name), cure="predict again with --overwrite") as parquet:
            tables.append(parquet.read(_PREDICTED))
    if any(set(table.column_names) != set(_PREDICTED) for table in tables):
        raise FeaturemillError(f"{folder} lacks one of the columns {', '.join(_PREDICTED)}; predict again")
    return pa.concat_tables(tables)
