"""Columns that other files have for the same rows, read beside a file's own, row by row."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from transforms.errors import FeaturemillError
from transforms.parquet.files import ParquetFile, open_sealed

# What tells a row: a key may repeat in a shard, and a file of one name may get another content.
ROW_IDENTITY = ("key", "sha256")
_READ_BYTES = 2**20


def batches_beside(
    parquet: ParquetFile,
    elsewhere: Mapping[str, str],
    columns: Sequence[str] | None,
    *,
    size: int,
    row_groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields batches as `ParquetFile.iter_batches` does, with columns of other files among them.

    Args:
        parquet: A part.
        elsewhere: {column: the file of ours that has it}, with the same rows in the same order, in row groups of
            its own.
        columns: Which ones; None: all of the part's own.
        size: Rows to a batch at most.
        row_groups: Of the part; by default all.

    Raises:
        FeaturemillError: Another file can't be read, or has other rows.
    """
    wanted = {name: elsewhere[name] for name in columns or () if name in elsewhere}
    uris = {uri: [name for name in wanted if wanted[name] == uri] for uri in wanted.values()}
    if not uris:
        yield from parquet.iter_batches(size, row_groups=row_groups, columns=columns)
        return
    counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    own = list(dict.fromkeys([*(name for name in columns if name not in elsewhere), *ROW_IDENTITY]))
    for group in range(len(counts)) if row_groups is None else row_groups:
        start = sum(counts[:group])
        theirs = {
            uri: InOrder(_between(uri, start, start + counts[group], [*ROW_IDENTITY, *names], size), other_rows(uri))
            for uri, names in uris.items()
        }
        for batch in parquet.iter_batches(size, row_groups=[group], columns=own):
            found = {name: batch.column(name) for name in batch.schema.names}
            for uri, rows in theirs.items():
                table = rows.take(len(batch))
                for name in ROW_IDENTITY:
                    if not table.column(name).combine_chunks().equals(found[name]):
                        raise other_rows(uri)
                found |= {name: table.column(name).combine_chunks() for name in uris[uri]}
            yield pa.record_batch([found[name] for name in columns], list(columns))


def other_rows(uri: str) -> FeaturemillError:
    """Returns the problem of a file that hasn't the rows of the part that it belongs to."""
    return FeaturemillError(
        f"{uri} hasn't the rows of its part in the folder features; delete it and add the feature again"
    )


def _between(uri: str, start: int, stop: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows from `start` to before `stop`; row groups without one aren't read."""
    with open_sealed(uri, cure="delete it and add the feature again", buffer_size=_READ_BYTES) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            at, first = first, first + parquet.metadata.row_group(group).num_rows
            if first <= start or at >= stop:
                continue
            for batch in parquet.iter_batches(size, row_groups=[group], columns=columns):
                low, high = max(0, start - at), min(len(batch), stop - at)
                if low < high:
                    yield batch.slice(low, high - low)
                at += len(batch)


class InOrder:
    """Batches one after the other, handed out by numbers of rows."""

    def __init__(self, batches: Iterator[pa.RecordBatch], too_few: FeaturemillError):
        """Takes at least one batch, and the error to raise where more rows are wanted than there are."""
        self._batches, self._too_few, self._rest = batches, too_few, []

    def take(self, count: int) -> pa.Table:
        """Returns the next `count` rows."""
        while sum(map(len, self._rest)) < count:
            batch = next(self._batches, None)
            if batch is None:
                raise self._too_few
            self._rest.append(batch)
        table = pa.Table.from_batches(self._rest)
        self._rest = table.slice(count).to_batches()
        return table.slice(0, count)
