"""Finetune: a trained head and the upper layers of its network, trained on from a stored tap or from images."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.end_to_end.data import TuningData, check_head, check_spec, make_plan, open_data, open_weights
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.end_to_end.steps import Steps
from pipeline.training.report import (
    LOWER_IS_BETTER,
    Run,
    cautions,
    choice_metric,
    fit_cautions,
    judged_how,
    metrics_text,
    report_html,
    verdict,
)
from transforms import storage
from transforms.committed import held
from transforms.end_to_end.checkpoint import checkpoint_of, read_checkpoint, write_checkpoint
from transforms.end_to_end.inputs import mirrored
from transforms.end_to_end.plan import TuningPlan
from transforms.end_to_end.tuning import Batches, Tuning, TuningNetwork, tune
from transforms.engines.versions import library_versions
from transforms.errors import FeaturemillError
from transforms.evaluation.choosing import Choosing
from transforms.evaluation.metrics import RowScores, fit_temperature, is_bounded, judge, score_rows
from transforms.heads import kind_of
from transforms.heads.cells import HeldVectors, Rows
from transforms.heads.model import Model, dense_arrays, dense_layers, log_losses, score_slices
from transforms.network.bases import base_of
from transforms.network.weights import Weights, digest, load_weights
from transforms.predictors import trained_rows
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, load_head, save_head, softmax
from transforms.rows.spooled import SpooledRows
from transforms.store.features import Features, open_features
from transforms.store.predictions import output_behind
from transforms.text import counted

# {whether the base is from a user's file: the file of the tuned one}.
_WEIGHT_FILES = {False: "base.weights.h5", True: "base.keras"}
# Steps over which the learning rate rises, where an epoch isn't longer.
_WARM_UP = 100


@dataclass(frozen=True)
class FinetuneSummary:
    """The result of a fine-tuning.

    Attributes:
        output: The new HEAD.
        head: As saved.
        runs: The head that it started from and, if an epoch was better, what became of it, judged on the same rows.
        plan: What was trained, and from where.
        tuning: Epochs, first loss and best epoch.
        record: What the new head's settings say of it: choices, whether classes were weighed, frozen layers and their
            hash, layers that are still random, {"before", "after"}: {side: {"rows", "accuracy", "log_loss"}} of the
            validation and test rows, each with the temperature that suits it.
        facts: What the report says of the data, in words.
    """

    output: str
    head: Head
    runs: tuple[Run, ...]
    plan: TuningPlan
    tuning: Tuning
    record: dict[str, Any]
    facts: dict[str, str]


def finetune(
    options: FinetuneOptions, *, say: Callable[[str], None] = lambda line: None, quiet: bool = True
) -> FinetuneSummary:
    """Trains the upper layers of a head's network, and the head on them, and saves both as a new head.

    It starts from a head of the same kind that is fitted on the rows that train here; that one is kept where no epoch
    has a smaller log loss on the rows that choose. A head that was trained with class weights is tuned with them: the
    losses that train, stop and choose are weighted. After each epoch a checkpoint is written beside the new head, which
    is removed at the end. Ctrl-C saves the best epoch so far, and leaves the checkpoint.

    Args:
        say: Is called with each line on the data and on progress.
        quiet: No progress within an epoch on standard error.

    Raises:
        UsageError: Layers that can't be unfrozen.
        FeaturemillError: With the thing, the cause and the cure. HEAD is written whole or not at all.
        KeyboardInterrupt: Ctrl-C before an epoch was done, or while the result was judged.
    """
    checkpoint = checkpoint_of(options.output)
    with held(options.output, checkpoint, parents=True):
        try:
            return _finetune(options, checkpoint, say, quiet=quiet)
        except KeyboardInterrupt:
            if storage.stat(checkpoint):
                say(f"{checkpoint} is kept: the same command with --resume goes on")
            raise


def _finetune(options: FinetuneOptions, checkpoint: str, say: Callable[[str], None], *, quiet: bool) -> FinetuneSummary:
    replaces = _check_places(options, checkpoint)
    head = load_head(options.head)
    check_head(head, options)
    features = open_features(output_behind(options.features))
    check_spec(head.spec, features)
    plan = make_plan(head, features, options)
    weights = open_weights(head, features, plan, options)
    data = open_data(head, features, plan, options)
    asked = _asked(options, plan, features, data)
    begun = read_checkpoint(checkpoint, asked) if options.resume else None
    for name, fact in data.facts.items():
        say(f"{name:<9}{fact}")
    network = TuningNetwork(plan, weights.arrays, batch_size=options.batch_size)
    start = _start(head, network, data)
    network.put_head(
        dense_layers(start),
        start.transform,
        dropout=kind_of(start.kind).dropout,
        learning_rate=options.learning_rate,
        warm_up=max(_WARM_UP, -(-int(data.wanted(*data.fit.train).sum()) // options.batch_size)),
        seed=options.seed,
        class_weights=data.class_weights,
    )
    before = _scored(network, data)
    temperature, start_loss = _calibrated(_gathered(_of_cells(before, data, data.fit.validation), data), data)
    # From here on, softmax gives the head's probabilities.
    *others, (kernel, bias) = network.dense()
    network.set_dense([*others, (kernel / temperature, bias / temperature)])
    if begun:
        say(f"{'resumed':<9}after epoch {len(begun.tuning.epochs)}, of {checkpoint}")
    else:
        storage.delete([checkpoint])
    train = data.wanted(*data.fit.train)

    def batches(epoch: int) -> Batches:
        # From the number of the epoch alone, whatever came before: a resumed one is as it would have been.
        found = data.rows.batches(train, options.batch_size, seed=options.seed + epoch)
        return mirrored(found, len(train), seed=options.seed + epoch) if options.mirror else found

    with Steps(steps=-(-int(train.sum()) // options.batch_size), epochs=options.epochs, quiet=quiet) as steps:
        tuning = tune(
            network,
            train=batches,
            validate=lambda: _calibrated(_gathered(_logits(network, data, data.fit.validation), data), data)[1],
            start_loss=start_loss,
            codes=data.rows.codes,
            epochs=options.epochs,
            patience=options.patience,
            say=say,
            begun=begun,
            keep=lambda reached: write_checkpoint(checkpoint, reached, asked),
            tick=steps.tick,
        )
    if tuning.interrupted:
        say(f"interrupted: judging and saving {_best_text(tuning)}; Ctrl-C again leaves that to --resume")
    judged = _Start(start, temperature, before)
    summary = _close(head, plan, weights, data, network, tuning, judged, replace(options, overwrite=replaces), asked)
    if not tuning.interrupted:
        storage.delete([checkpoint])
    return summary


def _check_places(options: FinetuneOptions, checkpoint: str) -> bool:
    """Checks that there is something to go on with, or nothing in the way; returns whether to replace a head."""
    is_begun = storage.stat(checkpoint) is not None
    if is_begun and not options.overwrite and _is_done(options.output, checkpoint):
        storage.delete([checkpoint])
        check_place(options.output, overwrite=False)
    if options.resume and not is_begun:
        raise FeaturemillError(
            f"{checkpoint} isn't there, so there is nothing to go on with; run the same command without --resume"
        )
    if is_begun and not (options.resume or options.overwrite):
        raise FeaturemillError(
            f"{checkpoint} is of a training that was cut off; go on with it by --resume, or begin anew with --overwrite"
        )
    replaces = options.overwrite
    if options.resume and storage.stat(storage.join(options.output, "head.json")):
        # What Ctrl-C kept of this training gives way to what becomes of it.
        replaces = replaces or bool(load_head(options.output).model.settings.get("finetuned", {}).get("interrupted"))
    check_place(options.output, overwrite=replaces)
    return replaces


def _is_done(output: str, checkpoint: str) -> bool:
    """Tells whether the head that is there came of the checkpoint's training, which was killed before it removed it."""
    if not storage.stat(storage.join(output, "head.json")):
        return False
    model = load_head(output).model
    record = model.settings.get("finetuned", {})
    if "asked" not in record or record.get("interrupted"):
        return False
    try:
        reached = read_checkpoint(checkpoint, record["asked"])
    except FeaturemillError:
        return False
    return _curve(reached.tuning) == tuple(model.curve)


