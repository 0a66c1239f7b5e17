"""Estimate: takes a sample of the input through each stage by itself, and says what all of it would take."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.sample import draw
from pipeline.extraction.timing import Cost, Measured, measure, together_seconds
from transforms import shards
from transforms.declared import AT_LEAST_ONE, Bound, declared
from transforms.embedding.unit import Job
from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError, UsageError
from transforms.machine import available_cores
from transforms.network.weights import Weights
from transforms.spec import ADDED_COLUMNS
from transforms.text import counted, size_text

# An OUT that no input lies in: nothing is ever written there.
NO_OUTPUT = "none://estimate"
# Of the seconds, so many may go on reading; the engine needs the rest.
_READ_SHARE = 0.25
# Of a sample with large features, less is taken.
_FEATURE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Workers:
    """Dataflow workers, or others.

    Attributes:
        count: How many.
        rate: Images/s of one, None for this machine's.
        price: Dollars/h of one, None if dollars don't matter.
    """

    count: int
    rate: float | None = None
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(ExtractOptions):
    """The options of `estimate`: its own, and those of the run that it is about."""

    output: str = NO_OUTPUT
    images: int = declared(200, help="Measure at most so many images", bounds=(AT_LEAST_ONE,), metavar="N")
    seconds: float = declared(
        20.0,
        help="Measure for about so long; loading comes on top",
        bounds=(Bound(lambda seconds: 0 < seconds < math.inf, "{flag} must be above 0, not {value}"),),
    )
    dataflow_workers: int | None = declared(
        None, help="Say what N workers elsewhere would take", bounds=(AT_LEAST_ONE,), metavar="N"
    )
    worker_rate: float | None = declared(
        None,
        help="Speed of one worker",
        bounds=(Bound(lambda rate: 0 < rate < math.inf, "{flag} must be above 0 images/s, not {value}"),),
        metavar="IMAGES_PER_S",
        unset="this machine's",
    )
    worker_price: float | None = declared(
        None,
        help="Price of one worker",
        bounds=(Bound(lambda price: 0 <= price < math.inf, "{flag} must be at least 0 dollars/h, not {value}"),),
        metavar="DOLLARS_PER_HOUR",
        unset="not stated",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate", "price"):
            if self.dataflow_workers is None and getattr(self, f"worker_{name}") is not None:
                raise UsageError(f"--worker-{name} is of use only with --dataflow-workers N")

    @property
    def elsewhere(self) -> Workers | None:
        """The workers that the options ask about, None if they ask about none."""
        return Workers(self.dataflow_workers, self.worker_rate, self.worker_price) if self.dataflow_workers else None


@dataclass(frozen=True)
class Estimate:
    """An estimate for the whole input.

    Attributes:
        shards: In the input.
        files: Image files in the input that aren't in a shard.
        input_bytes: Of both.
        images: In the input; read = embedded + failed.
        images_are_counted: False if `images` is an estimate by bytes.
        sampled: Images measured.
        sampled_failures: {`stage: error`: count} among those.
        engine: What embedded them.
        batch_size: N of a batch.
        cores: That this process may use.
        costs: {stage: cost per image}.
        start_seconds: Importing libraries, loading weights and engine: once per run.
        output_bytes: Parts and failures files.
        workers: What was asked about others.
    """

    shards: int
    files: int
    input_bytes: int
    images: int
    images_are_counted: bool
    sampled: int
    sampled_failures: dict[str, int]
    engine: str
    batch_size: int
    cores: int
    costs: dict[str, Cost]
    start_seconds: float
    output_bytes: int
    workers: Workers | None

    @property
    def failed(self) -> int:
        """Images that will fail, if the input is like the sample."""
        return round(self.images * sum(self.sampled_failures.values()) / self.sampled)

    @property
    def bottleneck(self) -> str:
        """The stage that can do the fewest images/s."""
        return max(self.costs, key=lambda stage: self.costs[stage].seconds)

    @property
    def images_per_second(self) -> float:
        """Images per second of a run on this machine, after its start."""
        return 1 / together_seconds(self.costs, self.cores)

    @property
    def hours(self) -> float:
        """Hours of a run on this machine, start included."""
        return (self.start_seconds + self.images / self.images_per_second) / 3600

    @property
    def worker_rate(self) -> float | None:
        """Images/s of a worker: as asked, or this machine's."""
        return (self.workers.rate or self.images_per_second) if self.workers else None

    @property
    def worker_hours(self) -> float | None:
        """Hours of a run on the workers, start-up not included."""
        return self.images / (self.workers.count * self.worker_rate) / 3600 if self.workers else None

    @property
    def dollars(self) -> float | None:
        """Price of a run on the workers, start-up not included."""
        priced = self.workers is not None and self.workers.price is not None
        return self.worker_hours * self.workers.count * self.workers.price if priced else None


