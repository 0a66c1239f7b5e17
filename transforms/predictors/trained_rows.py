"""The rows that a head was made from, kept in HEAD: which of them trained it, and which were kept to judge by."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import storage
from transforms.evaluation.split import SIDES, Split
from transforms.parquet.files import open_sealed
from transforms.parquet.seals import sealed
from transforms.rows.table import Table

FILE = "rows.parquet"
# Of a content hash: enough to tell all rows apart that there can be.
_CONTENT_BYTES = 8
# A writer holds a row group in memory.
_GROUP_ROWS = 2**17
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("content", pa.binary(_CONTENT_BYTES)),
        ("side", pa.dictionary(pa.int8(), pa.string())),
        ("component", pa.int64()),
    ]
)


def rows_file(table: Table, parts: Split) -> bytes:
    """Returns the file: key, the last 8 bytes of the content's hash (null where unknown), side and component.

    A row of a fold is `train`, since the head that is stored was trained on all folds, or chosen by the first.

    Args:
        table: N rows; those without a label aren't among the rows of a head.
        parts: Their split.
    """
    target = io.BytesIO()
    with sealed(target, _SCHEMA) as writer:
        for at in range(0, len(parts.sides), _GROUP_ROWS):
            group = slice(at, at + _GROUP_ROWS)
            used = parts.sides[group] >= 0
            rows = [
                table.keys[group].filter(pa.array(used)),
                _contents(table, group).filter(pa.array(used)),
                pa.DictionaryArray.from_arrays(pa.array(parts.sides[group][used]), list(SIDES)),
                pa.array(parts.components[group][used]),
            ]
            writer.write(pa.table(rows, schema=_SCHEMA))
    return target.getvalue()


def _contents(table: Table, rows: slice = slice(None)) -> pa.ChunkedArray:
    if table.sha256 is None:
        return pa.chunked_array([pa.nulls(len(table.keys[rows]), pa.binary(_CONTENT_BYTES))])
    # Other people's column of that name may hold anything; the key decides then.
    hashes = table.sha256[rows]
    digests = pc.if_else(pc.equal(pc.binary_length(hashes), 32), hashes, None)
    return pc.binary_slice(digests, 32 - _CONTENT_BYTES, 32).cast(pa.binary(_CONTENT_BYTES))


def read_rows(folder: str) -> pa.Table | None:
    """Returns what `rows_file` wrote to HEAD; None where there is none, as in heads from before.

    Raises:
        FeaturemillError: It can't be read.
    """
    uri = storage.join(folder, FILE)
    if FILE not in storage.list_folder(folder):
        return None
    # One of an earlier version has no seal, but checksums of its pages.
    with open_sealed(uri, cure="restore it, or train again") as parquet:
        return parquet.read().select(_SCHEMA.names).cast(_SCHEMA)


def sides_of(table: Table, rows: pa.Table) -> pa.ChunkedArray:
    """Returns the side, N strings, that a head's training gave each row of a table; null for rows that it didn't have.

    A row is found by its content where both know that: an image of the same name may be another. Else by its key.
    """
    by_key = pc.index_in(table.keys, value_set=rows["key"])
    at = by_key
    if table.sha256 is not None:
        ours, theirs = _contents(table), rows["content"]
        by_content = pc.index_in(ours, value_set=theirs.cast(ours.type), skip_nulls=True)
        known = pc.and_(pc.is_valid(ours), pc.is_valid(theirs.take(by_key)))
        # Where the content is known on both sides, its key says nothing.
        at = pc.coalesce(by_content, pc.if_else(pc.fill_null(known, False), None, by_key))
    return rows["side"].cast(pa.string()).take(at)


def had_seen(table: Table, rows: pa.Table | None) -> np.ndarray | None:
    """Returns N booleans: which rows trained the head, or chose its settings; None where that isn't known."""
    if rows is None:
        return None
    sides = sides_of(table, rows)
    return pc.fill_null(pc.is_in(sides, value_set=pa.array(SIDES[:2])), False).to_numpy(zero_copy_only=False)
