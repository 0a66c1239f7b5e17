"""Fine-tuning: the upper layers of a base, the poolings and a head's dense layers as one network, and its training."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.end_to_end.plan import TuningPlan
from transforms.errors import FeaturemillError
from transforms.network.keras_import import import_keras
from transforms.network.vgg import build, preprocess
from transforms.pools import pool_output

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]
# (row numbers, inputs), see `inputs.TuningRows.batches`.
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


class TuningNetwork:
    """A compiled network with one shape of batch: inputs to the logits of C classes.

    Its layers are those of the whole base, so that the base can be saved as it is at any time.
    """

    def __init__(
        self,
        plan: TuningPlan,
        weights: Arrays,
        dense: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        dropout: float,
        batch_size: int,
        learning_rate: float,
        seed: int,
    ):
        """Builds it.

        Args:
            plan: What is trained, and from where.
            weights: Of all layers of the plan's table.
            dense: (kernel, bias) of the head's layers.
            dropout: Rate before the last of them.
            batch_size: Rows of a step; fewer are padded.
            learning_rate: Of Adam.
            seed: Of dropout.
        """
        keras = import_keras()
        self.plan = plan
        self.batch_size = batch_size
        self._base = build(plan.table, plan.image_size)
        for name, pair in weights.items():
            self._base.get_layer(name).set_weights(pair)
        for layer in self._base.layers:
            layer.trainable = layer.name in plan.trained
        # A user's keras.json may ask for another dtype.
        self._dense = [
            keras.layers.Dense(kernel.shape[1], activation="relu" if i < len(dense) else None, dtype="float32")
            for i, (kernel, _) in enumerate(dense, 1)
        ]
        self._model = self._graph(keras.layers.Dropout(dropout, seed=seed, dtype="float32") if dropout else None)
        for layer, pair in zip(self._dense, dense, strict=True):
            layer.set_weights(pair)
        self._model.compile(
            optimizer=keras.optimizers.Adam(learning_rate),
            # Padded rows have weight 0, and the mean has to be that of the others.
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
            # As for the engine: XLA is no faster on a CPU, and compiles twice as long.
            jit_compile=False,
        )

    def _graph(self, dropout: Any) -> Any:
        keras, plan = import_keras(), self.plan
        shape = (self.batch_size, *plan.input_shape)
        inputs = keras.Input(batch_shape=shape, dtype="float32" if plan.start else "uint8")
        outputs = {plan.table[plan.start - 1].name: inputs} if plan.start else {}
        current = inputs if plan.start else preprocess(inputs)
        for layer in self._base.layers[plan.start : plan.last + 1]:
            current = outputs[layer.name] = layer(current)
        vectors = [pool_output(outputs[feature.tap], feature.pool) for feature in plan.features]
        current = keras.ops.concatenate(vectors, axis=-1) if len(vectors) > 1 else vectors[0]
        for layer in self._dense[:-1]:
            current = layer(current)
        if dropout:
            current = dropout(current)
        return keras.Model(inputs, self._dense[-1](current))

    def step(self, inputs: np.ndarray, codes: np.ndarray) -> float:
        """Trains on n rows, n at most the batch size; returns their mean loss before it.

        Args:
            inputs: n×(input shape): float32 taps or uint8 images.
            codes: n int32.
        """
        weights = np.zeros(self.batch_size, np.float32)
        weights[: len(inputs)] = 1
        codes = np.pad(codes, (0, self.batch_size - len(codes)))
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

    def state(self) -> list[np.ndarray]:
        """Returns copies of all that is trained."""
        to_numpy = import_keras().ops.convert_to_numpy
        # What is returned may be the variable's own memory.
        return [to_numpy(variable).copy() for variable in self._model.trainable_variables]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Sets what `state` returned."""
        for variable, value in zip(self._model.trainable_variables, state, strict=True):
            variable.assign(value)

    def dense(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (kernel, bias) of the head's layers."""
        return [tuple(layer.get_weights()) for layer in self._dense]

    def weights(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns {layer: (kernel, bias)} of the whole base."""
        return {layer.name: tuple(layer.get_weights()) for layer in self._base.layers if layer.weights}

    def weight_file(self) -> bytes:
        """Returns the whole base as a `.weights.h5` file of Keras 3."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "base.weights.h5")
            self._base.save_weights(path)
            with open(path, "rb") as file:
                return file.read()


@dataclass(frozen=True)
class Tuning:
    """The result of a training.

    Attributes:
        epochs: {"epoch", "loss", "validation_loss", "seconds" (of the training steps), "first_step_seconds",
            "validation_seconds"} of each. The first step of the first epoch compiles.
        first_loss: Of the first batch, before it was trained on.
        best_epoch: The one whose weights the network has now.
    """

    epochs: tuple[dict[str, float], ...]
    first_loss: float
    best_epoch: int


def tune(
    network: TuningNetwork,
    *,
    train: Callable[[int], Batches],
    validate: Callable[[], float],
    codes: np.ndarray,
    epochs: int,
    patience: int,
    say: Callable[[str], None],
) -> Tuning:
    """Trains until the validation loss stops falling, and leaves the network as it was at its lowest.

    Args:
        network: Is changed.
        train: From the number of an epoch to its batches.
        validate: Returns the validation loss.
        codes: N int32, the classes of all rows.
        epochs: At most so many.
        patience: Epochs without a lower validation loss before it stops.
        say: Is called with a line for each epoch.

    Raises:
        FeaturemillError: The loss is no number any more.
    """
    best, best_epoch, best_state = np.inf, 0, network.state()
    done: list[dict[str, float]] = []
    first_loss = None
    for epoch in range(1, epochs + 1):
        figures, first = _epoch(network, train(epoch), codes)
        first_loss = first if first_loss is None else first_loss
        started = time.perf_counter()
        loss = validate()
        figures |= {"epoch": epoch, "validation_loss": loss, "validation_seconds": time.perf_counter() - started}
        if not np.isfinite([figures["loss"], loss]).all():
            raise FeaturemillError(f"epoch {epoch}: the loss is {figures['loss']}; lower --learning-rate")
        done.append({name: figures[name] for name in ("epoch", "loss", "validation_loss", *sorted(figures))})
        say(f"epoch {epoch:<4}loss {figures['loss']:.4f}, validation {loss:.4f}, {figures['seconds']:.1f} s")
        if loss < best:
            best, best_epoch, best_state = loss, epoch, network.state()
        elif epoch - best_epoch >= patience:
            break
    network.restore(best_state)
    return Tuning(tuple(done), first_loss, best_epoch)


def _epoch(network: TuningNetwork, batches: Batches, codes: np.ndarray) -> tuple[dict[str, float], float]:
    """Returns the figures of one epoch, and the loss of its first batch."""
    started = last = time.perf_counter()
    losses, counts, first_step = [], [], 0.0
    for numbers, inputs in batches:
        if not losses:
            # Reading ahead of the first step fills the shuffle buffer: that is no compiling.
            last = time.perf_counter()
        losses.append(network.step(inputs, codes[numbers]))
        counts.append(len(numbers))
        first_step = first_step or time.perf_counter() - last
    seconds = time.perf_counter() - started
    loss = float(np.average(losses, weights=counts))
    return {"loss": loss, "seconds": seconds, "first_step_seconds": first_step}, losses[0]
