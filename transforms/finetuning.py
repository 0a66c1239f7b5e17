"""Fine-tuning: the upper layers of a base, the poolings and a head's dense layers as one network, and its training."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.errors import FeaturemillError, UsageError
from transforms.network.keras_import import import_keras
from transforms.network.vgg import CHANNELS, Layer, build, describe, layers, preprocess
from transforms.spec import Feature, FeatureSpec
from transforms.text import did_you_mean

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]
# (row numbers, inputs), see `tuning_rows.TuningRows.batches`.
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TuningPlan:
    """What is trained, and from where on the network is computed.

    Attributes:
        table: The base, up to the deepest layer that the spec's weights reach to.
        image_size: Pixels on a side.
        features: What the head takes, in its order.
        first: Index in `table` of the first layer that is trained.
        start: Index of the first layer that is computed; 0 is from images.
        column: The stored column with the output of the layer before `start`; empty for images.
    """

    table: tuple[Layer, ...]
    image_size: int
    features: tuple[Feature, ...]
    first: int
    start: int = 0
    column: str = ""

    @property
    def last(self) -> int:
        """Index of the deepest layer that the head takes."""
        return max(_index(self.table, feature.tap) for feature in self.features)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the base's layers whose weights are trained."""
        return tuple(layer.name for layer in self.table[self.first : self.last + 1] if layer.has_weights)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the base's layers whose weights stay as they are."""
        return tuple(layer.name for layer in self.table if layer.has_weights and layer.name not in self.trained)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one row, channels last: a tap's output, or an image."""
        return _input_shape(self.table, self.start, self.image_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as float32: as it comes, or just below the first trained layer, whichever is more."""
        natural = _input_shape(self.table, self.first, self.image_size)
        return 4 * max(int(np.prod(natural)), int(np.prod(self.input_shape)) if self.start else 0)


def _index(table: Sequence[Layer], name: str) -> int:
    return [layer.name for layer in table].index(name)


def _input_shape(table: Sequence[Layer], index: int, image_size: int) -> tuple[int, ...]:
    if index == 0:
        return image_size, image_size, CHANNELS
    return describe(table[:index], image_size)[-1].output_shape


def first_unfrozen(backbone: str, unfreeze: str) -> int:
    """Returns the index of the lowest convolution that is trained.

    Args:
        backbone: `vgg16` or `vgg19`.
        unfreeze: `all`; a block, such as `block5`; or a number of layers from the top of the base without dense layers,
            where poolings count, as in `for layer in base.layers[-5:]`. 5 are the whole of VGG19's block 5; of VGG16,
            whose blocks are shorter, block 5 and the pooling before it.

    Raises:
        UsageError: None of these.
    """
    table = layers(backbone)
    blocks = list(dict.fromkeys(layer.name.split("_")[0] for layer in table))
    if unfreeze == "all":
        return 0
    if unfreeze.isdecimal():
        if not 1 <= int(unfreeze) <= len(table):
            raise UsageError(f"--unfreeze {unfreeze}: {backbone} has {len(table)} layers; choose 1 to {len(table)}")
        lowest = len(table) - int(unfreeze)
    elif unfreeze in blocks:
        lowest = next(i for i, layer in enumerate(table) if layer.name.startswith(f"{unfreeze}_"))
    else:
        raise UsageError(
            f"--unfreeze {unfreeze!r} is no block, no number of layers and not all"
            f"{did_you_mean(unfreeze, [*blocks, 'all'])}"
        )
    found = next((i for i in range(lowest, len(table)) if table[i].has_weights), None)
    if found is None:
        raise UsageError(f"--unfreeze {unfreeze}: the top {unfreeze} layers hold no convolution; take 2 or more")
    return found


def plan_tuning(
    table: Sequence[Layer], spec: FeatureSpec, columns: Sequence[str], unfreeze: str, stored: Sequence[Feature]
) -> TuningPlan:
    """Plans what is trained and from where: the deepest stored tap below the first trained layer, else from images.

    Args:
        table: The base as the spec's weights have it.
        spec: The head's.
        columns: The head's; names of the spec's features.
        unfreeze: See `first_unfrozen`.
        stored: Features that may be started from; those that aren't flattened are passed over.

    Raises:
        UsageError: A part that can't be unfrozen, or lies above all that the head takes.
    """
    of = {feature.name: feature for feature in spec.features}
    features = tuple(of[name] for name in columns)
    names = [layer.name for layer in layers(spec.backbone)]
    for feature in features:
        if feature.tap not in names:
            raise UsageError(
                f"the head takes {feature}, a dense layer of the network; finetune trains convolutions: train a head "
                "on block5_pool"
            )
    first = first_unfrozen(spec.backbone, unfreeze)
    plan = TuningPlan(tuple(table), spec.image_size, features, first)
    if not plan.trained:
        taken = ", ".join(map(str, features))
        raise UsageError(
            f"--unfreeze {unfreeze}: the head takes {taken}, and all of its layers stay frozen; unfreeze more layers"
        )
    lowest = min(names.index(feature.tap) for feature in features)
    starts = {
        names.index(feature.tap) + 1: feature.name
        for feature in stored
        if feature.pool == "flatten" and feature.tap in names and names.index(feature.tap) < min(first, lowest + 1)
    }
    if not starts:
        return plan
    start = max(starts)
    return TuningPlan(tuple(table), spec.image_size, features, first, start, starts[start])


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
        from transforms.engines.keras import pool_output

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
    """What a training came to.

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
