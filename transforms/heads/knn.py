"""k nearest neighbours by cosine, exact: every stored vector is compared. Votes count by similarity."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from transforms.errors import FeaturemillError, UsageError
from transforms.heads import FitSettings, Kind
from transforms.heads.cells import Rows
from transforms.heads.model import Model
from transforms.heads.ridge_forms import feature_scale
from transforms.machine import available_memory
from transforms.similarity.all_pairs import nearest_in_memory
from transforms.similarity.unit_vectors import unit_length
from transforms.text import size_text

# Queries that are compared at a time: 4 Mi similarities with a block of stored vectors, 16 MiB.
_QUERIES = 1024
# Of vectors that are made to have length 1 at a time, 32 MiB.
_NUMBERS = 2**23
# How often the vectors are held while heads are fitted and judged: for a learning curve (7/8), to choose, and to keep.
_COPIES = 3


def fitter(rows: Rows, settings: FitSettings) -> "Neighbours":
    """Returns what stores the normalised vectors of any union of cells.

    Raises:
        UsageError: Class weights are asked for, or more neighbours than there are rows.
        FeaturemillError: The rows are too many for the memory.
    """
    if settings.class_weights:
        raise UsageError("knn counts all rows alike; class weights are for --head logistic or linear")
    used = int((rows.cells >= 0).sum())
    if settings.neighbours > used:
        raise UsageError(f"--neighbours {settings.neighbours:,} is more than the {used:,} rows; give fewer")
    needed, available = _COPIES * used * rows.dims * 4, available_memory()
    if needed > available:
        raise FeaturemillError(
            f"knn holds its {used:,} rows of {rows.dims:,} numbers in memory, {_COPIES} times while it is trained: "
            f"{size_text(needed)}, of which {size_text(available)} are free; train another head, such as ridge, which "
            "holds no rows, or give it fewer rows"
        )
    return Neighbours(rows, settings)


class Neighbours:
    """A `Fitter` that only stores. Where some cells have fewer rows than k, all of these vote, as its settings say."""

    def __init__(self, rows: Rows, settings: FitSettings):
        self._rows, self._settings = rows, settings

    def fit(self, train: Collection[int], validation: Collection[int]) -> Model:
        numbers, matrix = self._rows.matrix(train)
        if len(numbers) == 0:
            raise ValueError(f"no rows in the cells {sorted(train)}")
        count = min(self._settings.neighbours, len(numbers))
        arrays = {
            "vectors": matrix,
            "codes": self._rows.codes[numbers].astype(np.int32),
            "neighbours": np.int64(count),
            "classes": np.int64(len(self._rows.classes)),
        }
        if self._settings.standardize:
            arrays["mean"], arrays["scale"] = _moments(matrix)
        for block in _blocks(*matrix.shape):
            matrix[block] = _directions(arrays, matrix[block])
        settings = {"neighbours": count, "standardize": self._settings.standardize}
        return Model("knn", {name: np.asarray(array) for name, array in arrays.items()}, settings)

    def refit(self, model: Model, train: Collection[int]) -> Model:
        return self.fit(train, ())


def logits(model: Model, vectors: np.ndarray) -> np.ndarray:
    """Returns N×C float64: logarithms of the classes' shares of the votes of the k most similar stored vectors.

    A neighbour's vote is its cosine (none where that is negative). One more vote, of an imagined neighbour that is
    quite the same and belongs to all classes alike, keeps every share above 0. Equal cosines go by row number.

    Args:
        model: What `fitter` fitted.
        vectors: N×D float32.
    """
    classes, codes = int(model.arrays["classes"]), model.arrays["codes"]
    scores = np.empty((len(vectors), classes))
    for block in _blocks(*vectors.shape):
        queries = _directions(model.arrays, vectors[block])
        rows, cosines = nearest_in_memory(model.arrays["vectors"], queries, int(model.arrays["neighbours"]))
        votes = np.full((len(queries), classes), 1 / classes)
        np.add.at(votes, (np.arange(len(queries))[:, None], codes[rows]), np.maximum(cosines, 0))
        scores[block] = np.log(votes / votes.sum(axis=1, keepdims=True))
    return scores


def _blocks(count: int, dims: int) -> Iterator[slice]:
    """Yields slices of rows that are at most as many as queries go at once, fewer where D is large."""
    size = max(1, min(_QUERIES, _NUMBERS // dims))
    yield from (slice(start, start + size) for start in range(0, count, size))


def _moments(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns D means and D standard deviations (1 for constants), float32; in float64 but for a block at a time."""
    mean, squares = matrix.mean(axis=0, dtype=np.float64), np.zeros(matrix.shape[1])
    for block in _blocks(*matrix.shape):
        centred = matrix[block] - mean
        squares += np.einsum("nd,nd->d", centred, centred)
    scale = feature_scale(squares, np.zeros_like(mean), len(matrix))
    return mean.astype(np.float32), scale.astype(np.float32)


