"""Train: stored features in, a judged head out. Open, split, fit, judge, save."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.training.facts import describe_data, label_origin
from pipeline.training.fits import CHUNKS, FitPlan, plan_fits
from pipeline.training.options import TrainOptions
from pipeline.training.report import Run, metrics_text, ranking, report_html, verdict
from transforms import heads, storage
from transforms.committed import held
from transforms.engines.versions import library_versions
from transforms.evaluation.metrics import RowScores, fit_temperature, judge, score_rows
from transforms.evaluation.scores import Scores
from transforms.evaluation.split import SIDES, Split, split
from transforms.heads.cells import Rows
from transforms.heads.model import Model, score_slices
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, save_head, softmax
from transforms.rows.labels import Joined, encode_as, join_labels, read_labels
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table, open_table
from transforms.store.output import Output
from transforms.text import counted, printable, short, shown

# The column of an OUT with the sides of its folders.
SPLIT_COLUMN = "split"

# Judged vectors are given to a model by this many bytes.
_GATHERED_BYTES = 2**23
# Sums per cell are D×D: with more of them than this, ridge does without the cells of a learning curve.
_LEARNING_BYTES = 2**30


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        head: The best one, as saved.
        runs: One for each kind, in the order asked for.
        facts: What the report says of the data, in words.
        output: HEAD.
    """

    head: Head
    runs: tuple[Run, ...]
    facts: dict[str, str]
    output: str

    def __repr__(self) -> str:
        return shown(trained_text(self))


def train(options: TrainOptions, *, say: Callable[[str], None] = lambda line: None) -> Trained:
    """Trains heads on stored features, judges them on rows they haven't seen, and saves the best.

    Args:
        options: What was asked for.
        say: Is called with each line on the data and on progress.

    Raises:
        FeaturemillError: With the thing, the cause and the cure. HEAD is written whole or not at all.
    """
    with held(options.output, parents=True):
        return _train(options, say)


def _train(options: TrainOptions, say: Callable[[str], None]) -> Trained:
    check_place(options.output, overwrite=options.overwrite)
    options, table, joined = _with_stored_sides(options, say)
    parts = _split(table, options)
    plan = plan_fits(parts, learning=options.learning_curve and _learning_fits(table, options))
    rows = make_rows(table, plan.cells)
    facts = describe_data(table, joined, parts, rows)
    for name, fact in facts.items():
        say(f"{name:<9}{fact}")
    outcomes = []
    for kind in options.kinds:
        outcomes.append(run_kind(kind, rows, plan, options, table=table, parts=parts))
        say(f"{kind:<9}fitted in {outcomes[-1].run['seconds']:.1f} s")
    runs = tuple(outcome.run for outcome in outcomes)
    best = outcomes[runs.index(ranking(runs)[0])]
    origin = label_origin(table, joined)
    head = _head(best, rows.classes, table, parts, options, runs, origin)
    page = report_html(f"Head {best.run['kind']}", runs, facts)
    save_head(head, options.output, files={"report.html": page.encode()}, overwrite=options.overwrite)
    return Trained(head, runs, facts, options.output)


def split_table(options: TrainOptions) -> "tuple[Table, Joined | None, Split]":
    """Opens the features, with labels from a file where one is named, and splits them as the options say."""
    table, joined = _labelled_table(options)
    return table, joined, _split(table, options)


def _split(table: Table, options: TrainOptions) -> Split:
    return split(
        table,
        validation=options.validation,
        test=options.test,
        folds=options.folds,
        seed=options.settings.seed,
        near=options.near_duplicates,
    )


def _with_stored_sides(
    options: TrainOptions, say: Callable[[str], None]
) -> "tuple[TrainOptions, Table, Joined | None]":
    """Opens the features; the options then name the split column of an OUT whose folders gave sides.

    It is used unless another split was asked for, and if it says for every labelled row where it belongs, and there are
    rows to train on and others.
    """
    told = options.split_column is not None or options.folds is not None or options.test > 0
    if told or not _has_sides(options.features):
        return options, *_labelled_table(options)
    asked = replace(options, split_column=SPLIT_COLUMN)
    table, joined = _labelled_table(asked)
    found = pc.unique(pc.filter(table.sides, table.labels.is_valid())).to_pylist()
    if set(found) <= set(SIDES) and "train" in found and len(found) > 1:
        say(f"{'sides':<9}as column {SPLIT_COLUMN} says; --split-column '' splits by chance")
        return asked, table, joined
    # Whoever extracted the training side alone expects no other.
    if set(found) - {None} and found != ["train"]:
        why = "not all rows with a label have one" if None in found else "none to train on, or no other"
        say(f"{'sides':<9}by chance, not as column {SPLIT_COLUMN} says: {why}")
    return options, replace(table, sides=None, sides_from=""), joined


