"""Vectors for the tests of the heads: drawn, in memory, easy or not."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from transforms.heads.cells import HeldVectors, Rows


@dataclass(frozen=True)
class ArrayVectors(HeldVectors):
    """Vectors in memory that come as stored ones do: in small batches, which a seed puts in another order."""

    widths: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "widths", self.widths or (self.dims,))

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        numbers = np.arange(self.rows) if wanted is None else np.flatnonzero(wanted)
        size = batch_rows or 64
        starts = np.arange(0, len(numbers), size)
        if seed is not None:
            np.random.default_rng(seed).shuffle(starts)
        for start in starts:
            chosen = numbers[start : start + size]
            yield chosen, self.matrix[chosen].astype(np.float32)


def deviations(matrix: np.ndarray) -> np.ndarray:
    """Returns what standardising divides by: each column's deviation, or a tenth of their root mean square."""
    found = matrix.std(axis=0)
    return np.maximum(found, 0.1 * np.sqrt((found**2).mean()))


def draw_rows(*, rows: int, dims: int, classes: int, cells: int = 4, distance: float = 3.0, seed: int = 0) -> Rows:
    """Draws normal clouds, one per class, whose centres are about `distance` standard deviations apart."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, classes, rows).astype(np.int32)
    centres = random.normal(size=(classes, dims)) * distance / np.sqrt(2 * dims)
    matrix = (centres[codes] + random.normal(size=(rows, dims))).astype(np.float32)
    names = tuple(f"class{i}" for i in range(classes))
    return Rows(ArrayVectors(matrix), codes, random.integers(0, cells, rows).astype(np.int32), names)
