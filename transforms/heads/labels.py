"""Labels from a file of their own, joined to features by key."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transforms import storage
from transforms.features import nearest
from transforms.heads.table import Table, as_text, known
from transforms.heads.wording import short
from transforms.records import FeaturemillError

if TYPE_CHECKING:
    import pyarrow as pa

# Keys shown of those that don't fit.
NAMED_KEYS = 5


@dataclass(frozen=True)
class Joined:
    """What a join came to.

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


def read_labels(path: str, *, key_column: str = "key", label_column: str = "label") -> "pa.Table":
    """Reads keys and labels.

    Args:
        path: CSV with a header, or Parquet; which one is seen by its first bytes.
        key_column, label_column: Their names in the file.

    Returns:
        Columns `key` and `label`, strings, each key once; a label is null where the file is empty.

    Raises:
        FeaturemillError: Not readable, a column missing, an empty key, or a key with two labels.
    """
    import pyarrow as pa

    path = storage.absolute(path)
    try:
        with storage.open_read(path) as file:
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            table = _read_parquet(file) if is_parquet else _read_csv(file, (key_column, label_column))
    except (OSError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"{path} can't be read as labels ({storage.one_line(error)}); pass CSV with a header, or Parquet"
        ) from error
    for name in (key_column, label_column):
        if name not in table.column_names:
            raise FeaturemillError(f"{path} has no column {name!r}{nearest(name, table.column_names)}")
        if table.column_names.count(name) > 1:
            raise FeaturemillError(f"{path} has several columns {name!r}; rename all but one")
    columns = [as_text(table.column(name), name, path) for name in (key_column, label_column)]
    if columns[0].null_count:
        raise FeaturemillError(f"{path}: {columns[0].null_count:,} rows have no {key_column!r}; fill them in")
    return _once(pa.table([columns[0], known(columns[1])], ["key", "label"]), path)


def _read_parquet(file: object) -> "pa.Table":
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read()


def _read_csv(file: object, columns: Sequence[str]) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import csv

    # As text: 007 is a label, not 7. Only an empty field is none; the default also takes "NA" and "null" for that.
    convert = csv.ConvertOptions(
        column_types={name: pa.string() for name in columns}, null_values=[""], strings_can_be_null=True
    )
    return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=convert)


def _once(labels: "pa.Table", path: str) -> "pa.Table":
    """Returns each key once; raises FeaturemillError where one has two labels."""
    import pyarrow.compute as pc

    if pc.count_distinct(labels["key"]).as_py() == len(labels):
        return labels
    labels = labels.group_by(["key", "label"], use_threads=False).aggregate([])
    counts = labels.group_by("key", use_threads=False).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))["key"]
    if len(repeated):
        key = repeated[0].as_py()
        first, second = labels.filter(pc.equal(labels["key"], key))["label"].to_pylist()[:2]
        first, second = (None if label is None else short(label) for label in (first, second))
        raise FeaturemillError(
            f"{path}: keys with several labels: {len(repeated):,}, such as {key!r} with {first!r} and {second!r}; "
            "leave one for each"
        )
    return labels


def join_labels(
    table: Table, path: str, *, key_column: str = "key", label_column: str = "label"
) -> tuple[Table, Joined]:
    """Gives the rows of a table the labels of a file; those it had are gone.

    Raises:
        FeaturemillError: As `read_labels`, and when no key matches.
    """
    import pyarrow.compute as pc

    labels = read_labels(path, key_column=key_column, label_column=label_column)
    found = pc.index_in(table.keys, value_set=labels["key"])
    matched = len(found) - found.null_count
    if not matched:
        example = labels["key"][0].as_py() if len(labels) else None
        raise FeaturemillError(
            f"no key of {path} is one of {table.location}: the file has {example!r}, the features have "
            f"{table.keys[0].as_py()!r}; write the keys as the features have them"
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
    return replace(table, labels=column), joined
