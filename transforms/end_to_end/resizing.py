"""Pillow's resizing in Keras operations, so that a saved model resizes as `transforms.images.decode` does.

Keras's own `Resizing` and `ops.image.resize` don't round between the two passes, cut with another rule and know no
padding colour. Here each axis is a matrix product with Pillow's weights, computed inside the graph from the image's
size. Only operations that Keras brings are used, so the file loads without this package.

Source: Pillow's `src/libImaging/Resample.c` (`precompute_coeffs`, `normalize_coeffs_8bpc`) and `Geometry.c`
(`ImagingScaleAffine`, for `nearest`).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from transforms.images.decode import PAD_COLOUR
from transforms.network.keras_import import import_keras
from transforms.spec import FeatureSpec

ops = import_keras().ops

# Radius of each filter in pixels of the source, before it is stretched for downscaling.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
# Pillow rounds its weights to 22 binary digits behind the point.
_WEIGHT_STEPS = float(2**22)


class _Window(NamedTuple):
    """An axis of the result: its `count` pixels from `offset` on show the source from `start` on, `scale` apart."""

    start: Any
    scale: Any
    offset: Any
    count: Any


def resize(pixels: Any, spec: FeatureSpec) -> Any:
    """Resizes images as `images.decode.decode_image` does, to the same pixels, bit for bit.

    Args:
        pixels: N×H×W×3 uint8 in RGB, a symbolic tensor of Keras; H and W may be unknown.
        spec: Its `image_size`, `resize`, `short_side` and `interpolation` are used.

    Returns:
        N×S×S×3 float32 of whole numbers in 0 … 255.
    """
    rows, columns = (_positions(line) for line in (pixels[0, :, 0, 0], pixels[0, 0, :, 0]))
    height, width = rows[-1] + 1.0, columns[-1] + 1.0
    longest, shortest = ops.maximum(height, width), ops.minimum(height, width)
    down, shows_row = _axis(rows, height, longest, shortest, spec)
    across, shows_column = _axis(columns, width, longest, shortest, spec)
    # Pillow resizes the rows first, and what lies between the passes is bytes again.
    # The sums are Pillow's to the last digit in float64; in float32, 1 of 1,000 bytes would be 1 off.
    result = _to_bytes(ops.einsum("nhwc,sw->nhsc", ops.cast(pixels, "float64"), across))
    result = ops.cast(_to_bytes(ops.einsum("nhsc,th->ntsc", result, down)), "float32")
    if spec.resize != "pad":
        return result
    shown = ops.expand_dims(shows_row, 1) * ops.expand_dims(shows_column, 0)
    shown = ops.reshape(shown, (1, spec.image_size, spec.image_size, 1))
    return result * shown + (1.0 - shown) * np.array(PAD_COLOUR, np.float32)


def _positions(line: Any) -> Any:
    """Returns 0, 1, 2 … in float64, as many as the line has pixels: the one way to an unknown length."""
    return ops.cumsum(ops.ones_like(line, dtype="float64")) - 1.0


def _to_bytes(values: Any) -> Any:
    return ops.clip(ops.floor(values + 0.5), 0.0, 255.0)


def _axis(positions: Any, length: Any, longest: Any, shortest: Any, spec: FeatureSpec) -> tuple[Any, Any]:
    """Returns an axis's weights, S×H float64, and which of the S show the image, 1 or 0 in float32."""
    window = _window(length, longest, shortest, spec)
    numbers = ops.subtract(np.arange(spec.image_size, dtype=np.float64), window.offset)
    shows = ops.cast(ops.logical_and(numbers >= 0.0, numbers < window.count), "float32")
    if spec.interpolation == "nearest":
        weights = _nearest_weights(positions, length, numbers, window)
    else:
        weights = _filter_weights(positions, numbers, window, spec.interpolation)
    return weights, shows


def _window(length: Any, longest: Any, shortest: Any, spec: FeatureSpec) -> _Window:
    """Returns what `images.decode._squash`, `_crop` and `_pad` do along one axis."""
    side = float(spec.image_size)
    zero = length * 0.0
    if spec.resize == "squash":
        return _Window(zero, length / side, zero, zero + side)
    if spec.resize == "crop":
        square = shortest * side / float(spec.whole_side)
        start = (length - square) / 2.0
        # Pillow keeps the corners of a box in float32.
        start, stop = (ops.cast(ops.cast(corner, "float32"), "float64") for corner in (start, start + square))
        return _Window(start, ops.cast(ops.cast(stop - start, "float32"), "float64") / side, zero, zero + side)
    # Python's `round`, like this one, takes halves to the even side.
    count = ops.maximum(ops.round(length * (side / longest)), 1.0)
    return _Window(zero, length / count, ops.floor((side - count) / 2.0), count)


def _nearest_weights(positions: Any, length: Any, numbers: Any, window: _Window) -> Any:
    """Returns S×H ones and zeros. Pillow adds the scale up instead of multiplying, which decides at exact halves."""
    steps = ops.where(numbers > 0.0, window.scale, 0.0)
    first = window.start + window.scale * 0.5
    # With `where`, the first pixel shown stands at `first` exactly, and the sums behind it start from there.
    centres = ops.cumsum(ops.where(ops.equal(numbers, 0.0), first, steps))
    nearest = ops.minimum(ops.maximum(ops.floor(centres), 0.0), length - 1.0)
    return ops.cast(ops.equal(ops.expand_dims(nearest, 1), ops.expand_dims(positions, 0)), "float64")


def _filter_weights(positions: Any, numbers: Any, window: _Window, interpolation: str) -> Any:
    """Returns S×H float64, each row summing to 1 but for the rounding."""
    stretch = ops.maximum(window.scale, 1.0)
    centres = window.start + (numbers + 0.5) * window.scale
    distances = ops.abs(ops.expand_dims(positions + 0.5, 0) - ops.expand_dims(centres, 1)) * (1.0 / stretch)
    weights = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}[interpolation](distances)
    sums = ops.sum(weights, axis=1, keepdims=True)
    # Lines of the padding are beyond the image, where no weight is left.
    weights = weights / ops.where(ops.equal(sums, 0.0), 1.0, sums)
    return ops.sign(weights) * ops.floor(ops.abs(weights) * _WEIGHT_STEPS + 0.5) / _WEIGHT_STEPS


def _triangle(x: Any) -> Any:
    return ops.maximum(1.0 - x, 0.0)


def _cubic(x: Any) -> Any:
    """Returns Keys's cubic with a = -1/2."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return ops.where(x < 1.0, near, ops.where(x < _SUPPORT["bicubic"], far, 0.0))


def _lanczos(x: Any) -> Any:
    support = _SUPPORT["lanczos"]
    centre = ops.equal(x, 0.0)
    angle = ops.where(centre, 1.0, x * math.pi)
    values = ops.sin(angle) / angle * ops.sin(angle / support) / (angle / support)
    return ops.where(centre, 1.0, ops.where(x < support, values, 0.0))
