"""Extract: image shards in, Parquet features out. Plans, runs, compares plan and parts, writes the totals."""

import pkgutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.extraction.added import note_added, plan_beside
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.output import (
    begin_output,
    check_output,
    close_output,
    keep_touched,
    list_skipped,
    restore_manifest,
)
from pipeline.extraction.plan import Plan, input_bytes, make_plan, take_sample
from pipeline.extraction.progress import Committed, Progress
from pipeline.extraction.summary import Summary, describe_plan, summarise
from pipeline.runners.dataflow import is_template
from pipeline.runners.supervised import tell
from transforms import shards, storage
from transforms.embedding.unit import Job
from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError, UsageError
from transforms.labels.kept import parse_keep
from transforms.network.weights import Weights
from transforms.records import Kept, UnitReport
from transforms.spec import FeatureSpec
from transforms.store.merging import merge_as
from transforms.store.output import Output
from transforms.store.units import Chunk, PlannedUnit, read_todo, unit_id
from transforms.text import one_line, printable

if TYPE_CHECKING:
    import apache_beam as beam


def build(
    root: "beam.Pipeline",
    chunks: Sequence[Chunk],
    job: Job,
    *,
    load: Callable[[Job], Engine] | None = None,
    redo: bool = False,
) -> "beam.PCollection[UnitReport]":
    """Builds the whole graph: units in, reports out.

    Args:
        chunks: Where what is to do is written, from `write_todo`. The graph has no unit in it: runners limit its size.
        job: How to do it.
        load: Makes the engine; by default the one that the job names.
        redo: Units that have a part are done again. Without it a runner that starts the graph anew, because a worker
            was lost, goes on where it was.
    """
    import apache_beam as beam

    from transforms.embedding.extract_units import ExtractUnits

    units = root | "Chunks" >> beam.Create(list(chunks)) | "Units" >> beam.FlatMap(read_todo)
    return units | "ExtractUnits" >> ExtractUnits(job, load or Job.load_engine, redo=redo)


def run(
    options: ExtractOptions,
    *,
    load: Callable[[Job], Engine] | None = None,
    weights: Weights | None = None,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = True,
) -> Summary | None:
    """Extracts features from the inputs that OUT doesn't hold yet.

    Returns:
        What was done; None if the job was only written down (`--template_location`), and OUT stays unfinished until
        the same command runs again after it.

    Args:
        load: Makes the engine; tests inject one without weights.
        weights: Already loaded ones; by default what the options name.
        say: Is called with each line of the plan before any work.
        quiet: No progress on standard error.

    Raises:
        FeaturemillError: With the thing, the cause and the cure. What was committed is kept.
    """
    if options.beam_args or options.runner != "FnApiRunner":
        import apache_beam as beam

        # A wrong runner or option is reported now, not after the work of planning.
        try:
            beam.Pipeline(**beam_settings(options))
        except ValueError as error:
            raise UsageError(f"Beam's options: {one_line(error)}") from error
    with ExitStack() as locks:
        output = main = locks.enter_context(Output(options.beside or options.output).locked())
        fields = replace(options.fields, keep=tuple(parse_keep(text).name for text in options.keep))
        found = shards.find(options.inputs, fields, output=main.folder)
        weights = weights or options.load_weights()
        if options.beside:
            output = locks.enter_context(Output(options.output).locked())
            found = replace(found, skipped=())
        return _extract(output, options, found, weights, main=main, load=load, say=say, quiet=quiet)


def _extract(
    output: Output,
    options: ExtractOptions,
    found: shards.Found,
    weights: Weights,
    *,
    main: Output,
    load: Callable[[Job], Engine] | None,
    say: Callable[[str], None],
    quiet: bool,
) -> Summary | None:
    if output.holds_features and not options.overwrite:
        if output.has_lost_manifest:
            restore_manifest(output, weights)
            say("lost     manifest.json is gone: it is written anew, by what a part says of its spec")
        options = replace(options, pixel_rules=output.manifest.spec.pixel_rules)
    spec = options.spec(weights)
    # The arrays are the engine's matter; here they would only take memory.
    weights = replace(weights, arrays={})
    if options.overwrite:
        output.clear()
        tell(begun=options.output)
    known = output.manifest.kept if output.holds_features else {}
    manifest = check_output(
        output, options, spec, weights, shards.kept_columns(found, () if options.beside else options.keep, known)
    )
    keep = tuple(Kept(name, kind) for name, kind in manifest.kept.items())
    if output.holds_features:
        output.look_at_parts()
        for name, why in output.broken.items():
            say(f"broken   part {printable(name)}: {why}; it is removed, and what it held is done again")
    if "split" not in (main.manifest if options.beside else manifest).added_columns:
        # An OUT begun before there were sides goes on without them.
        found = replace(found, files=tuple(replace(listed, split=None) for listed in found.files))
    plan = _plan(output, options, found, spec, main=main, say=say)
    for line in describe_plan(plan, options, found=found, weights=weights):
        say(line)
    # An unfinished sample is begun anew, which removes the notes of what was under way. Units with failures are done
    # again in each such run, which would crash again at one that is done apart only after a crash.
    apart = bool(options.limit or options.retry_failed)
    job = replace(options.job(weights), added_columns=manifest.between, keep=keep, apart=apart)
    started, began = time.perf_counter(), time.time()
    in_step = not options.beside or output.listing.names == main.listing.names
    if plan.todo or plan.remove or plan.dropped or output.broken or not output.is_whole or not in_step:
        begin_output(output, manifest, plan)
        list_skipped(output, found, options.inputs)
        if plan.todo:
            _run_pipeline(output, options, plan, job, load=load, quiet=quiet)
            if is_template(options.beam_args):
                return None
        if options.beside:
            merge_as(main, output)
        close_output(output, manifest, plan, began=began)
    else:
        list_skipped(output, found, options.inputs)
    return summarise(output, plan, wall_seconds=time.perf_counter() - started)


