"""`Rows`: labelled vectors in cells, which fits take as training and validation rows."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # It would bring Arrow, which a head in use doesn't need.
    from transforms.heads.transform import Transform
    from transforms.rows.vectors import Vectors


@dataclass(frozen=True)
class HeldVectors:
    """Vectors in memory, with the face of `Vectors`: N×D float32, of columns that are `widths` wide."""

    matrix: np.ndarray
    widths: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.matrix)

    @property
    def dims(self) -> int:
        return self.matrix.shape[1]

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, vectors) of at most `batch_rows` rows, in order: no part of them can come first."""
        numbers = np.arange(self.rows) if wanted is None else np.flatnonzero(wanted)
        size = batch_rows or max(1, len(numbers))
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size], self.matrix[numbers[start : start + size]]


@dataclass(frozen=True)
class TransformedVectors:
    """Vectors as a transform gives them, with the face of `Vectors`."""

    vectors: "Vectors"
    transform: "Transform"

    @property
    def rows(self) -> int:
        return self.vectors.rows

    @property
    def dims(self) -> int:
        return self.vectors.dims

    @property
    def widths(self) -> tuple[int, ...]:
        return self.vectors.widths

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, vectors) as those do that are transformed."""
        for numbers, matrix in self.vectors.batches(wanted, batch_rows=batch_rows, seed=seed):
            yield numbers, self.transform(matrix)


@dataclass(frozen=True)
class Rows:
    """Labelled vectors.

    Attributes:
        vectors: N×D, wherever they are.
        codes: N int32, each row's class as an index into `classes`.
        cells: N int32. A cell is a set of rows that no fit divides: whatever is trained on, judged by, or left out is a
            union of cells. -1 is a row that no fit uses; its code may be -1 (no label) too.
        classes: The C labels, sorted.
    """

    vectors: "Vectors"
    codes: np.ndarray
    cells: np.ndarray
    classes: tuple[str, ...]

    @property
    def dims(self) -> int:
        return self.vectors.dims

    def wanted(self, cells: Collection[int]) -> np.ndarray:
        """Returns N booleans: which rows are in these cells."""
        return np.isin(self.cells, list(cells))

    def counts(self, cells: Collection[int]) -> np.ndarray:
        """Returns C int64: rows of each class in these cells."""
        return np.bincount(self.codes[self.wanted(cells)], minlength=len(self.classes))

    def batches(
        self, cells: Collection[int], *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, vectors) of these cells, as `Vectors.batches` does."""
        return self.vectors.batches(self.wanted(cells), batch_rows=batch_rows, seed=seed)

    def matrix(self, cells: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (row numbers, float32 n×D) of these cells in memory, in the order of the rows."""
        wanted = self.wanted(cells)
        numbers, matrix, at = np.flatnonzero(wanted), np.empty((int(wanted.sum()), self.dims), np.float32), 0
        for _, batch in self.vectors.batches(wanted):
            matrix[at : at + len(batch)] = batch
            at += len(batch)
        return numbers, matrix
