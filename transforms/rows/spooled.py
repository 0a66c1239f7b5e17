"""Rows of numbers as they come, in memory up to a size and beyond it in a temporary file; and vectors decoded once."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from transforms.machine import available_memory

if TYPE_CHECKING:
    # It would bring Arrow, which a head in use doesn't need.
    from transforms.rows.vectors import StoredVectors

# A million rows of 1,000 classes' scores, or of vectors of 1,000 numbers, are 4 GB.
_MEMORY_BYTES = 64 * 2**20


class SpooledRows:
    """N×C float32, gathered batch by batch; slices of rows come as arrays.

    Attributes:
        shape: (N, C), as far as they are gathered.
    """

    def __init__(self, columns: int):
        self.shape = (0, columns)
        # It goes with the object, and has no name.
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115

    def __len__(self) -> int:
        return self.shape[0]

    def add(self, batch: np.ndarray) -> None:
        """Adds rows, n×C."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(batch, np.float32).tobytes())
        self.shape = (len(self) + len(batch), self.shape[1])

    def finish(self) -> None:
        """Raises OSError where the disk doesn't take what was added last."""
        self._file.flush()

    def discard(self) -> None:
        """Gives up what was added; a disk that is full doesn't matter any more."""
        with suppress(OSError):
            self._file.close()

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns n×C float32 for a slice of rows without a step."""
        start, stop, _ = rows.indices(len(self))
        row_bytes = 4 * self.shape[1]
        self._file.seek(start * row_bytes)
        return np.frombuffer(self._file.read(max(0, stop - start) * row_bytes), np.float32).reshape(-1, self.shape[1])


class CopiedVectors:
    """Stored vectors with the face of `Vectors`, of which the first pass over most rows keeps what it decoded.

    Further passes over the same rows read the copy, and get the same batches without decoding. Nothing is kept where
    the copy would take over half of the free memory, in which the system caches it, or of the free disk space.
    """

    def __init__(self, vectors: "StoredVectors"):
        self._vectors = vectors
        self._copy: SpooledRows | None = None
        # N int64: where each row is in the copy, -1 where it isn't.
        self._places = np.empty(0, np.int64)

    @property
    def rows(self) -> int:
        return self._vectors.rows

    @property
    def dims(self) -> int:
        return self._vectors.dims

    @property
    def widths(self) -> tuple[int, ...]:
        return self._vectors.widths

    def batches(
        self, wanted: np.ndarray | None = None, *, batch_rows: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, vectors) as `StoredVectors.batches` does, with its errors."""
        if self._copy is not None and self._holds(wanted):
            for rows in self._vectors.ranges(wanted, batch_rows=batch_rows, seed=seed):
                yield from self._read(rows, wanted)
            return
        batches = self._vectors.batches(wanted, batch_rows=batch_rows, seed=seed)
        count = self.rows if wanted is None else int(wanted.sum())
        if self._copy is None and seed is None and count > self.rows / 2 and _has_room(count * self.dims * 4):
            batches = self._kept(batches)
        yield from batches

    def _holds(self, wanted: np.ndarray | None) -> bool:
        return bool(((self._places >= 0) if wanted is None else (self._places >= 0) | ~wanted).all())

    def _read(self, rows: slice, wanted: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        numbers = np.arange(rows.start, rows.stop)
        numbers = numbers if wanted is None else numbers[wanted[rows]]
        if len(numbers):
            places = self._places[numbers]
            matrix = self._copy[int(places[0]) : int(places[-1]) + 1]
            yield numbers, matrix if len(matrix) == len(places) else matrix[places - places[0]]

    def _kept(self, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches, and keeps a copy if all of them are taken and the disk takes it."""
        copy, places = SpooledRows(self.dims), np.full(self.rows, -1)
        is_whole = True
        for numbers, matrix in batches:
            if is_whole:
                places[numbers] = np.arange(len(copy), len(copy) + len(numbers))
                is_whole = _taken(copy, matrix)
            yield numbers, matrix
        if is_whole and _taken(copy):
            self._copy, self._places = copy, places


def _taken(copy: SpooledRows, matrix: np.ndarray | None = None) -> bool:
    """Adds rows to a copy, or ends it; a full disk ends it for good, not the pass that is under way."""
    try:
        if matrix is None:
            copy.finish()
        else:
            copy.add(matrix)
    except OSError:
        copy.discard()
        return False
    return True


def _has_room(count: int) -> bool:
    if count <= _MEMORY_BYTES:
        return True
    try:
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except OSError:
        return False
    # Where temporary files are in memory, they count as memory that is taken.
    return count <= min(free, available_memory()) / 2