def _has_sides(features: str) -> bool:
    is_output = storage.stat(storage.join(features, "manifest.json")) is not None
    return is_output and SPLIT_COLUMN in Output(features).manifest.added_columns


def _labelled_table(options: TrainOptions) -> "tuple[Table, Joined | None]":
    key_column = options.key_column or DEFAULT_KEY
    features = partial(open_table, options.features, columns=options.columns, key_column=key_column)
    names = {"group_column": options.group_column, "split_column": options.split_column}
    if not options.labels:
        return features(label_column=options.label_column or DEFAULT_LABEL, **names), None

    file = read_labels(options.labels, key_column=options.key_column, label_column=options.label_column, **names)
    # What the file has the features needn't have; only an update looks whether they do.
    if options.labels_mode == "replace":
        names = {name: column for name, column in names.items() if column not in file.columns.values()}
    table = features(labels_file=options.labels, optional=file.columns.values(), **names)
    (table,), joined = join_labels([table], file, mode=options.labels_mode)
    return table, joined


def _learning_fits(table: Table, options: TrainOptions) -> bool:
    """Tells whether what the kinds hold for each cell of a learning curve leaves room in memory."""
    dims, rows = table.vectors.dims, table.vectors.rows
    cells = (options.folds or 3) * CHUNKS
    return all(cells * heads.kind_of(kind).cell_bytes(rows, dims) <= _LEARNING_BYTES for kind in options.kinds)


def make_rows(table: Table, cells: np.ndarray) -> Rows:
    """Returns the labelled rows in their cells; the classes are the labels of the rows that are used."""
    used = pc.filter(table.labels, pa.array(cells >= 0))
    classes = tuple(sorted(pc.unique(used).drop_null().to_pylist()))
    return Rows(table.vectors, encode_as(table.labels, classes), cells, classes)


@dataclass(frozen=True)
class Outcome:
    """A kind's run, and the model and temperature for the head."""

    run: Run
    model: Model
    temperature: float


def run_kind(kind: str, rows: Rows, plan: FitPlan, options: TrainOptions, *, table: Table, parts: Split) -> Outcome:
    """Fits one kind of head as planned and judges it."""
    started = time.perf_counter()
    fitter = heads.fitter(kind, rows, options.settings)
    judged, learning = [], []
    for number, fit in enumerate(plan.fits):
        model = fitter.fit(fit.train, fit.validation)
        growing = [fitter.fit(cells, fit.validation) for cells in plan.learning[:-1]] if number == 0 else []
        numbers, scores, shares = _scored([*growing, model], rows, fit.validation)
        if growing:
            learning = _learning_points(rows, plan.learning, shares)
        temperature = fit_temperature(scores, rows.codes[numbers])
        chosen = model
        if fit.test:
            # Whatever was chosen by the validation rows is chosen now: they may train too.
            model = fitter.refit(model, (*fit.train, *fit.validation))
            numbers, scores, _ = _scored([model], rows, fit.test)
        judged.append((numbers, _row_scores(numbers, scores, temperature, rows, table)))
    if plan.final:
        chosen = fitter.fit(plan.final.train, plan.final.validation)
        numbers, scores, _ = _scored([chosen], rows, plan.final.validation)
        temperature = fit_temperature(scores, rows.codes[numbers])
        model = fitter.refit(chosen, (*plan.final.train, *plan.final.validation))
    run = Run(
        kind=kind,
        settings=dict(model.settings),
        curve=[dict(point) for point in chosen.curve],
        learning=learning,
        judged=_judge(judged, rows, plan, options, table=table, parts=parts),
        seconds=time.perf_counter() - started,
    )
    return Outcome(run, model, temperature)