def _directions(arrays: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors, standardised where the model is, as float32 of length 1 (0 for what has no direction)."""
    if "mean" in arrays:
        vectors = (vectors - arrays["mean"]) / arrays["scale"]
    return unit_length(vectors)


def _keras_logits(model: Model, vectors: Any) -> Any:
    """Returns the scores as `logits` computes them; the stored vectors are the weights of a layer."""
    from transforms.network.keras_import import import_keras

    keras, arrays, classes = import_keras(), model.arrays, int(model.arrays["classes"])
    ops = keras.ops
    if "mean" in arrays:
        vectors = (vectors - arrays["mean"][None]) / arrays["scale"][None]
    vectors = vectors / ops.maximum(ops.sqrt(ops.sum(vectors * vectors, axis=1, keepdims=True)), 1e-30)
    stored = keras.layers.Dense(len(arrays["codes"]), use_bias=False, name="cosines", dtype="float32")
    cosines, rows = ops.top_k(stored(vectors), int(arrays["neighbours"]))
    stored.set_weights([np.ascontiguousarray(arrays["vectors"].T, np.float32)])
    labels = keras.layers.Embedding(len(arrays["codes"]), classes, name="labels", dtype="float32")
    votes = ops.sum(labels(rows) * ops.expand_dims(ops.maximum(cosines, 0.0), -1), axis=1) + 1 / classes
    labels.set_weights([np.eye(classes, dtype=np.float32)[arrays["codes"]]])
    return ops.log(votes / ops.sum(votes, axis=1, keepdims=True))


def _problem(model: Model, dims: int, classes: int) -> str:
    arrays = dict(model.arrays)
    wanted = {"vectors", "codes", "neighbours", "classes"}
    if set(arrays) not in (wanted, wanted | {"mean", "scale"}):
        return f"it holds {', '.join(sorted(arrays)[:4]) or 'nothing'} instead of {', '.join(sorted(wanted))}"
    vectors, codes = arrays["vectors"], arrays["codes"]
    if vectors.ndim != 2 or vectors.shape[1] != dims or codes.shape != vectors.shape[:1]:
        return f"it has vectors {vectors.shape} and codes {codes.shape} for {dims} numbers"
    if any(arrays[name].shape != (dims,) for name in ("mean", "scale") if name in arrays):
        return f"its mean and scale aren't of {dims} numbers"
    if any(arrays[name].dtype.kind not in "iu" or arrays[name].ndim for name in ("neighbours", "classes")):
        return "its neighbours or classes aren't one whole number"
    if codes.dtype.kind not in "iu" or len(codes) < int(arrays["neighbours"]) or int(arrays["neighbours"]) < 1:
        return f"its codes are {codes.dtype}, or fewer than its neighbours"
    if int(arrays["classes"]) != classes or codes.min() < 0 or codes.max() >= classes:
        return f"its codes are not those of {classes} classes"
    floats = [array for name, array in arrays.items() if name in ("vectors", "mean", "scale")]
    return "" if all(array.dtype.kind == "f" for array in floats) else "its vectors are no floats"


KINDS = {"knn": Kind(fitter=fitter, logits=logits, keras_logits=_keras_logits, is_dense=False, problem=_problem)}