def _plan(
    output: Output,
    options: ExtractOptions,
    found: shards.Found,
    spec: FeatureSpec,
    *,
    main: Output,
    say: Callable[[str], None],
) -> Plan:
    """Returns what this run does: compares the inputs with what OUT holds, and refuses what it can't go on with."""
    plan = make_plan(
        main,
        found,
        fingerprint=main.manifest.fingerprint if options.beside else spec.fingerprint,
        # A sample reads whole shards from their start: cutting them all up first would cost more than the sample.
        unit_bytes=sys.maxsize if options.limit else options.unit_bytes,
        workers=options.workers,
        say=say,
    )
    if plan.touched:
        keep_touched(main, plan)
    _refuse_stale(plan, main, options)
    if options.beside:
        plan = plan_beside(main, plan, output)
        note_added(main, output)
    return _settle(plan, output, options, spec)


def _refuse_stale(plan: Plan, output: Output, options: ExtractOptions) -> None:
    """Raises FeaturemillError for parts whose input changed, without --prune."""
    if plan.stale and not options.prune:
        named = "; ".join(stale.reason for stale in plan.stale[:3])
        more = f" and {len(plan.stale) - 3} more" if len(plan.stale) > 3 else ""
        gone = any(stale.reason.endswith(" is gone") for stale in plan.stale)
        moved = "; if they were moved, featuremill relocate keeps what was embedded" if gone else ""
        relabelled = any(" had label " in stale.reason or " label_field " in stale.reason for stale in plan.stale)
        labels = ", or --label-from or --label-field so that they have the labels of before" if relabelled else ""
        raise FeaturemillError(
            f"{output} holds {len(plan.stale)} parts whose input is no longer what it was: {named}{more}. "
            f"Pass --prune to remove these parts (what is still there is embedded anew){labels}{moved}"
        )


def _settle(plan: Plan, output: Output, options: ExtractOptions, spec: FeatureSpec) -> Plan:
    """Returns the plan with what --prune, --retry-failed and --limit ask for; touches nothing on disk."""
    plan = replace(plan, remove=plan.remove + tuple(stale.unit_id for stale in plan.stale))
    if options.retry_failed:
        failed = output.failed_ids
        again = tuple(planned for planned in plan.done if planned.unit_id in failed)
        plan = replace(
            plan,
            todo=plan.todo + again,
            # Their parts stay until new ones replace them.
            done=tuple(planned for planned in plan.done if planned.unit_id not in failed),
        )
    if options.limit:
        units = take_sample([planned.unit for planned in plan.todo], options.limit)
        plan = replace(plan, todo=tuple(PlannedUnit(unit_id(unit, spec.fingerprint), unit) for unit in units))
    return plan


def beam_settings(options: ExtractOptions) -> dict[str, Any]:
    """Returns the runner and its options, as `beam.Pipeline` takes them.

    Raises:
        UsageError: Beam has no such runner or option.
    """
    from pipeline.runners.options import beam_options, beam_runner

    places = (*options.inputs, options.output)
    return {
        "runner": beam_runner(options.runner, options.workers),
        "options": beam_options(options.beam_args, runner=options.runner, workers=options.workers, places=places),
    }


def _run_pipeline(
    output: Output, options: ExtractOptions, plan: Plan, job: Job, *, load: Callable[[Job], Engine] | None, quiet: bool
) -> None:
    import apache_beam as beam

    from pipeline.runners.job_server import job_server
    from pipeline.runners.watch import run_watched

    tell(output=options.output)
    theirs = beam_settings(options)
    with job_server(theirs["runner"], theirs["options"]):
        pipeline = beam.Pipeline(**theirs)
        with output.writing():
            chunks = output.write_todo(plan.todo)
        build(pipeline, chunks, job, load=load, redo=options.retry_failed)
        if options.runner != "FnApiRunner":
            # Where the package isn't, a step of ours can't be loaded, and Flink waits minutes for it. This one can.
            check = beam.Map(pkgutil.resolve_name)
            _ = pipeline | "Package" >> beam.Create(["transforms.store.units:CHUNK_UNITS"]) | "IsThere" >> check
        committed = Committed(output, plan.todo)
        try:
            with Progress(committed, units=len(plan.todo), input_bytes=input_bytes(plan.todo), quiet=quiet) as progress:
                run_watched(pipeline, progress.tick)
        finally:
            # A template's job has yet to run, and reads its units from there. What can't be removed now the next run
            # removes; an error here would hide the one that ended this run.
            if not is_template(options.beam_args):
                with suppress(OSError):
                    storage.delete([chunks[0].uri])
