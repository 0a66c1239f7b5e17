"""Suspects: rows whose label is probably wrong, by heads that haven't seen them, and by near copies of other labels."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rendering.contact_sheet import Section, row_tile, write_sheet
from pipeline.rendering.tables import row_json, text_table, write_stored_rows
from pipeline.training.fits import plan_fits
from pipeline.training.kinds import scored
from pipeline.training.options import LabelOptions
from pipeline.training.tables import labelled_table, make_rows
from transforms import storage
from transforms.declared import AT_LEAST_ONE, COSINE, SEED, Bound, check, declared
from transforms.evaluation.choosing import Choosing
from transforms.evaluation.confident import Blocks, Doubts, doubts
from transforms.evaluation.metrics import fit_temperature
from transforms.evaluation.split import split
from transforms.heads import KINDS, FitSettings
from transforms.heads.cells import Rows
from transforms.heads.model import score_slices
from transforms.predictors.head import softmax
from transforms.rows.lookup import StoredRow, read_rows
from transforms.rows.spooled import CopiedVectors, SpooledRows
from transforms.rows.table import Table
from transforms.rows.thumbnails import thumbnails
from transforms.similarity.copies import DEFAULT_COSINE, Group, copies
from transforms.storage import readable
from transforms.text import counted

SHOWN = 200
# Of a class with fewer rows no head can be made that hasn't seen one of them.
_LEAST_ROWS = 3
# Of more rows than that, each like the next, the first and the last needn't be alike at all.
_LONGEST = 20
_FOLDS = Bound(lambda folds: 3 <= folds <= 20, "{flag} is 3 to 20, not {value}")


@dataclass(frozen=True, kw_only=True)
class SuspectOptions(LabelOptions):
    """The options of `suspects`."""

    features: str
    kind: str = declared("ridge", help="Kind of head that judges", choices=KINDS, flags=("--head",), metavar="KIND")
    columns: tuple[str, ...] = declared(
        (),
        help="Column of vectors; several are put one behind the other",
        flags=("--feature",),
        metavar="NAME",
        unset="embedding",
    )
    group_column: str | None = declared(
        None, help="Column whose equal values stay in one fold, such as a patient, in --labels FILE or else OUT"
    )
    folds: int = declared(5, help="Judge each row by heads that so many folds but its own made", bounds=(_FOLDS,))
    cosine: float = declared(DEFAULT_COSINE, help="Cosine from which on two rows are near copies", bounds=(COSINE,))
    top: int = declared(SHOWN, help="Show at most so many rows here and on the page", bounds=(AT_LEAST_ONE,))
    seed: int = declared(0, help="Seed of the folds", bounds=(SEED,))
    # As `labelled_table` asks for.
    split_column = None

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "features", storage.absolute(self.features))


@dataclass(frozen=True)
class Suspect:
    """A row whose label is in doubt.

    Attributes:
        row: Its own columns; its label is the one that was judged.
        suggested: The label that it should rather have.
        own, other: The probabilities of its label and of the likeliest other, by a head that hasn't seen the row.
        confident: Whether confident learning doubts it.
        copies: Near copies with other labels.
    """

    row: StoredRow
    suggested: str
    own: float
    other: float
    confident: bool
    copies: int


@dataclass(frozen=True)
class Suspects:
    """The rows whose labels are in doubt, the most doubtful first.

    Attributes:
        table: What was looked at.
        rows: Labelled rows that were judged.
        left_out: Labelled rows of classes with too few rows to judge by.
        found: The suspects.
    """

    table: Table
    rows: int
    left_out: int
    found: tuple[Suspect, ...]
    options: SuspectOptions


def find_suspects(options: SuspectOptions, *, say: Callable[[str], None] = lambda line: None) -> Suspects:
    """Judges each labelled row by a head that hasn't seen it, its exact copies or its group.

    Args:
        say: Is called with a line for each step.

    Raises:
        FeaturemillError: No features, no labels, or too few rows of each class.
    """
    table, _ = labelled_table(options, options.features)
    labels = pc.value_counts(table.labels.drop_null()).to_pylist()
    small = [found["values"] for found in labels if found["counts"] < _LEAST_ROWS]
    left_out = sum(found["counts"] for found in labels if found["counts"] < _LEAST_ROWS)
    judged = table
    if small:
        is_small = pc.is_in(table.labels, value_set=pa.array(small, pa.string()))
        judged = replace(table, labels=pc.if_else(is_small, pa.scalar(None, pa.string()), table.labels))
    groups = copies(judged, options.cosine)
    chains = [group for group in groups if not group.exact and len(group.rows) > _LONGEST]
    if chains:
        rows = sum(len(group.rows) for group in chains)
        say(f"a cosine of {options.cosine:g} connects {rows:,} rows in chains, which aren't taken for copies")
    # Near copies may be in several folds: one that is labelled rightly shows that the other isn't.
    parts = split(judged, validation=0, test=0, folds=options.folds, seed=options.seed, near=None)
    plan = plan_fits(parts, learning=False)
    rows = make_rows(replace(judged, vectors=CopiedVectors(judged.vectors)), plan.cells)
    say(f"judging {int((rows.codes >= 0).sum()):,} labels by {options.folds} heads of kind {options.kind}")
    found = doubts(_blocks(rows, plan.fits, options), rows.codes, len(rows.classes))
    suspects = _suspects(judged, rows, found, [group for group in groups if group.labels > 1 and group not in chains])
    return Suspects(table, int((rows.codes >= 0).sum()), left_out, suspects, options)


def _blocks(rows: Rows, fits: Sequence[Any], options: SuspectOptions) -> Callable[[], Blocks]:
    """Returns what yields all rows with the probabilities that heads give them that haven't seen them."""
    fitter = Choosing(options.kind, rows, FitSettings(seed=options.seed))
    kept: list[tuple[np.ndarray, SpooledRows, float]] = []
    for fit in fits:
        model = fitter.fit(fit.train, fit.validation)
        numbers, scores, _ = scored([model], rows, fit.validation)
        temperature = fit_temperature(scores, rows.codes[numbers])
        numbers, scores, _ = scored([fitter.refit(model, (*fit.train, *fit.validation))], rows, fit.test)
        kept.append((numbers, scores, temperature))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for numbers, scores, temperature in kept:
            for part in score_slices(*scores.shape):
                yield numbers[part], softmax(scores[part], temperature)

    return blocks


