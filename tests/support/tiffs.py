"""TIFFs of any layout, in one strip, from the samples of a picture."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np


def tiff(
    samples: np.ndarray,
    *,
    photometric: int | None = None,
    bits: int | None = None,
    order: str = "<",
    deflate: bool = False,
    planar: int = 1,
    extra: tuple[int, ...] = (),
    tags: Mapping[int, int | float | str] = {},
) -> bytes:
    """Returns a TIFF.

    Args:
        samples: H×W, or H×W×C, of the type that the file says they have.
        photometric: Interpretation; black is zero or RGB by default.
        bits: Of a sample, if fewer than its type has; they are packed.
        order: `<` or `>`.
        deflate: Compressed.
        planar: 1, or 2 for a plane per sample.
        extra: ExtraSamples.
        tags: Others, whole numbers, floats or text.
    """
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    planes = [samples] if planar == 1 else [samples[..., channel] for channel in range(channels)]
    strips = [
        _packed(plane, bits) if bits else plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes
    ]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    starts = np.cumsum([8, *map(len, strips)])[:-1].tolist()
    form = {"u": 1, "b": 1, "i": 2, "f": 3, "c": 6}[samples.dtype.kind]
    values = {
        **{256: [width], 257: [height], 258: [bits or samples.itemsize * 8] * channels, 259: [8 if deflate else 1]},
        **{262: [(2 if channels >= 3 else 1) if photometric is None else photometric], 273: starts, 277: [channels]},
        **{278: [height], 279: list(map(len, strips)), 284: [planar], 338: list(extra), 339: [form] * channels, **tags},
    }
    entries, beyond = b"", b"".join(strips)
    beyond += bytes(len(beyond) % 2)
    for tag, value in sorted(values.items()):
        if isinstance(value, str):
            kind, count, raw = 2, len(value) + 1, value.encode() + b"\0"
        elif isinstance(value, float):
            kind, count, raw = 11, 1, struct.pack(f"{order}f", value)
        else:
            numbers = value if isinstance(value, list) else [value]
            kind, count = (4, len(numbers)) if min(numbers, default=0) >= 0 else (9, len(numbers))
            raw = struct.pack(f"{order}{count}{'I' if kind == 4 else 'i'}", *numbers)
        if not count:
            continue
        if len(raw) > 4:
            place = struct.pack(f"{order}I", 8 + len(beyond))
            beyond += raw + bytes(len(raw) % 2)
        else:
            place = raw.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, count) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(beyond))
    return head + beyond + struct.pack(f"{order}H", len(entries) // 12) + entries + bytes(4)


def _packed(plane: np.ndarray, bits: int) -> bytes:
    """Packs samples, the highest bit first, each row in whole bytes."""
    rows = plane.reshape(plane.shape[0], -1)
    unpacked = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(unpacked.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
