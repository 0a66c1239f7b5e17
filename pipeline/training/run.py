"""Train: stored features in, a judged head out. Open, split, fit, judge, save."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.training.errors import JudgedRows, errors_html
from pipeline.training.facts import describe_data, label_origin
from pipeline.training.fits import CHUNKS, FitPlan, plan_fits
from pipeline.training.options import TrainOptions
from pipeline.training.report import (
    LOWER_IS_BETTER,
    Run,
    abstaining_text,
    cautions,
    fit_cautions,
    fold_notes,
    judged_how,
    metrics_text,
    ranking,
    report_html,
    verdict,
)
from transforms import heads
from transforms.committed import held
from transforms.engines.versions import library_versions
from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.abstaining import kept_confidences, selective, threshold_of
from transforms.evaluation.choosing import Choosing
from transforms.evaluation.dealing import DEALING
from transforms.evaluation.intervals import Units, share
from transforms.evaluation.metrics import RowScores, fit_temperature, is_bounded, judge, metric_values, score_rows
from transforms.evaluation.split import SIDES, Split, split
from transforms.heads.cells import Rows
from transforms.heads.far import measure_far
from transforms.heads.model import Model, score_slices
from transforms.predictors import trained_rows
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, load_head, save_head, softmax
from transforms.rows.labels import Joined, encode_as, join_labels, read_labels
from transforms.rows.spooled import CopiedVectors, SpooledRows
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table, open_stored, open_table
from transforms.store.features import Features
from transforms.store.layout import ERRORS_FILE
from transforms.text import counted, printable, short, shown

if TYPE_CHECKING:
    from pipeline.training.suspects import SuspectOptions

# The column of an OUT with the sides of its folders.
SPLIT_COLUMN = "split"

# Judged vectors are given to a model by this many bytes.
_GATHERED_BYTES = 2**23
# Sums per cell are D×D: with more of them than this, ridge does without the cells of a learning curve.
_LEARNING_BYTES = 2**30
# Scores of a point of a learning curve: of more, some rows tell as much.
_LEARNING_NUMBERS = 2**24


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        head: The best one, as saved.
        runs: One for each kind, in the order asked for.
        facts: What the report says of the data, in words.
        errors: Whether it has a page with its errors.
    """

    head: Head
    runs: tuple[Run, ...]
    facts: dict[str, str]
    output: str
    errors: bool

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
    if options.split_column and options.test:
        # Heads from before record such pairs, and are fine-tuned on.
        raise UsageError(
            "--split-column says which rows judge, and --test-fraction would draw them; give one of them "
            "(--split-column '' splits by chance)"
        )
    check_place(options.output, overwrite=options.overwrite)
    options, table, joined = _with_stored_sides(options, say)
    decoded = replace(table, vectors=CopiedVectors(table.vectors))
    parts = _split(decoded, options, folds=options.folds, kept=bool(options.test_of))
    plan = plan_fits(parts, learning=options.learning_curve and _learning_fits(table, options))
    rows = make_rows(decoded, plan.cells)
    facts = describe_data(table, joined, parts, rows)
    for name, fact in facts.items():
        say(f"{name:<9}{fact}")
    outcomes = []
    for kind in options.kinds:
        outcomes.append(run_kind(kind, rows, plan, options, table=table, parts=parts))
        run = outcomes[-1].run
        say(f"{kind:<9}fitted in {run['seconds']:.1f} s, transform {run['settings']['transform']}")
    runs = tuple(outcome.run for outcome in outcomes)
    best = outcomes[runs.index(ranking(runs)[0])]
    judged, judging = best.run["judged"], best.judging or best.choosing
    if len(outcomes) > 1 and plan.judged_on == "folds":
        judging = _chosen_by_fold(outcomes, rows, options.choose_by)
        judged = _judge(judging, rows, plan, options, table=table, parts=parts)
    if plan.judged_on == "folds":
        # What stands beside each run's figures, too, is of the head that is stored.
        for found in (judged, *(run["judged"] for run in runs)):
            found["notes"] = fold_notes(best.run["kind"])
    confidences = kept_confidences(_together(best.choosing)[1].top)
    judged = {**judged, "confidences": confidences}
    if options.abstains:
        threshold = threshold_of(confidences, options.abstain) if options.threshold is None else options.threshold
        numbers, scores = _together(judging)
        right = scores.predicted == rows.codes[numbers]
        judged["abstaining"] = selective(scores.top, right, parts.components[numbers], threshold, heads=len(plan.fits))
        facts["unknown"] = abstaining_text(judged["abstaining"])
    far = None
    if options.flag_far is not None:
        fit, seed = plan.final or plan.fits[0], options.settings.seed
        transform = best.model.transform
        far = measure_far(rows, fit.train, fit.validation, transform, rate=options.flag_far, seed=seed)
        judged["far"] = {"distance": far.distance, "rate": options.flag_far}
        facts["far"] = (
            f"rows over a distance of {far.distance:.3f} are flagged, by {counted(len(far.vectors), 'training row')}"
        )
    origin = label_origin(table, joined)
    head = _head(best, judged, rows.classes, table, parts, options, runs, origin)
    if far:
        head = replace(head, far_vectors=far.vectors)
    files = {}
    if options.errors:
        numbers, scores = _together(judging)
        shown = JudgedRows([table], numbers, scores, rows.codes[numbers], parts.components[numbers], len(plan.fits))
        files[ERRORS_FILE] = errors_html(f"Errors of {best.run['kind']}", judged, shown, facts)
    files["report.html"] = report_html(
        f"Head {best.run['kind']}", runs, facts, judged=judged, errors=ERRORS_FILE if files else ""
    )
    files = {name: page.encode("utf-8", "replace") for name, page in files.items()}
    files[trained_rows.FILE] = trained_rows.rows_file(table, parts)
    save_head(head, options.output, files=files, overwrite=options.overwrite)
    return Trained(head, runs, facts, options.output, errors=options.errors)


