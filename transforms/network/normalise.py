"""Turns pixels into the input of a base: the order of the channels, and a scale and an offset for each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.spec import OWN_NORMALISATION, VGG_NORMALISATION


@dataclass(frozen=True)
class Normalisation:
    """`pixel · scale + offset` in each channel.

    Attributes:
        is_bgr: Whether blue comes first, and not red.
        scale, offset: One number for each channel, in their order.
    """

    is_bgr: bool = False
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)


# ImageNet's means and deviations of red, green and blue in 0 … 1, as PyTorch's networks were trained.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The first two under the names, and with the numbers, of `keras.applications.imagenet_utils.preprocess_input`.
_NORMALISATIONS = {
    "caffe": Normalisation(is_bgr=True, offset=(-103.939, -116.779, -123.68)),
    "torch": Normalisation(
        scale=tuple(1 / (255 * deviation) for deviation in _DEVIATIONS),
        offset=tuple(-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)),
    ),
    "tf": Normalisation(scale=(1 / 127.5,) * 3, offset=(-1.0, -1.0, -1.0)),
    # The network does it itself.
    "inside": Normalisation(),
}


def _normalisation(how: str) -> Normalisation:
    if own := OWN_NORMALISATION.fullmatch(how):
        scale, offset = (tuple(map(float, numbers.split(","))) for numbers in own.groups())
        return Normalisation(scale=scale, offset=offset)
    return _NORMALISATIONS[how]


def preprocess(pixels: Any, how: str = VGG_NORMALISATION) -> Any:
    """Normalises pixels, the only way in this project; VGG's bit for bit as `keras.applications.vgg19`.

    Args:
        pixels: …×3, uint8 or float, RGB, 0 … 255: a NumPy array, a backend's tensor, or Keras's symbolic one.
        how: One of `transforms.spec.NORMALISATIONS`, or as `OWN_NORMALISATION` has it.

    Returns:
        float32 of the same shape and type.
    """
    chosen = _normalisation(how)
    if isinstance(pixels, np.ndarray):
        pixels = pixels[..., ::-1].astype(np.float32) if chosen.is_bgr else pixels.astype(np.float32)
    else:
        from keras import ops

        # The same in Keras's words: not every backend can slice by a negative step.
        pixels = ops.cast(pixels, "float32")
        pixels = ops.flip(pixels, axis=-1) if chosen.is_bgr else pixels
    # What changes nothing takes time all the same.
    if set(chosen.scale) != {1.0}:
        pixels = pixels * np.array(chosen.scale, np.float32)
    return pixels + np.array(chosen.offset, np.float32) if any(chosen.offset) else pixels
