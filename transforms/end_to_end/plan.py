"""Plans which layers are tuned, and from which layer on the network is computed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from transforms.errors import UsageError
from transforms.network.bases import base_of, cut, describe, is_cut, layers
from transforms.network.vgg import CHANNELS, Layer
from transforms.pools import POOLS
from transforms.spec import VGG_NORMALISATION, Feature, FeatureSpec
from transforms.text import did_you_mean


@dataclass(frozen=True)
class TuningPlan:
    """The layers that are trained, and the layer from which on the network is computed.

    Attributes:
        table: The base, up to the deepest layer that the spec's weights reach to.
        image_size: Pixels on a side.
        features: What the head takes, in its order.
        first: Index in `table` of the first layer that is trained.
        start: Index of the first layer that is computed; 0 is from images.
        column: The stored column with the output of the layer before `start`; empty for images.
        normalise: As in `FeatureSpec`.
    """

    table: tuple[Layer, ...]
    image_size: int
    features: tuple[Feature, ...]
    first: int
    start: int = 0
    column: str = ""
    normalise: str = VGG_NORMALISATION

    @cached_property
    def taken(self) -> tuple[Layer, ...]:
        """The part of the table that the head depends on."""
        return cut(self.table, [feature.tap for feature in self.features])

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the base's layers whose weights are trained."""
        below = {layer.name for layer in self.table[: self.first]}
        return tuple(layer.name for layer in self.taken if layer.has_weights and layer.name not in below)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the base's layers whose weights stay as they are."""
        return tuple(layer.name for layer in self.table if layer.has_weights and layer.name not in self.trained)

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Names of the frozen layers with weights that are computed at each step."""
        spared = {layer.name for layer in self.table[: self.start]} | set(self.trained)
        return tuple(layer.name for layer in self.taken if layer.has_weights and layer.name not in spared)

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """Names of the layers that all that is trained or taken depends on alone: their outputs do to start from."""
        taken, trained = self.taken, self.trained
        names = [layer.name for layer in taken]
        lowest = min(names.index(name) for name in (*trained[:1], *(feature.tap for feature in self.features)))
        most = lowest + (names[lowest] not in trained)
        return tuple(names[i] for i in range(most) if is_cut(taken, i))

    @property
    def below(self) -> str:
        """Name of the deepest of `starts`; or empty."""
        return self.starts[-1] if self.starts else ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one row, channels last: a tap's output, or an image."""
        return _input_shape(self.table, self.start, self.image_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as float32: as it comes, or just below the first trained layer, whichever is more."""
        natural = _input_shape(self.table, self.first, self.image_size)
        return 4 * max(int(np.prod(natural)), int(np.prod(self.input_shape)) if self.start else 0)


def _input_shape(table: Sequence[Layer], index: int, image_size: int) -> tuple[int, ...]:
    if index == 0:
        return image_size, image_size, CHANNELS
    return describe(table[:index], image_size)[-1].output_shape


def first_unfrozen(table: Sequence[Layer], unfreeze: str) -> int:
    """Returns the index of the lowest layer that is trained.

    Args:
        table: The whole base.
        unfreeze: `all`; a layer; a block, by what its layers' names begin with, such as `block5`, or `conv5_block3` of
            ResNet50; or a number of layers from the top of the base without dense layers, where all others count, as in
            `for layer in base.layers[-5:]`. 5 are the whole of VGG19's block 5; of VGG16, whose blocks are shorter,
            block 5 and the pooling before it.

    Raises:
        UsageError: None of these.
    """
    blocks = list(dict.fromkeys(layer.name.split("_")[0] for layer in table))
    if unfreeze == "all":
        return 0
    if unfreeze.isdecimal():
        if not 1 <= int(unfreeze) <= len(table):
            raise UsageError(f"--unfreeze {unfreeze}: the base has {len(table)} layers; choose 1 to {len(table)}")
        lowest = len(table) - int(unfreeze)
    else:
        # EfficientNetV2's blocks have a letter more, from a on.
        of_block = re.compile(rf"{re.escape(unfreeze)}([a-z]?_.*)?")
        lowest = next((i for i, layer in enumerate(table) if of_block.fullmatch(layer.name)), None)
        if lowest is None:
            raise UsageError(
                f"--unfreeze {unfreeze!r} is no layer, no block, no number of layers and not all"
                f"{did_you_mean(unfreeze, [*blocks, 'all'])}"
            )
    found = next((i for i in range(lowest, len(table)) if table[i].has_weights), None)
    if found is None:
        raise UsageError(
            f"--unfreeze {unfreeze}: from {table[lowest].name} on there is no convolution, nor other weights; unfreeze "
            "more layers"
        )
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
    base = table if base_of(spec.backbone).is_file else layers(spec.backbone)
    whole = [layer.name for layer in base]
    for feature in features:
        if feature.tap not in whole:
            raise UsageError(
                f"the head takes {feature}, a dense layer of the network; finetune trains convolutions: train a head "
                "on block5_pool"
            )
    unfrozen = whole[first_unfrozen(base, unfreeze) :]
    names = [layer.name for layer in table]
    # Of a graph, the table may lack layers that the head doesn't take.
    kept = (i for i, layer in enumerate(table) if layer.has_weights and layer.name in unfrozen)
    first = next(kept, len(table))
    plan = TuningPlan(tuple(table), spec.image_size, features, first, normalise=spec.normalise)
    if not plan.trained:
        taken = ", ".join(map(str, features))
        raise UsageError(
            f"--unfreeze {unfreeze}: the head takes {taken}, and all of its layers stay frozen; unfreeze more layers"
        )
    possible = plan.starts
    starts = {
        names.index(feature.tap) + 1: feature.name
        for feature in stored
        if POOLS[feature.pool].keeps_all and feature.tap in possible
    }
    if not starts:
        return plan
    start = max(starts)
    return replace(plan, start=start, column=starts[start])
