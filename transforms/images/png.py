"""Reads what Pillow doesn't of PNGs: samples of 16 bits whole, and pixels whose metadata are broken or too large."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

from PIL import PngImagePlugin

from transforms.images.modes import Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What decides the pixels of the first picture, and how it is turned.
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
# Texts in which Pillow looks for the orientation.
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# A text that is unpacked beyond that is a bomb, and Pillow refuses it.
_MOST_TEXT = 1 << 19


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (kind, whole chunk with length and checksum); the last one may be cut."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + 12 + length]
        at += 12 + length


def without_metadata(data: bytes) -> bytes:
    """Returns a PNG with what its pixels and its orientation need, and nothing else."""
    return SIGNATURE + b"".join(
        chunk
        for kind, chunk in _chunks(data)
        if kind in _KEPT or (kind[:1].isupper() and kind.isalpha()) or _turns(kind, chunk)
    )


def _turns(kind: bytes, chunk: bytes) -> bool:
    """Returns whether a chunk is text that may hold the orientation, is whole, and small when unpacked."""
    body = chunk[8:-4]
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not body.startswith(_TURNING_TEXTS) or len(body) > _MOST_TEXT:
        return False
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:]:
        return False
    rest = body.partition(b"\0")[2]
    packed = (
        rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" and rest[:1] == b"\1" else None
    )
    if packed is None:
        return True
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return unpacker.eof


def whole_samples(image: PngImagePlugin.PngImageFile, data: bytes) -> Samples | None:
    """Returns how to read a PNG of 16 bits, of which Pillow would keep the upper bytes; None for others.

    Args:
        image: The opened file, not loaded; its mode may be changed.
        data: The file.
    """
    rawmode = image.tile[0].args if image.tile else None
    if rawmode not in ("RGB;16B", "RGBA;16B", "LA;16B", "I;16B"):
        return None
    alpha = "straight" if "A" in rawmode else ""
    low, dtype = None, "=u2"
    if rawmode == "LA;16B":
        # A pixel has as many bytes as one of RGBA.
        image._mode, dtype = "RGBA", ">u2"
        image.tile = [image.tile[0]._replace(args="RGBA")]
    elif rawmode != "I;16B":
        low = PngImagePlugin.PngImageFile(BytesIO(data))
        # Taken for the other byte order, the lower byte is kept.
        low.tile = [low.tile[0]._replace(args=rawmode[:-1] + "L")]
        low.load()
    else:
        dtype = "<u2"
    bits = next((max(chunk[8:-4], default=16) for kind, chunk in _chunks(data) if kind == b"sBIT"), 16)
    return Samples(dtype=dtype, low=low, alpha=alpha, significant=bits if 8 <= bits < 16 else None)
