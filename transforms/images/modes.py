"""Turns each of Pillow's modes, and deep samples that Pillow has no mode for, into 8-bit RGB, by a rule of its own.

| mode of 8 bits | result |
|---|---|
| `RGB`, `RGBX` | as they are |
| `1`, `L` | grey in all three channels; a transparent grey value (PNG's tRNS) becomes white |
| `P` | colours of the palette, over white where it has transparency |
| `LA`, `La`, `PA`, `RGBA`, `RGBa` | over white, by alpha; `La` and `RGBa` (alpha multiplied in) are undone first |
| `CMYK` | Pillow's (255 - C) · (255 - K) / 255, without colour management; Adobe's inverted JPEGs are turned first |
| `YCbCr`, `HSV` | Pillow's formulas |
| `LAB` | to sRGB by LittleCMS |

Deeper samples are mapped in a straight line from black to white, and rounded; so is alpha, and what is transparent lies
over white. Black and white are found for the whole image:

| samples | black | white | source |
|---|---|---|---|
| unsigned, 16 bits | 0 | 65535 | PNG 3, 13.12; TIFF 6.0, section 4: the type's range |
| unsigned, 12 bits | 0 | 4095 | TIFF 6.0, BitsPerSample |
| these, with a largest value named | 0 | that, or its largest if more | TIFF 6.0, MaxSampleValue, SMaxSampleValue |
| these, with fewer bits named and not scaled to 16 | 0 | the largest of so many bits | PNG 3, 11.3.2.7, sBIT |
| signed, 8 bits | 0, or its smallest if less | 127, or its largest if more | ours: no standard says what white is |
| signed 16 and 32, unsigned 32 bits | 0, or its smallest if less | 255, or its largest if more | ours |
| floats | 0, or its smallest if less | 1, or its largest if more | ours; 0 … 1 is a picture for most programs |
| the last three, with both ends named | that, or its smallest | that, or its largest | TIFF 6.0, S…SampleValue |

So a picture of 8 bits that was stored in 32 stays what it is, and there are no cliffs: a value that is a little larger
changes all pixels only a little. In a TIFF of photometric interpretation 0, white is zero: black and white change
places. NaN, infinities and the value that a TIFF declares to be no data (GDAL's tag 42113) don't count for black and
white, and become black. An image that uses less than 1/16 of what lies between black and white gets a note, because its
range can't be known: it looks flat, as it does in other programs.

Colour profiles (ICC) are ignored, as in Keras and in the training of the published weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_PLAIN_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
# numpy's type of a sample.
_DEEP_MODES = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2", "I": "=i4", "F": "=f4"}
_STRIP_PIXELS = 1 << 20
# Less than this share between black and white can't be told from a range that isn't known.
_NOTED_SHARE = 16


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Types and ranges of a Pillow image's samples, where its mode doesn't tell.

    Attributes:
        dtype: numpy's type of a sample.
        low: A second image, with the lower byte of each sample; the first one has the upper byte. None: a pixel's
            bytes lie in the image as they lie in memory.
        bits: As the file has them; for the note.
        alpha: The last sample: `straight`, `multiplied` (into the others), `ignored` (it isn't alpha); or empty, where
            there is none.
        white_is_zero: Black and white change places.
        ends: What the file says of its smallest and its largest value, each None if it doesn't.
        no_data: The value of pixels that aren't there.
        significant: Bits that the file says count (8 to 15), of samples that should have been scaled to all 16.
    """

    dtype: str
    low: Image.Image | None = None
    bits: int = 16
    alpha: str = ""
    white_is_zero: bool = False
    ends: tuple[float | None, float | None] = (None, None)
    no_data: float | None = None
    significant: int | None = None

    @property
    def is_old(self) -> bool:
        """True if the first rules gave the same numbers: 16-bit grey from 0 to 65535."""
        declares = self.white_is_zero or self.no_data is not None or self.significant
        full = self.ends == (0, 65535) or (self.ends == (None, None) and np.dtype(self.dtype).str[1:] == "u2")
        return full and not declares and self.low is None and not self.alpha

    def read(self, image: Image.Image, strip: tuple[int, int, int, int]) -> np.ndarray:
        """Returns H×W×C samples of a strip."""
        values = np.asarray(image.crop(strip))
        if self.low is not None:
            values = values.astype(np.uint16) << 8 | np.asarray(self.low.crop(strip))
        return np.ascontiguousarray(values).view(self.dtype).reshape(*values.shape[:2], -1)


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Cuts an image into boxes of about a million pixels: conversions then need little memory of their own."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def to_rgb(image: Image.Image, samples: Samples | None = None) -> tuple[Image.Image, str | None]:
    """Converts any mode as the tables at the top say, strip by strip, so that it needs little more than its result.

    Args:
        image: A loaded one.
        samples: How to read it, if its mode doesn't tell.

    Returns:
        The image itself if it is plain RGB, else a new one, and a note if there is something to know.

    Raises:
        NotImplementedError: The mode isn't in the table.
    """
    key, note = image.info.get("transparency"), None
    if samples is None and image.mode == "RGB" and key is None:
        return image, None
    if samples is None and image.mode in _DEEP_MODES:
        samples = Samples(dtype=_DEEP_MODES[image.mode], bits=16 if image.mode.startswith("I;16") else 32)
    if samples is not None:
        convert, note = _deep_converter(image, samples, key)
    elif image.mode in _ALPHA_MODES or key is not None:
        convert = _over_white
    elif image.mode in _PLAIN_MODES:
        convert = _plain_to_rgb
    else:
        raise NotImplementedError(f"unsupported mode {image.mode}; convert it to RGB")
    result = Image.new("RGB", image.size)
    for box in _strips(image):
        result.paste(convert(box) if samples else convert(image.crop(box)), box[:2])
    return result, note