def _curve(tuning: Tuning) -> tuple[dict[str, float], ...]:
    return tuple({name: point[name] for name in ("epoch", "loss", "validation_loss")} for point in tuning.epochs)


def _asked(options: FinetuneOptions, plan: TuningPlan, features: Features, data: TuningData) -> dict[str, Any]:
    """Returns what decides the results of a training: options, and hashes of head, features and rows."""
    head = hashlib.sha256(storage.read_bytes(storage.join(options.head, "head.json"))).hexdigest()
    decisive = ("unfreeze", "learning_rate", "batch_size", "epochs", "patience", "seed", "mirror")
    return {
        **{f"--{name.replace('_', '-')}": getattr(options, name) for name in decisive},
        "source": plan.column or "images",
        "head": head,
        "features": features.fingerprint,
        "rows, labels and split": data.sha256,
        # A checkpoint of before, when classes weren't weighed, isn't gone on with.
        **({"class weights": True} if data.settings.class_weights else {}),
    }


def _start(head: Head, network: TuningNetwork, data: TuningData) -> Model:
    """Returns a head of the same kind and settings, fitted on the rows that train here and on no other.

    The stored one may know the rows that are to judge: `train` fits it on validation rows too, with folds on all rows,
    and the rows here may be others than it had.
    """
    used = np.isin(data.cells, [*data.fit.train, *data.fit.validation])
    if data.vectors is not None:
        rows = Rows(data.vectors, data.rows.codes, np.where(used, data.cells, -1), data.classes)
    else:
        batches = data.rows.batches(used, network.batch_size)
        numbers, vectors = zip(*((some, network.vectors(inputs)) for some, inputs in batches), strict=True)
        some, held = np.concatenate(numbers), HeldVectors(np.concatenate(vectors), head.dims)
        rows = Rows(held, data.rows.codes[some], data.cells[some], data.classes)
    return Choosing(head.model.kind, rows, data.settings).fit(data.fit.train, data.fit.validation)


