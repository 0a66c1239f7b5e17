"""Labels from a file of their own, with groups and sides where it has them, joined to features."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.rows.label_files import read_columns
from transforms.rows.matching import Ambiguity, match_rows
from transforms.rows.table import DEFAULT_LABEL, Table, as_text, known
from transforms.text import counted, did_you_mean, printable, short

# Keys shown of those that don't fit.
NAMED_KEYS = 5
# What a row without one in the file has: nothing, or what is stored.
MODES = ("replace", "update")
# Names of columns, small and without `_`, blanks and the like; the first that is there is taken.
_KEY_NAMES = (
    *("key", "path", "filepath", "imagepath", "file", "filename", "imagefile", "imagefilename", "image", "imagename"),
    *("img", "imgpath", "imgname", "uri", "url", "imageid", "imgid", "idcode", "id", "name", "sha256"),
)
_LABEL_NAMES = (
    *("label", "labels", "labelname", "class", "classname", "classlabel", "classid", "category", "categoryname"),
    *("categoryid", "target", "targetlabel", "species", "y"),
)


@dataclass(frozen=True)
class LabelFile:
    """A label file's columns, read.

    Attributes:
        path: The file, absolute.
        columns: {role: name of its column in the file}.
        table: M rows of `key`, `label` and, where they are there, `group`, `split` and `sha256`: strings, each
            key once; null where the file leaves it empty. `sha256` may be binary.
        stripped: Labels that had blanks around them.
    """

    path: str
    columns: Mapping[str, str]
    table: pa.Table
    stripped: int = 0


@dataclass(frozen=True)
class Joined:
    """The result of a join.

    Attributes:
        file: What was joined.
        rule: By which rows were found, in words.
        matched: Rows of features that are in the label file.
        stored: Rows whose label is the features' own, because the file doesn't have them.
        unlabelled: Rows of features left without a label.
        unlabelled_keys: The first of them.
        unmatched: Rows of the label file that are no row of the features.
        unmatched_keys: The first of them.
    """

    file: LabelFile
    rule: str
    matched: int
    stored: int
    unlabelled: int
    unlabelled_keys: tuple[str, ...]
    unmatched: int
    unmatched_keys: tuple[str, ...]


def read_labels(
    path: str,
    *,
    key_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
) -> LabelFile:
    """Reads keys and labels, and groups and sides where the file has their columns.

    Args:
        path: CSV with a header, JSON lines or Parquet, as `read_columns` takes them.
        key_column, label_column: Their names in the file; None to find them by what such columns are called.
        group_column, split_column: Names of columns that the file may lack; None if they aren't wanted.

    Raises:
        FeaturemillError: Not readable, no rows, a column missing or not to be found, an empty key, or a key with two
            labels, groups or sides.
    """
    path = storage.absolute(path)
    wanted = {"group": group_column, "split": split_column}

    def choose(names: list[str]) -> dict[str, str]:
        extra = {role: name for role, name in wanted.items() if name in names}
        key = _key_column(names, key_column, path)
        return {
            "key": key,
            "label": _label_column(names, label_column, path, others={key, *extra.values()}),
            **extra,
        } | ({"sha256": "sha256"} if "sha256" in names and key != "sha256" else {})

    found, names = read_columns(path, choose)
    columns = {
        role: column if role == "sha256" and _is_bytes(column.type) else as_text(column, names[role], path)
        for role, column in found.items()
    }
    trimmed = {
        role: known(pc.utf8_trim_whitespace(columns[role])) for role in columns if columns[role].type == pa.string()
    }
    stripped = pc.sum(pc.fill_null(pc.not_equal(columns["label"], trimmed["label"]), False)).as_py() or 0
    table = pa.table(columns | trimmed)
    # What spreadsheets leave below their last row.
    empty = pc.and_(table["key"].is_null(), table["label"].is_null())
    table = table.filter(pc.invert(empty)) if pc.any(empty).as_py() else table
    if not len(table):
        raise FeaturemillError(f"{path} has no rows, only a header; give it a row for each key")
    if table["key"].null_count:
        raise FeaturemillError(
            f"{path}: column {names['key']!r} is empty in {table['key'].null_count:,} of {len(table):,} rows; "
            "fill them in"
        )
    return LabelFile(path, names, _once(table, names, path), stripped)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _key_column(names: Sequence[str], wanted: str | None, path: str) -> str:
    if wanted is not None:
        return _named(names, wanted, path)
    for candidate in _KEY_NAMES:
        for name in names:
            if _plain(name) == candidate:
                return name
    raise FeaturemillError(
        f"{path}: none of its columns is called as a key is ({_listed(names)}); if these are no names, give it a "
        "header such as key,label; else say which by --key-column"
    )


def _label_column(names: Sequence[str], wanted: str | None, path: str, *, others: Collection[str]) -> str:
    if wanted is not None:
        return _named(names, wanted, path)
    left = [name for name in names if name not in others]
    found = [name for name in left if name == DEFAULT_LABEL] or [name for name in left if _plain(name) in _LABEL_NAMES]
    # An index that pandas wrote has no name.
    found = found or [name for name in left if name and name != "sha256"]
    if len(found) == 1 or found[:1] == [DEFAULT_LABEL]:
        return found[0]
    why = f"several may be the label: {_listed(found)}" if found else f"it has no other than {_listed(names)}"
    raise FeaturemillError(f"{path} has no column 'label', and {why}; say which by --label-column")


def _named(names: Sequence[str], wanted: str, path: str) -> str:
    if wanted not in names:
        raise FeaturemillError(f"{path} has no column {wanted!r}{did_you_mean(wanted, names)}")
    return wanted


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(short(name)) for name in names[:20]) + (" …" if len(names) > 20 else "")


def _once(labels: pa.Table, names: Mapping[str, str], path: str) -> pa.Table:
    """Returns each key once; raises FeaturemillError where one has two labels, groups or sides.

    Args:
        labels: As in `LabelFile`, but with repeated keys.
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
            first, second = (None if value is None else short(str(value)) for value in (first, second))
            several = "labels" if role == "label" else f"values of {names[role]!r}"
            raise FeaturemillError(
                f"{path}: keys with several {several}: {len(repeated):,}, such as {key!r} with {first!r} and "
                f"{second!r}; leave one for each"
            )
    return labels.group_by(labels.column_names, use_threads=False).aggregate([])


