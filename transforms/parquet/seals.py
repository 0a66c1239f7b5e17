"""Seals: what a Parquet file of ours carries in its footer, so that a changed bit or another file is noticed.

A seal is the SHA-256 of the footer, in which stands that of everything before it. The seal stands in the footer too,
where it counts as zeros. So one look at the footer tells whether that is what was written, and a whole reading tells it
of the rest. Of what is read of it there are checksums of blocks, too: Parquet's own, of pages, leave out the pages'
headers, and one flipped bit there can change the values. What carries no seal is of an earlier version or somebody
else's.
"""

import base64
import hashlib
import io
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.text import one_line

_SEAL, _DATA, _ORIGIN = "featuremill.seal", "featuremill.data", "featuremill.origin"
_BLOCKS = "featuremill.blocks"
_NO_SEAL = b"0" * 64
# A name and its value, with what Thrift puts between them.
_SEALED = re.compile(re.escape(_SEAL.encode()) + rb"..([0-9a-f]{64})", re.DOTALL)
_MAGIC = b"PAR1"
# Of the footer: its length, and the magic bytes.
_END_BYTES = 8
# So much of the end is read at once, as Arrow does.
_TAIL_BYTES = 2**16
# What has a checksum of its own. A small column costs two of them more to read; a gigabyte has 64 kB of checksums.
_BLOCK_BYTES = 2**16


class Broken(OSError):
    """A file isn't what was written."""


