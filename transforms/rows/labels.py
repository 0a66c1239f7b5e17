"""Labels from a file of their own, with groups and sides where it has them, joined to features by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.rows.table import Table, as_text, known
from transforms.text import did_you_mean, one_line, short

# Keys shown of those that don't fit.
NAMED_KEYS = 5


@dataclass(frozen=True)
class Joined:
    """The result of a join.

    Attributes:
        matched: Rows of features whose key is in the label file.
        unlabelled: Rows of features left without a label.
        unlabelled_keys: The first of them.
        unmatched: Rows of the label file whose key no feature has.
        unmatched_keys: The first of them.
    """

    matched: int
    unlabelled: int
    unlabelled_keys: tuple[str, ...]
    unmatched: int
    unmatched_keys: tuple[str, ...]


def read_labels(
    path: str,
    *,
    key_column: str = "key",
    label_column: str = "label",
    group_column: str | None = None,
    split_column: str | None = None,
) -> pa.Table:
    """Reads keys and labels, and groups and sides where the file has their columns.

    Args:
        path: CSV with a header, or Parquet; which one is seen by its first bytes.
        key_column, label_column: Their names in the file.
        group_column, split_column: Names of columns that the file may lack; None if they aren't wanted.

    Returns:
        Columns `key`, `label` and, where they are there, `group` and `split`: strings, each key once; what the file
        leaves empty is null.

    Raises:
        FeaturemillError: Not readable, no rows, a column missing, an empty key, or a key with two labels, groups or
            sides.
    """
    path = storage.absolute(path)
    names = {"key": key_column, "label": label_column, "group": group_column, "split": split_column}
    table = _read(path, [name for name in names.values() if name])
    names = {role: name for role, name in names.items() if role in ("key", "label") or name in table.column_names}
    for name in names.values():
        if name not in table.column_names:
            raise FeaturemillError(f"{path} has no column {name!r}{did_you_mean(name, table.column_names)}")
        if table.column_names.count(name) > 1:
            raise FeaturemillError(f"{path} has several columns {name!r}; rename all but one")
    if not len(table):
        raise FeaturemillError(f"{path} has no rows, only a header; give it a row for each key")
    columns = {role: as_text(table.column(name), name, path) for role, name in names.items()}
    if columns["key"].null_count:
        raise FeaturemillError(
            f"{path}: column {key_column!r} is empty in {columns['key'].null_count:,} of {len(table):,} rows; "
            "fill them in"
        )
    columns |= {role: known(column) for role, column in columns.items() if role != "key"}
    return _once(pa.table(columns), names, path)


def _read(path: str, columns: Sequence[str]) -> pa.Table:
    try:
        with storage.open_read(path) as file:
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            return _read_parquet(file) if is_parquet else _read_csv(file, columns)
    except FileNotFoundError as error:
        raise FeaturemillError(f"there is no file of labels {path}; check the path") from error
    except (OSError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"{path} can't be read as labels ({one_line(error)}); pass CSV with a header, or Parquet"
        ) from error


def _read_parquet(file: object) -> pa.Table:
    return pq.ParquetFile(file).read()


def _read_csv(file: object, columns: Sequence[str]) -> pa.Table:
    # As text: 007 is a label, not 7. Only an empty field is none; the default also takes "NA" and "null" for that.
    convert = csv.ConvertOptions(
        column_types={name: pa.string() for name in columns}, null_values=[""], strings_can_be_null=True
    )
    return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=convert)


def _once(labels: pa.Table, names: Mapping[str, str], path: str) -> pa.Table:
    """Returns each key once; raises FeaturemillError where one has two labels, groups or sides.

    Args:
        labels: As `read_labels` returns them, but with repeated keys.
        names: {role: name of the column in the file}.
        path: Of the file.
    """
    if pc.count_distinct(labels["key"]).as_py() == len(labels):
        return labels
    for role in labels.column_names[1:]:
        pairs = labels.group_by(["key", role], use_threads=False).aggregate([])
        counts = pairs.group_by("key", use_threads=False).aggregate([([], "count_all")])
        repeated = counts.filter(pc.greater(counts["count_all"], 1))["key"]
        if len(repeated):
            key = repeated[0].as_py()
            first, second = pairs.filter(pc.equal(pairs["key"], key))[role].to_pylist()[:2]
            first, second = (None if value is None else short(value) for value in (first, second))
            several = "labels" if role == "label" else f"values of {names[role]!r}"
            raise FeaturemillError(
                f"{path}: keys with several {several}: {len(repeated):,}, such as {key!r} with {first!r} and "
                f"{second!r}; leave one for each"
            )
    return labels.group_by(labels.column_names, use_threads=False).aggregate([])


def join_labels(table: Table, labels: pa.Table, path: str) -> tuple[Table, Joined]:
    """Gives the rows of a table the labels of a file, and its groups and sides if it has them; those it had are gone.

    Args:
        table: Features.
        labels: From `read_labels`. A row of features whose key isn't there has no label, group or side.
        path: Of the file.

    Raises:
        FeaturemillError: No key matches.
    """
    found = pc.index_in(table.keys, value_set=labels["key"])
    matched = len(found) - found.null_count
    if not matched:
        raise FeaturemillError(
            f"no key of {path} is one of {table.location}: the file has {labels['key'][0].as_py()!r}, the features "
            f"have {table.keys[0].as_py()!r}; write the keys as the features have them"
        )
    column = labels["label"].take(found)
    unlabelled = table.keys.filter(column.is_null())
    unmatched = labels["key"].filter(pc.invert(pc.is_in(labels["key"], value_set=table.keys)))
    joined = Joined(
        matched=matched,
        unlabelled=len(unlabelled),
        unlabelled_keys=tuple(unlabelled[:NAMED_KEYS].to_pylist()),
        unmatched=len(unmatched),
        unmatched_keys=tuple(unmatched[:NAMED_KEYS].to_pylist()),
    )
    if "group" in labels.column_names:
        table = replace(table, groups=labels["group"].take(found))
    if "split" in labels.column_names:
        table = replace(table, sides=labels["split"].take(found), sides_from=path)
    return replace(table, labels=column), joined


def encode(values: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Returns (N int64 indices into the distinct values, -1 for null; these values, in the order they appear)."""
    # All chunks get the same dictionary.
    chunks = values.dictionary_encode().chunks
    codes = [chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]
    distinct = chunks[0].dictionary if chunks else pa.array([], values.type)
    return np.concatenate([np.empty(0, np.int64), *codes]), distinct


def encode_as(labels: pa.Array | pa.ChunkedArray, classes: Sequence[str]) -> np.ndarray:
    """Returns N int32 indices of labels in `classes`, -1 for null and for what is none of them."""
    return np.asarray(pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), -1), np.int32)
