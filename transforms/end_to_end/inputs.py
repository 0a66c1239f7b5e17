"""Rows for fine-tuning: stored taps or images, shuffled, in batches, with bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from transforms.rows.vectors import StoredPart, StoredVectors, row_groups

# Of the buffer that rows are drawn from.
BUFFER_BYTES = 256 * 2**20


class GroupReader(Protocol):
    """Reads what goes into the network, a row group at a time.

    Attributes:
        shape: Of one row.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, part: StoredPart, group: int, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (rows of the part, int64 n; n×shape) of a row group, in order; `wanted` has a boolean for each row."""
        ...


@dataclass(frozen=True)
class TapRows:
    """A stored tap, as the layer gave it.

    Attributes:
        vectors: The one column that holds the tap, flattened.
        shape: Height, width and channels of it.
    """

    vectors: StoredVectors
    shape: tuple[int, ...]

    def read(self, part: StoredPart, group: int, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (rows of the part, float32 n×h×w×c) of a row group; see `GroupReader`."""
        first = sum(part.group_rows[:group])
        here = np.zeros_like(wanted)
        here[first : first + part.group_rows[group]] = wanted[first : first + part.group_rows[group]]
        for numbers, matrix in replace(self.vectors, parts=(part,)).batches(here):
            yield numbers, matrix.reshape(-1, *self.shape)


@dataclass(frozen=True)
class TuningRows:
    """N labelled rows of the network's input.

    Attributes:
        reader: Where they are read.
        parts: The files whose rows, one after the other, are the N rows.
        codes: N int32, the classes.
        row_bytes: Of one row in the buffer: how many rows it holds follows from this and not from `reader`, so that
            taps and images of the same rows come in the same order.
    """

    reader: GroupReader
    parts: tuple[StoredPart, ...]
    codes: np.ndarray
    row_bytes: int

    def batches(
        self, wanted: np.ndarray, size: int, *, seed: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (row numbers, int64 n; inputs n×shape), n at most `size`.

        Args:
            wanted: N booleans.
            size: Rows of every batch but the last.
            seed: Of a shuffle: row groups in any order, rows from a buffer of 256 MiB; None: in order.
        """
        random = None if seed is None else np.random.default_rng(seed)
        capacity = size if random is None else max(size, min(int(wanted.sum()), BUFFER_BYTES // self.row_bytes))
        return _draw(self._read(wanted, random), capacity, size, random)

    def _read(self, wanted: np.ndarray, random: np.random.Generator | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        groups = list(row_groups(self.parts))
        for index in range(len(groups)) if random is None else random.permutation(len(groups)):
            group = groups[index]
            of_part = wanted[group.first : group.first + group.part.rows]
            if of_part[group.inside].any():
                for numbers, inputs in self.reader.read(group.part, group.number, of_part):
                    yield group.first + numbers, inputs


def mirrored(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], count: int, *, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of images in which each image is mirrored left-right with probability 1/2.

    Which ones follows from the seed and their row numbers, whatever order they come in.

    Args:
        batches: (row numbers, int64 n; images n×H×W×C); the images are changed.
        count: How many rows there are.
        seed: Of the draw.
    """
    # Not the numbers that the shuffle of the same seed draws.
    flipped = np.random.default_rng((seed, 1)).random(count) < 0.5
    for numbers, images in batches:
        some = flipped[numbers]
        images[some] = images[some, :, ::-1]
        yield numbers, images


def _draw(
    stream: Iterator[tuple[np.ndarray, np.ndarray]], capacity: int, size: int, random: np.random.Generator | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Fills a buffer of `capacity` rows; whenever it is full, yields `size` of them, drawn or the first; then the rest.

    What is yielded is a copy, and its rows are in the order that they were drawn in.
    """
    buffer, numbers, held = None, np.empty(capacity, np.int64), 0
    for batch_numbers, inputs in stream:
        if buffer is None:
            buffer = np.empty((capacity, *inputs.shape[1:]), inputs.dtype)
        for number, row in zip(batch_numbers, inputs, strict=True):
            if held == capacity:
                yield _take(numbers, buffer, held, size, random)
                held -= size
            numbers[held], buffer[held] = number, row
            held += 1
    while held:
        count = min(size, held)
        yield _take(numbers, buffer, held, count, random)
        held -= count


def _take(
    numbers: np.ndarray, buffer: np.ndarray, held: int, count: int, random: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns copies of `count` of the `held` rows, and closes the gaps with rows from the end."""
    # Without a generator the buffer is one batch long: all that is held goes, and nothing has to move.
    chosen = np.arange(count) if random is None else random.choice(held, count, replace=False)
    taken = numbers[chosen], buffer[chosen]
    left = held - count
    gaps, movers = chosen[chosen < left], np.setdiff1d(np.arange(left, held), chosen)
    numbers[gaps], buffer[gaps] = numbers[movers], buffer[movers]
    return taken
