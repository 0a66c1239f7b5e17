"""Vectors at length 1: batch by batch, or all of them in a temporary file, for whoever compares all with all."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from transforms.errors import FeaturemillError
from transforms.text import one_line

if TYPE_CHECKING:
    # It would bring Arrow, which a head in use doesn't need.
    from transforms.rows.vectors import Vectors


def unit_length(vectors: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Returns n×D finite vectors at length 1, in another dtype; zeros, which have no direction, stay zeros.

    Lengths are float64, in which no square of a float32 overflows or vanishes; float64 must be as near to 1.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    # Not by `where`, with which NumPy takes twice as long.
    lengths[lengths == 0] = 1
    return np.divide(vectors, lengths, out=np.empty(vectors.shape, dtype), casting="same_kind")


def unit_batches(vectors: "Vectors", wanted: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (row numbers, n×D float64 of length 1), n at least 1, without rows of zeros: they have no direction.

    Args:
        vectors: N×D, finite.
        wanted: N booleans; by default all.
    """
    for numbers, matrix in vectors.batches(wanted):
        kept = matrix.any(axis=1)
        if kept.any():
            yield numbers[kept], unit_length(matrix[kept], np.float64)


@contextmanager
def stored_units(vectors: "Vectors", wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gives (M row numbers, M×D float32 of length 1) without rows of zeros, as long as the context lasts.

    The numbers lie in a temporary file that is mapped: the system can give its pages back at any time. Rounding to
    float32 turns a row by 2⁻²⁴ at most (6e-8 radians).

    Args:
        vectors: N×D, finite.
        wanted: N booleans; by default all.

    Raises:
        FeaturemillError: The file can't be written, for want of room for instance.
    """
    rows = vectors.rows if wanted is None else int(wanted.sum())
    folder = "the folder of temporary files"
    with ExitStack() as stack:
        try:
            # Fails where every folder that it could be is full.
            folder = tempfile.gettempdir()
            # Without a buffer: closing would write what is left in it, and fail once more.
            file = stack.enter_context(tempfile.TemporaryFile(prefix="featuremill-", dir=folder, buffering=0))
            numbers = _write(vectors, wanted, file)
        except OSError as error:
            raise FeaturemillError(
                f"{rows * vectors.dims * 4:,} bytes of vectors can't be put into {folder} "
                f"({one_line(error)}); free some space there, or set TMPDIR to a folder that has it"
            ) from error
        shape = (len(numbers), vectors.dims)
        yield numbers, np.memmap(file, np.float32, "r", shape=shape) if len(numbers) else np.empty(shape, np.float32)


def _write(vectors: "Vectors", wanted: np.ndarray | None, file: BinaryIO) -> np.ndarray:
    kept = [np.empty(0, np.int64)]
    for numbers, units in unit_batches(vectors, wanted):
        left = memoryview(units.astype(np.float32).tobytes())
        while left:
            # A disk that is nearly full takes a part.
            left = left[file.write(left) :]
        kept.append(numbers)
    return np.concatenate(kept)