def _plain_to_rgb(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _over_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    rgba = strip.convert("RGBA")
    white = Image.new("RGB", strip.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _deep_converter(
    image: Image.Image, samples: Samples, key: int | tuple[int, ...] | None
) -> tuple[Callable[[tuple[int, int, int, int]], Image.Image], str | None]:
    """Returns what maps a strip from black … white to 0 … 255, and a note. Pixels equal to `key` become white."""
    black, white, note = _range(image, samples)

    def convert(box: tuple[int, int, int, int]) -> Image.Image:
        values = samples.read(image, box)
        colours, missing = _colours(values, samples)
        with np.errstate(invalid="ignore"):
            # Some NaNs are said to be invalid when they are widened.
            wide = colours.astype(np.float64)
        finite = np.nan_to_num(wide, nan=black, posinf=black, neginf=black)
        grey = (finite - black) * 255 / (white - black)
        if samples.white_is_zero:
            grey = 255 - grey
        if samples.alpha in ("straight", "multiplied"):
            opacity = values[..., -1:] / np.iinfo(samples.dtype).max
            # Over white: what is multiplied by alpha already only lacks the white that shines through.
            grey = (grey if samples.alpha == "multiplied" else grey * opacity) + 255 * (1 - opacity)
        grey[missing] = 0
        if key is not None:
            grey[(colours == np.asarray(key)).all(axis=-1)] = 255
        pixels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())

    return convert, note


def _colours(values: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples without alpha, H×W×C, and which don't count: single NaNs, whole pixels of no data."""
    colours = values[..., :-1] if samples.alpha else values
    missing = ~np.isfinite(colours)
    if samples.no_data is not None:
        # As the file would hold it: a float of 32 bits isn't the decimal number that names it.
        with np.errstate(over="ignore"):
            no_data = (
                np.float64(samples.no_data).astype(colours.dtype) if colours.dtype.kind == "f" else samples.no_data
            )
        missing |= (colours == no_data).all(axis=-1, keepdims=True)
    return colours, missing


def _range(image: Image.Image, samples: Samples) -> tuple[float, float, str | None]:
    """Returns the values that become black and white, black being less, and a note if they are far apart."""
    dtype = np.dtype(samples.dtype)
    smallest, largest, bits = np.inf, -np.inf, 0
    for box in _strips(image):
        colours, missing = _colours(samples.read(image, box), samples)
        counted = colours[~missing]
        if counted.size:
            smallest, largest = min(smallest, float(counted.min())), max(largest, float(counted.max()))
            bits |= int(np.bitwise_or.reduce(counted)) if samples.significant else 0
    least, most = samples.ends
    if dtype.kind == "u" and dtype.itemsize <= 2:
        black, white = 0.0, float(np.iinfo(dtype).max)
        if most is not None and 0 < most < white:
            white = max(float(most), largest)
        elif samples.significant and largest < 1 << samples.significant and bits & (1 << 16 - samples.significant) - 1:
            # Scaled samples so dark would have zeros in their lower bits.
            white = float((1 << samples.significant) - 1)
    else:
        black, white = 0.0, 1.0 if dtype.kind == "f" else float(min(255, np.iinfo(dtype).max))
        if least is not None and most is not None and least < most:
            black, white = float(least), float(most)
        black, white = min(black, smallest), max(white, largest)
    kind = "floats" if dtype.kind == "f" else f"{samples.bits} bits"
    flat = dtype.itemsize > 1 and 0 < largest - smallest < (white - black) / _NOTED_SHARE
    note = f"of {kind} with less than 1/{_NOTED_SHARE} of the range in use" if flat else None
    return black, white, note
