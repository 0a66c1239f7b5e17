"""The rows of a training: stored features with their labels, each on the side that it was given or drawn for."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.training.options import TrainOptions
from transforms.errors import FeaturemillError
from transforms.evaluation.split import SIDES, Split, split
from transforms.heads.cells import Rows
from transforms.predictors import trained_rows
from transforms.predictors.head import load_head
from transforms.rows.labels import Joined, encode_as, join_labels, read_labels
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table, open_stored, open_table
from transforms.store.features import Features

if TYPE_CHECKING:
    from pipeline.training.suspects import SuspectOptions

# The column of an OUT with the sides of its folders.
SPLIT_COLUMN = "split"


def split_table(
    options: TrainOptions, features: Features | str, kept: pa.Table | None = None
) -> "tuple[Table, Joined | None, Split]":
    """Returns the features, with labels from a file where one is named, split as the options say.

    Args:
        features: OUT, opened, or a name of other Parquet.
        kept: From `trained_rows.read_rows`: these rows stay on their sides, those that belong to them are beside them,
            and all others train. Of none of them the options alone say how to split.
    """
    table, joined = labelled_table(options, features)
    sides = _kept_sides(table, kept) if kept is not None else None
    if sides is None:
        table, joined = _with_test_rows(options, table, joined)
        return table, joined, split_as_asked(table, options, folds=options.folds, kept=bool(options.test_of))
    table = replace(table, sides=sides)
    return table, joined, split_as_asked(table, options, folds=None, kept=True)


def _kept_sides(table: Table, kept: pa.Table) -> pa.ChunkedArray | None:
    """Returns the side of each row as another head had it; None where that had none of these rows."""
    sides = trained_rows.sides_of(table, kept)
    return None if sides.null_count == len(sides) else sides


def split_as_asked(table: Table, options: TrainOptions, *, folds: int | None, kept: bool) -> Split:
    """Returns the split of a table that the options ask for."""
    return split(
        table,
        validation=options.validation,
        test=options.test,
        folds=folds,
        seed=options.settings.seed,
        near=options.near_duplicates,
        kept=kept,
    )


def with_stored_sides(options: TrainOptions, say: Callable[[str], None]) -> "tuple[TrainOptions, Table, Joined | None]":
    """Opens the features; the options then name the split column of an OUT whose folders gave sides.

    It is used unless another split was asked for, and if it says for every labelled row where it belongs, and there are
    rows to train on and others.
    """
    is_stated = options.split_column is not None or options.folds is not None or options.test > 0
    features = open_stored(options.features)
    has_sides = isinstance(features, Features) and SPLIT_COLUMN in features.opened.manifest.added_columns
    if is_stated or options.test_of or not has_sides:
        return options, *_with_test_rows(options, *labelled_table(options, features))
    asked = replace(options, split_column=SPLIT_COLUMN)
    table, joined = labelled_table(asked, features)
    found = pc.unique(pc.filter(table.sides, table.labels.is_valid())).to_pylist()
    if set(found) <= set(SIDES) and "train" in found and len(found) > 1:
        say(f"{'sides':<9}as column {SPLIT_COLUMN} says; --split-column '' splits by chance")
        return asked, table, joined
    # Whoever extracted the training side alone expects no other.
    if set(found) - {None} and found != ["train"]:
        why = "not all rows with a label have one" if None in found else "none to train on, or no other"
        say(f"{'sides':<9}by chance, not as column {SPLIT_COLUMN} says: {why}")
    return options, replace(table, sides=None, sides_from=""), joined


def _with_test_rows(options: TrainOptions, table: Table, joined: Joined | None) -> "tuple[Table, Joined | None]":
    """Puts the test rows of another head on the test side, if the options name one, and all others to train.

    Raises:
        FeaturemillError: It doesn't say which these were, or had none, or none of them is here.
    """
    if not options.test_of:
        return table, joined
    kept = trained_rows.read_rows(options.test_of)
    if kept is None:
        load_head(options.test_of)
        raise FeaturemillError(
            f"{options.test_of} doesn't say which rows it was judged by; it is of an earlier version: train it again"
        )
    sides = _kept_sides(table, kept)
    is_test = None if sides is None else pc.equal(sides, "test")
    if is_test is None or not pc.any(pc.and_(is_test, table.labels.is_valid())).as_py():
        raise FeaturemillError(
            f"no row of {options.features} with a label is a test row of {options.test_of}; name a head that was "
            "trained with --test-fraction on rows that are among these"
        )
    return replace(table, sides=pc.if_else(is_test, "test", "train"), sides_from=options.test_of), joined


def labelled_table(options: "TrainOptions | SuspectOptions", features: Features | str) -> "tuple[Table, Joined | None]":
    """Returns the features, opened or not, with labels from a file where one is named."""
    key_column = options.key_column or DEFAULT_KEY
    table_of = partial(open_table, features, columns=options.columns, key_column=key_column)
    names = {"group_column": options.group_column, "split_column": options.split_column}
    if not options.labels:
        return table_of(label_column=options.label_column or DEFAULT_LABEL, **names), None

    file = read_labels(options.labels, key_column=options.key_column, label_column=options.label_column, **names)
    # What the file has the features needn't have; only an update looks whether they do.
    if options.labels_mode == "replace":
        names = {name: column for name, column in names.items() if column not in file.columns.values()}
    table = table_of(labels_file=options.labels, optional=file.columns.values(), **names)
    (table,), joined = join_labels([table], file, mode=options.labels_mode)
    return table, joined


def make_rows(table: Table, cells: np.ndarray) -> Rows:
    """Returns the labelled rows in their cells; the classes are the labels of the rows that are used."""
    used = pc.filter(table.labels, pa.array(cells >= 0))
    classes = tuple(sorted(pc.unique(used).drop_null().to_pylist()))
    return Rows(table.vectors, encode_as(table.labels, classes), cells, classes)
