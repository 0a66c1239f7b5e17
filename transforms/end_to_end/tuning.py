"""Fine-tuning: the upper layers of a base, the poolings and a head's dense layers as one network, and its training."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from transforms.end_to_end.plan import TuningPlan
from transforms.errors import FeaturemillError
from transforms.heads.transform import Transform
from transforms.network.bases import build, open_file, outputs_of
from transforms.network.keras_import import import_keras
from transforms.network.normalise import preprocess
from transforms.pools import pool_output

Arrays = Mapping[str, tuple[np.ndarray, ...]]
# (row numbers, inputs), see `inputs.TuningRows.batches`.
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


class TuningNetwork:
    """A network with one shape of batch: inputs to the vectors that a head takes, and, once it has one, to C logits.

    Its layers are those of the whole base, so that the base can be saved as it is at any time.
    """

    def __init__(self, plan: TuningPlan, weights: Arrays, *, batch_size: int):
        """Builds it without a head.

        Args:
            plan: What is trained, and from where.
            weights: Of all layers of the plan's table.
            batch_size: Rows of a step; fewer are padded.
        """
        self.plan = plan
        self.batch_size = batch_size
        self._base = build(plan.table, plan.image_size)
        for name, pair in weights.items():
            self._base.get_layer(name).set_weights(pair)
        for layer in self._base.layers:
            layer.trainable = layer.name in plan.trained
        self._pooled = self._graph()

    def _graph(self) -> Any:
        keras, plan = import_keras(), self.plan
        shape = (self.batch_size, *plan.input_shape)
        inputs = keras.Input(batch_shape=shape, dtype="float32" if plan.start else "uint8")
        start = plan.table[plan.start - 1].name if plan.start else ""
        given = inputs if plan.start else preprocess(inputs, plan.normalise)
        outputs = outputs_of(self._base, given, [feature.tap for feature in plan.features], start)
        vectors = [pool_output(outputs[feature.tap], feature.pool) for feature in plan.features]
        return keras.Model(inputs, keras.ops.concatenate(vectors, axis=-1) if len(vectors) > 1 else vectors[0])

    def put_head(
        self,
        dense: Sequence[tuple[np.ndarray, np.ndarray]],
        transform: Transform,
        *,
        dropout: float,
        learning_rate: float,
        warm_up: int,
        seed: int,
        class_weights: np.ndarray | None = None,
    ) -> None:
        """Adds a head, and compiles.

        Args:
            dense: (kernel, bias) of its layers.
            transform: What comes before them.
            dropout: Rate before the last of them.
            learning_rate: Of Adam.
            warm_up: Steps over which the rate rises to that: Adam's first steps are as long for a weight whose gradient
                is next to nothing as for any other, and all at once they would carry a good head off.
            seed: Of dropout.
            class_weights: C, what a row of each class counts in the loss; None: all as much.
        """
        keras = import_keras()
        self._class_weights = np.ones(dense[-1][0].shape[1]) if class_weights is None else class_weights
        # A user's keras.json may ask for another dtype.
        self._dense = [
            keras.layers.Dense(kernel.shape[1], activation="relu" if i < len(dense) else None, dtype="float32")
            for i, (kernel, _) in enumerate(dense, 1)
        ]
        current = transform.keras(_as_at_inference(self._pooled)(self._pooled.input))
        for layer in self._dense[:-1]:
            current = layer(current)
        dropouts = [keras.layers.Dropout(dropout, seed=seed, dtype="float32")] if dropout else []
        for layer in dropouts:
            current = layer(current)
        self._model = keras.Model(self._pooled.input, self._dense[-1](current))
        self.set_dense(dense)
        rate = keras.optimizers.schedules.PolynomialDecay(learning_rate / warm_up, warm_up, learning_rate)
        self._model.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # As for the engine: XLA is no faster on a CPU, and compiles twice as long.
            jit_compile=False,
        )
        # It would be built by the first step, and then have nothing yet for `restore`.
        self._model.optimizer.build(self._model.trainable_variables)
        # Adam's moments and its count of steps, from which the rate follows; how often dropout has drawn.
        self._moving = [*self._model.optimizer.variables, *(layer.seed_generator.state for layer in dropouts)]

    def set_dense(self, dense: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Sets the head's layers."""
        for layer, pair in zip(self._dense, dense, strict=True):
            layer.set_weights(pair)

    def vectors(self, inputs: np.ndarray) -> np.ndarray:
        """Returns n×D float32, what the head takes of n rows, n at most the batch size."""
        return np.asarray(self._pooled.predict_on_batch(self._padded(inputs)))[: len(inputs)]

    def step(self, inputs: np.ndarray, codes: np.ndarray) -> float:
        """Trains on n rows, n at most the batch size; returns the mean of their weighted losses before it.

        Args:
            inputs: n×(input shape): float32 taps or uint8 images.
            codes: n int32.
        """
        weights = np.zeros(self.batch_size, np.float32)
        # Padded rows count nothing, in a mean over the whole batch that is to be that of the others.
        weights[: len(inputs)] = self._class_weights[codes] * (self.batch_size / len(inputs))
        codes = np.pad(codes, (0, self.batch_size - len(codes)))
        # Only newer versions of Keras give the figure of each step without that, not the mean of all so far.
        self._model.reset_metrics()
        logs = self._model.train_on_batch(self._padded(inputs), codes, sample_weight=weights, return_dict=True)
        return float(logs["loss"])

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Returns n×C float32 of n rows, n at most the batch size."""
        return np.asarray(self._model.predict_on_batch(self._padded(inputs)))[: len(inputs)]

    def _padded(self, inputs: np.ndarray) -> np.ndarray:
        missing = self.batch_size - len(inputs)
        if not missing:
            return inputs
        return np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)])

    def state(self, *, whole: bool = False) -> list[np.ndarray]:
        """Returns copies of all that is trained; the whole state is that and all else that a step changes."""
        to_numpy = import_keras().ops.convert_to_numpy
        # What is returned may be the variable's own memory.
        return [to_numpy(variable).copy() for variable in self._variables(whole)]

    def restore(self, state: Sequence[np.ndarray], *, whole: bool = False) -> None:
        """Sets what `state` returned."""
        for variable, value in zip(self._variables(whole), state, strict=True):
            variable.assign(value)

    def _variables(self, whole: bool) -> list[Any]:
        return [*self._model.trainable_variables, *(self._moving if whole else ())]

    def dense(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (kernel, bias) of the head's layers."""
        return [tuple(layer.get_weights()) for layer in self._dense]

    def weights(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Returns {layer: its arrays} of the whole base."""
        return {layer.name: tuple(layer.get_weights()) for layer in self._base.layers if layer.weights}

    def weight_file(self) -> bytes:
        """Returns the whole base as a `.weights.h5` file of Keras 3; one from a `.keras` file as such a file."""
        if file := getattr(self.plan.table[0], "file", ""):
            return open_file("keras", file).archive(self.weights())
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "base.weights.h5")
            self._base.save_weights(path)
            with open(path, "rb") as file:
                return file.read()


def _as_at_inference(network: Any) -> Any:
    """Returns a layer that computes a network as at inference, also while it is trained.

    So batches don't move its averages, nor do an image's numbers depend on its neighbours. Said where a network is
    called as a part of another it would have no effect: Keras overrides it in each step.
    """
    keras = import_keras()

    class AsAtInference(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(dtype="float32")
            self.network = network

        def call(self, inputs: Any) -> Any:
            return self.network(inputs, training=False)

    return AsAtInference()


@dataclass(frozen=True)
class Tuning:
    """The result of a training, or how far it has come.

    Attributes:
        epochs: {"epoch", "loss", "validation_loss", "seconds" (of the training steps), "first_step_seconds",
            "validation_seconds"} of each. The first step of the first epoch compiles.
        first_loss: Of the first batch, before it was trained on; NaN before the first epoch's end.
        start_loss: Validation loss of the network as it began.
        best_epoch: The one with the least of it, whose weights the network has in the end; 0: none was better than the
            start, which it has.
        interrupted: Whether Ctrl-C ended it.
    """

    epochs: tuple[dict[str, float], ...]
    first_loss: float
    start_loss: float
    best_epoch: int
    interrupted: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A training after a whole epoch, with all that it takes to go on as if it had never stopped.

    Attributes:
        tuning: How far it has come.
        best: `TuningNetwork.state` after the best epoch.
        network: The whole state after the last one.
    """

    tuning: Tuning
    best: list[np.ndarray]
    network: list[np.ndarray]


def tune(
    network: TuningNetwork,
    *,
    train: Callable[[int], Batches],
    validate: Callable[[], float],
    start_loss: float,
    codes: np.ndarray,
    epochs: int,
    patience: int,
    say: Callable[[str], None],
    begun: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
    tick: Callable[[int, int, float], None] = lambda epoch, step, loss: None,
) -> Tuning:
    """Trains until the validation loss stops falling, and leaves the network as it was at its lowest, or at the start.

    Ctrl-C after the first epoch ends the training in the same way.

    Args:
        network: Is changed.
        train: From the number of an epoch to its batches.
        validate: Returns the validation loss.
        start_loss: What that is now.
        codes: N int32, the classes of all rows.
        epochs: At most so many.
        patience: Epochs without a lower validation loss before it stops.
        say: Is called with a line for each epoch.
        begun: What it goes on from; its start counts, not `start_loss`.
        keep: Is called with a checkpoint after each epoch.
        tick: Is called after each step with the epoch, the step in it, from 1, and the mean loss of its steps so far.

    Raises:
        FeaturemillError: The loss is no number any more.
        KeyboardInterrupt: Ctrl-C before an epoch was done.
    """
    tuning, best = Tuning((), np.nan, start_loss, 0), network.state()
    if begun:
        network.restore(begun.network, whole=True)
        tuning, best = begun.tuning, begun.best
    try:
        while len(tuning.epochs) < min(epochs, tuning.best_epoch + patience):
            epoch, lowest = len(tuning.epochs) + 1, _lowest(tuning)
            figures, first = _epoch(network, train(epoch), codes, partial(tick, epoch))
            started = time.perf_counter()
            loss = validate()
            figures |= {"epoch": epoch, "validation_loss": loss, "validation_seconds": time.perf_counter() - started}
            if not np.isfinite([figures["loss"], loss]).all():
                raise FeaturemillError(f"epoch {epoch}: the loss is {figures['loss']}; lower --learning-rate")
            figures = {name: figures[name] for name in ("epoch", "loss", "validation_loss", *sorted(figures))}
            say(f"epoch {epoch:<4}loss {figures['loss']:.4f}, validation {loss:.4f}, {figures['seconds']:.1f} s")
            better = loss < lowest
            tuning, best = (
                replace(
                    tuning,
                    epochs=(*tuning.epochs, figures),
                    first_loss=tuning.first_loss if tuning.epochs else first,
                    best_epoch=epoch if better else tuning.best_epoch,
                ),
                network.state() if better else best,
            )
            if keep:
                keep(Checkpoint(tuning, best, network.state(whole=True)))
    except KeyboardInterrupt:
        if not tuning.epochs:
            raise
        tuning = replace(tuning, interrupted=True)
    network.restore(best)
    return tuning


def _lowest(tuning: Tuning) -> float:
    """Returns the validation loss of the best epoch, or of the start."""
    return tuning.epochs[tuning.best_epoch - 1]["validation_loss"] if tuning.best_epoch else tuning.start_loss


def _epoch(
    network: TuningNetwork, batches: Batches, codes: np.ndarray, tick: Callable[[int, float], None]
) -> tuple[dict[str, float], float]:
    """Returns the figures of one epoch, and the loss of its first batch."""
    started = last = time.perf_counter()
    losses, counts, first_step, total, rows = [], [], 0.0, 0.0, 0
    for numbers, inputs in batches:
        if not losses:
            # Reading ahead of the first step fills the shuffle buffer: that is no compiling.
            last = time.perf_counter()
        losses.append(network.step(inputs, codes[numbers]))
        counts.append(len(numbers))
        first_step = first_step or time.perf_counter() - last
        total += losses[-1] * len(numbers)
        rows += len(numbers)
        tick(len(losses), total / rows)
    seconds = time.perf_counter() - started
    loss = float(np.average(losses, weights=counts))
    return {"loss": loss, "seconds": seconds, "first_step_seconds": first_step}, losses[0]
