"""Finetune: a trained head and the upper layers of its network, trained on from a stored tap or from images."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.end_to_end.data import TuningData, check_head, check_spec, make_plan, open_data, open_weights
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.training.report import Run, metrics_text, report_html, verdict
from transforms.committed import held
from transforms.end_to_end.plan import TuningPlan
from transforms.end_to_end.tuning import Tuning, TuningNetwork, tune
from transforms.engines.versions import library_versions
from transforms.errors import FeaturemillError
from transforms.evaluation.metrics import fit_temperature, judge, score_rows
from transforms.heads import kind_of
from transforms.heads.model import Model, dense_arrays, dense_layers, log_losses
from transforms.network.weights import Weights, digest, load_weights
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, load_head, save_head, softmax
from transforms.store.features import open_features
from transforms.text import counted

WEIGHT_FILE = "base.weights.h5"


@dataclass(frozen=True)
class FinetuneSummary:
    """The result of a fine-tuning.

    Attributes:
        output: The new HEAD.
        head: As saved.
        runs: The head as it was and as it is, judged on the same rows.
        plan: What was trained, and from where.
        tuning: Epochs, first loss and best epoch.
        record: What the new head's settings say of it: choices, frozen layers and their hash, layers that are still
            random, {"before", "after"}: {side: {"rows", "accuracy", "log_loss"}} of the validation and test rows.
        facts: What the report says of the data, in words.
    """

    output: str
    head: Head
    runs: tuple[Run, Run]
    plan: TuningPlan
    tuning: Tuning
    record: dict[str, Any]
    facts: dict[str, str]


def finetune(options: FinetuneOptions, *, say: Callable[[str], None] = lambda line: None) -> FinetuneSummary:
    """Trains the upper layers of a head's network, and the head on them, and saves both as a new head.

    Args:
        options: What was asked for.
        say: Is called with each line on the data and on progress.

    Raises:
        UsageError: Layers that can't be unfrozen.
        FeaturemillError: With the thing, the cause and the cure. HEAD is written whole or not at all.
    """
    with held(options.output, parents=True):
        check_place(options.output, overwrite=options.overwrite)
        head = load_head(options.head)
        check_head(head, options)
        features = open_features(options.features)
        check_spec(head.spec, features)
        plan = make_plan(head, features, options)
        weights = open_weights(head, features, plan, options)
        data = open_data(head, features, plan, options)
        for name, fact in data.facts.items():
            say(f"{name:<9}{fact}")
        network = TuningNetwork(
            plan,
            weights.arrays,
            _calibrated(head),
            dropout=kind_of(head.model.kind).dropout,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        )
        before = _logits(network, data)
        tuning = tune(
            network,
            train=lambda epoch: data.rows.batches(
                data.wanted(*data.fit.train), options.batch_size, seed=options.seed + epoch
            ),
            validate=lambda: _log_loss(*_logits(network, data, data.fit.validation), data),
            codes=data.rows.codes,
            epochs=options.epochs,
            patience=options.patience,
            say=say,
        )
        return _close(head, plan, weights, data, network, tuning, before, options)


def _calibrated(head: Head) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the head's layers with its temperature in the last, so that softmax gives the head's probabilities."""
    *others, (kernel, bias) = dense_layers(head.model)
    return [*others, (kernel / head.temperature, bias / head.temperature)]


_Scores = tuple[np.ndarray, np.ndarray]


def _logits(network: TuningNetwork, data: TuningData, cells: tuple[int, ...] | None = None) -> _Scores:
    """Returns (row numbers, n×C float32) of some cells; by default of all that choose or judge."""
    wanted = data.wanted(*((*data.fit.validation, *data.fit.test) if cells is None else cells))
    found = [(numbers, network.logits(inputs)) for numbers, inputs in data.rows.batches(wanted, network.batch_size)]
    return np.concatenate([numbers for numbers, _ in found]), np.concatenate([logits for _, logits in found])


def _of_cells(scores: _Scores, data: TuningData, cells: tuple[int, ...]) -> _Scores:
    numbers, logits = scores
    inside = data.wanted(*cells)[numbers]
    return numbers[inside], logits[inside]


def _log_loss(numbers: np.ndarray, logits: np.ndarray, data: TuningData) -> float:
    return float(log_losses(logits, data.rows.codes[numbers]).mean())


def _figures(scores: _Scores, temperature: float, data: TuningData) -> dict[str, dict[str, float]]:
    """Returns {side: {"rows", "accuracy", "log_loss"}}."""
    found = {}
    for side, cells in (("validation", data.fit.validation), ("test", data.fit.test)):
        if cells:
            numbers, logits = _of_cells(scores, data, cells)
            right = logits.argmax(axis=1) == data.rows.codes[numbers]
            loss = _log_loss(numbers, logits / temperature, data)
            found[side] = {"rows": len(numbers), "accuracy": float(right.mean()), "log_loss": loss}
    return found


