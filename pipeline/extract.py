"""Extract: image shards in, Parquet features out. Plan, run, reconcile, close the books."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline import books
from pipeline.options import ExtractOptions
from pipeline.plan import Plan, input_bytes, make_plan, take_sample
from pipeline.progress import Committed, Progress
from pipeline.summary import Summary, describe_plan, summarise
from transforms import shards, storage
from transforms.engines import Engine
from transforms.features import FeatureSpec, open_features, read_manifest
from transforms.parts import failures_uri, part_uri
from transforms.recipe import Job
from transforms.records import FeaturemillError, UnitReport
from transforms.units import PlannedUnit, unit_id, write_plan
from transforms.weights import Weights

if TYPE_CHECKING:
    import apache_beam as beam

# What a run writes at the top of OUT; --overwrite removes these and nothing else.
OUTPUT_FILES = ("manifest.json", "plan.parquet", "units.parquet")
OUTPUT_FOLDERS = ("features", "failures", "_tmp")


def build(
    root: "beam.Pipeline", units: Sequence[PlannedUnit], job: Job, *, load: Callable[[Job], Engine] | None = None
) -> "beam.PCollection[UnitReport]":
    """Builds the whole graph: units in, reports out.

    Args:
        root: A pipeline.
        units: What to do. A listing's files stay in OUT's plan, so that an element is some hundred bytes.
        job: How to do it.
        load: Makes the engine; by default the one that the job names.
    """
    import apache_beam as beam

    from transforms.extract_units import ExtractUnits, load_job_engine

    light = [PlannedUnit(planned.unit_id, replace(planned.unit, files=())) for planned in units]
    return root | "Units" >> beam.Create(light) | "ExtractUnits" >> ExtractUnits(job, load or load_job_engine)


def run(
    options: ExtractOptions,
    *,
    load: Callable[[Job], Engine] | None = None,
    weights: Weights | None = None,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = True,
) -> Summary:
    """Extracts features from the inputs that OUT doesn't hold yet.

    Args:
        options: What was asked for.
        load: Makes the engine; tests inject one without weights.
        weights: Already loaded ones; by default what the options name.
        say: Is called with each line of the plan before any work.
        quiet: No progress on standard error.

    Raises:
        FeaturemillError: With the thing, the cause and the cure. What was committed is kept.
    """
    if options.beam_args or options.runner != "FnApiRunner":
        from pipeline.beam_options import beam_options, beam_runner

        # A wrong runner or option is said now, not after the work of planning.
        beam_runner(options), beam_options(options)
    found = shards.find(options.inputs, options.fields)
    weights = weights or options.load_weights()
    spec = options.spec(weights)
    if options.overwrite:
        clear(options.output)
    manifest = _check_output(options, spec, weights)
    done = _part_ids(options.output)
    plan = make_plan(
        options.output,
        found,
        fingerprint=spec.fingerprint,
        # A sample reads whole shards from their start: cutting them all up first would cost more than the sample.
        unit_bytes=sys.maxsize if options.limit else options.unit_bytes,
        workers=options.workers,
        parts=done,
    )
    plan = _settle(plan, options, spec)
    for line in describe_plan(plan, options, found=found, weights=weights):
        say(line)
    job = Job(
        output=options.output,
        spec=spec,
        sizes=options.sizes,
        weights=options.weights,
        include_top=options.include_top,
        engine=options.engine,
        batch_size=options.engine_batch_size,
        threads=options.engine_threads,
        max_pixels=options.max_pixels,
    )
    started = time.perf_counter()
    if plan.todo or manifest["status"] != "complete" or plan.dropped or plan.stale:
        manifest["inputs"] = list(dict.fromkeys([*manifest["inputs"], *options.inputs]))
        _open(options.output, manifest, plan)
        if plan.todo:
            _run_pipeline(options, plan, job, load=load, quiet=quiet)
        manifest = _close(options.output, manifest, plan)
    return summarise(options.output, manifest, plan, wall_seconds=time.perf_counter() - started)


def _part_ids(output: str) -> set[str]:
    names = storage.list_folder(storage.join(output, "features"))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def clear(output: str) -> None:
    """Removes what a run wrote to OUT, and nothing else.

    Raises:
        FeaturemillError: OUT has such names but no manifest: they aren't ours to remove.
    """
    if not holds_features(output):
        return
    read_manifest(output)
    for folder in OUTPUT_FOLDERS:
        storage.remove_tree(storage.join(output, folder))
    storage.delete(storage.join(output, name) for name in OUTPUT_FILES)


def holds_features(output: str) -> bool:
    """True if OUT has anything under the names that a run writes; other files there are no concern of ours."""
    return bool(storage.list_folder(output) & set(OUTPUT_FILES)) or storage.is_folder(storage.join(output, "features"))


def _check_output(options: ExtractOptions, spec: FeatureSpec, weights: Weights) -> dict[str, Any]:
    """Returns OUT's manifest, or that of a new OUT.

    Raises:
        FeaturemillError: OUT holds something that this run can't continue.
    """
    output = options.output
    if not holds_features(output):
        return books.new_manifest(
            spec, weights=weights.origin, weights_are_random=weights.is_random, limit=options.limit
        )
    manifest = read_manifest(output)
    if manifest["fingerprint"] != spec.fingerprint:
        differences = _differences(manifest, spec, weights)
        raise FeaturemillError(
            f"{output} was made with other settings (there | now): {'; '.join(differences)}. "
            "Choose another --output, the old settings, or --overwrite"
        )
    if manifest["sample_limit"] or options.limit:
        what = f"is a sample of {manifest['sample_limit']} images" if manifest["sample_limit"] else "is not a sample"
        raise FeaturemillError(
            f"{output} {what}, and --limit makes samples that no run continues; use --overwrite or another --output"
        )
    return manifest


def _differences(manifest: dict[str, Any], spec: FeatureSpec, weights: Weights) -> list[str]:
    there, now = FeatureSpec(**{**manifest["spec"], "features": ()}), spec
    lines = [
        f"{name} {getattr(there, name)} | {value}"
        for name, value in asdict(now).items()
        if name not in ("features", "weights") and getattr(there, name) != value
    ]
    old_features = [f"{f['name']}={f['tap']}:{f['pool']}" for f in manifest["spec"]["features"]]
    new_features = [str(feature) for feature in spec.features]
    if old_features != new_features:
        lines.append(f"features {' '.join(old_features)} | {' '.join(new_features)}")
    if there.weights != spec.weights:
        lines.append(f"weights {manifest['weights']} ({there.weights[:12]}) | {weights.origin} ({spec.weights[:12]})")
    return lines


def _settle(plan: Plan, options: ExtractOptions, spec: FeatureSpec) -> Plan:
    """Does to the plan what --prune, --retry-failed and --limit ask for.

    Raises:
        FeaturemillError: Parts whose input changed, without --prune.
    """
    output = options.output
    if plan.stale and not options.prune:
        named = "; ".join(stale.reason for stale in plan.stale[:3])
        more = f" and {len(plan.stale) - 3} more" if len(plan.stale) > 3 else ""
        raise FeaturemillError(
            f"{output} holds {len(plan.stale)} parts whose input is no longer what it was: {named}{more}. "
            "Pass --prune to remove these parts (what is still there is embedded anew)"
        )
    _remove_parts(output, [stale.planned for stale in plan.stale])
    if options.retry_failed:
        failed = storage.list_folder(storage.join(output, "failures"))
        again = tuple(planned for planned in plan.done if f"{planned.unit_id}.parquet" in failed)
        _remove_parts(output, again)
        plan = replace(
            plan, todo=plan.todo + again, done=tuple(planned for planned in plan.done if planned not in again)
        )
    if options.limit:
        units = take_sample([planned.unit for planned in plan.todo], options.limit)
        plan = replace(plan, todo=tuple(PlannedUnit(unit_id(unit, spec.fingerprint), unit) for unit in units))
    return plan


def _remove_parts(output: str, units: Sequence[PlannedUnit]) -> None:
    # The parts first: a part without its failures would be a book that doesn't balance, the reverse is only unfinished.
    storage.delete(part_uri(output, planned.unit_id) for planned in units)
    storage.delete(failures_uri(output, planned.unit_id) for planned in units)


def _open(output: str, manifest: dict[str, Any], plan: Plan) -> None:
    """Makes OUT's folders, says in the manifest that a run is under way, and writes the plan."""
    try:
        for folder in ("features", "failures", "_tmp"):
            storage.make_folder(storage.join(output, folder))
    except OSError as error:
        raise FeaturemillError(
            f"cannot write to {output}: {storage.one_line(error)}; choose another --output or mend the permissions"
        ) from error
    books.write_manifest(output, {**manifest, "status": "running"})
    write_plan(output, plan.units)


