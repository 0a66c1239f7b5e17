"""TIFFs: the layouts that Pillow misreads or refuses, and libtiff's words on damaged ones.

Pillow decodes everything; only how the decoded bytes are unpacked is chosen here.
"""

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from typing import Any

from PIL import ImageFile, TiffImagePlugin

from transforms.images.modes import Samples
from transforms.images.unread import message

PREFIXES = tuple(TiffImagePlugin.PREFIXES)
# The letters of Pillow's raw modes.
_NATIVE, _SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")

_BITS, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 258, 262, 266, 277, 284, 338, 339
_KIND, _SUB_IMAGES, _DNG, _NO_DATA = 254, 330, 50706, 42113
_MAXIMUM, _SIGNED_MINIMUM, _SIGNED_MAXIMUM = 281, 340, 341
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_PHOTOMETRICS = {
    **{0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab"},
    **{9: "ICCLab", 10: "ITULab", 32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
_FORMATS = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float", 5: "complex", 6: "complex float"}
# What an image needs. Other tags can't cost it: Pillow and libtiff decode them only where they are asked for, and some
# that are broken would make Pillow stumble.
_METADATA = (282, 283, 296, 305, 700, 34675)

# (bits, format) of grey samples: Pillow's mode and raw mode that keep all of their bits, and numpy's type of one.
_GREY = {
    (8, _UNSIGNED): ("L", "L", "u1"),
    (8, _SIGNED): ("L", "L", "i1"),
    (12, _UNSIGNED): ("I;16", "I;12", "u2"),
    (16, _UNSIGNED): ("I;16", "I;16N", "u2"),
    (16, _SIGNED): ("I;16", "I;16N", "i2"),
    (16, _FLOAT): ("I;16", "I;16N", "f2"),
    (32, _UNSIGNED): ("I", "I;32N", "u4"),
    (32, _SIGNED): ("I", "I;32N", "i4"),
    (32, _FLOAT): ("F", "F;32NF", "f4"),
    (64, _FLOAT): ("F", "F;64NF", "f4"),
}
_MULTIPLIED, _IGNORED = 1, 0
_COMPRESSION, _JPEG = 259, 7


class _Layout:
    """Layout of a picture's samples by its tags; damaged tags count as absent."""

    def __init__(self, tags: Any):
        self.photometric = _number(tags, _PHOTOMETRIC, 0)
        formats = _numbers(tags, _FORMAT) or (_UNSIGNED,)
        self.format = formats[0] if len(set(formats)) == 1 else 0
        self.format = _UNSIGNED if self.format == _UNDEFINED else self.format
        self.samples = _number(tags, _SAMPLES, 1)
        bits = _numbers(tags, _BITS) or (1,)
        # Writers name the bits once for all samples, too.
        self.bits = bits[0] if len(set(bits[: self.samples])) == 1 else 0
        self.extra = _numbers(tags, _EXTRA)
        self.planar = _number(tags, _PLANAR, 1)
        if self.planar == 2 and self.extra and max(self.extra) == _IGNORED:
            # Separate ones at the end need not be read.
            self.samples, self.extra = self.samples - len(self.extra), ()

    def __str__(self) -> str:
        bits = f"{self.bits} bits" if self.bits else "different bits"
        return (
            f"{self.samples} samples a pixel of {bits} ({_FORMATS.get(self.format, 'unknown type')}), "
            f"{_PHOTOMETRICS.get(self.photometric, f'photometric {self.photometric}')}"
        )


def _numbers(tags: Any, tag: int) -> tuple[Any, ...]:
    with suppress(Exception):
        value = tags.get(tag, ())
        value = value if isinstance(value, tuple) else (value,)
        return value if all(isinstance(v, (int, float)) for v in value) else ()
    return ()


def _number(tags: Any, tag: int, default: int) -> int:
    values = _numbers(tags, tag)
    return int(values[0]) if values else default


def _no_data(tags: Any) -> float | None:
    with suppress(Exception):
        return float(str(tags[_NO_DATA]).strip(" \0"))
    return None


class TiffFile(TiffImagePlugin.TiffImageFile):
    """A TIFF, opened. `samples` says how to read it where its mode doesn't tell."""

    samples: Samples | None = None

    def _setup(self) -> None:
        tags = self.tag_v2
        for tag in _METADATA:
            if tag in tags:
                del tags[tag]
        if not isinstance(self.info.get("xmp", b""), bytes):
            del self.info["xmp"]
        _refuse_raw(tags)
        layout = _Layout(tags)
        deep = _deep(layout, tags)
        if deep is None:
            try:
                super()._setup()
            except SyntaxError as error:
                if "unknown" in str(error) or "samples per pixel" in str(error):
                    raise NotImplementedError(
                        f"a TIFF of {layout} isn't read; convert it to 1, 3 or 4 samples of 8 or 16 bits"
                    ) from error
                raise
            return
        mode, rawmode, stand_in, self.samples = deep
        for tag, value in {**stand_in, _FILL_ORDER: 1}.items():
            tags[tag] = value
        del tags[_EXTRA]
        super()._setup()
        self._mode = mode
        self.unpack(rawmode)

    def unpack(self, rawmode: str) -> None:
        """Has libtiff decode, which gives the samples in this machine's order, and Pillow unpack them so."""
        self.use_load_libtiff = True
        arguments = (rawmode, self._compression, False, self.tag_v2.offset)
        self.tile = [ImageFile._Tile("libtiff", (0, 0, *self._tile_size), 0, arguments)]


def _deep(layout: _Layout, tags: Any) -> tuple[str, str, dict[int, Any], Samples] | None:
    """Returns mode, raw mode, tags that stand for a layout of as many bytes that Pillow knows, and how to read it.

    Returns None for what Pillow reads right by itself, or not at all.
    """
    no_data = _no_data(tags)
    ends = _numbers(tags, _SIGNED_MINIMUM), _numbers(tags, _SIGNED_MAXIMUM) or _numbers(tags, _MAXIMUM)
    samples = Samples(
        dtype="=u2",
        bits=layout.bits,
        white_is_zero=layout.photometric == 0,
        no_data=no_data,
        ends=(min(ends[0], default=None), max(ends[1], default=None)),
    )
    kind = layout.bits, layout.format
    grey = layout.photometric in (0, 1)
    if grey and layout.samples == 1 and kind in _GREY and (kind != (8, _UNSIGNED) or no_data is not None):
        mode, rawmode, dtype = _GREY[kind]
        ends = (None, 4095) if layout.bits == 12 else samples.ends
        stand_in = {_PHOTOMETRIC: 1, _SAMPLES: 1, _BITS: (8,), _FORMAT: (1,)}
        return mode, rawmode, stand_in, replace(samples, dtype=f"={dtype}", ends=ends)
    alpha = _alpha(layout, 1 if grey else 3)
    if grey and layout.samples == 2 and layout.planar == 1 and alpha is not None and kind == (16, _UNSIGNED):
        stand_in = {_PHOTOMETRIC: 1, _SAMPLES: 1, _BITS: (8,), _FORMAT: (1,)}
        return "RGBA", "RGBA", stand_in, replace(samples, alpha=alpha)
    if layout.photometric == 2 and layout.samples in (3, 4) and alpha is not None:
        mode = "RGB" if layout.samples == 3 else "RGBA"
        stand_in = {_PHOTOMETRIC: 2, _SAMPLES: 3, _BITS: (8, 8, 8), _FORMAT: (1,)}
        if layout.bits == 16 and layout.format in (_UNSIGNED, _SIGNED):
            dtype = "=u2" if layout.format == _UNSIGNED else "=i2"
            return mode, f"{mode};16{_NATIVE}", stand_in, replace(samples, dtype=dtype, alpha=alpha)
        if (
            kind == (8, _UNSIGNED)
            and no_data is not None
            and layout.samples == 3
            and _number(tags, _COMPRESSION, 1) != _JPEG
        ):
            return mode, mode, stand_in, replace(samples, dtype="u1")
    return None


def _alpha(layout: _Layout, colours: int) -> str | None:
    """Returns what `Samples.alpha` may be; None where there are other samples."""
    if layout.samples == colours:
        return ""
    extra = layout.extra or (2,)
    if layout.samples != colours + 1 or len(extra) != 1:
        return None
    return {_IGNORED: "ignored", _MULTIPLIED: "multiplied"}.get(extra[0], "straight")


def whole_samples(image: TiffFile, data: bytes) -> Samples | None:
    """Returns how to read an opened TIFF, `data` being the file; None where its mode tells."""
    samples, (_, _, _, arguments) = image.samples, image.tile[0]
    if samples is None or not arguments[0].endswith(f";16{_NATIVE}"):
        return samples
    # Pillow keeps the upper byte of each sample; taken for the other byte order, the lower one is kept.
    low = TiffFile(BytesIO(data))
    low.unpack(arguments[0][:-1] + _SWAPPED)
    low.load()
    return replace(samples, low=low)


def _refuse_raw(tags: Any) -> None:
    """Refuses cameras' own files: what Pillow would take for the picture is a mosaic, or a small preview."""
    is_preview = _number(tags, _KIND, 0) & 1 and _SUB_IMAGES in tags
    if _DNG in tags:
        raise NotImplementedError(message("DNG (camera RAW)"))
    if is_preview or _number(tags, _PHOTOMETRIC, 0) in (32803, 34892):
        raise NotImplementedError(message("camera RAW"))


@contextmanager
def explained() -> Iterator[None]:
    """Puts what libtiff says meanwhile, in this thread, into the error, and never on the screen."""
    _catch_messages()
    _heard.words = words = []
    try:
        yield
    except OSError as error:
        raise OSError("; ".join([str(error), *words[:2]])) from error
    finally:
        del _heard.words


_heard = threading.local()


@functools.cache
def _catch_messages() -> list[Any]:
    """Gives libtiff a place for its messages other than standard error, once for the process.

    Pillow has no way to ask for that, so the library is looked up where Pillow loaded it from; where it can't be found
    (macOS, or linked into Pillow), its messages go on to standard error.

    Returns:
        What must live as long as the process.
    """
    with suppress(OSError, AttributeError):
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/libtiff" in line}
        kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        handler = kind(_hear)
        for path in paths:
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler.restype = library.TIFFSetWarningHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler(handler)
            library.TIFFSetWarningHandler(None)
        return [handler]
    return []


def _hear(module: bytes | None, pattern: bytes, arguments: int) -> None:
    """Keeps what libtiff reports. It is called in the thread that decodes; C's list of arguments is a pointer here."""
    buffer = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).vsnprintf(buffer, ctypes.c_size_t(256), pattern, ctypes.c_void_p(arguments))
    words = getattr(_heard, "words", None)
    if words is not None:
        where = f"{module.decode(errors='replace')}: " if module else ""
        words.append(where + buffer.value.decode(errors="replace"))
