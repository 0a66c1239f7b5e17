"""One kind of head: fitted as planned, its rows scored in one pass, and judged."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.training.fits import FitPlan
from pipeline.training.options import TrainOptions
from pipeline.training.report import LOWER_IS_BETTER, Run, fit_cautions
from transforms import heads
from transforms.evaluation.choosing import Choosing
from transforms.evaluation.intervals import Units, share
from transforms.evaluation.metrics import RowScores, fit_temperature, is_bounded, judge, metric_values, score_rows
from transforms.evaluation.split import Split
from transforms.heads.cells import Rows
from transforms.heads.model import Model, score_slices
from transforms.predictors.head import softmax
from transforms.rows.spooled import SpooledRows
from transforms.rows.table import Table

# Judged vectors are given to a model by this many bytes.
_GATHERED_BYTES = 2**23
# Scores of a point of a learning curve: of more, some rows tell as much.
_LEARNING_NUMBERS = 2**24
# Row numbers, and what judging takes of their scores.
Judged = tuple[np.ndarray, RowScores]


@dataclass(frozen=True)
class Outcome:
    """A kind's run, the model and temperature for the head, and for each fit the rows that chose and that judged."""

    run: Run
    model: Model
    temperature: float
    choosing: "tuple[Judged, ...]"
    judging: "tuple[Judged, ...]"


def run_kind(kind: str, rows: Rows, plan: FitPlan, options: TrainOptions, *, table: Table, parts: Split) -> Outcome:
    """Fits one kind of head as planned and judges it."""
    started = time.perf_counter()
    fitter = Choosing(kind, rows, options.settings)
    choosing, judging, learning = [], [], []
    for number, fit in enumerate(plan.fits):
        model = fitter.fit(fit.train, fit.validation)
        fewer = plan.learning[:-1] if number == 0 else ()
        growing = [fitter.fit(cells, fit.validation, like=model) for cells in fewer]
        numbers, scores, hits = scored([*growing, model], rows, fit.validation)
        if growing:
            some = numbers[:: _step(len(numbers), rows)]
            learning = _learning_points(rows, plan.learning, hits, Units.of(len(some), parts.components[some]))
        temperature = fit_temperature(scores, rows.codes[numbers])
        bounded = is_bounded(scores, rows.codes[numbers], temperature)
        choosing.append((numbers, _row_scores(numbers, scores, temperature, rows, table)))
        chosen = model
        if fit.test:
            # Whatever was chosen by the validation rows is chosen now: they may train too.
            model = fitter.refit(model, (*fit.train, *fit.validation))
            numbers, scores, _ = scored([model], rows, fit.test)
            judging.append((numbers, _row_scores(numbers, scores, temperature, rows, table)))
    if plan.final:
        chosen = fitter.fit(plan.final.train, plan.final.validation)
        numbers, scores, _ = scored([chosen], rows, plan.final.validation)
        temperature = fit_temperature(scores, rows.codes[numbers])
        bounded = is_bounded(scores, rows.codes[numbers], temperature)
        model = fitter.refit(chosen, (*plan.final.train, *plan.final.validation))
    judged = judge_together(judging or choosing, rows, plan, options, table=table, parts=parts)
    curve = [dict(point) for point in chosen.curve]
    run = Run(
        kind=kind,
        settings=dict(model.settings),
        curve=curve,
        learning=learning,
        judged=judged,
        seconds=time.perf_counter() - started,
        cautions=fit_cautions(
            chosen.settings, curve, epochs=options.settings.epochs, patience=options.settings.patience, bounded=bounded
        ),
    )
    if len(options.kinds) > 1:
        run["choice"] = {"metric": options.choose_by, "value": _metric(options.choose_by, choosing, rows)}
    return Outcome(run, model, temperature, tuple(choosing), tuple(judging))


def together(parts: Sequence[Judged]) -> Judged:
    """Returns the rows of several fits as one, with their scores."""
    numbers, scores = zip(*parts, strict=True)
    return np.concatenate(numbers), RowScores(*map(np.concatenate, zip(*scores, strict=True)))


def _metric(name: str, parts: Sequence[Judged], rows: Rows) -> float:
    numbers, scores = together(parts)
    return metric_values(scores, rows.codes[numbers], len(rows.classes))[name]


