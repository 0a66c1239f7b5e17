"""The checks of every engine before it computes anything."""

from collections.abc import Sequence

import numpy as np

from transforms.errors import FeaturemillError
from transforms.network.vgg import CHANNELS, Layer, check_feature, check_top, cut, layers
from transforms.network.weights import Weights, load_weights
from transforms.spec import FeatureSpec


def computed_layers(spec: FeatureSpec, *, include_top: bool = True) -> tuple[Layer, ...]:
    """Returns the table of the network up to the deepest tap.

    Args:
        spec: Names the taps.
        include_top: Whether they may be in the dense layers. Of a spec that is stored already the taps say it.

    Raises:
        UsageError: A tap that the network hasn't, or dense layers at an image size that can't be.
    """
    for feature in spec.features:
        check_feature(feature, spec.backbone, include_top)
    table = cut(layers(spec.backbone, include_top=include_top), [feature.tap for feature in spec.features])
    check_top(table, spec.image_size)
    return table


def planned_weights(source: str, table: Sequence[Layer], spec: FeatureSpec) -> Weights:
    """Loads the weights of a table.

    Raises:
        FeaturemillError: They can't be loaded, or aren't the ones that the spec names.
    """
    weights = load_weights(source, table, backbone=spec.backbone)
    if weights.sha256 != spec.weights:
        raise FeaturemillError(
            f"weights {weights.origin} have SHA-256 {weights.sha256[:12]}…, but the run was planned with "
            f"{spec.weights[:12]}…: the file was replaced, or differs on this machine; restore it and run again"
        )
    return weights


def check_pixels(pixels: np.ndarray, *, side: int, batch_size: int) -> None:
    """Checks a batch that `Engine.embed` was given.

    Raises:
        ValueError: Another shape or dtype than N×S×S×3 uint8, no image, or more than a batch.
    """
    count = len(pixels)
    if pixels.shape != (count, side, side, CHANNELS) or pixels.dtype != np.uint8:
        raise ValueError(f"expected N×{side}×{side}×{CHANNELS} uint8, got {pixels.shape} {pixels.dtype}")
    if not 0 < count <= batch_size:
        raise ValueError(f"a batch has 1 to {batch_size} images, not {count}")
