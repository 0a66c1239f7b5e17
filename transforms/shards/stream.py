"""Reading a shard from front to back: plain or gzip, local or remote, with the place where it broke."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

from transforms import storage
from transforms.records import Failure, Shard, Unit
from transforms.text import clean, one_line

# An encoded image beyond this is a failure, not a reason to run out of memory.
MAX_ENCODED_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
# Of a local shard that is read through. Each read lets go of Python's lock, and has to get it back from the decoders.
_BUFFER_BYTES = 128 << 10
# Records that lie farther apart are read one by one, nearer ones with what lies between them.
GAP_BYTES = 1 << 20


class BrokenError(Exception):
    """The shard can't be read any further.

    Attributes:
        error: Short stable reason, as in `Failure.error`.
        offset: First byte of the record that can't be read, in the uncompressed shard; None if its reader sets it.
    """

    def __init__(self, error: str, message: str, offset: int | None = None):
        super().__init__(message)
        self.error = error
        self.offset = offset


class Stream:
    """Bytes from front to back, counted. Damage of the data is a BrokenError, trouble of the disk or store an OSError.

    Attributes:
        position: Offset of the next byte in the uncompressed shard.
    """

    def __init__(self, file: BinaryIO, *, position: int = 0, size: int | None = None):
        """Takes a file that stands at `position`; a `size` in bytes says that it may seek."""
        self._file = file
        self._size = size
        self.position = position

    def read(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only where the shard ends."""
        try:
            data = self._file.read(count)
        except EOFError as error:
            raise BrokenError("truncated", "the gzip stream ends early") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BrokenError("bad gzip", f"the gzip stream is damaged: {one_line(error)}") from error
        self.position += len(data)
        return data

    def read_exactly(self, count: int) -> bytes:
        """Returns `count` bytes.

        Raises:
            BrokenError: The shard ends before.
        """
        data = self.read(count)
        if len(data) < count:
            raise BrokenError("truncated", f"the shard ends at byte {self.position}")
        return data

    def skip(self, count: int) -> None:
        """Goes on by `count` bytes: a seek where that is free, else by reading, which costs no further request.

        Raises:
            BrokenError: The shard ends before.
        """
        if self._size is not None:
            if self.position + count > self._size:
                raise BrokenError("truncated", f"the shard ends at byte {self._size}")
            self._file.seek(count, 1)
            self.position += count
            return
        while count:
            count -= len(self.read_exactly(min(count, _CHUNK_BYTES)))


@contextmanager
def open_stream(shard: Shard, start: int = 0, *, through: bool = False) -> Iterator[Stream]:
    """Opens a shard at the byte `start` (0 for gzip, which can't seek for less than decompressing all before).

    Args:
        shard: What is read.
        start: Where.
        through: Whether all that follows is read, and not only headers.

    Raises:
        OSError: The shard isn't there or can't be read.
    """
    with storage.open_read(shard.file.uri, buffer=_BUFFER_BYTES if through else -1) as file:
        if shard.compression:
            with gzip.GzipFile(fileobj=file, mode="rb") as plain:
                yield Stream(plain)
            return
        size = file.seek(0, 2) if storage.is_local(shard.file.uri) else None
        file.seek(start)
        yield Stream(file, position=start, size=size)


def look(shard: Shard, most_bytes: int) -> Unit:
    """Returns the part of a shard that a look reads: what begins in its first bytes, all of it if it is packed."""
    ends = shard.file.size > most_bytes and not shard.compression
    return Unit(shard, stop=most_bytes if ends else -1)


def failure(shard: Shard, *, key: str, position: int, error: str, message: str, label: str | None = None) -> Failure:
    """Returns a failure of the stage `read`; `key` is what follows the shard's URI and `#`."""
    source = clean(shard.file.uri)
    return Failure(f"{source}#{key}", label, source, position, "read", error, clean(message))


def broken(shard: Shard, error: BrokenError, position: int) -> Failure:
    """Returns the one failure that says where a shard broke."""
    offset = position if error.offset is None else error.offset
    message = f"cannot read {shard.file.uri} beyond byte {offset}: {error}; what came before is kept"
    return failure(shard, key=f"@{offset}", position=offset, error=error.error, message=message)


def cut(shard: Shard, starts: Iterable[int], unit_bytes: int) -> list[Unit]:
    """Cuts a shard at record boundaries into units as close below `unit_bytes` as possible.

    Args:
        shard: What is cut.
        starts: Offset of each record in order, and the offset where the scan ended.
        unit_bytes: Largest size; a longer record gets a unit of its own.

    Returns:
        Units that cover the shard without a gap. The last one is open, so that its reader reports damage that
        ended the scan.
    """
    cuts = [(0, 0)]
    previous = (0, 0)
    for index, offset in enumerate(starts):
        if offset - cuts[-1][0] > unit_bytes and previous[0] > cuts[-1][0]:
            cuts.append(previous)
        # What lies before the first record (folders, global headers) belongs to it.
        previous = (offset if index else 0, index)
    ends = [start for start, _ in cuts[1:]]
    return [
        Unit(shard, start, stop, first_index, input_bytes=(shard.file.size if stop < 0 else stop) - start)
        for (start, first_index), stop in zip(cuts, [*ends, -1], strict=True)
    ]


def stretches(unit: Unit, positions: Sequence[int]) -> Iterator[tuple[Unit, int]]:
    """Yields the ranges of a shard that hold the records at these sorted offsets, and how many each holds.

    A gzip shard can't be entered in its middle: the whole unit holds them all.
    """
    if unit.shard.compression:
        yield unit, len(positions)
        return
    first = 0
    for i, position in enumerate(positions, 1):
        if i == len(positions) or positions[i] - position > GAP_BYTES:
            yield replace(unit, start=positions[first], stop=position + 1, limit=None), i - first
            first = i
