"""Exact nearest neighbours among stored vectors: one pass in float32 finds who may be near, float64 decides.

A float32 product of D numbers is off by at most about D·2⁻²⁴ of the two lengths (Higham, "Accuracy and Stability of
Numerical Algorithms", 2002, section 3.1). Whoever could be among the nearest within that error is computed again in
float64, so the answer is that of a computation in float64 throughout, at the price of one in float32.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from transforms.machine import available_cores
from transforms.rows.vectors import StoredGroup, StoredVectors, row_groups
from transforms.similarity.all_pairs import best, places
from transforms.similarity.unit_vectors import unit_length

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = ("cosine", "dot", "l2")
# Queries that meet a batch at a time.
_QUERIES = 256
# Estimates made at a time, rows by queries: a batch of short vectors has a million rows.
_ESTIMATES = 2**22
# Pairs that are sorted into the nearest so far at a time.
_PAIRS = 2**16
# Of their rows, computed again in float64, how much is held at a time.
_ROWS_BYTES = 16 * 2**20
# Below this length products of float32 may lose digits to underflow.
_SHORT = 1e-10


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows to each of Q queries, nearest first, equally near ones by key.

    Attributes:
        rows: Q×k int64 row numbers; -1 where there are fewer than k.
        scores: Q×k float64: cosines, products, or distances (l2); NaN where there is no row.
    """

    rows: np.ndarray
    scores: np.ndarray


def nearest_stored(
    vectors: StoredVectors,
    keys: "pa.ChunkedArray",
    queries: np.ndarray,
    *,
    top: int,
    metric: str = "cosine",
    wanted: np.ndarray | None = None,
    without: np.ndarray | None = None,
) -> Nearest:
    """Finds the nearest stored rows to each query in one pass, with a batch for each core in memory.

    Rows of nothing but zeros have no cosine: they are never near by that metric.

    Args:
        vectors: N×D, on disk; D the queries'.
        keys: N strings, by which equally near rows are ordered.
        queries: Q×D, finite, and not zero where the metric is cosine.
        top: k, at least 1.
        metric: One of METRICS.
        wanted: N booleans; by default all.
        without: Q row numbers that are left out, each for its query; -1 for none.

    Raises:
        FeaturemillError: Stored vectors that can't be read, or hold NaN or infinity.
    """
    found = _Search(keys, queries, top, metric, without)
    vectors = replace(vectors, zeros_pass=True)
    cores = available_cores()

    def look_at(group: StoredGroup) -> None:
        here = np.zeros(group.part.rows, bool)
        here[group.inside] = True if wanted is None else wanted[group.first :][group.inside]
        for numbers, matrix in replace(vectors, parts=(group.part,)).batches(here):
            found.look_at(numbers + group.first, matrix)

    # Each thread has products of its own: a product that used all cores would wait while the next batch is decoded.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        list(pool.map(look_at, row_groups(vectors.parts)))
    return found.result()