def _suspects(table: Table, rows: Rows, found: Doubts, groups: Sequence[Group]) -> tuple[Suspect, ...]:
    suggested = {int(row): int(found.rival[row]) for row in np.flatnonzero(found.confident)}
    others: Counter[int] = Counter()
    for group in groups:
        members = [row for row in group.rows if rows.codes[row] >= 0]
        counts = Counter(int(rows.codes[row]) for row in members)
        # The label that most copies have, of equally many the one that heads doubt least.
        doubt = {code: np.mean([found.margins[row] for row in members if rows.codes[row] == code]) for code in counts}
        best = min(counts, key=lambda code: (-counts[code], doubt[code]))
        for row in members:
            if rows.codes[row] != best:
                suggested[row] = best
                others[row] = len(members) - counts[int(rows.codes[row])]
    order = sorted(suggested, key=lambda row: (-found.margins[row], row))
    stored = read_rows(table, order)
    return tuple(
        Suspect(
            row,
            rows.classes[suggested[number]],
            float(found.own[number]),
            float(found.other[number]),
            bool(found.confident[number]),
            others[number],
        )
        for number, row in zip(order, stored, strict=True)
    )


def _values(number: int, suspect: Suspect) -> dict[str, Any]:
    return {
        "rank": number,
        "suggested": suspect.suggested,
        "own_probability": suspect.own,
        "other_probability": suspect.other,
        "by_heads": suspect.confident,
        "copies_of_other_labels": suspect.copies,
    }


def suspects_json(found: Suspects) -> dict[str, Any]:
    """Returns the suspects for programs."""
    return {
        "output": found.table.location,
        "features": list(found.table.columns),
        "head": found.options.kind,
        "rows": found.rows,
        "left_out": found.left_out,
        "found": [row_json(_values(n, one), one.row) for n, one in enumerate(found.found, 1)],
    }


def suspects_text(found: Suspects) -> str:
    """Returns the suspects for people; of many, the first."""
    shown = found.found[: min(found.options.top, 50)]
    rows = [
        (number, one.row.label, one.suggested, f"{one.own:.3f}", f"{one.other:.3f}", one.copies or "", one.row.key)
        for number, one in enumerate(shown, 1)
    ]
    table = text_table(("", "label", "suggested", "as labelled", "as another", "copies", "key"), rows)
    more = (
        f"… and {len(found.found) - len(shown):,} more; --output FILE.csv has all\n"
        if len(found.found) > len(shown)
        else ""
    )
    return f"{table}\n{more}\n{_headline(found)}" if shown else _headline(found)


def _headline(found: Suspects) -> str:
    by_copies = sum(one.copies > 0 for one in found.found)
    text = f"{len(found.found):,} of {counted(found.rows, 'label')} in doubt, {by_copies:,} of them beside a near copy"
    text += " of another label"
    if found.left_out:
        text += f"; {counted(found.left_out, 'row')} of classes with fewer than {_LEAST_ROWS} rows not judged"
    return text


def write_suspects(found: Suspects, path: str) -> None:
    """Writes all suspects, the most doubtful first; `train --label-column suggested` takes what is written, too.

    Raises:
        FeaturemillError: It can't be written there.
    """
    own = [
        ("rank", pa.int64()),
        ("suggested", pa.string()),
        ("own_probability", pa.float64()),
        ("other_probability", pa.float64()),
        ("by_heads", pa.bool_()),
        ("copies_of_other_labels", pa.int64()),
    ]
    rows = ((_values(number, one), one.row) for number, one in enumerate(found.found, 1))
    write_stored_rows(path, own, found.table.kept, rows)


def write_suspects_page(found: Suspects, path: str) -> None:
    """Writes a contact sheet of the first suspects, on which labels can be corrected.

    Raises:
        FeaturemillError: It can't be written there.
    """
    shown = found.found[: found.options.top]
    images = thumbnails(found.table.output, [one.row for one in shown])
    tiles = tuple(
        row_tile(one.row, images, _caption(number, one), marked=one.copies > 0, suggested=one.suggested)
        for number, one in enumerate(shown, 1)
    )
    note = f"The first {len(shown)} are shown." if len(found.found) > len(shown) else ""
    write_sheet(
        path,
        title=f"Suspects in {readable(found.table.location)}",
        headline=_headline(found),
        facts={
            "features": f"{' + '.join(found.table.columns)} of {found.table.location}",
            "judged by": f"{found.options.kind}, each row by heads that haven't seen it, its exact copies or its group",
            "marked": "near copies of another label",
        },
        sections=[Section("Labels in doubt, the most doubtful first", note, tiles)],
    )


def _caption(number: int, one: Suspect) -> str:
    caption = f"{number}. rather {one.suggested} ({one.other:.2f} to {one.own:.2f})"
    return f"{caption}, {one.copies} near" if one.copies else caption