# Row numbers, and their logits.
_Blocks = Iterable[tuple[np.ndarray, np.ndarray]]
_Scored = tuple[np.ndarray, SpooledRows]


@dataclass(frozen=True)
class _Start:
    """The head that the training began with, its temperature, and its scores of all rows that choose or judge."""

    model: Model
    temperature: float
    scored: _Scored


def _logits(network: TuningNetwork, data: TuningData, cells: Sequence[int]) -> _Blocks:
    """Yields (row numbers, n×C float32) of some cells, batch by batch."""
    for numbers, inputs in data.rows.batches(data.wanted(*cells), network.batch_size):
        yield numbers, network.logits(inputs)


def _scored(network: TuningNetwork, data: TuningData) -> _Scored:
    """Returns the logits of all rows that choose or judge."""
    return _gathered(_logits(network, data, (*data.fit.validation, *data.fit.test)), data)


def _gathered(blocks: _Blocks, data: TuningData) -> _Scored:
    found, scores = [], SpooledRows(len(data.classes))
    for numbers, logits in blocks:
        found.append(numbers)
        scores.add(logits)
    return np.concatenate(found), scores


def _of_cells(scored: _Scored, data: TuningData, cells: Sequence[int]) -> _Blocks:
    numbers, scores = scored
    wanted = data.wanted(*cells)
    for part in score_slices(*scores.shape):
        some = numbers[part]
        inside = wanted[some]
        if inside.any():
            yield some[inside], scores[part][inside]


def _calibrated(scored: _Scored, data: TuningData) -> tuple[float, float]:
    """Returns the temperature that suits some rows best, and their log loss at it, with the head's class weights; NaN
    where scores are no numbers."""
    numbers, scores = scored
    if not all(np.isfinite(scores[part]).all() for part in score_slices(*scores.shape)):
        return 1.0, np.nan
    temperature = fit_temperature(scores, data.rows.codes[numbers])
    found = ((numbers[part], scores[part]) for part in score_slices(*scores.shape))
    return temperature, _log_loss(found, data, temperature, data.class_weights)


def _log_loss(blocks: _Blocks, data: TuningData, temperature: float, weights: np.ndarray | None = None) -> float:
    losses, codes = [], []
    for numbers, logits in blocks:
        codes.append(data.rows.codes[numbers])
        losses.append(log_losses(logits / temperature, codes[-1]))
    each = None if weights is None else weights[np.concatenate(codes)]
    return float(np.average(np.concatenate(losses), weights=each))


def _figures(scored: _Scored, temperature: float, data: TuningData) -> dict[str, dict[str, float]]:
    """Returns {side: {"rows", "accuracy", "log_loss"}}."""
    found = {}
    for side, cells in (("validation", data.fit.validation), ("test", data.fit.test)):
        if cells:
            blocks = _of_cells(scored, data, cells)
            right = np.concatenate([logits.argmax(axis=1) == data.rows.codes[numbers] for numbers, logits in blocks])
            loss = _log_loss(_of_cells(scored, data, cells), data, temperature)
            found[side] = {"rows": len(right), "accuracy": float(right.mean()), "log_loss": loss}
    return found


