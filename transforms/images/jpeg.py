"""Reads what Pillow doesn't of JPEGs: the kind of the frame, and pixels beside broken metadata."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\xff\xd8\xff"
# Begins a scan; in a scan's own data no marker can stand.
SCAN = b"\xff\xda"
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
_NO_FRAME = {0xC4, 0xC8, 0xCC}
# APP1 to APP13, APP15 and comments. APP0 and APP14 say what the colours are.
_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}


class Frame(NamedTuple):
    """The frame's marker (0xC0 to 0xCF, or 0xF7 of JPEG-LS), bits of a sample and number of components."""

    marker: int
    bits: int
    components: int

    @property
    def scales(self) -> bool:
        """True if libjpeg can decode it at reduced size: baseline or progressive, 8 bits, grey or colour.

        Pillow asks for reduced size whatever it is, and a lossless one then writes over the end of its memory.
        """
        return self.marker in (0xC0, 0xC1, 0xC2) and self.bits == 8 and self.components in (1, 3)

    def __str__(self) -> str:
        kinds = [
            "JPEG-LS" if self.marker == 0xF7 else "lossless" if self.marker in _LOSSLESS else "",
            "hierarchical" if self.marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF) else "",
            "arithmetic-coded" if 0xC9 <= self.marker <= 0xCF else "",
        ]
        return ", ".join([*filter(None, kinds), f"{self.components} components of {self.bits} bits"])

    @property
    def is_plain(self) -> bool:
        """True for the kinds that every libjpeg reads."""
        return self.marker in (0xC0, 0xC1, 0xC2) and self.bits == 8 and self.components in (1, 3, 4)


def frame_of(data: bytes) -> Frame | None:
    """Returns the frame of a JPEG; None where none is found before its pixels, or the way there is damaged."""
    for marker, start, _ in _segments(data):
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == 0xF7:
            return Frame(marker, data[start + 4], data[start + 9]) if start + 9 < len(data) else None
    return None


def without_metadata(data: bytes) -> bytes:
    """Returns a JPEG with what its pixels and its orientation need, and nothing else."""
    kept, at = [data[:2]], 2
    for marker, start, at in _segments(data):
        if marker not in _METADATA or data.startswith(b"Exif\0\0", start + 4):
            kept.append(data[start:at])
    return b"".join([*kept, data[at:]])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of what comes before the pixels, found as libjpeg finds it."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at + 1 : at + 2] == b"\xff":
            at += 1
        if at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):
            return
        end = at + 2 if marker == 0 or marker in _NO_LENGTH else at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at, end
        at = end
