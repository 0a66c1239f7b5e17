"""Plans which layers are tuned, and from which layer on the network is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transforms.errors import UsageError
from transforms.network.vgg import CHANNELS, Layer, describe, layers
from transforms.pools import POOLS
from transforms.spec import Feature, FeatureSpec
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
        """The shape of one row, channels last: a tap's output, or an image."""
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
        if POOLS[feature.pool].keeps_all and feature.tap in names and names.index(feature.tap) < min(first, lowest + 1)
    }
    if not starts:
        return plan
    start = max(starts)
    return TuningPlan(tuple(table), spec.image_size, features, first, start, starts[start])