def join_labels(tables: Sequence[Table], file: LabelFile, *, mode: str = "replace") -> tuple[list[Table], Joined]:
    """Gives the rows of tables the labels of a file, and its groups and sides if it has them.

    Args:
        tables: Features. `match_rows` says which of their rows are in the file, over all tables together.
        file: From `read_labels`.
        mode: For rows that aren't in the file: `replace` leaves them without label, group and side, `update` with those
            they had. What the file leaves empty is empty in both.

    Raises:
        FeaturemillError: No row of the file is found, or not with certainty.
    """
    labels = file.table
    keys = pa.chunked_array([chunk for table in tables for chunk in table.keys.chunks], pa.string())
    hashed = bool(tables) and all(table.sha256 is not None for table in tables)
    sha256 = pa.chunked_array([c for table in tables for c in table.sha256.chunks], pa.binary()) if hashed else None
    match = match_rows(keys, sha256, labels["key"], labels["sha256"] if "sha256" in labels.column_names else None)
    if not match or isinstance(match, Ambiguity):
        raise FeaturemillError(_ambiguous(match, file) if match else _nothing(keys, file, tables))
    given, stored, start = [], 0, 0
    for table in tables:
        found = match.found[start : start + len(table.keys)]
        start += len(found)
        given.append(_given(table, labels, found, file.path, mode))
        if mode == "update":
            stored += int(((found < 0) & table.labels.is_valid().to_numpy()).sum())
    unlabelled = [table.keys.filter(table.labels.is_null()) for table in given]
    used = np.zeros(len(labels), bool)
    used[match.found[match.found >= 0]] = True
    unmatched = labels["key"].filter(pa.array(~used))
    return given, Joined(
        file=file,
        rule=match.rule,
        matched=int((match.found >= 0).sum()),
        stored=stored,
        unlabelled=sum(map(len, unlabelled)),
        unlabelled_keys=tuple(key for some in unlabelled for key in some[:NAMED_KEYS].to_pylist())[:NAMED_KEYS],
        unmatched=len(unmatched),
        unmatched_keys=tuple(unmatched[:NAMED_KEYS].to_pylist()),
    )


def _given(table: Table, labels: pa.Table, found: np.ndarray, path: str, mode: str) -> Table:
    is_there = pa.array(found >= 0)
    rows = pa.array(found, mask=found < 0)

    def merged(role: str, own: pa.ChunkedArray | None) -> pa.ChunkedArray:
        column = labels[role].take(rows)
        return column if mode == "replace" or own is None else pc.if_else(is_there, column, own)

    table = replace(table, labels=merged("label", table.labels))
    if "group" in labels.column_names:
        table = replace(table, groups=merged("group", table.groups))
    if "split" in labels.column_names:
        table = replace(table, sides=merged("split", table.sides), sides_from=path)
    return table


def _nothing(keys: pa.ChunkedArray, file: LabelFile, tables: Sequence[Table]) -> str:
    where = tables[0].location if tables else "the features"
    own = f", the features have {printable(keys[0].as_py())!r}" if len(keys) else ""
    return (
        f"no key of {file.path} is one of {where}, neither whole nor by path, file name, stem or content: column "
        f"{file.columns['key']!r} has {printable(file.table['key'][0].as_py())!r}{own}; write the keys, or the ends of "
        "them, as the features have them"
    )


def _ambiguous(match: Ambiguity, file: LabelFile) -> str:
    names = " and ".join(repr(printable(key)) for key in match.file_keys)
    if len(match.file_keys) > 1:
        reason = f"{names} of the file are the same" + (f", {printable(match.keys[0])}" if match.keys else "")
    else:
        reason = f"{names} of the file may be {' or '.join(map(printable, match.keys))}"
    return (
        f"{counted(match.file_rows, 'row')} of {file.path} can't be told apart by {match.rule}: {reason}; write more "
        f"of the path in column {file.columns['key']!r}"
    )


def encode(values: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Returns (N int64 indices into the distinct values, -1 for null; these values, in the order they appear)."""
    # All chunks get the same dictionary.
    chunks = pa.chunked_array([values] if isinstance(values, pa.Array) else values.chunks, values.type)
    chunks = chunks.dictionary_encode().chunks
    codes = [chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]
    distinct = chunks[0].dictionary if chunks else pa.array([], values.type)
    return np.concatenate([np.empty(0, np.int64), *codes]), distinct


def encode_as(labels: pa.Array | pa.ChunkedArray, classes: Sequence[str]) -> np.ndarray:
    """Returns N int32 indices of labels in `classes`, -1 for null and for what is none of them."""
    return np.asarray(pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), -1), np.int32)
