"""The nearest of stored vectors to each of others, or of each other, by comparing all with all in memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transforms.machine import available_cores
from transforms.similarity.unit_vectors import unit_length

# Stored vectors that meet a block of queries in one matrix product.
_STORED = 4096
# Rows that are compared with all at a time: their products with a block stay in the cache.
_TILE_ROWS = 512


def best(group: np.ndarray, value: np.ndarray, tie: np.ndarray, count: int) -> np.ndarray:
    """Returns which of M candidates are the best of their group: group by group, the highest value first.

    Args:
        group, value: M each.
        tie: M numbers by which equal values are ordered.
        count: How many of a group are kept.
    """
    order = np.lexsort((tie, -value, group))
    return order[places(group[order]) < count]


def places(groups: np.ndarray) -> np.ndarray:
    """Returns how many stand before each in its group: M numbers of M ascending groups, none below 0."""
    at = np.arange(len(groups))
    return at - np.maximum.accumulate(np.where(np.diff(groups, prepend=-1) > 0, at, 0))


def nearest_in_memory(
    stored: np.ndarray, queries: np.ndarray, count: int, *, own: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n×k int64 row numbers, n×k float32 cosines) of the k stored vectors nearest to each query.

    The nearest come first, equal ones by number.

    Args:
        stored: N×D float32 of length 1.
        queries: n×D float32 of length 1; n of 1,000 or so.
        count: k, at most N, or N - 1 with `own`.
        own: Number of the row that the first query is, where queries are stored rows: none is near itself.
    """
    rows = np.full((len(queries), count), len(stored), np.int64)
    cosines = np.full(rows.shape, -np.inf, np.float32)
    for start in range(0, len(stored), _STORED):
        similar = queries @ stored[start : start + _STORED].T
        width = similar.shape[1]
        if own is not None:
            here = np.arange(max(own, start), min(own + len(queries), start + width))
            similar[here - own, here - start] = -np.inf
        # Later rows lose ties against earlier ones.
        new = similar > cosines[:, -1:]
        if width > count and np.count_nonzero(new) > 4 * new.shape[0] * count:
            new &= similar >= np.partition(similar, width - count, axis=1)[:, width - count, None]
        new = np.flatnonzero(new)
        if len(new):
            query, column = np.divmod(new, width)
            _merge(rows, cosines, query, column + start, similar.ravel()[new])
    return rows, cosines


def _merge(rows: np.ndarray, cosines: np.ndarray, query: np.ndarray, row: np.ndarray, cosine: np.ndarray) -> None:
    """Takes M candidates into the n×k rows and cosines kept so far."""
    count = rows.shape[1]
    changed, query = np.unique(query, return_inverse=True)
    query = np.concatenate([np.repeat(np.arange(len(changed)), count), query])
    row = np.concatenate([rows[changed].ravel(), row])
    cosine = np.concatenate([cosines[changed].ravel(), cosine])
    kept = best(query, cosine, row, count).reshape(-1, count)
    rows[changed], cosines[changed] = row[kept], cosine[kept]


def all_nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each row those with the highest cosine, by comparing all with all.

    Exact up to float32 rounding. Time grows with N².

    Args:
        vectors: N×D, finite. The cosine of a zero row is 0 with every other.
        count: At most so many, never more than N - 1.

    Returns:
        Row numbers, int32 N×count, the nearest first and equal ones by number; their cosines, float32 N×count.
    """
    normed = unit_length(vectors)
    rows = len(normed)
    count = max(0, min(count, rows - 1))
    found = np.zeros((rows, count), np.int32)
    cosines = np.zeros((rows, count), np.float32)
    if count == 0:
        return found, cosines

    def fill(start: int) -> None:
        part = slice(start, start + _TILE_ROWS)
        found[part], cosines[part] = nearest_in_memory(normed, normed[part], count, own=start)

    # NumPy lets go of the interpreter's lock for nearly all of this.
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(fill, range(0, rows, _TILE_ROWS)))
    return found, cosines
