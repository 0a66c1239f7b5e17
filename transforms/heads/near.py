"""Near copies: vectors whose cosine is so high that they must not fall on two sides of a split."""

from collections.abc import Iterator

import numpy as np

from transforms.heads.rows import Vectors

# Vectors held against all others at a time; each such block is one more pass over the data.
BLOCK_BYTES = 256 * 2**20
# Rows on a side of a product.
TILE_ROWS = 1024
# Pairs gathered before they are thinned out.
PENDING_PAIRS = 2**20
# What float32 products of normed vectors are off by at most, so that equal vectors are found at a cosine of 1.
ROUNDING = 2e-6


def near_duplicates(vectors: Vectors, threshold: float) -> np.ndarray:
    """Finds vectors with a cosine of at least `threshold` (to 2e-6, in favour of finding).

    Exact: all pairs are compared, N²/2 products of D numbers, in tiles by float32 GEMM. Of the pairs found only enough
    are kept to connect what all of them connect: a thousand copies of one image are a million pairs. Time grows with
    N²: 40,000 rows of 512 numbers take 15 s on a core, a million would take hours.

    Args:
        vectors: N×D.
        threshold: In (0, 1].

    Returns:
        M×2 int64 with M < N: pairs of row numbers, the smaller first, each with such a cosine. Two rows are connected
        by these pairs if and only if all pairs of such a cosine connect them.
    """
    forest = Forest(vectors.rows)
    size = max(TILE_ROWS, BLOCK_BYTES // (4 * vectors.dims))
    for start in range(0, vectors.rows, size):
        numbers, block = _normed_rows(vectors, start, min(start + size, vectors.rows))
        later = np.arange(vectors.rows) >= start
        for others, batch in vectors.batches(later):
            batch = _normed(batch)
            for rows, columns in _tiles(len(numbers), len(others)):
                if others[columns][-1] <= numbers[rows][0]:
                    # The same pairs the other way round.
                    continue
                close = block[rows] @ batch[columns].T >= threshold - ROUNDING
                first, second = np.nonzero(close)
                forest.add(numbers[rows][first], others[columns][second])
    return forest.pairs()


def _normed(matrix: np.ndarray) -> np.ndarray:
    # Scaled by the largest number first, so that squares neither overflow nor underflow.
    matrix = matrix / np.abs(matrix).max(axis=1, keepdims=True)
    return matrix / np.sqrt(np.einsum("ij,ij->i", matrix, matrix))[:, None]


def _normed_rows(vectors: Vectors, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    wanted = np.zeros(vectors.rows, bool)
    wanted[start:stop] = True
    block = np.empty((stop - start, vectors.dims), np.float32)
    for numbers, batch in vectors.batches(wanted):
        block[numbers - start] = _normed(batch)
    return np.arange(start, stop), block


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, rows, TILE_ROWS):
        for column in range(0, columns, TILE_ROWS):
            yield slice(row, row + TILE_ROWS), slice(column, column + TILE_ROWS)


class Forest:
    """Pairs of rows, thinned out to a spanning forest whenever many have gathered."""

    def __init__(self, rows: int):
        self._rows = rows
        self._sets = np.arange(rows)
        self._pairs = np.empty((0, 2), np.int64)
        self._pending: list[np.ndarray] = []
        self._count = 0

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        new = (first < second) & (self._sets[first] != self._sets[second])
        self._pending.append(np.column_stack([first[new], second[new]]))
        self._count += int(new.sum())
        if self._count >= PENDING_PAIRS:
            self._thin_out()

    def pairs(self) -> np.ndarray:
        self._thin_out()
        return self._pairs

    def _thin_out(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

        pairs = np.concatenate([self._pairs, *self._pending])
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (self._rows, self._rows))
        tree = minimum_spanning_tree(graph.tocsr()).tocoo()
        pairs = np.column_stack([tree.row, tree.col]).astype(np.int64)
        self._pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        _, self._sets = connected_components(tree, directed=False)
        self._pending, self._count = [], 0
