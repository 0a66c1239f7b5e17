"""`Model`: what a fit yields, as arrays and JSON values; and the forward pass of dense layers in NumPy and Keras."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transforms.heads.transform import Transform

_SCORES_AT_ONCE = 2**20
_IDENTITY = Transform()


@dataclass(frozen=True)
class Model:
    """A fitted head: D numbers in, a score for each of C classes out.

    Attributes:
        kind: One of `transforms.heads.KINDS`.
        arrays: All that prediction needs. For all kinds but knn `kernel1` (D×U), `bias1` (U), `kernel2` …: dense
            layers with relu between them, the last with U = C; what standardisation did is folded into the first.
        settings: What was chosen (penalty, epochs …), as JSON values.
        curve: What it was chosen by: points such as {"penalty": 0.1, "loss": 0.2} or {"epoch": 1, "loss": 0.9,
            "validation_loss": 1.0}; the first name is the horizontal axis.
        transform: What is done to vectors before `arrays`.
    """

    kind: str
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    transform: Transform = _IDENTITY


def dense_arrays(layers: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns (kernel, bias) pairs under the names that `Model.arrays` has for them."""
    return {
        f"{what}{i}": array
        for i, pair in enumerate(layers, 1)
        for what, array in zip(("kernel", "bias"), pair, strict=True)
    }


def dense_layers(model: Model) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the (kernel, bias) pairs of a model that is dense layers, in order."""
    count = sum(name.startswith("kernel") for name in model.arrays)
    return [(model.arrays[f"kernel{i}"], model.arrays[f"bias{i}"]) for i in range(1, count + 1)]


def dense_problem(model: Model, dims: int, classes: int) -> str:
    """Returns what of the arrays isn't that of dense layers from `dims` to `classes` numbers; empty if nothing."""
    count = len(model.arrays) // 2
    names = {f"{what}{i}" for i in range(1, count + 1) for what in ("kernel", "bias")}
    if not names or set(model.arrays) != names:
        return f"it holds {', '.join(sorted(model.arrays)[:4]) or 'nothing'} instead of layers"
    width = dims
    for number, (kernel, bias) in enumerate(dense_layers(model), 1):
        if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
            return f"layer {number} is {kernel.shape} and {bias.shape}, and should take {width} numbers"
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (kernel, bias)):
            return f"layer {number} holds what are no numbers"
        width = len(bias)
    return "" if width == classes else f"it gives {width} scores for {classes} classes"


def dense_logits(model: Model, vectors: np.ndarray) -> np.ndarray:
    """Returns N×C scores of a model that is dense layers, in the dtype of its arrays (no less than float32)."""
    layers = dense_layers(model)
    for number, (kernel, bias) in enumerate(layers, 1):
        vectors = vectors @ kernel + bias
        if number < len(layers):
            vectors = np.maximum(vectors, 0)
    return vectors


def dense_keras_logits(model: Model, vectors: Any) -> Any:
    """Returns the scores as `dense_logits` computes them, for a tensor of Keras."""
    from transforms.network.keras_import import import_keras

    keras, pairs = import_keras(), dense_layers(model)
    for number, (kernel, bias) in enumerate(pairs, 1):
        activation = "relu" if number < len(pairs) else None
        layer = keras.layers.Dense(len(bias), activation=activation, name=f"head{number}", dtype="float32")
        vectors = layer(vectors)
        layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return vectors


def fold_standardisation(
    kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dense layer that takes x where this one takes (x - mean) / scale.

    Args:
        kernel, bias: D×U and U.
        mean, scale: D each.
    """
    kernel = kernel / scale[:, None]
    return kernel, bias - mean @ kernel


def score_slices(rows: int, classes: int) -> Iterator[slice]:
    """Yields slices of rows whose scores are about a million numbers: all at once they may be gigabytes."""
    step = max(1, _SCORES_AT_ONCE // classes)
    yield from (slice(start, start + step) for start in range(0, rows, step))


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Returns what a row of each of C classes counts, N / (classes × rows of the class), of the training rows of each.

    Only classes with rows are counted, so that training rows count 1 on average; one without counts as with one row.
    """
    return counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))


def log_losses(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns n float64 log losses of softmax(scores), for n×C scores and the n true classes."""
    # Differences to the largest: exp can't overflow.
    scores = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(codes)), codes]