def chosen_by_fold(outcomes: Sequence[Outcome], rows: Rows, metric: str) -> list[Judged]:
    """Returns how each fold was judged by the kind that its own validation rows chose.

    The kind that is best over all folds was chosen by the judged rows, too: what it says of them would flatter.
    """
    found = []
    for number in range(len(outcomes[0].judging)):
        values = [_metric(metric, outcome.choosing[number : number + 1], rows) for outcome in outcomes]
        best = int(np.argmin(values) if metric in LOWER_IS_BETTER else np.argmax(values))
        found.append(outcomes[best].judging[number])
    return found


def scored(
    models: Sequence[Model], rows: Rows, cells: Sequence[int]
) -> tuple[np.ndarray, SpooledRows, list[np.ndarray]]:
    """Returns (row numbers, the last model's scores, which rows each model gets right) for some cells, in one pass.

    N×C scores of several models would be gigabytes where there are many classes, and take as long as the fit: what is
    right is told of every `_step`-th row.
    """
    found, scores, hits = [], SpooledRows(len(rows.classes)), [[] for _ in models]
    step = _step(int(rows.wanted(cells).sum()), rows)
    for numbers, vectors in _gathered(rows.batches(cells), _GATHERED_BYTES):
        found.append(numbers)
        for part in score_slices(len(numbers), len(rows.classes)):
            tried = slice(part.start + -len(scores) % step, part.stop, step)
            for model, of_model in zip(models[:-1], hits, strict=False):
                guesses = heads.logits(model, vectors[tried]).astype(np.float32).argmax(axis=1)
                of_model.append(guesses == rows.codes[numbers[tried]])
            block = heads.logits(models[-1], vectors[part]).astype(np.float32)
            hits[-1].append(block.argmax(axis=1)[-len(scores) % step :: step] == rows.codes[numbers[tried]])
            scores.add(block)
    return np.concatenate(found), scores, [np.concatenate(blocks) for blocks in hits]


def _step(count: int, rows: Rows) -> int:
    """Returns how far those of so many rows are apart that the points of a learning curve are judged on."""
    return max(1, -(-count * len(rows.classes) // _LEARNING_NUMBERS))


def _row_scores(numbers: np.ndarray, scores: SpooledRows, temperature: float, rows: Rows, table: Table) -> RowScores:
    """Returns what judging takes of some rows' scores, block by block."""
    blocks = []
    for part in score_slices(*scores.shape):
        some = numbers[part]
        probabilities = softmax(scores[part], temperature)
        blocks.append(score_rows(probabilities, rows.codes[some], keys=table.keys.take(some)))
    return RowScores(*map(np.concatenate, zip(*blocks, strict=True)))


def _gathered(batches: Iterator[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches put together to so many bytes: a few judged rows among many come in crumbs, and knn compares each
    batch with all that it stores."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for numbers, vectors in batches:
        waiting.append((numbers, vectors))
        if sum(v.nbytes for _, v in waiting) >= size:
            yield tuple(map(np.concatenate, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield tuple(map(np.concatenate, zip(*waiting, strict=True)))


def _learning_points(
    rows: Rows, sets: Sequence[Sequence[int]], hits: Sequence[np.ndarray], units: Units
) -> list[dict[str, Any]]:
    """Returns {"rows", "accuracy", "low", "high"} for each set of training cells; where unknown, None and "why"."""
    points = []
    for cells, of_set in zip(sets, hits, strict=True):
        found = share(of_set, units)
        points.append({"rows": int(rows.counts(cells).sum()), "accuracy": found.pop("value"), **found})
    return points


def judge_together(
    judged: Sequence[Judged], rows: Rows, plan: FitPlan, options: TrainOptions, *, table: Table, parts: Split
) -> dict[str, Any]:
    """Returns what `judge` says of the rows of several fits."""
    numbers, scores = together(judged)
    return judge(
        scores,
        rows.codes[numbers],
        rows.classes,
        keys=table.keys.take(numbers),
        groups=parts.components[numbers],
        seed=options.settings.seed,
        judged_on=plan.judged_on,
        heads=len(plan.fits),
    )