def _close(
    head: Head,
    plan: TuningPlan,
    weights: Weights,
    data: TuningData,
    network: TuningNetwork,
    tuning: Tuning,
    start: _Start,
    options: FinetuneOptions,
    asked: dict[str, Any],
) -> FinetuneSummary:
    """Judges what the network is now, proves that the frozen layers are what they were, and saves the new head."""
    after = _scored(network, data)
    # Of its own scores: that of the start would suit them as little as theirs it.
    validated = _gathered(_of_cells(after, data, data.fit.validation), data)
    temperature, loss = _calibrated(validated, data)
    kept = not tuning.best_epoch
    never_trained = list(head.never_trained if kept else data.never_trained)
    file = network.weight_file()
    new = _read_back(file, plan, head.spec.backbone)
    sides = {
        "before": _figures(start.scored, start.temperature, data),
        "after": _figures(after, temperature, data),
    }
    record = {
        **_record(plan, tuning, options),
        "class_weights": data.settings.class_weights,
        # By which a checkpoint that was left beside the head is known to be its own.
        "asked": asked,
        "never_trained": never_trained,
        "frozen_sha256": _prove_frozen(weights, new, plan),
        **sides,
    }
    curve = _curve(tuning)
    kind, settings = head.model.kind, {**start.model.settings, "finetuned": record}
    model = Model(kind, dense_arrays(network.dense()), settings, curve, start.model.transform)
    seconds = sum(point["seconds"] + point["validation_seconds"] for point in tuning.epochs)
    metric = "weighted_log_loss" if data.settings.class_weights else "log_loss"
    judged = _judge(start.scored, start.temperature, data, options)
    first = _run(start.model, judged, kind, 0.0, {"metric": metric, "value": tuning.start_loss})
    runs: tuple[Run, ...] = (first,)
    if not kept:
        judged = _judge(after, temperature, data, options)
        runs += (_run(model, judged, f"{kind}, fine-tuned", seconds, {"metric": metric, "value": loss}),)
    numbers, scores = validated
    runs[-1]["cautions"] = fit_cautions(
        {"epochs": tuning.best_epoch},
        curve,
        epochs=options.epochs,
        patience=options.patience,
        bounded=is_bounded(scores, data.rows.codes[numbers], temperature),
    )
    doubts = _doubts(tuning, runs, weighted=data.settings.class_weights)
    facts = {**data.facts, **({"CAUTION": "; ".join(doubts)} if doubts else {})}
    tuned = replace(
        head,
        model=model,
        temperature=temperature,
        spec=replace(head.spec, weights=new.sha256),
        weights=_WEIGHT_FILES[base_of(head.spec.backbone).is_file],
        weights_are_random=head.weights_are_random if kept else bool(data.never_trained),
        source=data.table.location,
        split={**data.parts.report, "options": data.split_options, "labels": data.origin},
        metrics={**runs[-1]["judged"], "curve": list(curve), "learning": [], "before": runs[0]["judged"]},
        versions=library_versions(),
    )
    page = report_html(f"Head {kind}, fine-tuned", runs, facts)
    rows = trained_rows.rows_file(data.table, replace(data.parts, sides=data.sides))
    files = {tuned.weights: file, "report.html": page.encode(), trained_rows.FILE: rows}
    save_head(tuned, options.output, files=files, overwrite=options.overwrite)
    return FinetuneSummary(options.output, tuned, runs, plan, tuning, record, facts)


def _read_back(file: bytes, plan: TuningPlan, backbone: str) -> Weights:
    """Returns the weights as whoever uses the head will read them."""
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(file)
        copy.flush()
        return load_weights(copy.name, plan.table, backbone=backbone)


def _prove_frozen(old: Weights, new: Weights, plan: TuningPlan) -> str:
    """Returns the hash of the frozen layers' arrays, once both have the same, bit for bit."""
    hashes = [digest({name: weights.arrays[name] for name in plan.frozen}) for weights in (old, new)]
    if hashes[0] != hashes[1]:
        raise FeaturemillError(
            f"frozen layers have other weights than before ({hashes[0][:12]} became {hashes[1][:12]}): "
            "this is a fault of featuremill, please report it; nothing was written"
        )
    return hashes[0]


def _record(plan: TuningPlan, tuning: Tuning, options: FinetuneOptions) -> dict[str, Any]:
    return {
        "head": options.head,
        "unfreeze": options.unfreeze,
        "from": plan.column or "images",
        "trained": list(plan.trained),
        "frozen": list(plan.frozen),
        **{name: getattr(options, name) for name in ("learning_rate", "batch_size", "patience", "seed", "mirror")},
        "epochs": len(tuning.epochs),
        "best_epoch": tuning.best_epoch,
        "first_loss": tuning.first_loss,
        "start_loss": tuning.start_loss,
        **({"interrupted": True} if tuning.interrupted else {}),
    }