def split_table(
    options: TrainOptions, features: Features | str, kept: pa.Table | None = None
) -> "tuple[Table, Joined | None, Split]":
    """Returns the features, with labels from a file where one is named, split as the options say.

    Args:
        options: What was asked for.
        features: OUT, opened, or a name of other Parquet.
        kept: From `trained_rows.read_rows`: these rows stay on their sides, those that belong to them are beside them,
            and all others train. Of none of them the options alone say how to split.
    """
    table, joined = labelled_table(options, features)
    sides = _kept_sides(table, kept) if kept is not None else None
    if sides is None:
        table, joined = _with_test_rows(options, table, joined)
        return table, joined, _split(table, options, folds=options.folds, kept=bool(options.test_of))
    table = replace(table, sides=sides)
    return table, joined, _split(table, options, folds=None, kept=True)


def _kept_sides(table: Table, kept: pa.Table) -> pa.ChunkedArray | None:
    """Returns the side of each row as another head had it; None where that had none of these rows."""
    sides = trained_rows.sides_of(table, kept)
    return None if sides.null_count == len(sides) else sides


def _split(table: Table, options: TrainOptions, *, folds: int | None, kept: bool) -> Split:
    return split(
        table,
        validation=options.validation,
        test=options.test,
        folds=folds,
        seed=options.settings.seed,
        near=options.near_duplicates,
        kept=kept,
    )


def _with_stored_sides(
    options: TrainOptions, say: Callable[[str], None]
) -> "tuple[TrainOptions, Table, Joined | None]":
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


# Row numbers, and what judging takes of their scores.
_Judged = tuple[np.ndarray, RowScores]


@dataclass(frozen=True)
class Outcome:
    """A kind's run, the model and temperature for the head, and for each fit the rows that chose and that judged."""

    run: Run
    model: Model
    temperature: float
    choosing: "tuple[_Judged, ...]"
    judging: "tuple[_Judged, ...]"


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
    judged = _judge(judging or choosing, rows, plan, options, table=table, parts=parts)
    curve = [dict(point) for point in chosen.curve]
    run = Run(
        kind=kind,
        settings=dict(model.settings),
        curve=curve,
        learning=learning,
        judged=judged,
        seconds=time.perf_counter() - started,
        cautions=fit_cautions(
            chosen.settings,
            curve,
            epochs=options.settings.epochs,
            patience=options.settings.patience,
            bounded=bounded,
        ),
    )
    if len(options.kinds) > 1:
        run["choice"] = {"metric": options.choose_by, "value": _metric(options.choose_by, choosing, rows)}
    return Outcome(run, model, temperature, tuple(choosing), tuple(judging))


