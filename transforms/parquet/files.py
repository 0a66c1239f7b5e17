"""Parquet files opened wherever they lie, with one error for whatever is wrong with them.

Arrow ends the process at some footers that are damaged. So other people's are looked at in a child process, one for all
of them, before they are relied on.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.isolated import Crashed, Isolated
from transforms.parquet.pages import Pages, chunks_of, read_header, values_of
from transforms.parquet.seals import Broken, Verified, read_end, read_metadata, read_own_metadata, seal_of, stated_data
from transforms.text import one_line

_READ_BYTES = 2**20
# Most headers of pages are no longer.
_HEADER_BYTES = 2**8
APART = Isolated(seconds=60, memory=2 << 30)


@dataclass(frozen=True)
class Footer:
    """The facts of a footer.

    Attributes:
        schema: Of the file.
        rows: Of each row group.
        sizes: Compressed bytes of each row group.
    """

    schema: pa.Schema
    rows: tuple[int, ...]
    sizes: tuple[int, ...]


def look_at_footer(file: BinaryIO) -> Footer:
    """Returns the facts of a file's footer, parsed in a child process.

    Raises:
        Crashed: Arrow doesn't survive it.
        ValueError: Or another of Arrow's errors: it is cut or damaged.
        OSError: The file can't be read.
    """
    end, length, size = read_end(file)
    if not length:
        raise ValueError(f"it is no whole Parquet file ({size} bytes)")
    return APART.call(_parse, end)


def _parse(tail: bytes) -> Footer:
    parquet = pq.ParquetFile(pa.BufferReader(tail))
    groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    sizes = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    return Footer(parquet.schema_arrow, tuple(group.num_rows for group in groups), tuple(sizes))


def count_values(metadata: pq.FileMetaData, leaf: int, *, apart: bool) -> list[int]:
    """Returns how many values each row group has in one of Parquet's own columns, looked up in the child if `apart`.

    Raises:
        Crashed: Arrow doesn't survive it.
    """
    return APART.call(values_of, metadata, leaf) if apart else values_of(metadata, leaf)


class ParquetFile(pq.ParquetFile):
    """Arrow's, which checks the pages that it reads where these have checksums, and the numbers of rows."""

    def __init__(
        self, file: BinaryIO, *, metadata: pq.FileMetaData | None = None, buffer_size: int = 0, **options: Any
    ):
        """Opens a file.

        Args:
            file: All of it.
            metadata: Its own; without, the file is somebody else's, and its pages' headers are checked, too.
            buffer_size: Bytes of a column chunk that are read at a time; 0: whole chunks.
            options: More of Arrow's.

        Raises:
            OSError: It is damaged.
            pa.ArrowException: It is no Parquet.
        """
        content = file if metadata is not None else Pages(file, in_parts=buffer_size > 0)
        # Arrow reads whole chunks ahead unless told not to, whatever the buffer.
        options |= {"buffer_size": buffer_size, "pre_buffer": not buffer_size, "page_checksum_verification": True}
        super().__init__(content, metadata=metadata, **options)
        if isinstance(content, Pages):
            try:
                content.watch(APART.call(chunks_of, self.metadata))
            except Crashed as error:
                raise Broken(f"its footer is damaged: {error}") from error

    def iter_batches(
        self, batch_size: int = 65_536, row_groups: Sequence[int] | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """Yields batches as Arrow does; so do `read` and `read_row_group` return tables.

        Raises:
            OSError: Other rows came than the footer says: of a page whose header is damaged, Arrow may just yield none.
        """
        rows = 0
        for batch in super().iter_batches(batch_size, row_groups=row_groups, **options):
            rows += len(batch)
            yield batch
        self._check(rows, range(self.num_row_groups) if row_groups is None else row_groups)

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        table = super().read(columns, **options)
        self._check(len(table), range(self.num_row_groups))
        return table

    def read_row_group(self, i: int, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        table = super().read_row_group(i, columns, **options)
        self._check(len(table), [i])
        return table

    def _check(self, rows: int, groups: Iterable[int]) -> None:
        expected = sum(self.metadata.row_group(group).num_rows for group in groups)
        if rows != expected:
            raise OSError(f"{rows:,} rows came of {expected:,}: it is damaged")


def open_parquet(
    uri: str, *, problem: str = "can't be read", cure: str = "write it again", **options: Any
) -> AbstractContextManager[ParquetFile]:
    """Opens anybody's file for as long as the context lasts; one that isn't as we wrote it is read as others' are.

    Args:
        uri: Where it is.
        problem: What to say of it if it can't be opened or read.
        cure: What the user can do then.
        options: Of `ParquetFile`.

    Raises:
        FeaturemillError: It can't be opened, or read inside the context.
    """
    return _open(uri, read_own_metadata, problem, cure, options)


def open_sealed(uri: str, *, cure: str, **options: Any) -> AbstractContextManager[ParquetFile]:
    """Opens a file of ours for as long as the context lasts; its footer is checked, and all that is read.

    Args:
        uri: Where it is.
        cure: What the user can do if it can't be read.
        options: Of `ParquetFile`.

    Raises:
        FeaturemillError: It can't be opened, isn't what was written, or can't be read inside the context.
    """
    return _open(uri, read_metadata, "can't be read", cure, options)


@contextmanager
def _open(
    uri: str, footer: Callable[[BinaryIO], pq.FileMetaData | None], problem: str, cure: str, options: Mapping[str, Any]
) -> Iterator[ParquetFile]:
    try:
        with storage.open_read(uri) as file:
            metadata = footer(file)
            is_sealed = metadata is not None and seal_of(metadata)
            file.seek(0)
            yield ParquetFile(Verified(file, metadata) if is_sealed else file, metadata=metadata, **options)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise FeaturemillError(f"{uri} {problem} ({one_line(error)}); {cure}") from error


def check_headers(uri: str) -> None:
    """Reads of a file of ours the blocks with the headers of its pages, which page checksums leave out.

    A reader that checks pages, but not blocks, then gets what was written. Of a file without a seal nothing is read.

    Raises:
        OSError: It can't be read, or these blocks aren't what was written.
        pa.ArrowException: It is no Parquet.
    """
    with storage.open_read(uri) as file:
        metadata = read_metadata(file)
        if not seal_of(metadata):
            return
        content = Verified(file, metadata)
        for chunk in chunks_of(metadata):
            at = chunk.start
            while at < chunk.end:
                header, count = None, _HEADER_BYTES
                while header is None:
                    content.seek(at)
                    header = read_header(content.read(count))
                    count *= 2
                at += header.end + header.packed


def check_whole(uri: str) -> str:
    """Reads all of a file of ours.

    Returns:
        Its seal; empty if it has none. Then its pages are read, which may have checksums or not.

    Raises:
        OSError: It can't be read, or isn't what was written.
        pa.ArrowException: It is no Parquet.
    """
    with storage.open_read(uri) as file:
        metadata = read_metadata(file)
        left, stated = stated_data(metadata)
        if not stated:
            for _ in ParquetFile(file, metadata=metadata).iter_batches():
                pass
            return ""
        file.seek(0)
        sha256 = hashlib.sha256()
        while left and (data := file.read(min(left, _READ_BYTES))):
            sha256.update(data)
            left -= len(data)
        if sha256.hexdigest() != stated:
            raise Broken("its content was changed since it was written")
        return seal_of(metadata)
