"""Distance of a vector from all that a head was trained on, by a bounded sample of its training rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from transforms.heads.cells import Rows
from transforms.heads.transform import Transform
from transforms.similarity.all_pairs import nearest_in_memory
from transforms.similarity.unit_vectors import unit_length

# Of more training rows some are drawn, and of longer vectors fewer: 10,000 of 512 numbers are 10 MB in HEAD.
MOST_ROWS = 10_000
_MOST_NUMBERS = 2**25
# One near copy among the training rows isn't to make a strange row a known one.
_NEIGHBOURS = 10
# Queries at a time.
_QUERIES = 1024


@dataclass(frozen=True)
class Far:
    """Training rows to measure by (Sun and others 2022, Out-of-Distribution Detection with Deep Nearest Neighbors).

    A distance is 1 less the cosine with the 10th nearest of them, or the last of fewer; from 0 to 2.

    Attributes:
        vectors: M×D float32 of length 1, rounded to float16, as the head's transform gives them.
        distance: A row that is farther is far.
        transform: The head's.
    """

    vectors: np.ndarray
    distance: float
    transform: Transform

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """Returns n float32 distances of n×D float32 vectors, as they are stored."""
        found = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), _QUERIES):
            part = slice(start, start + _QUERIES)
            queries = unit_length(self.transform(vectors[part]))
            _, cosines = nearest_in_memory(self.vectors, queries, min(_NEIGHBOURS, len(self.vectors)))
            found[part] = 1 - cosines[:, -1]
        return found


def measure_far(
    rows: Rows, train: tuple[int, ...], validation: tuple[int, ...], transform: Transform, *, rate: float, seed: int
) -> Far:
    """Returns training rows to measure by, and the distance that at most a share of the validation rows is beyond.

    Args:
        rows: In their cells.
        train, validation: Cells.
        transform: The head's.
        rate: That share, from 0 to below 1.
        seed: Of the training rows that are drawn.
    """
    numbers = np.flatnonzero(rows.wanted(train))
    most = max(1, min(MOST_ROWS, _MOST_NUMBERS // rows.dims, len(numbers)))
    wanted = np.zeros(len(rows.cells), bool)
    wanted[np.random.default_rng(seed).choice(numbers, most, replace=False)] = True
    parts = [unit_length(transform(batch)) for _, batch in rows.vectors.batches(wanted)]
    far = Far(np.concatenate(parts).astype(np.float16).astype(np.float32), 0.0, transform)
    distances = np.concatenate(list(_distances(far, rows, validation)))
    return Far(far.vectors, float(np.quantile(distances, 1 - rate, method="higher")), transform)


def _distances(far: Far, rows: Rows, cells: tuple[int, ...]) -> Iterator[np.ndarray]:
    for _, batch in rows.batches(cells):
        yield far.distances(batch)