class _Search:
    """The nearest rows so far. `look_at` may be called by several threads."""

    def __init__(self, keys: "pa.ChunkedArray", queries: np.ndarray, top: int, metric: str, without: np.ndarray | None):
        self._keys, self._top, self._metric = keys, top, metric
        self._without = np.full(len(queries), -1) if without is None else without
        queries = np.asarray(queries, np.float64)
        # By their largest number first: the squares of very small ones would all be 0.
        largest = np.abs(queries).max(axis=1, keepdims=True)
        scaled = queries / np.where(largest > 0, largest, 1)
        self._units = unit_length(scaled, np.float64)
        self._lengths = np.linalg.norm(scaled, axis=1) * largest[:, 0]
        self._queries = self._units if metric == "cosine" else queries
        self._error = (queries.shape[1] + 16) * 2.0**-23
        # What a row must reach to be among the nearest: it only rises, so an older state lets more rows through.
        self._floor = np.full(len(queries), -np.inf)
        self._query, self._row, self._value = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        self._lock = Lock()

    def look_at(self, numbers: np.ndarray, matrix: np.ndarray) -> None:
        """Takes n rows into account: their numbers, and n×D float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("nd,nd->n", matrix, matrix)
        odd = ~(np.isfinite(squares) & (squares > _SHORT**2))
        if self._metric == "cosine" and odd.any():
            # Zeros have no cosine.
            kept = ~odd | matrix.any(axis=1)
            numbers, matrix, squares, odd = numbers[kept], matrix[kept], squares[kept], odd[kept]
        size = _ESTIMATES // min(len(self._queries), _QUERIES)
        for start in range(0, len(numbers), size):
            part = slice(start, start + size)
            self._look_at(numbers[part], matrix[part], squares[part], odd[part])

    def _look_at(self, numbers: np.ndarray, matrix: np.ndarray, squares: np.ndarray, odd: np.ndarray) -> None:
        for first in range(0, len(self._queries), _QUERIES):
            block = slice(first, first + _QUERIES)
            row, query = self._candidates(numbers, matrix, squares, odd, block)
            for some in range(0, len(row), _PAIRS):
                rows, queries = row[some : some + _PAIRS], query[some : some + _PAIRS] + first
                self._merge(queries, numbers[rows], self._values(matrix, rows, queries))

    def _candidates(
        self, numbers: np.ndarray, matrix: np.ndarray, squares: np.ndarray, odd: np.ndarray, block: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns which rows of the batch may be among the nearest to which queries of the block."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, slack = self._estimate(matrix, squares, block)
            # What overflowed may be anything.
            unsure = ~np.isfinite(value)
            unsure[odd] = True
            value[unsure] = np.inf
            value += slack
            floor = self._floor[block].astype(np.float32)
            # Rounded down, never up.
            floor = np.nextafter(floor, np.float32(-np.inf))
            itself = numbers[:, None] == self._without[block]
            may = ~(value < floor) & ~itself
            if may.sum() > 8 * self._top * may.shape[1] and len(matrix) > self._top:
                value -= 2 * slack
                # Also where only the slack did.
                unsure = ~np.isfinite(value)
                value[unsure | itself] = -np.inf
                # As many rows as are wanted reach this at least, so none below it is needed.
                least = np.partition(value, len(value) - self._top, axis=0)[len(value) - self._top]
                value += 2 * slack
                may &= unsure | ~(value < np.nextafter(least, np.float32(-np.inf)))
        return np.nonzero(may)

    def _estimate(self, matrix: np.ndarray, squares: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns n×Q values by which rows are ordered, in float32, and how far they may be off."""
        value = matrix @ self._units[block].T.astype(np.float32)
        lengths = np.sqrt(squares)[:, None]
        if self._metric == "cosine":
            value /= lengths
            return value, np.float32(self._error)
        if self._metric == "dot":
            query = self._lengths[block].astype(np.float32)
            value *= query
            return value, (lengths * query) * np.float32(self._error)
        query = self._lengths[block].astype(np.float32)
        value *= 2 * query
        value -= squares[:, None]
        value -= query**2
        return value, (lengths + query) ** 2 * np.float32(2 * self._error)

    def _values(self, matrix: np.ndarray, row: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Returns M values by which rows are ordered, in float64, for M rows of the matrix and M query numbers."""
        values = np.empty(len(row))
        size = max(1, _ROWS_BYTES // (8 * matrix.shape[1]))
        for start in range(0, len(row), size):
            some = slice(start, start + size)
            values[some] = self._compared(matrix[row[some]].astype(np.float64), query[some])
        return values

    def _compared(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        queries = self._queries[query]
        if self._metric == "l2":
            rows -= queries
            return -np.einsum("md,md->m", rows, rows)
        products = np.einsum("md,md->m", rows, queries)
        if self._metric == "dot":
            return products
        return products / np.sqrt(np.einsum("md,md->m", rows, rows))

    def _merge(self, query: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
        with self._lock:
            query = np.concatenate([self._query, query])
            row = np.concatenate([self._row, row])
            value = np.concatenate([self._value, value])
            kept = best(query, value, self._key_ranks(query, row, value), self._top)
            self._query, self._row, self._value = query[kept], row[kept], value[kept]
            last = np.flatnonzero(places(self._query) == self._top - 1)
            self._floor[self._query[last]] = self._value[last]

    def _key_ranks(self, query: np.ndarray, row: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Returns numbers in the order of the rows' keys (then of the rows), or zeros where no values are equal."""
        ranks = np.zeros(len(row), np.int64)
        order = np.lexsort((value, query))
        same = (np.diff(query[order]) == 0) & (np.diff(value[order]) == 0)
        tied = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
        if len(tied):
            keys = self._keys.take(row[tied]).to_pylist()
            by_key = sorted(range(len(tied)), key=lambda i: (keys[i], row[tied[i]]))
            ranks[tied[by_key]] = np.arange(len(tied))
        return ranks

    def result(self) -> Nearest:
        rows = np.full((len(self._queries), self._top), -1, np.int64)
        scores = np.full(rows.shape, np.nan)
        place = places(self._query)
        rows[self._query, place] = self._row
        scores[self._query, place] = self._value
        if self._metric == "l2":
            scores = np.sqrt(-scores)
        return Nearest(rows, scores)
