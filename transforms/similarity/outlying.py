"""The rows farthest from the centre of their class, or from their nearest neighbours."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from transforms.declared import AT_LEAST_ONE, check, declared
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.rows.labels import encode
from transforms.rows.lookup import StoredRow, read_rows
from transforms.rows.table import Table, open_table
from transforms.similarity.all_pairs import nearest_in_memory
from transforms.similarity.unit_vectors import stored_units, unit_batches

# Rows that are compared with all others at a time.
_BLOCK_ROWS = 1024
# Cosines to centres that are computed at a time, 32 MiB.
_COSINES = 2**22
# Sums of directions that are shorter than this have none.
_NO_LENGTH = 1e-12


@dataclass(frozen=True, kw_only=True)
class OutlierOptions:
    """The options of `find_outliers`."""

    by: str = declared(
        "class",
        help="What a row is far from, the centre of its class or the nearest rows",
        choices=("class", "neighbours"),
    )
    top: int = declared(50, help="Show so many rows", bounds=(AT_LEAST_ONE,))
    neighbours: int = declared(10, help="Nearest rows that count, for --by neighbours", bounds=(AT_LEAST_ONE,))
    feature: str | None = declared(None, help="Column of vectors", metavar="NAME", unset="embedding")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outlier:
    """A row, and how far away it is.

    Attributes:
        row: Its own columns.
        distance: 1 - cosine: to the mean direction of its class without itself, or the mean over its k nearest rows.
        nearest_class: The class whose mean direction is nearest, by class; else None. The row isn't counted in its own
            class; classes of one row don't take part.
    """

    row: StoredRow
    distance: float
    nearest_class: str | None


@dataclass(frozen=True)
class Outliers:
    """The rows farthest away, the farthest first.

    Attributes:
        table: What was looked at.
        by: `class` or `neighbours`.
        rows: Rows that were compared.
        found: The farthest.
    """

    table: Table
    by: str
    rows: int
    found: tuple[Outlier, ...]


def find_outliers(output: str, **options: Any) -> Outliers:
    """Finds the rows that lie farthest from their class, or from everything else. Rows of zeros aren't compared.

    By the centre of the row's class it takes two passes; unlabelled rows and classes of one row aren't compared. By the
    row's nearest rows every pair is compared, so time grows with N².

    Args:
        output: OUT, or other Parquet with vectors.
        options: The fields of `OutlierOptions`.

    Raises:
        UsageError: A number or a way that can't be.
        FeaturemillError: No features there, no labels, or vectors that can't be read or aren't finite.
    """
    asked = OutlierOptions(**options)
    table = open_table(output, columns=(asked.feature,) if asked.feature else ())
    if asked.by == "class":
        distances, classes = _from_class(table)
    else:
        distances, classes = _from_neighbours(table, asked.neighbours), None
    compared = np.flatnonzero(np.isfinite(distances))
    rows = {row.row: row for row in read_rows(table, _farthest(table, distances, compared, asked.top))}
    order = sorted(rows, key=lambda row: (-distances[row], rows[row].key, row))
    found = tuple(Outlier(rows[r], float(distances[r]), classes[r] if classes is not None else None) for r in order)
    return Outliers(table, asked.by, len(compared), found)


def _farthest(table: Table, distances: np.ndarray, compared: np.ndarray, top: int) -> np.ndarray:
    """Returns at most `top` of the compared rows; of those that are equally far, the first by key."""
    if len(compared) <= top:
        return compared
    least = np.partition(distances[compared], len(compared) - top)[len(compared) - top]
    farther, tied = compared[distances[compared] > least], compared[distances[compared] == least]
    by_key = pc.sort_indices(table.keys.take(tied)).to_numpy()
    return np.concatenate([farther, tied[by_key[: top - len(farther)]]])


def _from_class(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns N distances, NaN where there is none, and N names of the nearest class."""
    vectors, (codes, names) = replace(table.vectors, zeros_pass=True), _classes(table)
    sums, counts = np.zeros((len(names), vectors.dims)), np.zeros(len(names), np.int64)
    for numbers, units in unit_batches(vectors, codes >= 0):
        order = np.argsort(codes[numbers], kind="stable")
        here, starts, rows = np.unique(codes[numbers][order], return_index=True, return_counts=True)
        sums[here] += np.add.reduceat(units[order], starts)
        counts[here] += rows
    lengths = np.sqrt(np.einsum("cd,cd->c", sums, sums))
    lengths[(counts < 2) | (lengths <= _NO_LENGTH)] = np.nan
    distances, nearest_class = np.full(len(codes), np.nan), np.full(len(codes), None, object)
    for numbers, units in unit_batches(vectors, codes >= 0):
        own = codes[numbers]
        others = sums[own] - units
        products = np.einsum("nd,nd->n", units, others)
        apart = np.sqrt(np.einsum("nd,nd->n", others, others))
        # Others that cancel out have no direction to be far from.
        cosines = np.divide(products, apart, out=np.full(len(units), np.nan), where=apart > _NO_LENGTH)
        distances[numbers] = 1 - cosines
        nearest_class[numbers] = names[_nearest_classes(units, own, cosines, sums, lengths)]
    return distances, nearest_class


