"""Pages of other people's Parquet files, looked at before Arrow unpacks them.

A footer may say anything, and Arrow takes the memory that a page's own header asks for, at once. So the headers are
read on the way, out of the bytes that Arrow asks for anyway.

Sources: PageHeader in https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

import io
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.parquet as pq

# A page of more that unpacks to over so many times its size holds neither images, which are packed already, nor
# vectors. Arrow takes five times as much for one value of a dictionary.
_PAGE_BYTES, _PAGE_RATIO = 96 << 20, 50
# The least and the greatest value of a page stand in its header; Arrow, too, reads no longer one.
_HEADER_BYTES = 16 << 20
# So much further than its footer says may a chunk of an old writer reach; Arrow allows it as well.
_OVER_BYTES = 100
# Fields of PageHeader and, in the one for dictionaries, of DictionaryPageHeader; deeper than that lie but statistics.
_UNPACKED, _PACKED, _DICTIONARY, _VALUES = 2, 3, 7, 1
_DEPTH = 4


@dataclass(frozen=True, order=True)
class Chunk:
    """Place of the pages of a column in a row group.

    Attributes:
        start: Of the first page, in bytes.
        end: Behind the last one.
    """

    start: int
    end: int


@dataclass(frozen=True)
class PageHeader:
    """Header of a page; sizes in bytes.

    Attributes:
        unpacked: Its size in memory.
        packed: Its size in the file.
        values: How many it holds, if it is a dictionary, else 0.
        end: Behind the header.
    """

    unpacked: int
    packed: int
    values: int
    end: int


def chunk_of(column: pq.ColumnChunkMetaData) -> Chunk:
    """Returns where a column's pages lie, as Arrow finds them."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return Chunk(start, start + column.total_compressed_size)


def chunks_of(metadata: pq.FileMetaData, groups: Iterable[int] | None = None) -> list[Chunk]:
    """Returns the chunks of all columns of some row groups, of all if None, but none where no rows are.

    Arrow ends the process at some damaged footers here: who can't rely on a footer calls this in a child process.
    """
    wanted = map(metadata.row_group, range(metadata.num_row_groups) if groups is None else groups)
    columns = (group.column(number) for group in wanted if group.num_rows for number in range(group.num_columns))
    return [chunk_of(column) for column in columns if column.num_values]


def values_of(metadata: pq.FileMetaData, leaf: int) -> list[int]:
    """Returns how many values each row group has in one of Parquet's own columns.

    Here beside `chunks_of`, because a child that is asked for both then imports this module alone.
    """
    return [metadata.row_group(number).column(leaf).num_values for number in range(metadata.num_row_groups)]


