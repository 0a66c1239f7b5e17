"""Heads fitted by gradient steps, with Keras: `linear`, `dense128`, `dense256`. Prediction is NumPy's.

A learning rate means something only where the scale of the numbers is known. So the network is given (x - mean) /
scale, and both are folded into its first layer afterwards; the mean square length of a training row becomes
`_LENGTH`², whatever D. Without standardisation the scale is one number for all. Then the rows are tried as they lie
about 0 and about their mean, and the validation rows choose: far from 0, steps along the mean drown all others; near
it, where features of a network are zeros for most rows, 0 says something.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from transforms.errors import FeaturemillError
from transforms.heads import FitSettings, Kind
from transforms.heads.cells import Rows
from transforms.heads.model import (
    Model,
    class_weights,
    dense_arrays,
    dense_keras_logits,
    dense_logits,
    dense_problem,
    fold_standardisation,
    log_losses,
    score_slices,
)
from transforms.heads.ridge_forms import feature_scale
from transforms.network.keras_import import import_keras

# Units of the hidden layer and share of them that is dropped while training; None: no hidden layer.
_HIDDEN = {"linear": None, "dense128": (128, 0.0), "dense256": (256, 0.5)}
# Training and validation rows stay in memory up to this size together; else they are read anew in every epoch.
_MEMORY_BYTES = 512 * 2**20
# Rows that are read wait in a buffer of this size, from which batches are drawn.
_BUFFER_BYTES = 256 * 2**20
# Root mean square length of the rows that the network sees. At Adam's usual 1e-3, lengths of 5, 10 and 20 gave
# nearly the same heads on real VGG features, of 512 numbers and of 25,088.
_LENGTH = 10.0


class _NeuralFitter:
    """Fits on different cells with one compiled network, put back to its first state before each fit."""

    def __init__(self, kind: str, rows: Rows, settings: FitSettings):
        self._kind = kind
        self._rows = rows
        self._settings = settings
        self._network: _Network | None = None

    def fit(self, train: Collection[int], validation: Collection[int]) -> Model:
        """Trains until the validation loss has not fallen for `patience` epochs; returns the best epoch's head.

        Raises:
            ValueError: No training or no validation rows.
            FeaturemillError: The loss is no number any more.
        """
        return min(self._fits(train, validation), key=lambda model: min(p["validation_loss"] for p in model.curve))

    def _fits(self, train: Collection[int], validation: Collection[int]) -> list[Model]:
        settings, rows = self._settings, self._rows
        if not rows.counts(train).sum() or not rows.counts(validation).sum():
            raise ValueError("neural heads need training rows, and validation rows to stop by")
        self._network = self._network or _Network(self._kind, rows.dims, len(rows.classes), settings)
        keep = 4 * rows.dims * int(rows.wanted([*train, *validation]).sum()) <= _MEMORY_BYTES
        source, judged = (_Source.of(rows, cells, keep=keep) for cells in (train, validation))
        weights = class_weights(rows.counts(train)) if settings.class_weights else np.ones(len(rows.classes))
        scalings = _scalings(source, per_number=settings.standardize)
        return [self._epochs(source, judged, *scaling, weights) for scaling in scalings]

    def refit(self, model: Model, train: Collection[int]) -> Model:
        """Returns the model itself: without validation rows nothing would tell when to stop."""
        return model

    def _epochs(
        self, source: "_Source", judged: "_Source", mean: np.ndarray, scale: np.ndarray, weights: np.ndarray
    ) -> Model:
        settings, network = self._settings, self._network
        network.reset()
        shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
        curve: list[dict[str, float]] = []
        best, best_loss, best_epoch = None, np.inf, 0
        for epoch in range(1, settings.epochs + 1):
            batches = source.shuffled((settings.seed, epoch), settings.batch_size)
            loss = network.train((((x - shift) * factor, y) for x, y in batches), weights)
            model = Model(self._kind, network.arrays(mean, scale))
            validation_loss = _log_loss(model, judged, weights)
            if not np.isfinite([loss, validation_loss]).all():
                raise FeaturemillError(
                    f"{self._kind}: the loss is no number any more in epoch {epoch}; lower the learning rate "
                    f"({settings.learning_rate:g})" + ("" if settings.standardize else ", or standardize")
                )
            curve.append({"epoch": epoch, "loss": loss, "validation_loss": validation_loss})
            if validation_loss < best_loss:
                best, best_loss, best_epoch = model, validation_loss, epoch
            if epoch - best_epoch >= settings.patience:
                break
        chosen = {"epochs": best_epoch, "learning_rate": settings.learning_rate, "batch_size": settings.batch_size}
        chosen |= {"standardize": settings.standardize, "centred": bool(mean.any())}
        return replace(best, settings=chosen, curve=tuple(curve))


class _Network:
    """The Keras model, its compiled training step, and the state that both started from."""

    def __init__(self, kind: str, dims: int, classes: int, settings: FitSettings):
        keras = import_keras()
        # Seeds are given one by one: Keras's own random state stays as it is.
        seed = settings.seed
        stack: list[Any] = [keras.Input((dims,), dtype="float32")]
        if _HIDDEN[kind]:
            units, rate = _HIDDEN[kind]
            stack.append(_dense(units, seed, activation="relu"))
            stack += [keras.layers.Dropout(rate, seed=seed)] if rate else []
        stack.append(_dense(classes, seed + 1))
        self._model = keras.Sequential(stack)
        self._batch_size = settings.batch_size
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # XLA would compile longer than such a head trains.
        self._model.compile(keras.optimizers.Adam(settings.learning_rate), loss, jit_compile=False)
        self._model.optimizer.build(self._model.trainable_variables)
        self._state = [*self._model.variables, *self._model.optimizer.variables]
        self._first = [keras.ops.convert_to_numpy(variable).copy() for variable in self._state]

    def reset(self) -> None:
        """Undoes all training."""
        for variable, value in zip(self._state, self._first, strict=True):
            variable.assign(value)

    def train(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> float:
        """Takes one step for each batch; returns the mean training loss.

        Every batch has the same shape, so that the step is compiled once: short ones are filled up with rows that
        weigh nothing.
        """
        total, rows = 0.0, 0
        for vectors, codes in batches:
            missing = self._batch_size - len(codes)
            row_weights = np.pad(weights[codes].astype(np.float32), (0, missing))
            vectors = np.pad(vectors, ((0, missing), (0, 0)))
            # Only newer versions of Keras give the figure of each step without that, not the mean of all so far.
            self._model.reset_metrics()
            loss = self._model.train_on_batch(vectors, np.pad(codes, (0, missing)), sample_weight=row_weights)
            # It is a mean that counts the rows that filled the batch up, too.
            total += float(loss) * self._batch_size
            rows += len(codes)
        return total / rows

    def arrays(self, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a `Model` that takes the numbers as they are stored."""
        values = self._model.get_weights()
        layers = list(zip(values[::2], values[1::2], strict=True))
        layers[0] = fold_standardisation(*layers[0], mean, scale)
        return dense_arrays([(kernel.astype(np.float32), bias.astype(np.float32)) for kernel, bias in layers])


