"""Seals: what a Parquet file of ours carries in its footer, so that a changed bit or another file is noticed.

A seal is the SHA-256 of the footer, in which stands that of everything before it. The seal stands in the footer too,
where it counts as zeros. So one look at the footer tells whether that is what was written, and a whole reading tells it
of the rest; of the pages that are read, Parquet's own checksums do. What carries no seal is of an earlier version or
somebody else's.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet_files import ParquetFile
from transforms.text import one_line

_SEAL, _DATA, _ORIGIN = "featuremill.seal", "featuremill.data", "featuremill.origin"
_NO_SEAL = b"0" * 64
# A name and its value, with what Thrift puts between them.
_SEALED = re.compile(re.escape(_SEAL.encode()) + rb"..([0-9a-f]{64})", re.DOTALL)
_MAGIC = b"PAR1"
# Of the footer: its length, and the magic bytes.
_END_BYTES = 8
# So much of the end is read at once, as Arrow does.
_TAIL_BYTES = 2**16
_READ_BYTES = 2**20


class Broken(OSError):
    """A file isn't what was written."""


class SealedWriter:
    """Writes a Parquet file with checksums of its pages and a seal."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, **options: Any):
        """Args: the file, which stays open; the schema; and more options of `pq.ParquetWriter`."""
        self._sink = _Sink(file)
        self._parquet = pq.ParquetWriter(self._sink, schema, compression="zstd", write_page_checksum=True, **options)

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Writes rows as a row group."""
        self._parquet.write(table, row_group_size=max(1, len(table)))

    def close(self, metadata: Mapping[str | bytes, str | bytes] | None = None) -> str:
        """Writes the footer with these values; returns the seal."""
        token = secrets.token_hex(len(_NO_SEAL) // 2)
        self._parquet.add_key_value_metadata({**(metadata or {}), _DATA: self._sink.digest(), _SEAL: token})
        self._sink.hold_back()
        self._parquet.close()
        tail = bytes(self._sink.held)
        seal = hashlib.sha256(tail.replace(token.encode(), _NO_SEAL)).hexdigest()
        self._sink.file.write(tail.replace(token.encode(), seal.encode()))
        return seal

    def discard(self) -> None:
        """Forgets what isn't written yet, if there is any."""
        with suppress(Exception):
            self._parquet.close()


class _Sink:
    """Passes on what Arrow writes, hashed, but holds the footer back."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.file = file
        self.held: bytearray | None = None
        self._sha256, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        if self.held is not None:
            self.held += data
        else:
            self._sha256.update(data)
            self._size += len(data)
            self.file.write(data)
        return len(data)

    def digest(self) -> str:
        return f"{self._size} {self._sha256.hexdigest()}"

    def hold_back(self) -> None:
        self.held = bytearray()

    def flush(self) -> None:
        """Nothing: who has the file flushes it."""


@contextmanager
def sealed(
    file: BinaryIO, schema: pa.Schema, values: Mapping[str | bytes, str | bytes] | None = None
) -> Iterator[SealedWriter]:
    """Yields what writes a sealed file, whose footer is written once the block ends without an error."""
    writer = SealedWriter(file, schema)
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


def _parsed(tail: bytes, size: int) -> pq.FileMetaData:
    _check(tail)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
    except OSError as error:
        # Arrow's: the bytes are there.
        raise Broken(f"its footer is damaged: {one_line(error)}") from error
    stated = (metadata.metadata or {}).get(_DATA.encode())
    if stated and int(stated.split()[0]) + len(tail) != size:
        raise Broken(f"it has {size} bytes and was written with {int(stated.split()[0]) + len(tail)}")
    return metadata


def seal_of(metadata: pq.FileMetaData) -> str:
    """Returns the seal that a footer carries, empty if none."""
    return (metadata.metadata or {}).get(_SEAL.encode(), b"").decode()


def origin_of(metadata: pq.FileMetaData) -> str:
    """Returns the seal that a file had when it was first written; empty if it had none."""
    return (metadata.metadata or {}).get(_ORIGIN.encode(), seal_of(metadata).encode()).decode()


def values_for_copy(metadata: pq.FileMetaData) -> dict[bytes, bytes]:
    """Returns the values of a footer for a file that is written anew from this one, and remembers its seal."""
    own = (_SEAL.encode(), _DATA.encode(), b"ARROW:schema")
    values = {name: value for name, value in (metadata.metadata or {}).items() if name not in own}
    return {**values, _ORIGIN.encode(): origin_of(metadata).encode()}


def _read_tail(file: BinaryIO) -> tuple[bytes, int]:
    """Returns the footer with its length and magic bytes, and the size of the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL_BYTES))
    block = file.read(min(size, _TAIL_BYTES))
    length = int.from_bytes(block[-_END_BYTES:-4], "little") + _END_BYTES
    if not block.endswith(_MAGIC) or length + len(_MAGIC) > size:
        raise Broken(f"it is no whole Parquet file ({size} bytes)" if size else "it is empty")
    if length > len(block):
        file.seek(size - length)
        block = file.read(length)
    return block[-length:], size


def _check(tail: bytes) -> None:
    # Before Arrow parses it: on damage it may do worse than to raise an error.
    if _SEAL.encode() in tail and not any(
        hashlib.sha256(tail.replace(seal, _NO_SEAL)).hexdigest() == seal.decode() for seal in _SEALED.findall(tail)
    ):
        raise Broken("its footer was changed since it was written")


@contextmanager
def open_sealed(uri: str, *, cure: str, **options: Any) -> Iterator[ParquetFile]:
    """Opens a file of ours for as long as the context lasts; its footer is checked, and each page that is read.

    Args:
        uri: Where it is.
        cure: What the user can do if it can't be read.
        options: Of `pq.ParquetFile`.

    Raises:
        FeaturemillError: It can't be opened, isn't what was written, or can't be read inside the context.
    """
    try:
        with storage.open_read(uri) as file:
            metadata = read_metadata(file)
            yield ParquetFile(file, metadata=metadata, **options)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise FeaturemillError(f"{uri} can't be read ({one_line(error)}); {cure}") from error


def check_whole(uri: str) -> str:
    """Reads all of a file of ours.

    Returns:
        Its seal; empty if it has none. Then its pages are read, which may have checksums or not.

    Raises:
        OSError: It can't be read, or isn't what was written.
        pa.ArrowException: It is no Parquet.
    """
    with storage.open_read(uri) as file:
        tail, size = _read_tail(file)
        metadata = _parsed(tail, size)
        stated = (metadata.metadata or {}).get(_DATA.encode(), b"").decode()
        if not stated:
            for _ in ParquetFile(file, metadata=metadata).iter_batches():
                pass
            return ""
        file.seek(0)
        sha256, left = hashlib.sha256(), size - len(tail)
        while left and (data := file.read(min(left, _READ_BYTES))):
            sha256.update(data)
            left -= len(data)
        if f"{size - len(tail)} {sha256.hexdigest()}" != stated:
            raise Broken("its content was changed since it was written")
        return seal_of(metadata)
