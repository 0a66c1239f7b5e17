"""The plan and the result of a run, in words and numbers."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.extraction.labels import count_labels, describe_labels, look_at_labels, summarise_labels
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.plan import Plan, input_bytes
from transforms import shards
from transforms.engines import device, gpu_notes, passed_over
from transforms.network.weights import Weights
from transforms.shards.names import BY_NAME, HIDDEN, count_by_ending
from transforms.storage import readable
from transforms.store.layout import SKIPPED_FILE
from transforms.store.manifest import Totals
from transforms.store.output import Output
from transforms.store.reports import add_up, note_lines
from transforms.text import counted, shown, shown_within, size_text


@dataclass(frozen=True)
class Summary:
    """The totals of OUT after a run, and those of the run itself.

    Attributes:
        fingerprint: Of the spec.
        weights: Where the weights came from.
        weights_are_random: True if they were never trained.
        sample_limit: N of a sample, else None.
        totals: Over all of OUT.
        this_run: Over the units of this run.
        wall_seconds: Of this run's pipeline, start-up included.
        failures: {`stage: error`: count} over all of OUT.
        notes: {note: records} over all of OUT, see `UnitReport`.
        repeats: Keys and contents seen more than once, None where that wasn't looked for.
        stored_bytes: Of the Parquet parts.
        engines: Which engines embedded this run's units.
        skipped: Files that were met in folders and are no input; OUT/skipped.parquet lists them.
        skipped_endings: {ending, `no ending` or `hidden`: how many of them}, the commonest first.
        labels: {label: rows} over all of OUT; None where that wasn't counted, see `count_labels`.
        unlabelled: Rows without a label, None like `labels`.
    """

    output: str
    fingerprint: str
    weights: str
    weights_are_random: bool
    sample_limit: int | None
    totals: Totals
    this_run: Totals
    wall_seconds: float
    failures: dict[str, int]
    notes: dict[str, int]
    repeats: dict[str, Any] | None
    stored_bytes: int
    engines: tuple[str, ...]
    skipped: int
    skipped_endings: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] | None = None
    unlabelled: int | None = None

    def __repr__(self) -> str:
        return shown(summary_text(self))

    @property
    def failure_rate(self) -> float:
        return self.totals.rows_failed / self.totals.rows_read if self.totals.rows_read else 0.0

    @property
    def images_per_second(self) -> float:
        """Images per second of this run, start-up included."""
        return self.this_run.rows_read / self.wall_seconds if self.wall_seconds else 0.0


def describe_plan(plan: Plan, options: ExtractOptions, *, found: shards.Found, weights: Weights) -> list[str]:
    """Returns what is going to be done, in lines for people."""
    todo_bytes = input_bytes(plan.todo)
    inputs = [
        counted(len(found.shards), "shard") if found.shards else "",
        counted(len(found.files), "image file") if found.files else "",
    ]
    name, size = options.engine_name, options.engine_batch_size
    engine = "auto (each worker chooses)" if name == "auto" else f"{name} on {device(name)}"
    lines = [
        f"inputs   {' and '.join(filter(None, inputs))} matched",
        f"units    {len(plan.todo)} to do ({size_text(todo_bytes)}), {len(plan.done)} done before",
        f"features {', '.join(f'{f} ({options.sizes[f.name]} × {options.dtype})' for f in options.parsed_features)}",
        f"weights  {weights.origin}",
        f"engine   {engine}, {options.precision}, batches {f'of {size}' if size else 'as large as is fastest'}, "
        f"{_workers_text(options)}, {options.runner}",
        f"output   {readable(options.output)}",
    ]
    lines += [f"note     {note}" for note in options.notes]
    if options.engine_name != "auto":
        notes = gpu_notes(options.engine_name, options.spec(weights), options.batch_size)
        if options.engine == "auto":
            notes += passed_over(options.engine_name, options.precision, options.backbone)
        lines += [f"note     {note}" for note in notes]
    if weights.is_random:
        lines.append("CAUTION  these weights were never trained: the features only show that everything works")
    if found.skipped:
        # Those that say the most first.
        skipped = sorted(found.skipped, key=lambda each: (each.reason == HIDDEN, each.reason == BY_NAME))
        such = f", such as {readable(skipped[0].file.uri)} ({shown_within(skipped[0].reason)})"
        lines.append(f"note     {skipped_text(len(skipped), count_by_ending(skipped))}{such}")
    if plan.todo:
        # A look costs requests on a store, for labels that the summary may count anyway.
        lines += describe_labels(look_at_labels(found, options.fields), options, found)
    lines += [f"note     {note}" for note in _changes(plan)]
    if options.workers > 1 and 0 < len(plan.todo) < options.workers:
        lines.append(
            f"note     {counted(len(plan.todo), 'unit')} can't keep {options.workers} workers busy; "
            "use a smaller --unit-bytes"
        )
    return lines


def _changes(plan: Plan) -> Iterator[str]:
    """Yields what differs from earlier runs' inputs."""
    if plan.stale:
        yield f"{counted(len(plan.stale), 'part')} of changed inputs removed: {_some([s.reason for s in plan.stale])}"
    if plan.recognised:
        images = counted(plan.recognised, "image")
        yield f"{images} of inputs that were written again have the same bytes: their rows are kept"
    if plan.unnamed:
        yield f"{plan.unnamed} of them of inputs not named now: an earlier run was asked for them"
    if plan.dropped:
        units = counted(len(plan.dropped), "unfinished unit")
        sources = dict.fromkeys(planned.unit.shard.file.uri for planned in plan.dropped)
        yield f"inputs of {units} changed or vanished, what is left is planned anew: {_some(sources)}"