def estimate(
    options: EstimateOptions, *, load: Callable[[Job], Engine] | None = None, weights: Weights | None = None
) -> Estimate:
    """Measures a sample of the inputs and extrapolates. Writes to a temporary folder only, and removes it.

    Args:
        options: What was asked for; at least one batch is measured.
        load: Makes the engine; tests inject one without weights.
        weights: Already loaded ones; by default what the options name.

    Raises:
        FeaturemillError: No image in the inputs, or none that can be embedded; or weights or engine can't be loaded.
    """
    found = shards.find(options.inputs, options.fields)
    sample = draw(found, images=_fitting(options), seconds=options.seconds * _READ_SHARE)
    if not sample.records:
        raise FeaturemillError("the inputs hold no image at all: there is nothing to estimate; check the paths")
    with TemporaryDirectory(prefix="featuremill-estimate-") as folder:
        started = perf_counter()
        # Here and not above: Beam is part of a run's start.
        import transforms.embedding.extract_units  # noqa: F401

        job = options.job(weights or options.load_weights())
        job = replace(job, output=folder, added_columns=dict.fromkeys(ADDED_COLUMNS, "string"))
        engine = (load or Job.load_engine)(job)
        start_seconds = perf_counter() - started
        measured = measure(sample.records, job, engine, seconds=options.seconds * (1 - _READ_SHARE))
    _check_any(measured)
    return Estimate(
        shards=len(found.shards),
        files=len(found.files),
        input_bytes=sum(item.file.size for item in (*found.shards, *found.files)),
        images=sample.images,
        images_are_counted=sample.is_counted,
        sampled=measured.images,
        sampled_failures=measured.failures,
        engine=engine.description,
        batch_size=engine.batch_size,
        cores=available_cores(),
        costs={"read": sample.read, "decode": measured.decode, "embed": measured.embed, "write": measured.write},
        start_seconds=start_seconds,
        output_bytes=round(measured.written_bytes * sample.images / measured.images),
        workers=options.elsewhere,
    )


def _fitting(options: EstimateOptions) -> int:
    """Returns how many images of large features are enough."""
    row_bytes = sum(options.sizes.values()) * {"float16": 2, "float32": 4}[options.dtype]
    return max(1, min(options.images, _FEATURE_BYTES // row_bytes))


def _check_any(measured: Measured) -> None:
    failed = sum(measured.failures.values())
    if failed == measured.images:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in list(measured.failures.items())[:3])
        raise FeaturemillError(
            f"none of the sample's {failed} images can be embedded: {reasons}; check the inputs, "
            "or run featuremill extract --limit and look at its failures"
        )


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Returns the estimate for programs."""
    names = ("failed", "bottleneck", "images_per_second", "hours", "worker_rate", "worker_hours", "dollars")
    return {**asdict(estimate), **{name: getattr(estimate, name) for name in names}}


def estimate_text(estimate: Estimate) -> str:
    """Returns the estimate for people."""
    e = estimate
    inputs = [counted(e.shards, "shard") if e.shards else "", counted(e.files, "image file") if e.files else ""]
    about = "" if e.images_are_counted else "about "
    failures = ", ".join(f"{count} {reason}" for reason, count in e.sampled_failures.items())
    alone = ", ".join(f"{stage} {_number(1 / cost.seconds)}" for stage, cost in e.costs.items() if cost.seconds)
    lines = [
        f"inputs   {' and '.join(filter(None, inputs))} ({size_text(e.input_bytes)}), "
        f"{about}{counted(e.images, 'image')}",
        f"sample   {counted(e.sampled, 'image')}, {sum(e.sampled_failures.values())} failed"
        + (f" ({failures})" if failures else ""),
        f"engine   {e.engine}, batches of {e.batch_size}",
        f"alone    {alone} images/s",
        f"together {_number(e.images_per_second)} images/s on {e.cores} cores; the bottleneck is {e.bottleneck}",
        f"time     {_time_text(e.hours)} on this machine, {e.start_seconds:.1f} s of them to start",
        f"output   about {size_text(e.output_bytes)} for {counted(e.images - e.failed, 'row')} "
        f"and {counted(e.failed, 'failure')}",
    ]
    return "\n".join([*lines, _workers_text(e)] if e.workers else lines)


def _workers_text(e: Estimate) -> str:
    dollars = "" if e.dollars is None else f" and {e.dollars:,.2f} dollars"
    return (
        f"workers  {_time_text(e.worker_hours)}{dollars} on {counted(e.workers.count, 'worker')} of "
        f"{_number(e.worker_rate)} images/s; the minutes that they take to start come on top"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time_text(hours: float) -> str:
    if hours >= 1:
        return f"{_number(hours)} hours"
    return f"{_number(hours * 60)} minutes" if hours * 60 >= 1 else f"{_number(hours * 3600)} seconds"
