"""Near copies among many rows, exactly: a few directions tell nearly all pairs apart, float64 decides on the rest.

Two vectors of length 1 with cosine c are √(2 − 2c) apart. Split both, around one centre, into their components along
d orthonormal directions and the length of the rest, r: by the triangle inequality they are at least
√(‖Px − Py‖² + (r_x − r_y)²) apart. So a product of d + 1 numbers instead of D rules pairs out, and rows sorted along
the first direction need not even meet where that alone is too far. Nothing is lost, whatever the directions; those in
which the rows vary most rule out most.

The vectors are compared as float32 of length 1. Rounding turns each by 2⁻²⁴ radians at most, so an angle may be off by
2⁻²³; pairs count up to that much beyond the threshold. So all pairs with an exact cosine of at least the threshold are
found, and none whose cosine is more than 3e-7 below it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from threadpoolctl import threadpool_limits

from transforms.machine import available_cores
from transforms.rows.vectors import Vectors
from transforms.similarity.unit_vectors import stored_units

# Directions that rule out, and rows that these are found by.
DIRECTIONS = 48
_SAMPLE_ROWS = 1024
# Rows on a side of a tile: its 4 MiB of distances stay in the cache.
TILE_ROWS = 1024
# Of the rows of float64 that are held at a time, on each side of a comparison.
_ROWS_BYTES = 16 * 2**20
# Numbers of each row that two tiles are multiplied by at a time, 16 MiB on each side.
_STRETCH = 4096
# A tile with more candidates than this share of its pairs is compared by one product.
DENSE = 1 / 200
# Pairs gathered before they are thinned out: a thousand copies of one image are half a million.
PENDING_PAIRS = 2**20
# What bounds in float32 may be off by (products of 51 numbers, and terms up to 8), as squared distance.
_BOUND_SLACK = 1e-4
# What an angle between rows may be off by, in radians: each was rounded to float32.
_TURN = 2.0**-23
# What cosines in float64 are off by, so that equal vectors are found at a cosine of 1.
_ROUNDING = 1e-9


def near_copies(vectors: Vectors, threshold: float, *, wanted: np.ndarray | None = None) -> np.ndarray:
    """Finds all pairs of rows with a cosine of at least `threshold`, and none that is more than 3e-7 below it.

    In memory are DIRECTIONS + 1 numbers to a row, 1,024 sampled rows, and a few tiles for each core; the vectors wait
    in a temporary file.

    Args:
        vectors: N×D.
        threshold: In (0, 1].
        wanted: N booleans; by default all rows are compared. Rows of zeros have no cosine, and are never near.

    Returns:
        M×2 int64 with M < N: pairs of row numbers, as many as it takes to connect what all such pairs connect.

    Raises:
        FeaturemillError: There is no room for the temporary file.
    """
    with stored_units(vectors, wanted) as (rows, stored):
        if len(rows) < 2:
            return np.empty((0, 2), np.int64)
        bounds = _bounds(stored)
        order = np.argsort(bounds[:, 0], kind="stable")
        search = _Search(stored, bounds[order], order, threshold)
        cores = available_cores()
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
            list(pool.map(search.compare, search.tile_rows()))
        pairs = search.forest.pairs()
    return np.sort(rows[pairs], axis=1)


def _blocks(count: int, rows: int) -> Iterator[slice]:
    yield from (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _rows_at_once(dims: int) -> int:
    return max(1, _ROWS_BYTES // (8 * dims))


def _bounds(stored: np.ndarray) -> np.ndarray:
    """Returns N×(d+1) float32: components along the directions, and the length of the rest."""
    sample = stored[np.linspace(0, len(stored) - 1, min(_SAMPLE_ROWS, len(stored))).astype(np.int64)].astype(np.float64)
    centre = sample.mean(axis=0)
    sample -= centre
    directions = _directions(sample)
    bounds = np.empty((len(stored), directions.shape[1] + 1), np.float32)
    for block in _blocks(len(stored), _rows_at_once(stored.shape[1])):
        rows = stored[block] - centre
        along = rows @ directions
        bounds[block, :-1] = along
        rest = np.einsum("nd,nd->n", rows, rows) - np.einsum("nd,nd->n", along, along)
        bounds[block, -1] = np.sqrt(np.maximum(rest, 0))
    return bounds


def _directions(centred: np.ndarray) -> np.ndarray:
    """Returns D×d orthonormal directions in which n×D sampled rows vary most, those first that tell most."""
    rows, dims = centred.shape
    if dims <= rows:
        return np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :DIRECTIONS]
    # By the rows' own products, so that a D of 25,088 needs no D×D matrix.
    along = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, ::-1][:, :DIRECTIONS]
    # Orthonormal to rounding, which is all that the bound needs; also where the sample has fewer directions.
    return np.linalg.qr(along)[0]


class _Tile(NamedTuple):
    """Rows of one side, in the order along the first direction."""

    start: int
    stop: int


class _Search:
    """Compares tiles of sorted rows; `compare` may be called by several threads.

    Attributes:
        forest: What was found so far, by numbers of stored rows.
    """

    def __init__(self, stored: np.ndarray, bounds: np.ndarray, order: np.ndarray, threshold: float):
        self._stored, self._order, self._threshold = stored, order, threshold
        # In favour of finding.
        self._least = np.cos(np.arccos(threshold) + _TURN) - _ROUNDING
        self._first = bounds[:, 0].copy()
        # ‖x‖² + ‖y‖² - 2xy as one product: passes over tiles would take longer than it does.
        squares, ones = np.einsum("nd,nd->n", bounds, bounds)[:, None], np.ones((len(bounds), 1), np.float32)
        self._left, self._right = np.hstack([bounds * -2, squares, ones]), np.hstack([bounds, ones, squares])
        self._reach = np.float32(2 - 2 * threshold + _BOUND_SLACK)
        self._lock = Lock()
        self.forest = Forest(len(stored))

    def tile_rows(self) -> Iterator[_Tile]:
        for block in _blocks(len(self._first), TILE_ROWS):
            yield _Tile(block.start, block.stop)

    def compare(self, tile: _Tile) -> None:
        """Compares a tile with itself and with all later ones that are near enough along the first direction."""
        farthest = self._first[tile.stop - 1] + np.sqrt(self._reach)
        end = int(np.searchsorted(self._first, farthest, "right"))
        for start in range(tile.start, end, TILE_ROWS):
            other = _Tile(start, min(start + TILE_ROWS, end))
            # Only the rows that anything in the other tile can reach.
            nearest = self._first[other.start] - np.sqrt(self._reach)
            first = max(tile.start, int(np.searchsorted(self._first[: tile.stop], nearest, "left")))
            if first < tile.stop:
                self._compare(_Tile(first, tile.stop), other)

    def _compare(self, one: _Tile, other: _Tile) -> None:
        near = self._left[one.start : one.stop] @ self._right[other.start : other.stop].T <= self._reach
        if one.stop > other.start:
            # Each pair once, and no row with itself.
            near &= np.arange(one.start, one.stop)[:, None] < np.arange(other.start, other.stop)
        if np.count_nonzero(near) > DENSE * near.size:
            products = self._products(one, other)
            sure = products > self._threshold + _BOUND_SLACK
            self._add(*self._rows(near & sure, one, other))
            near &= ~sure & (products > self._threshold - _BOUND_SLACK)
        left, right = self._rows(near, one, other)
        for some in _blocks(len(left), _rows_at_once(self._stored.shape[1])):
            self._decide(left[some], right[some])

    def _rows(self, near: np.ndarray, one: _Tile, other: _Tile) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the stored rows of M pairs of a tile."""
        left, right = np.divmod(np.flatnonzero(near), near.shape[1])
        return self._order[left + one.start], self._order[right + other.start]

    def _products(self, one: _Tile, other: _Tile) -> np.ndarray:
        left, right = self._order[one.start : one.stop], self._order[other.start : other.stop]
        products = np.zeros((len(left), len(right)), np.float32)
        for stretch in _blocks(self._stored.shape[1], _STRETCH):
            products += self._stored[left, stretch] @ self._stored[right, stretch].T
        return products

    def _decide(self, left: np.ndarray, right: np.ndarray) -> None:
        one, other = self._stored[left].astype(np.float64), self._stored[right].astype(np.float64)
        lengths = np.einsum("md,md->m", one, one) * np.einsum("md,md->m", other, other)
        near = np.einsum("md,md->m", one, other) >= self._least * np.sqrt(lengths)
        self._add(left[near], right[near])

    def _add(self, left: np.ndarray, right: np.ndarray) -> None:
        if len(left):
            with self._lock:
                self.forest.add(np.minimum(left, right), np.maximum(left, right))


def connected(left: np.ndarray, right: np.ndarray, rows: int) -> np.ndarray:
    """Returns N numbers: which set each of N rows is in, where M pairs (left, right) of them belong together."""
    graph = coo_array((np.ones(len(left), bool), (left, right)), (rows, rows))
    return connected_components(graph, directed=False)[1]


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
        pairs = np.concatenate([self._pairs, *self._pending])
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (self._rows, self._rows))
        tree = minimum_spanning_tree(graph.tocsr()).tocoo()
        pairs = np.column_stack([tree.row, tree.col]).astype(np.int64)
        self._pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        _, self._sets = connected_components(tree, directed=False)
        self._pending, self._count = [], 0