def _doubts(tuning: Tuning, runs: Sequence[Run], *, weighted: bool) -> list[str]:
    """Returns what speaks against the result, in sentences."""
    found = []
    if tuning.interrupted:
        found.append(
            f"interrupted: this is {_best_text(tuning)}, of {counted(len(tuning.epochs), 'epoch')}; "
            "the same command with --resume goes on"
        )
    if not tuning.best_epoch:
        found.append(_kept_text(tuning, runs[0]))
    elif worse := _worse_text(*(run["judged"] for run in runs), weighted=weighted):
        found.append(worse)
    return found


def _best_text(tuning: Tuning) -> str:
    return f"epoch {tuning.best_epoch}" if tuning.best_epoch else "the start"


def _worse_text(before: Mapping[str, Any], after: Mapping[str, Any], *, weighted: bool) -> str:
    """Returns by which metrics the result is worse than its start on the judged rows; empty if by none."""
    names = ("balanced_accuracy",) if weighted else ("accuracy", "log_loss")
    pairs = {name: [judged["metrics"][name]["value"] for judged in (before, after)] for name in names}
    worse = [
        f"{name.replace('_', ' ')} {new:.4f} after {old:.4f}"
        for name, (old, new) in pairs.items()
        if (new > old if name in LOWER_IS_BETTER else new < old)
    ]
    if not worse:
        return ""
    return (
        f"worse than the start on the {after['rows']:,} {after['judged_on']} rows: {' and '.join(worse)}; fewer "
        "layers, a lower --learning-rate, --mirror or more rows may do better"
    )


def _kept_text(tuning: Tuning, start: Run) -> str:
    best = min(point["validation_loss"] for point in tuning.epochs)
    losses = f"{choice_metric(start)} {tuning.start_loss:.4f}, at best {best:.4f} after an epoch"
    return (
        f"no epoch was better than the start on the validation rows ({losses}): the network stays as it was, with the "
        "head that it started from"
    )


def _run(model: Model, judged: dict[str, Any], name: str, seconds: float, choice: dict[str, Any]) -> Run:
    curve = [dict(point) for point in model.curve]
    run = Run(kind=name, settings=dict(model.settings), curve=curve, learning=[], judged=judged, seconds=seconds)
    return Run(**run, choice=choice)


def _judge(scored: _Scored, temperature: float, data: TuningData, options: FinetuneOptions) -> dict[str, Any]:
    found, judged = [], []
    for some, logits in _of_cells(scored, data, data.fit.judged):
        found.append(some)
        keys = data.table.keys.take(some)
        judged.append(score_rows(softmax(logits, temperature), data.rows.codes[some], keys=keys))
    numbers = np.concatenate(found)
    codes = data.rows.codes[numbers]
    return judge(
        RowScores(*map(np.concatenate, zip(*judged, strict=True))),
        codes,
        data.classes,
        keys=data.table.keys.take(numbers),
        groups=data.parts.components[numbers],
        seed=options.seed,
        judged_on="test" if data.fit.test else "validation",
    )


def finetuned_text(summary: FinetuneSummary) -> str:
    """Returns the result for people: both heads beside each other, the verdict, what stayed, where it lies."""
    plan, tuning, after = summary.plan, summary.tuning, summary.runs[-1]
    doubts = _doubts(tuning, summary.runs, weighted=summary.record["class_weights"])
    trained = f"{counted(len(plan.trained), 'layer')} with weights trained"
    if plan.frozen:
        frozen = counted(len(plan.frozen), "frozen layer")
        trained += f"; {frozen} unchanged, bit for bit ({summary.record['frozen_sha256'][:12]})"
    return "\n".join(
        [
            metrics_text(summary.runs),
            f"{after['kind']}: {verdict(after['judged'])}",
            *(
                [
                    f"epoch {tuning.best_epoch} of {len(tuning.epochs)} was the best; the loss of the first step was "
                    f"{tuning.first_loss:.4f}"
                ]
                if tuning.best_epoch
                else []
            ),
            *(f"  CAUTION: {each}" for each in [*doubts, *cautions(after, after["judged"])]),
            *(f"  {sentence}" for sentence in judged_how(summary.runs, after["judged"])),
            trained,
            f"{summary.output}: head.json, head.npz, metrics.json, {trained_rows.FILE}, report.html, "
            f"{summary.head.weights}",
        ]
    )


def finetuned_json(summary: FinetuneSummary) -> dict[str, Any]:
    """Returns the result for programs."""
    return {
        "output": summary.output,
        "kind": summary.head.model.kind,
        "fingerprint": summary.head.fingerprint,
        "facts": summary.facts,
        "finetuned": summary.record,
        "epochs": list(summary.tuning.epochs),
        "runs": [{**run, "cautions": cautions(run, run["judged"])} for run in summary.runs],
    }
