"""Compare: several heads on the same rows, none of which trained any of them, with paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.prediction.inputs import without_groups
from pipeline.rendering.tables import text_table
from pipeline.training.options import LabelOptions
from pipeline.training.report import interval
from transforms import storage
from transforms.declared import SEED, check, declared
from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.intervals import Interval, Units, mean_loss, share
from transforms.evaluation.metrics import RowScores, score_rows
from transforms.evaluation.paired import mcnemar, paired_difference, share_difference
from transforms.evaluation.split import tied
from transforms.predictors.head import Head, check_features, load_head
from transforms.predictors.trained_rows import had_seen, read_rows
from transforms.rows.labels import encode_as, join_labels, read_labels
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table, open_table
from transforms.storage import readable
from transforms.text import counted, printable

# N×C numbers of a batch.
_BATCH_NUMBERS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class CompareOptions(LabelOptions):
    """The options of `compare`; paths are made absolute.

    Attributes:
        heads: Two or more HEADs.
        features: What to judge on; None: what the first head was trained on.
    """

    heads: tuple[str, ...]
    features: str | None = None
    group_column: str | None = declared(
        None,
        help="Column whose equal values aren't independent, such as a patient, in --labels FILE or else FEATURES",
        unset="that of the HEADs, where these have it",
    )
    seed: int = declared(0, help="Seed of the bootstrap", bounds=(SEED,))

    def __post_init__(self) -> None:
        check(self)
        if len(self.heads) < 2:
            raise UsageError("name two heads or more to compare")
        object.__setattr__(self, "heads", tuple(map(storage.absolute, self.heads)))
        if len(set(self.heads)) < len(self.heads):
            raise UsageError("a head is named twice; name each once")
        if self.features is not None:
            object.__setattr__(self, "features", storage.absolute(self.features))


@dataclass(frozen=True)
class Difference:
    """The difference between two heads on the same rows.

    Attributes:
        one, other: Their numbers.
        accuracy: Of the other minus that of the one; above 0, the other is better.
        log_loss: Likewise; below 0, the other is better.
        only_one, only_other: Rows that only the one, or only the other, got right.
        p: McNemar's; None where rows aren't independent.
    """

    one: int
    other: int
    accuracy: Interval
    log_loss: Interval
    only_one: int
    only_other: int
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """Heads judged on the same rows.

    Attributes:
        heads: Their folders.
        features: What they were judged on.
        rows: How many rows.
        groups: How many are independent of each other; None where each row is.
        accuracies, log_losses: Of each head.
        differences: Of each pair.
        notes: What else there is to know.
    """

    heads: tuple[str, ...]
    features: str
    rows: int
    groups: int | None
    accuracies: tuple[Interval, ...]
    log_losses: tuple[Interval, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(options: CompareOptions) -> Comparison:
    """Judges heads on the rows that none of them was trained on or chosen by.

    Raises:
        FeaturemillError: A head that isn't there or doesn't fit the features, or no row left.
    """
    heads = [load_head(folder) for folder in options.heads]
    location = options.features or heads[0].source
    named = zip(options.heads, heads, strict=True)
    grouped = {head.group_column: folder for folder, head in named if head.group_column}
    if len(grouped) > 1 and options.group_column is None:
        (column, folder), (other, another) = list(grouped.items())[:2]
        raise UsageError(
            f"{readable(folder)} was trained by group {column!r}, {readable(another)} by {other!r}; "
            "say which rows belong together by --group-column ('' for none)"
        )
    own = next(iter(grouped), None) if options.group_column is None else None
    tables = [_table(options, head, location, own) for head in heads]
    notes = list(dict.fromkeys(filter(None, map(check_features, heads, tables))))
    table = tables[0]
    if own and table.groups is None:
        notes.append(without_groups(grouped[own], own))
    wanted = _known(heads, table, notes) & ~_seen(options, table, notes)
    if not wanted.any():
        raise FeaturemillError(
            f"{location}: no row is left to compare by: each has no label, or trained or chose one of the heads; train "
            "them with the same --test-fraction and --seed, or with --test-of HEAD, or name other FEATURES"
        )
    groups = tied([table])[wanted]
    scores = [_scores(head, of_head, wanted) for head, of_head in zip(heads, tables, strict=True)]
    units = Units.of(int(wanted.sum()), groups)
    hits = [codes == found.predicted for found, codes in scores]
    losses = [found.losses for found, _ in scores]

    def difference(one: int, other: int) -> Difference:
        wrong = ~(hits[one] & hits[other])
        return Difference(
            one,
            other,
            share_difference(hits[one], hits[other], groups, seed=options.seed),
            paired_difference(losses[one], losses[other], groups, seed=options.seed, wrong=wrong),
            int((hits[one] & ~hits[other]).sum()),
            int((hits[other] & ~hits[one]).sum()),
            mcnemar(hits[one], hits[other]) if units.single else None,
        )

    return Comparison(
        heads=options.heads,
        features=location,
        rows=len(groups),
        groups=None if units.single else units.count,
        accuracies=tuple(share(right, units) for right in hits),
        log_losses=tuple(mean_loss(found.losses, found.top, units) for found, _ in scores),
        differences=tuple(difference(*pair) for pair in combinations(range(len(heads)), 2)),
        notes=tuple(notes),
    )


def _table(options: CompareOptions, head: Head, location: str, own: str | None) -> Table:
    """Opens the features that a head takes; groups are by the column asked for, or by `own` where it is there."""
    groups, own = {"group_column": options.group_column or own}, (own,) if own else ()
    names = {"key_column": options.key_column or DEFAULT_KEY, "optional": own}
    if not options.labels:
        names["label_column"] = options.label_column or DEFAULT_LABEL
        return _with_zeros(open_table(location, columns=head.columns, **names, **groups))
    file = read_labels(options.labels, key_column=options.key_column, label_column=options.label_column, **groups)
    names |= {"labels_file": options.labels, "optional": (*file.columns.values(), *own)}
    (table,), _ = join_labels(
        [open_table(location, columns=head.columns, **names, **groups)], file, mode=options.labels_mode
    )
    return _with_zeros(table)


def _with_zeros(table: Table) -> Table:
    return replace(table, vectors=replace(table.vectors, zeros_pass=True))


def _known(heads: Sequence[Head], table: Table, notes: list[str]) -> np.ndarray:
    """Returns N booleans: which rows have a label that all heads know; notes how many have another."""
    known = np.all([encode_as(table.labels, head.classes) >= 0 for head in heads], axis=0)
    unknown = int((table.labels.is_valid().to_numpy() & ~known).sum())
    if unknown:
        notes.append(f"{counted(unknown, 'row')} left out: not all heads know their label")
    return known


def _seen(options: CompareOptions, table: Table, notes: list[str]) -> np.ndarray:
    """Returns N booleans: which rows trained or chose one of the heads; notes heads that don't say it."""
    found = np.zeros(table.vectors.rows, bool)
    for folder in options.heads:
        seen = had_seen(table, read_rows(folder))
        if seen is None:
            notes.append(f"{readable(folder)} doesn't say which rows trained it: it may have seen some of these")
        else:
            found |= seen
    if found.any():
        notes.append(f"{counted(int(found.sum()), 'row')} left out: they trained or chose one of the heads")
    return found