class SealedWriter:
    """Writes a Parquet file with checksums of its pages and a seal."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, **options: Any):
        """Takes the file, which stays open; the schema; and more options of `pq.ParquetWriter`."""
        self._sink = _Sink(file)
        self._parquet = pq.ParquetWriter(self._sink, schema, compression="zstd", write_page_checksum=True, **options)

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Writes rows as a row group."""
        self._parquet.write(table, row_group_size=max(1, len(table)))

    def close(self, metadata: Mapping[str | bytes, str | bytes] | None = None) -> str:
        """Writes the footer with these values; returns the seal."""
        token = secrets.token_hex(len(_NO_SEAL) // 2)
        self._parquet.add_key_value_metadata({**(metadata or {}), **self._sink.digests(), _SEAL: token})
        self._sink.hold_back()
        self._parquet.close()
        tail = bytes(self._sink.held)
        seal = hashlib.sha256(tail.replace(token.encode(), _NO_SEAL)).hexdigest()
        self._sink.file.write(tail.replace(token.encode(), seal.encode()))
        return seal

    @property
    def content(self) -> str:
        """The SHA-256 (hex) of what was written before the footer."""
        return self._sink.sha256.hexdigest()

    def discard(self) -> None:
        """Forgets what isn't written yet, if there is any."""
        self._sink.hold_back()
        with suppress(Exception):
            self._parquet.close()


class _Sink:
    """Passes on what Arrow writes, hashed, but holds the footer back."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.file = file
        self.held: bytearray | None = None
        self.sha256, self._size = hashlib.sha256(), 0
        self._blocks: list[int] = []

    def write(self, data: bytes) -> int:
        if self.held is not None:
            self.held += data
        else:
            self.sha256.update(data)
            self._add_blocks(memoryview(data))
            self.file.write(data)
        return len(data)

    def _add_blocks(self, data: memoryview) -> None:
        while data:
            inside = self._size % _BLOCK_BYTES
            if not inside:
                self._blocks.append(0)
            piece = data[: _BLOCK_BYTES - inside]
            self._blocks[-1] = zlib.crc32(piece, self._blocks[-1])
            self._size += len(piece)
            data = data[len(piece) :]

    def digests(self) -> dict[str, str]:
        """Returns what the footer says of all before it."""
        blocks = base64.b64encode(np.array(self._blocks, "<u4").tobytes()).decode()
        return {_DATA: f"{self._size} {self.sha256.hexdigest()}", _BLOCKS: blocks}

    def hold_back(self) -> None:
        self.held = bytearray()

    def flush(self) -> None:
        """Does nothing: who has the file flushes it."""


@contextmanager
def sealed(
    file: BinaryIO, schema: pa.Schema, values: Mapping[str | bytes, str | bytes] | None = None, **options: Any
) -> Iterator[SealedWriter]:
    """Yields what writes a sealed file, whose footer is written once the block ends without an error.

    Args:
        file: Stays open.
        schema: Of the rows.
        values: Of the footer; may be filled in before the block ends.
        options: More of `pq.ParquetWriter`.
    """
    writer = SealedWriter(file, schema, **options)
    try:
        yield writer
        writer.close(values)
    except BaseException:
        writer.discard()
        raise


def read_metadata(file: BinaryIO) -> pq.FileMetaData:
    """Returns what a file's footer says, after checking its seal, if it has one. The rest of the file isn't read.

    Raises:
        OSError: It can't be read, or isn't what was written.
        pa.ArrowException: It is no footer.
    """
    return _parsed(*_read_tail(file))


def read_own_metadata(file: BinaryIO) -> pq.FileMetaData | None:
    """Returns what a sealed file's footer says; None for others' files, which aren't parsed.

    A copy that others made may carry an old seal, which isn't right for it.

    Raises:
        OSError: It can't be read.
    """
    try:
        tail, size = _read_tail(file)
        return _parsed(tail, size) if _SEAL.encode() in tail else None
    except (Broken, ValueError, pa.ArrowException):
        return None


def _parsed(tail: bytes, size: int) -> pq.FileMetaData:
    _check(tail)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
    except OSError as error:
        # Arrow's: the bytes are there.
        raise Broken(f"its footer is damaged: {one_line(error)}") from error
    before, _ = stated_data(metadata)
    if before and before + len(tail) != size:
        raise Broken(f"it has {size} bytes and was written with {before + len(tail)}")
    return metadata


def stated_data(metadata: pq.FileMetaData) -> tuple[int, str]:
    """Returns how many bytes come before the footer, and their SHA-256 (hex); 0 and nothing if it doesn't say."""
    stated = (metadata.metadata or {}).get(_DATA.encode(), b"0 ").decode()
    size, _, sha256 = stated.partition(" ")
    return int(size), sha256


class Verified(io.RawIOBase):
    """A sealed file whose content is checked, block by block, as it is read; for one reader at a time."""

    def __init__(self, file: BinaryIO, metadata: pq.FileMetaData):
        self._file = file
        self._end, _ = stated_data(metadata)
        self._crcs = np.frombuffer(base64.b64decode(metadata.metadata[_BLOCKS.encode()]), "<u4")
        self._position = 0
        # The last block that was read: the next read often begins in it.
        self._kept = -1, b""

    def read(self, count: int = -1) -> bytes:
        end = self._end if count < 0 else min(self._position + count, self._end)
        if self._position >= end:
            return b""
        first, last = self._position // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES
        data = self._read_blocks(first, last)
        found = data[self._position - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]
        self._position = end
        return found

    def _read_blocks(self, first: int, last: int) -> bytes:
        number, kept = self._kept
        known = kept if number == first else b""
        unread = first + bool(known)
        if unread > last:
            return known
        self._file.seek(unread * _BLOCK_BYTES)
        size = min((last + 1) * _BLOCK_BYTES, self._end) - unread * _BLOCK_BYTES
        data = self._file.read(size)
        view = memoryview(data)
        for block in range(unread, last + 1):
            start = (block - unread) * _BLOCK_BYTES
            if zlib.crc32(view[start : start + _BLOCK_BYTES]) != self._crcs[block]:
                raise Broken(f"bytes from {block * _BLOCK_BYTES:,} on were changed since they were written")
        self._kept = last, data[(last - unread) * _BLOCK_BYTES :]
        return known + data if known else data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def content_of(metadata: pq.FileMetaData) -> str:
    """Returns the SHA-256 (hex) of all before the footer; empty if that doesn't say it.

    Two workers that do the same unit write the same content, and their seconds into the footer.
    """
    return stated_data(metadata)[1]


def seal_of(metadata: pq.FileMetaData) -> str:
    """Returns the seal that a footer carries, empty if none."""
    return (metadata.metadata or {}).get(_SEAL.encode(), b"").decode()


def origin_of(metadata: pq.FileMetaData) -> str:
    """Returns the SHA-256 (hex) of a file's content when it was first written; empty if it doesn't say."""
    return (metadata.metadata or {}).get(_ORIGIN.encode(), content_of(metadata).encode()).decode()


def values_for_copy(metadata: pq.FileMetaData) -> dict[bytes, bytes]:
    """Returns the values of a footer for a file that is written anew from this one, and remembers its content."""
    own = (_SEAL.encode(), _DATA.encode(), _BLOCKS.encode(), b"ARROW:schema")
    values = {name: value for name, value in (metadata.metadata or {}).items() if name not in own}
    return {**values, _ORIGIN.encode(): origin_of(metadata).encode()}


def read_end(file: BinaryIO) -> tuple[bytes, int, int]:
    """Reads the end of a file, footer and all if it is Parquet, in one read, or two if the footer is large.

    Returns:
        The bytes; how many of them, counted from the end, are the footer with its length and magic bytes, 0 if it is no
        whole Parquet file; and the size of the file.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL_BYTES))
    block = file.read(min(size, _TAIL_BYTES))
    length = int.from_bytes(block[-_END_BYTES:-4], "little") + _END_BYTES
    if not block.endswith(_MAGIC) or length + len(_MAGIC) > size:
        return block, 0, size
    if length > len(block):
        file.seek(size - length)
        block = file.read(length)
    return block, length, size


def _read_tail(file: BinaryIO) -> tuple[bytes, int]:
    """Returns the footer with its length and magic bytes, and the size of the file."""
    block, length, size = read_end(file)
    if not length:
        raise Broken(f"it is no whole Parquet file ({size} bytes)" if size else "it is empty")
    return block[-length:], size


def _check(tail: bytes) -> None:
    # Before Arrow parses it: on damage it may do worse than to raise an error.
    if _SEAL.encode() in tail and not any(
        hashlib.sha256(tail.replace(seal, _NO_SEAL)).hexdigest() == seal.decode() for seal in _SEALED.findall(tail)
    ):
        raise Broken("its footer was changed since it was written")
