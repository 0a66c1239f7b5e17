"""The two forms of a ridge fit: from D×D sums (many rows), or from the N×N kernel of rows in memory (many numbers)."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transforms.errors import FeaturemillError
from transforms.heads.cells import Rows
from transforms.heads.ridge_sums import CellSums

# Numbers of a column block in the kernel form, as float64: 1024 of them for 16,384 rows are 128 MiB.
_COLUMNS = 1024
# Below this share of a column's mean square, its variance is what rounding left of a constant.
_CONSTANT = 1e-12
# What rounding may change of a solution's part in any direction, as a share.
_EXACT = 1e-6
# Of the columns' root mean square deviation (docs/decisions.md).
_LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class Spectrum:
    """A fit's training rows in the basis where a penalty is a division: (A + λ)⁻¹ B = U (Λ + λ)⁻¹ Uᵀ B.

    Attributes:
        values: M float64, the eigenvalues Λ of A, the centred Gram matrix or kernel.
        basis: M×M, the eigenvectors U in columns.
        targets: M×C, Uᵀ B.
        unit: n × mean variance of the features: what a penalty of 1 stands for.
    """

    values: np.ndarray
    basis: np.ndarray
    targets: np.ndarray
    unit: float

    @classmethod
    def of(cls, matrix: np.ndarray, right: np.ndarray, *, dims: int, triangle: str) -> "Spectrum":
        """Decomposes `matrix` (M×M, only one triangle is read, "U" or "L") for the right-hand sides (M×C)."""
        unit = float(np.trace(matrix)) / dims
        values, basis = np.linalg.eigh(matrix, UPLO=triangle)
        return cls(np.maximum(values, 0), basis, basis.T @ right, unit)

    def solve(self, penalty: float) -> np.ndarray:
        """Returns M×C: the solution for a penalty; with penalty 0 that of least norm where the data leave it open.

        Raises:
            FeaturemillError: Rounding would decide it: an eigenvalue is known to a share of the largest only.
        """
        divisor = self.values + penalty * self.unit
        rounding = np.finfo(np.float64).eps * self.values.max(initial=0)
        used = divisor > len(divisor) * rounding
        # Only without a penalty is a direction left out in which nothing varies; with one, nobody knows its part.
        if rounding > _EXACT * (divisor if penalty else divisor[used]).min(initial=np.inf):
            raise FeaturemillError(
                f"ridge can't be exact at the penalty {penalty:g}: these vectors vary too little in some directions, "
                "beside others, for so small a one; leave it out of --penalties"
            )
        inverse = np.divide(1, divisor, out=np.zeros_like(divisor), where=used)
        return self.basis @ (self.targets * inverse[:, None])


class Problem(Protocol):
    """One fit's training rows, decomposed."""

    spectrum: Spectrum

    def loss(self, validation: Collection[int]) -> Callable[[np.ndarray], float]:
        """Returns what tells a solution's squared error per validation row."""
        ...

    def layer(self, solution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the dense layer (D×C, C) that takes vectors as stored."""
        ...


def feature_scale(squares: np.ndarray, mean: np.ndarray, rows: int) -> np.ndarray:
    """Returns D standard deviations, none below a tenth of their root mean square; 1 where all columns are constant.

    Nearly constant columns, of which a flattened tap has many, would be blown up to as much as any other, noise and
    all.

    Args:
        squares: D, Σ x².
        mean: D, the mean of x.
        rows: n.
    """
    variance = squares / rows - mean**2
    variance = np.where(variance > _CONSTANT * squares / rows, variance, 0)
    return np.sqrt(
        np.maximum(variance, _LEAST_SPREAD**2 * variance.mean()) if variance.any() else np.ones_like(variance)
    )


class SumsProblem:
    """Ridge from sums alone, training and validation both: `solution` is D×C.

    With x the standardised rows about the training mean, XᵀX W + λ W = XᵀY; ‖Y - XW‖² over the validation rows is
    expanded into tr(Wᵀ XᵀX W) - 2 tr(Wᵀ XᵀY) + ‖Y‖², so they aren't read again.
    """

    def __init__(self, sums: CellSums, train: Collection[int], *, standardize: bool):
        union = sums.union(train)
        self._sums, dims, rows = sums, len(sums.offset), union.rows
        self._mean, self._shares = union.totals / rows, union.counts / rows
        squares = np.diagonal(union.gram)
        self._scale = feature_scale(squares, self._mean, rows) if standardize else np.ones(dims)
        gram = union.gram
        gram -= rows * np.outer(self._mean, self._mean)
        gram /= self._scale[:, None]
        gram /= self._scale
        cross = (union.by_class.T - np.outer(self._mean, union.counts)) / self._scale[:, None]
        self.spectrum = Spectrum.of(gram, cross, dims=dims, triangle="U")

    def loss(self, validation: Collection[int]) -> Callable[[np.ndarray], float]:
        union = self._sums.union(validation)
        mean, shares, counts, totals, rows = self._mean, self._shares, union.counts, union.totals, union.rows
        gram = np.triu(union.gram) + np.triu(union.gram, 1).T
        gram -= np.outer(mean, totals) + np.outer(totals, mean) - rows * np.outer(mean, mean)
        cross = union.by_class.T - np.outer(mean, counts) - np.outer(totals - rows * mean, shares)
        squares = rows - 2 * counts @ shares + rows * shares @ shares

        def per_row(solution: np.ndarray) -> float:
            kernel = solution / self._scale[:, None]
            return float((np.sum(kernel * (gram @ kernel)) - 2 * np.sum(kernel * cross) + squares) / rows)

        return per_row

    def layer(self, solution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel = solution / self._scale[:, None]
        return kernel, self._shares - (self._sums.offset + self._mean) @ kernel


class RowsInMemory:
    """All rows that some fit uses, N×D float32, and their kernel, which fits share unless each has its own scale."""

    def __init__(self, rows: Rows):
        self.classes = len(rows.classes)
        numbers, self.matrix = rows.matrix(set(rows.cells[rows.cells >= 0].tolist()))
        self.cells, self.codes = rows.cells[numbers], rows.codes[numbers]
        self.offset = self.matrix.mean(axis=0, dtype=np.float64)
        self._shared: np.ndarray | None = None

    def chosen(self, cells: Collection[int]) -> np.ndarray:
        """Returns the indices of the rows in some cells.

        Raises:
            ValueError: There are no such rows.
        """
        chosen = np.flatnonzero(np.isin(self.cells, list(cells)))
        if len(chosen) == 0:
            raise ValueError(f"no rows in the cells {sorted(cells)}")
        return chosen

    def columns(self, chosen: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (slice of the D columns, n×d float64 about the offset) of the chosen rows, block by block."""
        for start in range(0, self.matrix.shape[1], _COLUMNS):
            block = slice(start, start + _COLUMNS)
            yield block, self.matrix[chosen, block] - self.offset[block]

    def kernel(self, scale: np.ndarray | None) -> np.ndarray:
        """Returns N×N float64: products of all rows about the offset, each column divided by its scale."""
        from scipy.linalg.blas import dsyrk

        if scale is None and self._shared is not None:
            return self._shared
        count = len(self.matrix)
        kernel = np.zeros((count, count), order="F")
        for block, columns in self.columns(np.arange(count)):
            if scale is not None:
                columns /= scale[block]
            kernel = dsyrk(1.0, columns.T, trans=True, beta=1.0, c=kernel, overwrite_c=True)
        kernel = np.triu(kernel) + np.triu(kernel, 1).T
        if scale is None:
            self._shared = kernel
        return kernel


class KernelProblem:
    """Ridge in its dual form: `solution` is n×C, W = Xᵀ solution, (XXᵀ + λ) solution = Y."""

    def __init__(self, rows: RowsInMemory, train: Collection[int], *, standardize: bool):
        self._rows, dims = rows, rows.matrix.shape[1]
        self._train = rows.chosen(train)
        self._mean, self._scale = self._moments(standardize)
        targets = np.eye(rows.classes)[rows.codes[self._train]]
        self._shares = targets.mean(axis=0)
        self._kernel = rows.kernel(self._scale if standardize else None)
        kernel = self._kernel[np.ix_(self._train, self._train)]
        self._row_means, self._grand = kernel.mean(axis=0), kernel.mean()
        kernel += self._grand - self._row_means - self._row_means[:, None]
        # Once more, what rounding left: no row tells anything in the direction of all rows together.
        kernel += kernel.mean() - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True)
        self.spectrum = Spectrum.of(kernel, targets - self._shares, dims=dims, triangle="L")

    def _moments(self, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns D means about the offset and D scales."""
        count, dims = len(self._train), self._rows.matrix.shape[1]
        mean, squares = np.empty(dims), np.empty(dims)
        for block, columns in self._rows.columns(self._train):
            mean[block], squares[block] = columns.mean(axis=0), np.einsum("nd,nd->d", columns, columns)
        return mean, feature_scale(squares, mean, count) if standardize else np.ones(dims)

    def loss(self, validation: Collection[int]) -> Callable[[np.ndarray], float]:
        chosen = self._rows.chosen(validation)
        kernel = self._kernel[np.ix_(chosen, self._train)]
        kernel += self._grand - kernel.mean(axis=1, keepdims=True) - self._row_means
        targets = np.eye(self._rows.classes)[self._rows.codes[chosen]] - self._shares
        return lambda solution: float(np.sum((targets - kernel @ solution) ** 2) / len(chosen))

    def layer(self, solution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel = np.empty((self._rows.matrix.shape[1], solution.shape[1]))
        for block, columns in self._rows.columns(self._train):
            columns -= self._mean[block]
            # Once for the rows, once for what takes them as stored.
            kernel[block] = columns.T @ solution / self._scale[block, None] ** 2
        return kernel, self._shares - (self._rows.offset + self._mean) @ kernel