class Pages(io.RawIOBase):
    """A Parquet file whose pages' headers are checked as they are read; for one reader at a time.

    Args:
        file: All of it.
        in_parts: Whether chunks are read in parts. Then a read ends before a page that is refused, and what comes
            before that page can still be had; else the read of the chunk fails.
    """

    def __init__(self, file: BinaryIO, *, in_parts: bool):
        self._file, self._in_parts = file, in_parts
        self._position = self._size = 0
        self._chunks: list[Chunk] = []
        # Of the chunks that are being read: where the next header begins, and what was read of it so far.
        self._under_way: dict[Chunk, tuple[int, bytes]] = {}
        self._refused: dict[int, OSError] = {}

    def watch(self, chunks: Iterable[Chunk]) -> None:
        """Names the chunks whose pages are checked from now on."""
        self._size = self.seek(0, 2)
        self._chunks = sorted(chunks)
        self._under_way.clear()
        self._refused.clear()

    def read(self, count: int = -1) -> bytes:
        """Reads as a file does.

        Raises:
            OSError: A page would unpack to far more than images or vectors do, or its header is damaged.
        """
        start = self._position
        data = self._file.read(count)
        end = start + len(data)
        first, stop = (bisect_left(self._chunks, Chunk(at, 0)) for at in (start, end))
        self._under_way |= {chunk: (chunk.start, b"") for chunk in self._chunks[first:stop]}
        for chunk, (header, begun) in list(self._under_way.items()):
            known = header + len(begun)
            if start <= known < end:
                read = begun + data[known - start :] if begun else memoryview(data)[known - start :]
                self._look(chunk, header, read)
        refused = min((at for at in self._refused if start <= at < end), default=None)
        if refused is not None:
            if refused == start or not self._in_parts:
                raise self._refused[refused]
            data, end = data[: refused - start], self._file.seek(refused)
        self._position = end
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _look(self, chunk: Chunk, start: int, data: bytes | memoryview) -> None:
        """Looks at the headers that are whole in data, which begins with one at byte `start` of the file."""
        at = 0
        del self._under_way[chunk]
        while start + at < chunk.end:
            try:
                header = read_header(data, at)
                if header is None:
                    self._under_way[chunk] = start + at, bytes(data[at:])
                    return
                check_header(header)
                after = header.end + header.packed
                if start + after > min(chunk.end + _OVER_BYTES, self._size):
                    raise OSError(
                        f"a page of {header.packed} bytes can't be in {chunk.end - chunk.start} of its column"
                    )
            except OSError as error:
                # Of a header that comes in two reads, the first is handed out already.
                self._refused[max(start + at, self._position)] = error
                return
            at = after


def read_header(data: Sequence[int], at: int = 0) -> PageHeader | None:
    """Returns the header that begins at a byte of data, None if its end is missing.

    Raises:
        OSError: It is none.
    """
    try:
        fields, end = _read_struct(data, at, _DEPTH)
    except IndexError:
        if len(data) - at > _HEADER_BYTES:
            raise OSError("a page's header is damaged: it has no end") from None
        return None
    dictionary = fields.get(_DICTIONARY, {})
    values = dictionary.get(_VALUES, 0) if isinstance(dictionary, dict) else -1
    found = PageHeader(fields.get(_UNPACKED, -1), fields.get(_PACKED, -1), values, end)
    if not all(isinstance(each, int) and each >= 0 for each in (found.unpacked, found.packed, found.values)):
        raise OSError("a page's header is damaged: it states no sizes")
    return found


def check_header(header: PageHeader) -> None:
    """Raises OSError if a page would unpack to far more than images or vectors do."""
    if header.unpacked > max(_PAGE_BYTES, _PAGE_RATIO * header.packed):
        raise OSError(f"a page of {header.packed} bytes would unpack to {header.unpacked}")
    if header.values > header.unpacked:
        raise OSError(f"a page of {header.unpacked} bytes can't hold a dictionary of {header.values} values")


def _read_struct(data: Sequence[int], at: int, depth: int) -> tuple[dict[int, int | dict], int]:
    """Returns the fields with whole numbers and structs of one in Thrift's compact protocol, and where it ends.

    Raises:
        IndexError: The data ends first.
        OSError: It has other fields than headers of pages do.
    """
    fields, number = {}, 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _read_number(data, at)
        if kind in (1, 2):
            fields[number] = int(kind == 1)
        elif kind in (4, 5, 6):
            fields[number], at = _read_number(data, at)
        elif kind == 8:
            length, at = _read_varint(data, at)
            at += length
        elif kind == 12 and depth:
            fields[number], at = _read_struct(data, at, depth - 1)
        else:
            raise OSError(f"a page's header is damaged: it has a field of kind {kind}")
    return fields, at + 1


def _read_number(data: Sequence[int], at: int) -> tuple[int, int]:
    raw, at = _read_varint(data, at)
    # As Arrow does, of more than 32 bits the lower ones count; all numbers that matter here have no more.
    raw &= 2**32 - 1
    return (raw >> 1) ^ -(raw & 1), at


def _read_varint(data: Sequence[int], at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
        shift += 7
    raise OSError("a page's header is damaged: a number has no end")
