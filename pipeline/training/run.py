"""Train: stored features in, a judged head out. Open, split, fit, judge, save."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.training.errors import JudgedRows, errors_html
from pipeline.training.facts import describe_data, label_origin
from pipeline.training.fits import CHUNKS, FitPlan, plan_fits
from pipeline.training.kinds import Outcome, chosen_by_fold, judge_together, run_kind, together
from pipeline.training.options import TrainOptions
from pipeline.training.report import (
    Run,
    abstaining_text,
    cautions,
    fold_notes,
    judged_how,
    metrics_text,
    ranking,
    report_html,
    verdict,
)
from pipeline.training.tables import make_rows, split_as_asked, with_stored_sides
from transforms import heads
from transforms.committed import held
from transforms.engines.versions import library_versions
from transforms.errors import UsageError
from transforms.evaluation.abstaining import kept_confidences, selective, threshold_of
from transforms.evaluation.dealing import DEALING
from transforms.evaluation.split import Split
from transforms.heads.cells import Rows
from transforms.heads.far import measure_far
from transforms.predictors import trained_rows
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, save_head
from transforms.rows.spooled import CopiedVectors
from transforms.rows.table import Table
from transforms.store.layout import ERRORS_FILE
from transforms.text import counted, printable, short, shown

# Sums per cell are D×D: with more of them than this, ridge does without the cells of a learning curve.
_LEARNING_BYTES = 2**30


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
    options, table, joined = with_stored_sides(options, say)
    decoded = replace(table, vectors=CopiedVectors(table.vectors))
    parts = split_as_asked(decoded, options, folds=options.folds, kept=bool(options.test_of))
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
    judged, judging = _judge_best(best, outcomes, rows, plan, options, table=table, parts=parts)
    if options.abstains:
        confidences, scores = judged["confidences"], judging.scores
        threshold = threshold_of(confidences, options.abstain) if options.threshold is None else options.threshold
        right = scores.predicted == judging.codes
        judged["abstaining"] = selective(scores.top, right, judging.groups, threshold, judging.heads)
        facts["unknown"] = abstaining_text(judged["abstaining"])
    far = None
    if options.flag_far is not None:
        fit, how = plan.final or plan.fits[0], {"rate": options.flag_far, "seed": options.settings.seed}
        far = measure_far(rows, fit.train, fit.validation, best.model.transform, **how)
        judged["far"] = {"distance": far.distance, "rate": options.flag_far}
        facts["far"] = (
            f"rows over a distance of {far.distance:.3f} are flagged, by {counted(len(far.vectors), 'training row')}"
        )
    head = _head(best, judged, rows.classes, table, parts, options, runs, label_origin(table, joined))
    if far:
        head = replace(head, far_vectors=far.vectors)
    kind, errors = best.run["kind"], ERRORS_FILE if options.errors else ""
    pages = {ERRORS_FILE: errors_html(f"Errors of {kind}", judged, judging, facts)} if errors else {}
    pages["report.html"] = report_html(f"Head {kind}", runs, facts, judged=judged, errors=errors)
    files = {name: page.encode("utf-8", "replace") for name, page in pages.items()}
    files[trained_rows.FILE] = trained_rows.rows_file(table, parts)
    save_head(head, options.output, files=files, overwrite=options.overwrite)
    return Trained(head, runs, facts, options.output, errors=options.errors)


def _judge_best(
    best: Outcome,
    outcomes: Sequence[Outcome],
    rows: Rows,
    plan: FitPlan,
    options: TrainOptions,
    *,
    table: Table,
    parts: Split,
) -> tuple[dict[str, Any], JudgedRows]:
    """Returns the judgement of the head that is stored, and the rows that judged."""
    judged, judging = best.run["judged"], best.judging or best.choosing
    if plan.judged_on == "folds":
        if len(outcomes) > 1:
            judging = chosen_by_fold(outcomes, rows, options.choose_by)
            judged = judge_together(judging, rows, plan, options, table=table, parts=parts)
        # What stands beside each run's figures, too, is of the head that is stored.
        for found in (judged, *(outcome.run["judged"] for outcome in outcomes)):
            found["notes"] = fold_notes(best.run["kind"])
    confidences = kept_confidences(together(best.choosing)[1].top)
    numbers, scores = together(judging)
    groups = parts.components[numbers]
    judging_rows = JudgedRows([table], numbers, scores, rows.codes[numbers], groups, heads=len(plan.fits))
    return {**judged, "confidences": confidences}, judging_rows


def _learning_fits(table: Table, options: TrainOptions) -> bool:
    """Tells whether what the kinds hold for each cell of a learning curve leaves room in memory."""
    dims, rows = table.vectors.dims, table.vectors.rows
    cells = (options.folds or 3) * CHUNKS
    return all(cells * heads.kind_of(kind).cell_bytes(rows, dims) <= _LEARNING_BYTES for kind in options.kinds)


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
