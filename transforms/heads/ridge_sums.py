"""The sums that ridge regression needs of the data; they add up over batches and cells."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sums:
    """Sums over n rows x, each minus a common offset, with their classes. `a += b` adds b's rows to a.

    Attributes:
        gram: D×D float64, Σ x xᵀ. Only the upper triangle is filled: `dsyrk` does half the work of a full product.
        by_class: C×D float64, Σ x over the rows of each class: the cross products with one-hot targets.
        counts: C int64, rows of each class.
    """

    gram: np.ndarray
    by_class: np.ndarray
    counts: np.ndarray

    @classmethod
    def zeros(cls, dims: int, classes: int) -> "Sums":
        # Column by column, as BLAS adds in place.
        return cls(np.zeros((dims, dims), order="F"), np.zeros((classes, dims)), np.zeros(classes, np.int64))

    def __iadd__(self, other: "Sums") -> "Sums":
        for mine, others in ((self.gram, other.gram), (self.by_class, other.by_class), (self.counts, other.counts)):
            np.add(mine, others, out=mine)
        return self

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def totals(self) -> np.ndarray:
        """D: Σ x over all rows."""
        return self.by_class.sum(axis=0)

    def add_rows(self, vectors: np.ndarray, codes: np.ndarray) -> None:
        """Adds rows in place.

        Args:
            vectors: n×D float64 in C order, the offset subtracted.
            codes: n integers, the classes.
        """
        from scipy.linalg.blas import dsyrk
        from scipy.sparse import csr_array

        dsyrk(1.0, vectors.T, beta=1.0, c=self.gram, overwrite_c=True)
        order = np.argsort(codes, kind="stable")
        present, starts = np.unique(codes[order], return_index=True)
        # As a sparse product, because NumPy's reduceat takes ten times as long.
        ends = np.append(starts, len(codes))
        members = csr_array((np.ones(len(codes)), order, ends), shape=(len(present), len(codes)))
        self.by_class[present] += members @ vectors
        self.counts[:] += np.bincount(codes, minlength=len(self.counts))


@dataclass
class CellSums:
    """`Sums` for each cell: from them every fit on a union of cells follows, without another pass over the rows.

    Attributes:
        offset: D float64, subtracted from every row before it is summed. Any vector near the data does, such as the
            mean of a few rows: it keeps centring, which subtracts squares of means, from cancelling digits away.
        classes: C.
        of_cell: {cell: its sums}.
    """

    offset: np.ndarray
    classes: int
    of_cell: dict[int, Sums] = field(default_factory=dict)

    def add(self, cells: np.ndarray, vectors: np.ndarray, codes: np.ndarray) -> None:
        """Adds a batch in place; rows of cell -1 are passed over.

        Args:
            cells: n integers.
            vectors: n×D, as stored.
            codes: n integers from 0 to C - 1; anything where the cell is -1.
        """
        for cell in np.unique(cells[cells >= 0]).tolist():
            chosen = cells == cell
            sums = self.of_cell.setdefault(cell, Sums.zeros(len(self.offset), self.classes))
            sums.add_rows(np.subtract(vectors[chosen], self.offset, dtype=np.float64), codes[chosen])

    def union(self, cells: Collection[int]) -> Sums:
        """Returns the sums over the rows of several cells.

        Raises:
            ValueError: There are no such rows.
        """
        total = Sums.zeros(len(self.offset), self.classes)
        for cell in sorted(set(cells) & set(self.of_cell)):
            total += self.of_cell[cell]
        if total.rows == 0:
            raise ValueError(f"no rows in the cells {sorted(cells)}")
        return total
