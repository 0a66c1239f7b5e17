"""Parquet files opened wherever they lie, with one error for whatever is wrong with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.text import one_line


@contextmanager
def open_parquet(
    uri: str,
    *,
    problem: str = "can't be read",
    cure: str = "write it again",
    buffer_size: int = 0,
    dictionaries: Sequence[str] | None = None,
) -> Iterator[pq.ParquetFile]:
    """Opens a file for as long as the context lasts.

    Args:
        uri: Where it is.
        problem: What to say of it if it can't be opened or read.
        cure: What the user can do then.
        buffer_size: Bytes of a column chunk that are read at a time; 0: whole chunks.
        dictionaries: Columns of text that stay distinct values with numbers, as they are stored.

    Raises:
        FeaturemillError: It can't be opened, or read inside the context.
    """
    try:
        with storage.open_read(uri) as file:
            yield pq.ParquetFile(file, buffer_size=buffer_size, read_dictionary=dictionaries)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise FeaturemillError(f"{uri} {problem} ({one_line(error)}); {cure}") from error