def _close(
    head: Head,
    plan: TuningPlan,
    weights: Weights,
    data: TuningData,
    network: TuningNetwork,
    tuning: Tuning,
    before: _Scores,
    options: FinetuneOptions,
) -> FinetuneSummary:
    """Judges what the network is now, proves that the frozen layers are what they were, and saves the new head."""
    after = _logits(network, data)
    numbers, logits = _of_cells(after, data, data.fit.validation)
    temperature = fit_temperature(logits, data.rows.codes[numbers])
    file = network.weight_file()
    new = _read_back(file, plan, head.spec.backbone)
    sides = {"before": _figures(before, 1.0, data), "after": _figures(after, temperature, data)}
    record = {
        **_record(plan, tuning, options),
        "never_trained": list(data.never_trained),
        "frozen_sha256": _prove_frozen(weights, new, plan),
        **sides,
    }
    curve = tuple({name: point[name] for name in ("epoch", "loss", "validation_loss")} for point in tuning.epochs)
    settings = {**head.model.settings, "finetuned": record}
    model = Model(head.model.kind, dense_arrays(network.dense()), settings, curve)
    seconds = sum(point["seconds"] + point["validation_seconds"] for point in tuning.epochs)
    runs = (
        _run(head.model, _judge(before, 1.0, data, options), head.model.kind, 0.0),
        _run(model, _judge(after, temperature, data, options), f"{head.model.kind}, fine-tuned", seconds),
    )
    tuned = replace(
        head,
        model=model,
        temperature=temperature,
        spec=replace(head.spec, weights=new.sha256),
        weights=WEIGHT_FILE,
        weights_are_random=bool(data.never_trained),
        source=data.table.location,
        split={**data.parts.report, "options": data.split_options, "labels": data.origin},
        metrics={**runs[1]["judged"], "curve": runs[1]["curve"], "learning": [], "before": runs[0]["judged"]},
        versions=library_versions(),
    )
    page = report_html(f"Head {head.model.kind}, fine-tuned", runs, data.facts)
    files = {WEIGHT_FILE: file, "report.html": page.encode()}
    save_head(tuned, options.output, files=files, overwrite=options.overwrite)
    return FinetuneSummary(options.output, tuned, runs, plan, tuning, record, data.facts)


def _read_back(file: bytes, plan: TuningPlan, backbone: str) -> Weights:
    """Returns the weights as whoever uses the head will read them."""
    with tempfile.NamedTemporaryFile(suffix=".weights.h5") as copy:
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
        **{name: getattr(options, name) for name in ("learning_rate", "batch_size", "patience", "seed")},
        "epochs": len(tuning.epochs),
        "best_epoch": tuning.best_epoch,
        "first_loss": tuning.first_loss,
    }


def _run(model: Model, judged: dict[str, Any], name: str, seconds: float) -> Run:
    curve = [dict(point) for point in model.curve]
    return Run(kind=name, settings=dict(model.settings), curve=curve, learning=[], judged=judged, seconds=seconds)


def _judge(scores: _Scores, temperature: float, data: TuningData, options: FinetuneOptions) -> dict[str, Any]:
    numbers, logits = _of_cells(scores, data, data.fit.judged)
    keys, codes = data.table.keys.take(numbers), data.rows.codes[numbers]
    return judge(
        score_rows(softmax(logits, temperature), codes, keys=keys),
        codes,
        data.classes,
        keys=keys,
        groups=data.parts.components[numbers],
        seed=options.seed,
        judged_on="test" if data.fit.test else "validation",
    )


def finetuned_text(summary: FinetuneSummary) -> str:
    """Returns the result for people: both heads beside each other, the verdict, what stayed, where it lies."""
    plan, tuning, after = summary.plan, summary.tuning, summary.runs[1]
    trained = f"{counted(len(plan.trained), 'layer')} with weights trained"
    if plan.frozen:
        frozen = counted(len(plan.frozen), "frozen layer")
        trained += f"; {frozen} unchanged, bit for bit ({summary.record['frozen_sha256'][:12]})"
    return "\n".join(
        [
            metrics_text(summary.runs),
            f"{after['kind']}: {verdict(after['judged'])}",
            f"epoch {tuning.best_epoch} of {len(tuning.epochs)} was the best; the loss of the first step was "
            f"{tuning.first_loss:.4f}",
            trained,
            f"{summary.output}: head.json, head.npz, metrics.json, report.html, {WEIGHT_FILE}",
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
        "runs": [dict(run) for run in summary.runs],
    }