def _dense(units: int, seed: int, activation: str | None = None) -> Any:
    keras = import_keras()
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, dtype="float32")


@dataclass(frozen=True)
class _Source:
    """The labelled rows of some cells, in memory (`matrix`) or read anew each time."""

    rows: Rows
    cells: tuple[int, ...]
    codes: np.ndarray
    matrix: np.ndarray | None

    @classmethod
    def of(cls, rows: Rows, cells: Collection[int], *, keep: bool) -> "_Source":
        if not keep:
            return cls(rows, tuple(cells), rows.codes, None)
        numbers, matrix = rows.matrix(cells)
        return cls(rows, tuple(cells), rows.codes[numbers], matrix)

    def batches(self, seed: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (n×D vectors, n codes), in the order of the rows or, if they are read, as `seed` says."""
        if self.matrix is not None:
            yield self.matrix, self.codes
            return
        for numbers, vectors in self.rows.batches(self.cells, seed=seed):
            yield vectors, self.codes[numbers]

    def shuffled(self, seed: tuple[int, int], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches of `size` rows (the last may be shorter) in an order drawn from `seed`.

        In memory any order is as likely as any other. Rows that are read pass through a buffer from which each batch
        is drawn, after files and row groups were put in random order.
        """
        random = np.random.default_rng(seed)
        if self.matrix is not None:
            order = random.permutation(len(self.codes))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                yield self.matrix[chosen], self.codes[chosen]
            return
        batches = self.batches(int(random.integers(2**32)))
        yield from _rebatched(_mixed(batches, max(1, _BUFFER_BYTES // (4 * self.rows.dims)), random), size)


def _mixed(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], capacity: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the rows of batches in random order, as far as a buffer of `capacity` rows allows.

    Each batch takes the places of rows drawn from the full buffer, which go out.
    """
    held: np.ndarray | None = None
    held_codes, count = np.empty(capacity, np.int32), 0
    for vectors, codes in batches:
        if held is None:
            held = np.empty((capacity, vectors.shape[1]), np.float32)
        free = min(capacity - count, len(codes))
        held[count : count + free], held_codes[count : count + free] = vectors[:free], codes[:free]
        count += free
        for start in range(free, len(codes), capacity):
            incoming = slice(start, start + capacity)
            places = random.choice(capacity, len(codes[incoming]), replace=False)
            yield held[places], held_codes[places]
            held[places], held_codes[places] = vectors[incoming], codes[incoming]
    order = random.permutation(count)
    for start in range(0, count, 4096):
        places = order[start : start + 4096]
        yield held[places], held_codes[places]


def _rebatched(chunks: Iterator[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the same rows in batches of `size`; only the last may be shorter."""
    rest: tuple[np.ndarray, np.ndarray] | None = None
    for vectors, codes in chunks:
        if rest is not None:
            vectors, codes = np.concatenate([rest[0], vectors]), np.concatenate([rest[1], codes])
        whole = len(codes) - len(codes) % size
        for start in range(0, whole, size):
            yield vectors[start : start + size], codes[start : start + size]
        rest = vectors[whole:], codes[whole:]
    if rest is not None and len(rest[1]):
        yield rest


def _scalings(source: _Source, *, per_number: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns means and scales, D float64 each, by which the network's input can be (x - mean) / scale.

    With `per_number` each number gets mean 0 and, but for nearly constant ones, the same variance; else the scale is
    one for all, with mean 0 and with the rows' mean. In each the mean square length of a row is `_LENGTH`², whatever D.
    Sums are in float64, around the first batch's mean, so that large means don't drown the variances.
    """
    count, shift = 0, None
    for vectors, _ in source.batches():
        for start in range(0, len(vectors), 4096):
            piece = vectors[start : start + 4096].astype(np.float64)
            if shift is None:
                shift = piece.mean(axis=0)
                total, squares = np.zeros_like(shift), np.zeros_like(shift)
            piece -= shift
            total += piece.sum(axis=0)
            squares += np.einsum("ij,ij->j", piece, piece)
            count += len(piece)
    mean, variance = shift + total / count, np.maximum(squares / count - (total / count) ** 2, 0)
    spread = feature_scale(squares, total / count, count) if per_number else np.ones_like(mean)
    about_mean = mean, spread * _unit((variance / spread**2).sum())
    about_zero = np.zeros_like(mean), spread * _unit((variance + mean**2).sum())
    return [about_mean] if per_number else [about_zero, about_mean]


def _unit(square_length: float) -> float:
    return float(np.sqrt(square_length) or 1.0) / _LENGTH


def _log_loss(model: Model, source: _Source, weights: np.ndarray) -> float:
    """Returns the mean of -log p(true class), in float64, each row weighted by its class (C)."""
    total = count = 0.0
    # Whatever overflows ends up in the sum, which the caller checks.
    with np.errstate(over="ignore", invalid="ignore"):
        for vectors, codes in source.batches():
            for part in score_slices(len(codes), len(weights)):
                losses = log_losses(dense_logits(model, vectors[part]), codes[part])
                total += float(losses @ weights[codes[part]])
            count += float(weights[codes].sum())
    return total / count


KINDS = {
    name: Kind(
        fitter=partial(_NeuralFitter, name),
        logits=dense_logits,
        keras_logits=dense_keras_logits,
        problem=dense_problem,
        is_dense=True,
        dropout=hidden[1] if hidden else 0.0,
        # Without validation rows nothing would tell when to stop.
        refits=False,
        transform_by="ridge",
    )
    for name, hidden in _HIDDEN.items()
}
