"""Predict: a head and images or features in, labels and scores out, as Parquet. Open, extract, predict, judge."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.extraction import run as extract
from pipeline.extraction.summary import Summary
from pipeline.prediction import inputs as given
from pipeline.prediction.labelling import Tally, predict_tables
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.source import Opened, Source, open_features, open_source, settings_of
from pipeline.prediction.summary import PredictSummary, seen_text
from pipeline.rendering.tables import write_rows_of
from pipeline.runners.supervised import earlier_output, tell
from pipeline.training.errors import errors_html
from pipeline.training.report import abstaining_text
from transforms import storage
from transforms.committed import held
from transforms.embedding.unit import Job
from transforms.engines.engine import Engine
from transforms.engines.versions import library_versions
from transforms.errors import FeaturemillError
from transforms.network.weights import Weights
from transforms.parquet.files import open_sealed
from transforms.predictors.trained_rows import had_seen, read_rows
from transforms.storage import readable
from transforms.store.manifest import PredictionSettings, PredictionsManifest, PredictionTotals
from transforms.store.output import Output
from transforms.store.predictions import Predictions, output_predicted

# Without PRED, so many rows are predicted and shown.
SHOWN_ROWS = 20


def predict(
    options: PredictOptions,
    *,
    load: Callable[[Job], Engine] | None = None,
    weights: Weights | None = None,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = True,
) -> PredictSummary:
    """Predicts labels of images or of stored features.

    The same command again goes on with images where an unfinished run stopped, and does nothing where PRED is complete
    and the inputs are what they were. Where they changed, all is predicted anew, from kept features as far as their
    images are unchanged.

    Args:
        load: Makes the engine; tests inject one without weights.
        weights: Already loaded ones; by default what head and options name.
        say: Is called with each line of the plan before any work.
        quiet: No progress on standard error.

    Raises:
        FeaturemillError: With the thing, the cause and the cure. What was committed is kept.
    """
    run = partial(extract.run, load=load, say=say, quiet=quiet)
    # Predictions as an input stand for the features that they were made from.
    options = replace(options, inputs=tuple(str(output_predicted(name) or name) for name in options.inputs))
    with ExitStack() as stack:
        folder = options.output
        if options.is_file:
            stack.enter_context(held(options.output))
        if folder is None or options.is_file:
            folder = stack.enter_context(_scratch())
        output = stack.enter_context(Predictions(folder).locked())
        summary = _predict(options, output, run=run, weights=weights, say=say)
        if options.is_file:
            write_rows_of(output.part_files, options.output)
            # Files of the folder that goes now.
            return replace(summary, output=options.output, manifest=replace(summary.manifest, files=None))
        return summary if options.output is not None else replace(summary, output=None, shown=tuple(_rows(output)))


@contextmanager
def _scratch() -> Iterator[str]:
    """Makes a PRED for the time being; after a crash it is the one that was begun, so that its notes aren't lost."""
    earlier = earlier_output()
    folder = os.path.dirname(earlier) if earlier else tempfile.mkdtemp(prefix="featuremill-predict-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(output: Predictions) -> Iterator[dict[str, Any]]:
    for info in storage.list_infos(output.path("predictions")):
        with open_sealed(info.uri, cure="predict again") as parquet:
            yield from parquet.read().to_pylist()


def _predict(
    options: PredictOptions,
    output: Predictions,
    *,
    run: Callable[..., Summary],
    weights: Weights | None,
    say: Callable[[str], None],
) -> PredictSummary:
    started = time.perf_counter()
    # A wrong place is reported before weights are loaded.
    there = output.manifest
    source = open_source(options, output, weights)
    settings = settings_of(options, source)
    inputs_sha256 = given.inputs_sha256(options, features=source.images is None)
    # A file is replaced at the end, and the folder behind it is only there to go on with.
    anew = options.overwrite and not options.is_file
    if there and not anew:
        output.check_settings(settings)
        if _is_done(options, output, inputs_sha256):
            output.tidy()
            metrics = output.metrics if options.evaluate else None
            return PredictSummary(output.folder, there, metrics, (), time.perf_counter() - started, done_before=True)
    manifest = _new_manifest(options, source, settings, inputs_sha256)
    say(f"head     {source.predictor.name}, {len(source.predictor.labels):,} classes")
    # Features are looked at before PRED is touched, so that wrong ones leave nothing behind.
    opened = None if source.images else open_features(options, source, options.inputs)
    if there and anew:
        output.clear(keep_features=_fit(output, source))
    output.begin(manifest)
    if options.output and not options.is_file:
        tell(begun=output.folder)
    manifest, metrics = _fill(options, output, source, opened, manifest, run=run)
    return PredictSummary(output.folder, manifest, metrics, (), time.perf_counter() - started)


def _fill(
    options: PredictOptions,
    output: Predictions,
    source: Source,
    opened: "Opened | None",
    manifest: PredictionsManifest,
    *,
    run: Callable[..., Summary],
) -> tuple[PredictionsManifest, dict[str, Any] | None]:
    """Extracts and predicts into PRED, which has begun; returns the manifest, completed, and the metrics asked for."""
    extracted, limit = None, None if options.output else SHOWN_ROWS
    if source.images:
        extracted = run(replace(source.images, limit=limit), weights=source.weights)
        output.copy_failures()
        locations = [output.features_folder] if extracted.totals.rows_embedded else []
        opened = open_features(options, source, locations)
    try:
        tally = predict_tables(opened.tables, source.predictor, output, kept=opened.kept, options=options, limit=limit)
    except BaseException:
        if not source.images:
            # Nothing here would save the next run any work.
            output.discard()
        raise
    manifest = replace(
        manifest, **_outcome(source, opened, tally, extracted, limit), parts=output.parts, files=tally.seals
    )
    metrics, errors = None, ""
    if options.evaluate:
        kept = read_rows(options.head) if source.head else None
        seen = None if kept is None else np.concatenate([had_seen(table, kept) for table in opened.tables])
        metrics, judged = tally.judge(source.predictor, opened.tables, seen)
        facts = {"head": source.predictor.name, "rows": ", ".join(options.inputs)}
        if "abstaining" in metrics:
            facts["unknown"] = abstaining_text(metrics["abstaining"])
        if "seen" in metrics:
            facts["CAUTION"] = seen_text(metrics["seen"])
        # Before the features go, which know where the images lie.
        errors = errors_html(f"Errors of {readable(source.predictor.name)}", metrics, judged, facts)
    output.finish(manifest, metrics=metrics, errors=errors)
    return output.manifest, metrics


def _new_manifest(
    options: PredictOptions, source: Source, settings: PredictionSettings, inputs_sha256: str
) -> PredictionsManifest:
    return PredictionsManifest(
        head=source.predictor.name,
        settings=settings,
        inputs_sha256=inputs_sha256,
        fingerprint=source.predictor.spec.fingerprint if source.predictor.spec else None,
        classes=list(source.predictor.unique_labels),
        features_kept=options.keep_features,
        totals=None,
        versions=library_versions(),
    )


def _fit(output: Predictions, source: Source) -> bool:
    """Tells whether the features in PRED are those that the images would give now."""
    features = Output(output.features_folder)
    if source.images is None or not features.has_manifest:
        return False
    try:
        stored = features.manifest.fingerprint
    except FeaturemillError:
        return False
    return stored == source.images.spec(source.weights).fingerprint


def _is_done(options: PredictOptions, output: Predictions, inputs_sha256: str) -> bool:
    there = output.manifest
    return (
        there.is_complete
        and there.inputs_sha256 == inputs_sha256
        and there.parts == output.parts
        and output.is_as_written
        and (not options.evaluate or output.metrics is not None)
    )


def _outcome(
    source: Source, opened: Opened, tally: Tally, extracted: Summary | None, limit: int | None
) -> dict[str, Any]:
    """Returns what the manifest says of the predictions."""
    failed = extracted.totals.rows_failed if extracted else 0
    notes = list(opened.notes)
    if limit and max(tally.rows + failed, *(table.vectors.rows for table in opened.tables), 0) >= limit:
        notes.append(f"only the first {limit} are shown; for all of them name a folder with --output")
    if source.weights:
        weights, is_random = source.weights.origin, source.weights.is_random
    else:
        weights = ", ".join(dict.fromkeys(table.weights for table in opened.tables if table.weights))
        is_random = any(table.weights_are_random for table in opened.tables)
    return {
        "totals": PredictionTotals(
            read=tally.rows + failed,
            predicted=tally.rows,
            failed=failed,
            abstained=tally.abstained if source.predictor.threshold else None,
            far=tally.far if source.predictor.far else None,
        ),
        "failures": extracted.failures if extracted else {},
        "predicted_labels": tally.predicted_labels(source.predictor),
        "true_labels": tally.true_labels(),
        "weights": weights,
        "never_trained": list(source.head.never_trained) if source.head and not is_random else [],
        "weights_are_random": is_random or (source.head is not None and source.head.weights_are_random),
        "notes": notes,
    }