def _together(parts: Sequence[_Judged]) -> _Judged:
    numbers, scores = zip(*parts, strict=True)
    return np.concatenate(numbers), RowScores(*map(np.concatenate, zip(*scores, strict=True)))


def _metric(name: str, parts: Sequence[_Judged], rows: Rows) -> float:
    numbers, scores = _together(parts)
    return metric_values(scores, rows.codes[numbers], len(rows.classes))[name]


def _chosen_by_fold(outcomes: Sequence[Outcome], rows: Rows, metric: str) -> list[_Judged]:
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
    """Returns {"rows", "accuracy", "low", "high"} for each set of training cells, the last two None where unknown."""
    points = []
    for cells, of_set in zip(sets, hits, strict=True):
        found = share(of_set, units)
        point = {"rows": int(rows.counts(cells).sum()), "accuracy": found["value"]}
        points.append({**point, "low": found["low"], "high": found["high"]})
    return points


def _judge(
    judged: Sequence[_Judged], rows: Rows, plan: FitPlan, options: TrainOptions, *, table: Table, parts: Split
) -> dict[str, Any]:
    numbers, scores = _together(judged)
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


def _head(
    best: Outcome,
    judged: dict[str, Any],
    classes: tuple[str, ...],
    table: Table,
    parts: Split,
    options: TrainOptions,
    runs: Sequence[Run],
    origin: dict[str, Any],
) -> Head:
    # Without seconds: the same seed and data give the same head, bit for bit.
    compared = [{"kind": run["kind"], "metrics": run["judged"]["metrics"], "choice": run.get("choice")} for run in runs]
    metrics = {
        **judged,
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
        fingerprints=table.fingerprints,
        weights=table.weights,
        weights_are_random=table.weights_are_random,
        source=table.location,
        split={**parts.report, "options": _split_options(options), "labels": origin},
        metrics=metrics,
        versions=library_versions(),
    )


def _split_options(options: TrainOptions) -> dict[str, Any]:
    """Returns what `finetune` needs to split the same rows in the same way again, and to fit such a head on them."""
    names = ("labels", "labels_mode", "label_column", "key_column", "group_column", "split_column")
    names += ("validation", "test", "folds", "test_of")
    values = asdict(options)
    more = {"near": options.near_duplicates, "seed": options.settings.seed, "dealing": DEALING}
    more["settings"] = values["settings"]
    return {**{name: values[name] for name in names}, **more}


def trained_text(trained: Trained) -> str:
    """Returns the result for people: the ranking if there is one, the verdict, what is confused, where it lies."""
    best = next(run for run in trained.runs if run["kind"] == trained.head.model.kind)
    judged = trained.head.metrics
    lines = [metrics_text(trained.runs), f"{best['kind']}: {verdict(judged)}"]
    lines += [f"  CAUTION: {caution}" for caution in cautions(best, judged)]
    lines += [f"  {abstaining_text(judged['abstaining'])}"] if "abstaining" in judged else []
    lines += [f"  {sentence}" for sentence in judged_how(trained.runs, judged)]
    lines += [
        f"  {counted(pair['rows'], 'row')} of {short(pair['true'])!r} taken for {short(pair['predicted'])!r}, such as "
        f"{printable(pair['keys'][0])}"
        for pair in judged["most_confused"][:3]
    ]
    pages = "report.html, errors.html" if trained.errors else "report.html"
    return "\n".join([*lines, f"{trained.output}: head.json, head.npz, metrics.json, {trained_rows.FILE}, {pages}"])


def trained_json(trained: Trained) -> dict[str, Any]:
    """Returns the result for programs."""
    return {
        "output": trained.output,
        "kind": trained.head.model.kind,
        "fingerprint": trained.head.fingerprint,
        "facts": trained.facts,
        "runs": [{**run, "cautions": cautions(run, run["judged"])} for run in trained.runs],
    }