def _scored(models: Sequence[Model], rows: Rows, cells: Sequence[int]) -> tuple[np.ndarray, Scores, list[float]]:
    """Returns (row numbers, the last model's scores, the share that each model gets right) for some cells, in one pass.

    N×C scores of several models would be gigabytes where there are many classes.
    """
    found, scores, right = [], Scores(len(rows.classes)), [0] * len(models)
    for numbers, vectors in _gathered(rows.batches(cells), _GATHERED_BYTES):
        found.append(numbers)
        for part in score_slices(len(numbers), len(rows.classes)):
            for number, model in enumerate(models):
                block = heads.logits(model, vectors[part]).astype(np.float32)
                right[number] += int((block.argmax(axis=1) == rows.codes[numbers[part]]).sum())
            scores.add(block)
    return np.concatenate(found), scores, [count / len(scores) for count in right]


def _row_scores(numbers: np.ndarray, scores: Scores, temperature: float, rows: Rows, table: Table) -> RowScores:
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


def _learning_points(rows: Rows, sets: Sequence[Sequence[int]], shares: Sequence[float]) -> list[dict[str, float]]:
    return [
        {"rows": int(rows.counts(cells).sum()), "accuracy": share} for cells, share in zip(sets, shares, strict=True)
    ]


def _judge(
    judged: Sequence[tuple[np.ndarray, RowScores]],
    rows: Rows,
    plan: FitPlan,
    options: TrainOptions,
    *,
    table: Table,
    parts: Split,
) -> dict[str, Any]:
    numbers = np.concatenate([n for n, _ in judged])
    keys, codes = table.keys.take(numbers), rows.codes[numbers]
    return judge(
        RowScores(*map(np.concatenate, zip(*(scores for _, scores in judged), strict=True))),
        codes,
        rows.classes,
        keys=keys,
        groups=parts.components[numbers],
        seed=options.settings.seed,
        judged_on=plan.judged_on,
    )


def _head(
    best: Outcome,
    classes: tuple[str, ...],
    table: Table,
    parts: Split,
    options: TrainOptions,
    runs: Sequence[Run],
    origin: dict[str, Any],
) -> Head:
    # Without seconds: the same seed and data give the same head, bit for bit.
    compared = [{"kind": run["kind"], "metrics": run["judged"]["metrics"]} for run in runs]
    metrics = {
        **best.run["judged"],
        "curve": best.run["curve"],
        "learning": best.run["learning"],
        **({"compared": compared} if len(runs) > 1 else {}),
    }
    return Head(
        model=best.model,
        classes=classes,
        temperature=best.temperature,
        columns=table.columns,
        dims=table.dims,
        spec=table.spec,
        weights=table.weights,
        weights_are_random=table.weights_are_random,
        source=table.location,
        split={**parts.report, "options": _split_options(options), "labels": origin},
        metrics=metrics,
        versions=library_versions(),
    )


def _split_options(options: TrainOptions) -> dict[str, Any]:
    """Returns what `finetune` needs to split the same rows in the same way again."""
    names = ("labels", "labels_mode", "label_column", "key_column", "group_column", "split_column")
    names += ("validation", "test", "folds")
    values = asdict(options)
    return {**{name: values[name] for name in names}, "near": options.near_duplicates, "seed": options.settings.seed}


def trained_text(trained: Trained) -> str:
    """Returns the result for people: the ranking if there is one, the verdict, what is confused, where it lies."""
    best = next(run for run in trained.runs if run["kind"] == trained.head.model.kind)
    lines = [metrics_text(trained.runs), f"{best['kind']}: {verdict(best['judged'])}"]
    lines += [
        f"  {counted(pair['rows'], 'row')} of {short(pair['true'])!r} taken for {short(pair['predicted'])!r}, such as "
        f"{printable(pair['keys'][0])}"
        for pair in best["judged"]["most_confused"][:3]
    ]
    return "\n".join([*lines, f"{trained.output}: head.json, head.npz, metrics.json, report.html"])


def trained_json(trained: Trained) -> dict[str, Any]:
    """Returns the result for programs."""
    return {
        "output": trained.output,
        "kind": trained.head.model.kind,
        "fingerprint": trained.head.fingerprint,
        "facts": trained.facts,
        "runs": [dict(run) for run in trained.runs],
    }
