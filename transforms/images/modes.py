"""Turns each of Pillow's modes into 8-bit RGB, by a rule of its own.

| mode | result |
|---|---|
| `RGB`, `RGBX` | as they are. 16-bit PNGs arrive here too: Pillow keeps the high byte of each value |
| `1`, `L` | grey in all three channels; a transparent grey value (PNG's tRNS) becomes white |
| `P` | colours of the palette, over white where it has transparency |
| `LA`, `La`, `PA`, `RGBA`, `RGBa` | over white, by alpha; `La` and `RGBa` (alpha multiplied in) are undone first |
| `CMYK` | Pillow's (255 - C) · (255 - K) / 255, without colour management; Adobe's inverted JPEGs are turned first |
| `YCbCr`, `HSV` | Pillow's formulas |
| `LAB` | to sRGB by LittleCMS |
| `I;16`, `I;16L`, `I;16B`, `I;16N` | 16-bit grey: value / 257, rounded; a transparent value becomes white |
| `I` | 32-bit grey: as 16-bit if all values lie in 0..65535, else from its minimum (black) to its maximum (white) |
| `F` | float grey: 0..1 times 255 if all values lie there, as it is if all lie in 0..255, else as `I`. NaN: black |

Colour profiles (ICC) are ignored, as in Keras and in the training of the published weights.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_PLAIN_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_DEEP_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_STRIP_PIXELS = 1 << 20


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cuts an image into (top, strip) of about a million pixels: conversions then need little memory of their own."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode as the table at the top says, strip by strip, so that it needs no more memory than its result.

    Returns:
        The image itself if it is plain RGB, else a new one.

    Raises:
        NotImplementedError: The mode isn't in the table.
    """
    key = image.info.get("transparency")
    if image.mode == "RGB" and key is not None and max(key) > 255:
        key = None  # A colour of 16 bits can't be found again in the 8 that Pillow keeps.
    if image.mode == "RGB" and key is None:
        return image
    if image.mode in _DEEP_MODES:
        convert = _deep_converter(image, key)
    elif image.mode in _ALPHA_MODES or key is not None:
        convert = _over_white
    elif image.mode in _PLAIN_MODES:
        convert = _plain_to_rgb
    else:
        raise NotImplementedError(f"unsupported mode {image.mode}; convert it to RGB")
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _plain_to_rgb(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _over_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    rgba = strip.convert("RGBA")
    white = Image.new("RGB", strip.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """The values that become black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip).astype(np.float64)
        values = values[np.isfinite(values)]
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    for top in (65535.0,) if image.mode == "I" else (1.0, 255.0):
        if low >= 0 and high <= top:
            return 0.0, top
    return float(low), float(high)


def _deep_converter(image: Image.Image, key: int | None) -> Callable[[Image.Image], Image.Image]:
    """Maps the range of the whole image to 0..255, rounded; values equal to `key` become white."""
    low, high = _grey_range(image)
    scale = 255 / (high - low) if high > low else 0.0

    def convert(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip)
        grey = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        grey = np.rint((grey - low) * scale)
        if key is not None:
            grey[values == key] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")

    return convert