def skipped_text(files: int, endings: Mapping[str, int]) -> str:
    """Returns how many files were passed over, by ending."""
    shown = [f"{count} {ending}" for ending, count in list(endings.items())[:6]]
    return f"{counted(files, 'other file')} passed over: {', '.join(shown)}{', …' if len(endings) > 6 else ''}"


def _workers_text(options: ExtractOptions) -> str:
    workers = counted(options.workers, "worker")
    if options.gpus is not None:
        return f"one on each GPU of {options.gpus}, for {workers}"
    return f"one for {workers}" if options.shares_engine else f"{workers} × {options.engine_threads or 'all'} threads"


def _some(names: Collection[str]) -> str:
    shown = [readable(name) for name in list(names)[:3]]
    return ", ".join(shown) + (", …" if len(names) > 3 else "")


def summarise(output: Output, plan: Plan, *, wall_seconds: float) -> Summary:
    """Returns what OUT holds and what this run, which was to do `plan`, added to it."""
    todo = {planned.unit_id for planned in plan.todo}
    fresh = [report for report in output.reports if report.unit_id in todo] if todo else []
    manifest = output.manifest
    counts = count_labels(output)
    return Summary(
        output=output.folder,
        fingerprint=manifest.fingerprint,
        weights=manifest.weights,
        weights_are_random=manifest.weights_are_random,
        sample_limit=manifest.sample_limit,
        totals=manifest.totals,
        this_run=add_up(fresh),
        wall_seconds=wall_seconds,
        failures=manifest.failures,
        notes=manifest.notes,
        repeats=manifest.repeats,
        stored_bytes=output.stored_bytes([planned.unit_id for planned in plan.units]),
        engines=tuple(sorted({report.engine for report in fresh})),
        skipped=len(output.skipped),
        skipped_endings=count_by_ending(output.skipped),
        labels=None if counts is None else {name: counts[name] for name in sorted(counts, key=str) if name is not None},
        unlabelled=None if counts is None else counts[None],
    )


def summary_json(summary: Summary) -> dict[str, Any]:
    """Returns the summary for programs."""
    return {**asdict(summary), "failure_rate": summary.failure_rate, "images_per_second": summary.images_per_second}


def summary_text(summary: Summary) -> str:
    """Returns the summary for people."""
    totals, this_run = summary.totals, summary.this_run
    lines = [
        f"read {totals.rows_read} = embedded {totals.rows_embedded} + failed {totals.rows_failed}",
        *(f"  failed  {count:6d}  {reason}" for reason, count in summary.failures.items()),
        f"this run {counted(this_run.rows_read, 'image')} in {counted(this_run.units, 'unit')}, "
        f"{summary.wall_seconds:.1f} s, {summary.images_per_second:.1f} images/s",
    ]
    if this_run.units:
        stages = ("read", "decode", "embed", "write")
        seconds = "  ".join(f"{stage} {getattr(this_run, f'{stage}_seconds'):.1f} s" for stage in stages)
        lines.append(f"stages   {seconds} (they overlap)")
        lines.append(f"engine   {', '.join(summary.engines)}")
    lines.append(
        f"output   {counted(totals.units, 'unit')}, {size_text(summary.stored_bytes)} in {readable(summary.output)}"
    )
    counts = None if summary.labels is None else {**summary.labels, None: summary.unlabelled}
    lines += summarise_labels(counts)
    lines += _cautions(summary)
    return "\n".join(lines)


def _cautions(summary: Summary) -> list[str]:
    lines = []
    if summary.skipped:
        text = skipped_text(summary.skipped, summary.skipped_endings)
        lines.append(f"note     {text}; {readable(summary.output)}/{SKIPPED_FILE} lists them")
    lines += [f"note     {line}" for line in note_lines(summary.notes)]
    repeats = summary.repeats or {"keys": 0, "contents": 0}
    if repeats["keys"]:
        such = shown_within(repeats["named_keys"][0])
        lines.append(f"CAUTION  {counted(repeats['keys'], 'key')} seen more than once, such as {such}")
    if repeats["contents"]:
        same = " = ".join(map(shown_within, repeats["named_contents"][0][:2]))
        lines.append(f"note     {counted(repeats['contents'], 'content')} seen more than once, such as {same}")
    if not summary.totals.rows_read:
        lines.append("CAUTION  the inputs hold no image at all")
    if summary.sample_limit:
        lines.append(
            f"note     this is a sample of {counted(summary.sample_limit, 'image')}; no later run continues it"
        )
    if summary.weights_are_random:
        lines.append(f"CAUTION  weights {summary.weights} were never trained: these features mean nothing")
    return lines
