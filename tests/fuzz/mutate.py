"""Spoils bytes: a few changes of many kinds, all drawn from one seed."""

import random
from collections.abc import Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_TEXTS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"[" * 2000,
    b"1e999",
    b"NaN",
    b"null",
    b"-1",
    b"\xed\xa0\x80",
    b"{}",
)


def mutate(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Returns the bytes with one to eight changes.

    Args:
        data: A whole file.
        draw: Decides everything.
        others: Files to take pieces from.
    """
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        draw.choice(_CHANGES)(changed, draw, others)
    return bytes(changed)


def _place(data: bytearray, draw: random.Random) -> int:
    # Headers and footers decide most.
    near = min(len(data), draw.choice((16, 64, 512, len(data) or 1)))
    at = draw.randrange(near) if near else 0
    return at if draw.random() < 0.6 else max(0, len(data) - 1 - at)


def _flip(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _noise(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, draw)
    data[at : at + draw.choice((1, 4, 32))] = draw.randbytes(draw.choice((1, 4, 32)))


def _cut(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    del data[_place(data, draw) :]


def _remove(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, draw)
    del data[at : at + draw.choice((1, 4, 100, 1000))]


def _repeat(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, draw)
    piece = data[at : at + draw.choice((1, 8, 100))]
    data[at:at] = piece * draw.choice((1, 2, 1000))


def _splice(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    other = draw.choice(others)
    start, at = draw.randrange(len(other) + 1), _place(data, draw)
    data[at : at + draw.choice((0, 100, len(data)))] = other[start : start + draw.choice((10, 500, len(other)))]


def _number(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    """Writes an extreme length or count."""
    width, at = draw.choice((1, 2, 4, 8)), _place(data, draw)
    number = draw.choice(_NUMBERS) & (2 ** (8 * width) - 1)
    data[at : at + width] = number.to_bytes(width, draw.choice(("little", "big")))


def _text(data: bytearray, draw: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, draw)
    data[at : at + draw.choice((0, 1, 4))] = draw.choice(_TEXTS)


_CHANGES = (_flip, _flip, _noise, _cut, _remove, _repeat, _splice, _number, _text)
