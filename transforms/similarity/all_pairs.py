"""The nearest of every row, by comparing all with all in memory."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Stored vectors that meet a block of queries in one matrix product.
_STORED = 4096
# Rows that are made to have length 1 at a time.
_BLOCK_ROWS = 4096
# A tile of products stays in the cache while it is compared.
_TILE_ROWS, _TILE_COLUMNS = 512, 4096


def nearest_rows(stored: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n×k row numbers, n×k float32 cosines) of the k stored vectors nearest to each query, nearest first.

    Args:
        stored: N×D float32 of length 1.
        queries: n×D float32 of length 1; n of 1,000 or so.
        count: k, at most N.
    """
    total = len(queries)
    # One line per candidate, k to a query: which query, which row, its cosine.
    query, row, cosine = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    last = np.full((total, 1), -np.inf, np.float32)
    for start, similar in _similarities(stored, queries):
        width = similar.shape[1]
        kept = min(count, width)
        least = np.partition(similar, width - kept, axis=1)[:, width - kept, None]
        # Later rows lose ties against earlier ones.
        new_query, new_row = np.nonzero((similar >= least) & (similar > last))
        query = np.concatenate([query, new_query])
        cosine = np.concatenate([cosine, similar[new_query, new_row]])
        row = np.concatenate([row, new_row + start])
        order = np.lexsort((row, -cosine, query))
        firsts = np.searchsorted(query[order], np.arange(total))
        order = order[np.arange(len(order)) - firsts[query[order]] < count]
        query, row, cosine = query[order], row[order], cosine[order]
        if start + width >= count:
            last = cosine.reshape(total, count)[:, -1:]
    return row.reshape(total, count), cosine.reshape(total, count)


def _similarities(stored: np.ndarray, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, n×m cosines) of the stored rows, block by block."""
    for start in range(0, len(stored), _STORED):
        yield start, queries @ stored[start : start + _STORED].T


def all_nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each row those with the highest cosine, by comparing all with all.

    Exact up to float32 rounding: products by GEMM in tiles, of which only numbers above a row's worst kept one are
    looked at. Time grows with N².

    Args:
        vectors: N×D, finite. The cosine of a zero row is 0 with every other.
        count: At most so many, never more than N - 1.

    Returns:
        Row numbers, int32 N×count, the nearest first and equal ones by number; their cosines, float32 N×count.
    """
    normed = _normed(vectors)
    rows = len(normed)
    count = max(0, min(count, rows - 1))
    found = np.zeros((rows, count), np.int32)
    cosines = np.zeros((rows, count), np.float32)
    if count == 0:
        return found, cosines

    def fill(start: int) -> None:
        part = slice(start, min(start + _TILE_ROWS, rows))
        found[part], cosines[part] = _nearest_of(normed, part, count)

    # NumPy lets go of the interpreter's lock for nearly all of this.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        list(pool.map(fill, range(0, rows, _TILE_ROWS)))
    return found, cosines


def _normed(vectors: np.ndarray) -> np.ndarray:
    normed = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
        # By the largest number first, so that squares neither overflow nor underflow.
        largest = np.abs(block).max(axis=1, initial=0, keepdims=True)
        block /= np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        normed[start : start + _BLOCK_ROWS] = block / np.where(lengths > 0, lengths, 1)
    return normed


def _nearest_of(normed: np.ndarray, part: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (numbers, cosines) for the rows of `part`, n×count each."""
    rows = part.stop - part.start
    numbers = np.full((rows, count), len(normed), np.int64)
    best = np.full((rows, count), -np.inf, np.float32)
    for start in range(0, len(normed), _TILE_COLUMNS):
        tile = normed[part] @ normed[start : start + _TILE_COLUMNS].T
        own = np.arange(max(part.start, start), min(part.stop, start + tile.shape[1]))
        tile[own - part.start, own - start] = -np.inf
        # Later numbers of equal cosine are farther: those that only equal the worst are left.
        worst = best[:, -1:]
        if start == 0 and tile.shape[1] > 4 * count:
            # Nothing is kept yet, so all would be new.
            worst = np.nextafter(np.partition(tile, -count, axis=1)[:, -count, None], np.float32(-np.inf))
        new = np.flatnonzero(tile > worst)
        if len(new) > 0:
            numbers, best = _merge(numbers, best, *np.divmod(new, tile.shape[1]), start=start, values=tile.ravel()[new])
    return numbers, best


def _merge(
    numbers: np.ndarray, best: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, start: int, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best of what was kept and what a tile brings, the nearest first."""
    changed, rows = np.unique(rows, return_inverse=True)
    count = numbers.shape[1]
    all_rows = np.concatenate([np.repeat(np.arange(len(changed)), count), rows])
    all_numbers = np.concatenate([numbers[changed].ravel(), columns + start])
    all_values = np.concatenate([best[changed].ravel(), values])
    order = np.lexsort((all_numbers, -all_values, all_rows))
    firsts = np.searchsorted(all_rows[order], np.arange(len(changed)))
    kept = order[(firsts[:, None] + np.arange(count)).ravel()].reshape(-1, count)
    numbers[changed], best[changed] = all_numbers[kept], all_values[kept]
    return numbers, best
