"""Predictions: from probabilities to rows, and the Parquet parts that hold them."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.committed import committed_file
from transforms.evaluation.abstaining import is_answered
from transforms.heads.far import Far
from transforms.labels.kept import arrow_type, names_beside
from transforms.parquet.seals import SealedWriter
from transforms.rows.labels import encode_as
from transforms.spec import FeatureSpec
from transforms.store.layout import writing
from transforms.store.predictions import Predictions

# A part ends with the batch that passes one of these.
PART_ROWS = 1_000_000
PART_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Predictor:
    """A head in use, trained or ImageNet's: it gives labels to vectors.

    Attributes:
        name: Folder of the head, or `imagenet`.
        sha256: Tells it from any other.
        labels: C names of classes.
        wnids: C WordNet ids for ImageNet's head, whose names aren't all different; else empty.
        columns: Feature columns that it takes, one behind the other.
        spec: What made the features it was trained on; None if that isn't known.
        probabilities: N×D float32 → N×C float64.
        far: Tells rows that are far from what the head was trained on; None where that isn't known.
        threshold: Rows of which it is less sure have no label; 0 where all have one.
    """

    name: str
    sha256: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    spec: FeatureSpec | None
    probabilities: Callable[[np.ndarray], np.ndarray]
    wnids: tuple[str, ...] = ()
    threshold: float = 0.0
    far: Far | None = None

    @cached_property
    def codes(self) -> dict[str, int]:
        """{true label: class}: names, as far as they stand for one class, and WordNet ids."""
        once = {label: i for i, label in enumerate(self.labels) if self.labels.count(label) == 1}
        return once | {wnid: i for i, wnid in enumerate(self.wnids)}

    @property
    def unique_labels(self) -> tuple[str, ...]:
        """C names that are all different."""
        return tuple(map(" ".join, zip(self.wnids, self.labels, strict=True))) if self.wnids else self.labels


def rank(probabilities: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `top` classes of each row and their probabilities, the highest first.

    Args:
        probabilities: N×C.
        top: At most C; of equal classes the first comes first.

    Returns:
        N×top int64 and N×top float32.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return order, np.take_along_axis(probabilities, order, axis=1).astype(np.float32)


def true_codes(labels: pa.Array, predictor: Predictor) -> np.ndarray:
    """Returns N int64: the class of each true label, -1 for none and for one that the head doesn't know."""
    # -1, of an unknown label, takes the last.
    classes = np.array([*predictor.codes.values(), -1])
    return classes[encode_as(labels.cast(pa.string()), list(predictor.codes))]


def predictions_schema(predictor: Predictor, *, probabilities: bool, kept: Mapping[str, str]) -> pa.Schema:
    """Returns the Arrow schema of a part.

    `label` and `score` are the first of `top_labels` and `top_scores`, but `label` is null of a row without an answer,
    whose best guess these still are, and so is `agrees`; `source` and `position` say where an image lies,
    null for features that don't say it; `agrees` is null where the true label is unknown or no class of the head.

    Args:
        predictor: Whose classes they are.
        probabilities: Whether all C go into the row.
        kept: {column that came along with the images: name of its type}; last, as `names_beside` calls them.
    """
    text, texts = pa.string(), pa.list_(pa.string())
    fields = {
        "key": text,
        "source": text,
        "position": pa.int64(),
        "label": text,
        **({"wnid": text} if predictor.wnids else {}),
        "score": pa.float32(),
        "top_labels": texts,
        **({"top_wnids": texts} if predictor.wnids else {}),
        "top_scores": pa.list_(pa.float32()),
        **({"probabilities": pa.list_(pa.float32(), len(predictor.labels))} if probabilities else {}),
        **({"distance": pa.float32(), "far": pa.bool_()} if predictor.far else {}),
        "true_label": text,
        "agrees": pa.bool_(),
    }
    # The same name whatever the head measures.
    names = names_beside(kept, {*fields, "wnid", "top_wnids", "probabilities", "distance", "far"})
    fields |= {names[name]: arrow_type(kind) for name, kind in kept.items()}
    return pa.schema(list(fields.items()))


def prediction_rows(
    predictor: Predictor, probabilities: np.ndarray, facts: dict[str, pa.Array], *, top: int, schema: pa.Schema
) -> pa.RecordBatch:
    """Returns a batch of N rows.

    Args:
        predictor: Whose classes they are.
        probabilities: N×C float64.
        facts: `key`, `source`, `position` and `true_label`, N each; `distance` where the head measures it; what came
            along, by the schema's names.
        top: Classes to a row, at most C.
        schema: From `predictions_schema`.
    """
    order, scores = rank(probabilities, top)
    unknown = ~is_answered(scores[:, 0], predictor.threshold)
    first = pa.array(order[:, 0], mask=unknown)
    columns = dict(facts)
    for ending, names in (("label", predictor.labels), ("wnid", predictor.wnids)):
        if names:
            taken = pa.array(names, pa.string()).take(pa.array(order.reshape(-1)))
            columns[f"top_{ending}s"] = _lists(taken, top)
            columns[ending] = pa.array(names, pa.string()).take(first)
    columns["score"] = pa.array(scores[:, 0])
    columns["top_scores"] = _lists(pa.array(scores.reshape(-1)), top)
    if "probabilities" in schema.names:
        flat = pa.array(probabilities.astype(np.float32).reshape(-1))
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1])
    if predictor.far:
        columns["far"] = pc.greater(facts["distance"], pa.scalar(predictor.far.distance, pa.float32()))
    codes = true_codes(facts["true_label"], predictor)
    columns["agrees"] = pa.array(order[:, 0] == codes, mask=(codes < 0) | unknown)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(values: pa.Array, size: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, size), pa.int32()), values)


class PredictionWriter:
    """Writes batches into parts of bounded size, each of them there whole or not at all."""

    def __init__(self, output: Predictions, schema: pa.Schema):
        """Takes PRED, in which `_tmp` and `predictions` are, and the schema."""
        self.output, self.schema = output, schema
        self.rows = 0
        # {path in PRED: seal} of the parts that are written.
        self.seals: dict[str, str] = {}
        self._batches: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds a batch of rows.

        Raises:
            FeaturemillError: The part can't be written.
        """
        self._batches.append(batch)
        self.rows += batch.num_rows
        gathered = sum(batch.num_rows for batch in self._batches)
        if gathered >= PART_ROWS or sum(batch.nbytes for batch in self._batches) >= PART_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what has gathered; a part without rows where there are none, so that there is something to read."""
        if self._batches or not self.seals:
            self._write()

    def _write(self) -> None:
        name = f"part-{len(self.seals):05}.parquet"
        final = self.output.path("predictions", name)
        temporary = self.output.path("_tmp", f"{name}.{uuid.uuid4().hex}")
        with writing(name, self.output), committed_file(final, temporary) as file:
            parquet = SealedWriter(file, self.schema)
            parquet.write(pa.Table.from_batches(self._batches, self.schema))
            seal = parquet.close()
        self._batches = []
        self.seals[f"predictions/{name}"] = seal