def _run_pipeline(
    options: ExtractOptions, plan: Plan, job: Job, *, load: Callable[[Job], Engine] | None, quiet: bool
) -> None:
    import apache_beam as beam

    from pipeline.beam_options import beam_options, beam_runner
    from pipeline.watch import run_watched

    pipeline = beam.Pipeline(runner=beam_runner(options), options=beam_options(options))
    build(pipeline, plan.todo, job, load=load)
    committed = Committed(options.output, plan.todo)
    with Progress(committed, units=len(plan.todo), input_bytes=input_bytes(plan.todo), quiet=quiet) as progress:
        run_watched(pipeline, progress.tick)


def _close(output: str, manifest: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Compares plan with parts, writes units.parquet, and says "complete".

    Raises:
        FeaturemillError: A planned unit has no part.
    """
    parts = _part_ids(output)
    unit_ids = [planned.unit_id for planned in plan.units]
    missing = [name for name in unit_ids if name not in parts]
    if missing:
        raise FeaturemillError(
            f"{len(missing)} of {len(unit_ids)} units have no part in {output}, such as {missing[0]}; "
            "run the same command again"
        )
    reports = books.collect_reports(output, unit_ids, fresh={planned.unit_id for planned in plan.todo})
    books.write_units(output, reports)
    totals = books.add_up(reports)
    manifest = {
        **manifest,
        "status": "complete",
        "totals": asdict(totals),
        "failures": dict(books.failures_by_reason(output, reports)),
        "repeats": None,
    }
    if totals.rows_embedded <= books.REPEATS_UP_TO_ROWS:
        manifest["repeats"] = asdict(books.find_repeats(open_features(output)))
    books.write_manifest(output, manifest)
    _tidy(output, set(unit_ids))
    return manifest


def _tidy(output: str, unit_ids: set[str]) -> None:
    """Removes what killed writers left in _tmp, but not what another run on the same OUT may be writing."""
    folder = storage.join(output, "_tmp")
    ours = ("manifest.json", "plan", "units.parquet")
    storage.delete(
        storage.join(folder, name)
        for name in storage.list_folder(folder)
        if name.startswith(ours) or re.sub(r"\.[0-9a-f]{32}\..*$", "", name) in unit_ids
    )
