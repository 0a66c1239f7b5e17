"""Measures each stage of a run by itself, and adds up what all of them take together.

Why not run the recipe on the sample and look at the clock: where its stages overlap, each is slowed by the others, and
which of them holds up the rest can't be seen. Measured one by one they say what each can do, and what they do together
follows (`together_seconds`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from time import perf_counter, process_time

from transforms import storage

# The recipe's own steps, so that what is measured is what a run does.
from transforms.embedding.batches import Decoded, decode_threads, embed_batch
from transforms.embedding.decoders import Decoders
from transforms.embedding.unit import Job
from transforms.engines.engine import Engine
from transforms.records import EncodedImage, Failure, UnitReport
from transforms.store.output import Output
from transforms.store.parts import PartWriter


@dataclass(frozen=True)
class Cost:
    """The seconds that an image costs in one stage, while no other stage is at work.

    Attributes:
        seconds: By the clock, with the threads that a run gives the stage.
        cpu_seconds: Summed over all threads.
    """

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Measured:
    """The measurements of those records of a sample that there was time for.

    Attributes:
        images: How many there was time for.
        failures: {`stage: error`: count} among these.
        decode: What decoding costs; this and the next two are per image that there was time for, failed or not.
        embed: What the engine costs.
        write: What encoding the part costs.
        written_bytes: Size of the part and the failures file.
    """

    images: int
    failures: dict[str, int]
    decode: Cost
    embed: Cost
    write: Cost
    written_bytes: int


class Watch:
    """Adds up the seconds that pass inside of `running`."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started, cpu_started = perf_counter(), process_time()
        yield
        self.seconds += perf_counter() - started
        self.cpu_seconds += process_time() - cpu_started

    def cost(self, images: float) -> Cost:
        return Cost(self.seconds / images, self.cpu_seconds / images) if images else Cost(0.0, 0.0)


def together_seconds(costs: dict[str, Cost], cores: int) -> float:
    """Returns the seconds per image of a run, whose stages overlap on the same cores.

    Embedding and writing take turns in one thread, so they add up; reading and decoding go on beside them. Then either
    the slowest of the three is waited for, or the cores have no idle second left: CPU seconds can't overlap.

    Args:
        costs: {stage: cost per image}.
        cores: Of the machine.
    """
    slowest = max(costs["read"].seconds, costs["decode"].seconds, costs["embed"].seconds + costs["write"].seconds)
    return max(slowest, sum(cost.cpu_seconds for cost in costs.values()) / cores)


def measure(records: Sequence[EncodedImage | Failure], job: Job, engine: Engine, *, seconds: float) -> Measured:
    """Takes records through decoding, the engine and the encoding of a part, one stage at a time, and times each.

    The first batch goes through all of it twice, at first untimed: what is loaded or compiled then is so once per run.

    Args:
        records: A batch of them is measured in any case.
        job: How; its output is an empty folder that the part is written to.
        engine: What embeds them.
        seconds: No new batch is begun after so long.

    Raises:
        FeaturemillError: The folder can't be written to, or the engine is broken.
    """
    for name in ("features", "failures"):
        storage.make_folder(storage.join(job.output, name))
    with PartWriter(job.output, "warm-up", spec=job.spec, sizes=job.sizes, added=job.added_columns) as writer:
        _Bench(job, engine, writer).run(records[: engine.batch_size], seconds=seconds)
    with PartWriter(job.output, "sample", spec=job.spec, sizes=job.sizes, added=job.added_columns) as writer:
        bench = _Bench(job, engine, writer)
        bench.run(records, seconds=seconds)
        report = bench.report()
        writer.commit(report)
    return Measured(
        images=bench.images,
        failures=dict(Output(job.output).failures_by_reason([report])),
        decode=bench.decode.cost(bench.images),
        embed=bench.embed.cost(bench.images * bench.timed / max(1, bench.decoded)),
        write=bench.write.cost(bench.images),
        written_bytes=sum(info.size for info in storage.walk(job.output)),
    )


class _Bench:
    """Decodes, embeds and writes records by a unit's own steps, and times each step."""

    def __init__(self, job: Job, engine: Engine, writer: PartWriter):
        self._job, self._engine, self._writer = job, engine, writer
        self._waiting: list[Decoded] = []
        self.decode, self.embed, self.write = Watch(), Watch(), Watch()
        self.images = self.decoded = self.timed = 0

    def run(self, records: Sequence[EncodedImage | Failure], *, seconds: float) -> None:
        """Takes records through all stages, batch by batch; after so many seconds no new batch is begun."""
        deadline = perf_counter() + seconds
        remaining = iter(records)
        with Decoders(decode_threads(self._engine, self._job.threads), self._job) as decoders:
            while chunk := list(islice(remaining, self._engine.batch_size)):
                self._take(chunk, decoders)
                if perf_counter() >= deadline:
                    break
        if self._waiting:
            # It takes longer per image than a full batch, and would count for much in a sample: its time is left out,
            # unless there is no other.
            self._embed(self._waiting, Watch() if self.timed else self.embed)
            self.timed = self.timed or len(self._waiting)
        with self.write.running():
            self._writer.flush()

    def _take(self, records: Sequence[EncodedImage | Failure], decoders: Decoders) -> None:
        """Decodes N records, and embeds as soon as there is a full batch."""
        self.images += len(records)
        images = [record for record in records if isinstance(record, EncodedImage)]
        with self.decode.running():
            tasks = [decoders.submit([image]) for image in images]
            results = [result for task in tasks for result in decoders.results(task)]
        for result in (*(record for record in records if isinstance(record, Failure)), *results):
            if isinstance(result, Failure):
                self._writer.fail(result)
            else:
                self._waiting.append(result)
                self.decoded += 1
        size = self._engine.batch_size
        while len(self._waiting) >= size:
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            self._embed(batch, self.embed)
            self.timed += len(batch)

    def _embed(self, batch: list[Decoded], watch: Watch) -> None:
        with watch.running():
            rows, vectors = embed_batch(batch, self._engine, self._writer.fail, spec=self._job.spec)
        if rows:
            with self.write.running():
                self._writer.add(rows, vectors)

    def report(self) -> UnitReport:
        return UnitReport(
            unit_id=self._writer.unit_id,
            source="",
            start=0,
            stop=-1,
            rows_read=self.images,
            rows_embedded=self._writer.embedded,
            rows_failed=self._writer.failed,
            input_bytes=0,
            read_seconds=0.0,
            decode_seconds=self.decode.seconds,
            embed_seconds=self.embed.seconds,
            write_seconds=self.write.seconds,
            wall_seconds=0.0,
            engine=self._engine.description,
        )
