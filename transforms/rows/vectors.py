"""`StoredVectors`: vectors in Parquet files, streamed row group by row group and checked on the way."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.errors import FeaturemillError
from transforms.locks import Reading
from transforms.parquet.beside import batches_beside
from transforms.parquet.files import open_parquet

# A batch's vectors. Decoding takes ten times as much on top: 32 MiB made a peak 370 MB higher, and were slower by half.
BATCH_BYTES = 8 * 2**20
# Column chunks are read in pieces of this size: pandas and Arrow write a million rows into one row group, 2 GB.
READ_BYTES = 2**20


@dataclass(frozen=True)
class StoredPart:
    """One Parquet file.

    Attributes:
        uri: Where it is.
        group_rows: Rows of each row group.
        added: (column, the file that has it for the same rows) of added features.
    """

    uri: str
    group_rows: tuple[int, ...]
    added: tuple[tuple[str, str], ...] = ()

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


@dataclass(frozen=True)
class StoredGroup:
    """A row group of a part.

    Attributes:
        part: The file that holds it.
        number: Which of its row groups.
        first: The number of the part's first row among the rows of all parts.
        inside: The group's rows in the part.
    """

    part: StoredPart
    number: int
    first: int
    inside: slice


def row_groups(parts: Iterable[StoredPart]) -> Iterator[StoredGroup]:
    """Yields the row groups of parts, in order."""
    first = 0
    for part in parts:
        start = 0
        for number, rows in enumerate(part.group_rows):
            yield StoredGroup(part, number, first, slice(start, start + rows))
            start += rows
        first += start


@dataclass(frozen=True)
class StoredVectors:
    """N vectors of D numbers in Parquet files, with the face of `Vectors`.

    Attributes:
        parts: The files; their rows one after the other are the N rows.
        columns: The vector columns, which are concatenated in this order.
        widths: Numbers of each column; D is their sum.
        key_column: Where a row's key is found when it has to be named; None: rows are called `FILE#ROW`.
        zeros_pass: Whether vectors of nothing but zeros are let through: a black image may well be labelled, but it
            teaches nothing, and has no cosine.
        reading: Keeps a compaction from removing an OUT's parts meanwhile.
    """

    parts: tuple[StoredPart, ...]
    columns: tuple[str, ...]
    widths: tuple[int, ...]
    key_column: str | None
    zeros_pass: bool = False
    reading: Reading | None = field(default=None, repr=False, compare=False)

    @cached_property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def dims(self) -> int:
        return sum(self.widths)

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, int64 n; vectors, float32 n×D), holding one batch in memory at a time.

        Row groups without a wanted row aren't read.

        Args:
            wanted: N booleans; by default all.
            batch_rows: At most so many to a batch; never more than 8 MiB of them (at least one).
            seed: The files come in an order drawn from it, and so do the row groups of each; the rows of a row group
                stay in their order.

        Raises:
            FeaturemillError: A file that can't be read or has changed, vectors of another length, a vector with NaN or
                infinity, or (unless `zeros_pass`) one that is all zeros.
        """
        size = self._batch_rows(batch_rows)
        for part, starts, groups in self._groups(wanted, seed):
            yield from self._part_batches(part, groups, starts, wanted, size)

    def ranges(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[slice]:
        """Yields the rows that `batches` reads for each of its batches, of which it gives those that are wanted."""
        size = self._batch_rows(batch_rows)
        for _, starts, groups in self._groups(wanted, seed):
            for group in groups:
                stop = int(starts[group + 1])
                for start in range(int(starts[group]), stop, size):
                    yield slice(start, min(start + size, stop))

    def _batch_rows(self, asked: int | None) -> int:
        return max(1, min(asked or BATCH_BYTES, BATCH_BYTES // (4 * self.dims)))

    def _groups(
        self, wanted: np.ndarray | None, seed: int | None
    ) -> Iterator[tuple[StoredPart, np.ndarray, list[int]]]:
        """Yields each part with wanted rows, the first rows of its row groups (and the end), and which of them have."""
        random = None if seed is None else np.random.default_rng(seed)
        firsts = np.cumsum([0, *(part.rows for part in self.parts)])
        for index in _order(len(self.parts), random):
            part = self.parts[index]
            starts = firsts[index] + np.cumsum([0, *part.group_rows])
            groups = [
                group
                for group in _order(len(part.group_rows), random)
                if wanted is None or wanted[starts[group] : starts[group + 1]].any()
            ]
            if groups:
                yield part, starts, groups

    def _part_batches(
        self, part: StoredPart, groups: Sequence[int], starts: np.ndarray, wanted: np.ndarray | None, size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with open_parquet(part.uri, buffer_size=READ_BYTES) as parquet:
            _check_unchanged(parquet.metadata, part)
            for group in groups:
                row = int(starts[group])
                beside = dict(part.added)
                for batch in batches_beside(parquet, beside, list(self.columns), size=size, row_groups=[group]):
                    numbers = np.arange(row, row + len(batch))
                    row += len(batch)
                    matrix = self._matrix(batch, part)
                    if wanted is not None and not wanted[numbers].all():
                        matrix, numbers = matrix[wanted[numbers]], numbers[wanted[numbers]]
                    if len(numbers):
                        self._check(matrix, numbers - int(starts[0]), part)
                        yield numbers, matrix

    def _matrix(self, batch: pa.RecordBatch, part: StoredPart) -> np.ndarray:
        """Returns the n×D float32 of a batch."""
        matrix, at = np.empty((len(batch), self.dims), np.float32), 0
        for name, width in zip(self.columns, self.widths, strict=True):
            column = batch.column(name)
            if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), width)).as_py():
                raise FeaturemillError(
                    f"{part.uri}: column {name!r} doesn't hold {width} numbers in every row; leave out the other rows"
                )
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
            # A float64 beyond float32 becomes infinite, which is reported below.
            with np.errstate(over="ignore"):
                matrix[:, at : at + width] = values
            at += width
        return matrix

    def _check(self, matrix: np.ndarray, numbers: np.ndarray, part: StoredPart) -> None:
        """Raises FeaturemillError for vectors that aren't finite or are all zeros; `numbers` are rows of the file."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", matrix, matrix)
        # One pass without a temporary of the same size finds the suspects: squares overflow and underflow early.
        suspects = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
        finite = np.isfinite(matrix[suspects]).all(axis=1)
        zero = ~matrix[suspects].any(axis=1) & (not self.zeros_pass)
        for bad, what in ((~finite, "NaN or infinity"), (zero, "nothing but zeros")):
            if bad.any():
                key = self._key(part, int(numbers[suspects[bad][0]]))
                raise FeaturemillError(
                    f"{part.uri}: {bad.sum():,} of {len(matrix):,} vectors read at once hold {what}, the first is that "
                    f"of {key!r}; leave these rows out, or extract them again"
                )

    def _key(self, part: StoredPart, row: int) -> str:
        if self.key_column is None:
            return f"{part.uri}#{row}"
        with open_parquet(part.uri) as parquet:
            return str(parquet.read([self.key_column]).column(0)[row].as_py())


def _order(count: int, random: np.random.Generator | None) -> list[int]:
    return list(range(count)) if random is None else random.permutation(count).tolist()


def _check_unchanged(metadata: pq.FileMetaData, part: StoredPart) -> None:
    if tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) != part.group_rows:
        raise FeaturemillError(f"{part.uri} was changed while it was in use; run the command again")


class Vectors(Protocol):
    """N vectors of D numbers, in memory or not.

    Attributes:
        rows: N.
        dims: D.
        widths: Numbers of each column of vectors; D is their sum.
    """

    rows: int
    dims: int
    widths: tuple[int, ...]

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, int64 n; vectors, float32 n×D), holding a few batches in memory.

        Args:
            wanted: N booleans; by default all.
            batch_rows: At most so many to a batch; by default about 8 MiB of them. Batches may be smaller.
            seed: Parts of the data come in an order drawn from it; by default in the order of the rows.
        """
        ...
