"""Copies and near copies of rows, as groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transforms.declared import COSINE, check, declared
from transforms.rows.labels import encode
from transforms.rows.table import Table, open_table
from transforms.similarity.near_copies import connected, near_copies

DEFAULT_COSINE = 0.98


@dataclass(frozen=True, kw_only=True)
class DuplicateOptions:
    """The options of `find_duplicates`."""

    cosine: float = declared(DEFAULT_COSINE, help="Cosine from which on two rows are near copies", bounds=(COSINE,))
    feature: str | None = declared(None, help="Column of vectors", metavar="NAME", unset="embedding")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Group:
    """Rows that are copies of each other, or near copies along a chain.

    Attributes:
        rows: Row numbers, ascending; at least two.
        exact: Whether all have the same content.
        labels: How many labels they have; more than one: they disagree. Unknown ones don't count.
    """

    rows: tuple[int, ...]
    exact: bool
    labels: int


@dataclass(frozen=True)
class Duplicates:
    """The groups of an OUT.

    Attributes:
        table: What was searched.
        cosine: From which on two rows are near copies.
        groups: Those whose labels disagree first, then the largest, then by the first key.
    """

    table: Table
    cosine: float
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        """Rows in groups."""
        return sum(len(group.rows) for group in self.groups)

    @property
    def disagreeing(self) -> int:
        """Groups whose labels disagree."""
        return sum(group.labels > 1 for group in self.groups)


def find_duplicates(output: str, **options: Any) -> Duplicates:
    """Finds exact copies by content hash, and near copies by cosine; every pair is compared.

    Rows of one group are connected by pairs: the first and the last of a chain may be less alike than `cosine` says.

    Args:
        output: OUT, or other Parquet with vectors.
        options: The fields of `DuplicateOptions`.

    Raises:
        UsageError: A cosine that can't be.
        FeaturemillError: No features there, or vectors that can't be read or aren't finite.
    """
    asked = DuplicateOptions(**options)
    table = open_table(output, columns=(asked.feature,) if asked.feature else ())
    return Duplicates(table, asked.cosine, tuple(copies(table, asked.cosine)))


def copies(table: Table, cosine: float) -> list[Group]:
    """Returns the groups of a table, in the order that `Duplicates` has."""
    contents, first = _contents(table)
    # One row for each content: a thousand copies of a placeholder would be half a million pairs. Only in an OUT does
    # the content decide the vector: other Parquet may hold several crops of a photo.
    wanted = first if table.is_output else None
    pairs = near_copies(replace(table.vectors, zeros_pass=True), cosine, wanted=wanted)
    return _groups(table, contents, pairs)


def _contents(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each row the number of the first row with its content, and whether it is that row."""
    numbers = np.arange(table.vectors.rows)
    if table.sha256 is None:
        return numbers, np.ones(len(numbers), bool)

    codes, _ = encode(table.sha256)
    # Rows without a hash are nobody's copies.
    codes = np.where(codes < 0, numbers + len(numbers), codes)
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    contents = firsts[inverse]
    return contents, contents == numbers


def _groups(table: Table, contents: np.ndarray, pairs: np.ndarray) -> list[Group]:
    count = len(contents)
    copies = np.flatnonzero(contents != np.arange(count))
    left = np.concatenate([pairs[:, 0], copies])
    right = np.concatenate([pairs[:, 1], contents[copies]])
    sets = connected(left, right, count)
    members = np.flatnonzero(np.bincount(sets)[sets] > 1)
    members = members[np.argsort(sets[members], kind="stable")]
    labels, _ = encode(table.labels)
    groups = []
    for rows in np.split(members, np.flatnonzero(np.diff(sets[members])) + 1) if len(members) else ():
        known = labels[rows]
        kinds = len(np.unique(known[known >= 0]))
        groups.append(Group(tuple(rows.tolist()), len(np.unique(contents[rows])) == 1, kinds))
    first_keys = dict(zip(*_first_keys(table, groups), strict=True))
    return sorted(groups, key=lambda g: (g.labels < 2, -len(g.rows), first_keys[g.rows[0]], g.rows[0]))


def _first_keys(table: Table, groups: Sequence[Group]) -> tuple[list[int], list[str]]:
    rows = [group.rows[0] for group in groups]
    return rows, table.keys.take(rows).to_pylist() if rows else []