def _scores(head: Head, table: Table, wanted: np.ndarray) -> tuple[RowScores, np.ndarray]:
    """Returns what judging takes of the wanted rows, and their classes."""
    codes, scores, numbers = encode_as(table.labels, head.classes), [], []
    rows = max(1, _BATCH_NUMBERS // len(head.classes))
    for some, vectors in table.vectors.batches(wanted, batch_rows=rows):
        scores.append(score_rows(head.probabilities(vectors), codes[some], keys=table.keys.take(some)))
        numbers.append(some)
    return RowScores(*map(np.concatenate, zip(*scores, strict=True))), codes[np.concatenate(numbers)]


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Returns the comparison for programs."""
    return {
        "features": found.features,
        "rows": found.rows,
        "groups": found.groups,
        "heads": [
            {"head": head, "accuracy": accuracy, "log_loss": loss}
            for head, accuracy, loss in zip(found.heads, found.accuracies, found.log_losses, strict=True)
        ],
        "differences": [
            {
                "one": found.heads[one.one],
                "other": found.heads[one.other],
                "accuracy": one.accuracy,
                "log_loss": one.log_loss,
                "only_one": one.only_one,
                "only_other": one.only_other,
                "mcnemar_p": one.p,
            }
            for one in found.differences
        ],
        "notes": list(found.notes),
    }


def comparison_text(found: Comparison) -> str:
    """Returns the comparison for people: the heads, then each pair."""
    heads = [
        (readable(head), interval(accuracy), interval(loss))
        for head, accuracy, loss in zip(found.heads, found.accuracies, found.log_losses, strict=True)
    ]
    pairs = [
        (
            f"{readable(found.heads[pair.other])} - {readable(found.heads[pair.one])}",
            _signed(pair.accuracy),
            _signed(pair.log_loss),
            f"{pair.only_other} | {pair.only_one}",
            "–" if pair.p is None else f"{pair.p:.3g}",
        )
        for pair in found.differences
    ]
    of = f", of {counted(found.groups, 'group')}" if found.groups else ""
    return "\n".join(
        [
            text_table(("head", "accuracy", "log loss"), heads),
            "",
            text_table(("difference", "accuracy", "log loss", "right alone", "McNemar's p"), pairs),
            "",
            f"{counted(found.rows, 'row')} of {printable(found.features)}{of}; 95 % intervals",
            *(f"note     {note}" for note in found.notes),
        ]
    )


def _signed(found: Interval) -> str:
    if found["low"] is None:
        return f"{found['value']:+.3f} ({found['why']})"
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