def _classes(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns N class numbers, -1 for rows without a label or with one of their own, and the names of the C classes.

    Raises:
        FeaturemillError: There are no labels.
    """
    codes, values = encode(table.labels)
    names = np.array(values.to_pylist(), object)
    if not len(names):
        raise FeaturemillError(f"{table.location} has no labels; pass --by neighbours")
    several = np.bincount(codes[codes >= 0], minlength=len(names)) > 1
    numbers = np.where(several, np.cumsum(several) - 1, -1)
    return np.where(codes >= 0, numbers[codes], -1), names[several]


def _nearest_classes(
    units: np.ndarray, own: np.ndarray, cosines: np.ndarray, sums: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Returns the number of the class whose mean direction is nearest to each row; of equally near ones its own.

    Args:
        units: n×D.
        own: n numbers of the rows' classes.
        cosines: n, to the mean of the own class without the row; NaN for none.
        sums: C×D, of the units of each class.
        lengths: C, of the sums; NaN for classes that can't be near.
    """
    best, found = np.where(np.isnan(cosines), -np.inf, cosines), own.copy()
    size = max(1, _COSINES // len(units))
    for start in range(0, len(sums), size):
        block = slice(start, start + size)
        near = units @ sums[block].T
        near /= lengths[block]
        near[:, np.isnan(lengths[block])] = -np.inf
        # Its own counts without the row, above.
        inside = np.flatnonzero((own >= start) & (own < start + size))
        near[inside, own[inside] - start] = -np.inf
        at = near.argmax(axis=1)
        value = near[np.arange(len(near)), at]
        found[value > best] = start + at[value > best]
        best = np.maximum(best, value)
    return found


def _from_neighbours(table: Table, neighbours: int) -> np.ndarray:
    """Returns N mean distances to the k nearest other rows, NaN for rows of zeros."""
    distances = np.full(table.vectors.rows, np.nan)
    with stored_units(replace(table.vectors, zeros_pass=True)) as (rows, stored):
        if len(rows) < 2:
            raise FeaturemillError(f"{table.location} has {len(rows)} rows to compare; two are needed")
        count = min(neighbours, len(rows) - 1)

        def compare(start: int) -> None:
            block = slice(start, start + _BLOCK_ROWS)
            _, cosines = nearest_in_memory(stored, np.array(stored[block]), count, own=start)
            distances[rows[block]] = 1 - cosines.mean(axis=1, dtype=np.float64)

        with threadpool_limits(1, "blas"), ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(compare, range(0, len(rows), _BLOCK_ROWS)))
    return distances
