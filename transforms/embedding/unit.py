"""One unit from bytes to commit: read, decode, batch, embed, write. Plain functions; Beam only calls them."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from transforms import shards, storage
from transforms.embedding.attempts import attempt
from transforms.embedding.batches import Decoded, decode_threads, embed_batch
from transforms.embedding.decoders import Decoders, Task
from transforms.embedding.held_up import HeldUp, ReaderClock
from transforms.embedding.settings import Embedding
from transforms.engines.engine import Engine
from transforms.isolated import Isolated
from transforms.records import UNUSABLE_LABEL, EncodedImage, Failure, UnitReport
from transforms.store.parts import PartWriter
from transforms.store.units import PlannedUnit, load_files
from transforms.text import clean

# Encoded bytes read ahead of decoding; images of many megabytes would add up otherwise.
UNDECODED_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Job(Embedding):
    """The settings that a worker needs besides its unit.

    Attributes:
        output: OUT.
        sizes: {feature name: D}.
        batch_size: N of a batch; the engine's fixed shape.
        added_columns: Which of `spec.ADDED_COLUMNS` OUT has.
    """

    output: str
    sizes: dict[str, int]
    batch_size: int
    added_columns: tuple[str, ...] = ()


@dataclass
class _Stages:
    """Seconds per stage, records and bytes read, notes on records, added up by the threads of one unit."""

    read: float = 0.0
    decode: float = 0.0
    embed: float = 0.0
    rows_read: int = 0
    input_bytes: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    clock: ReaderClock = field(default_factory=ReaderClock)


def extract_unit(planned: PlannedUnit, job: Job, engine: Engine) -> UnitReport:
    """Embeds one unit and commits its part.

    Where an earlier attempt at it ended without a word, as native code ends a process that it crashes, its images are
    decoded in child processes, and what is native in reading is done in one: what crashes there is a failure.

    Raises:
        FeaturemillError: The input can't be reached, the output can't be written, or the engine is broken. Bad images
            and broken shards don't raise: they are counted as failures.
    """
    with attempt(job.output, planned.unit_id) as is_second:
        return _extract(planned, job, engine, apart=job.apart or is_second, all_apart=is_second)


def _extract(planned: PlannedUnit, job: Job, engine: Engine, *, apart: bool, all_apart: bool) -> UnitReport:
    started = time.perf_counter()
    stages = _Stages()
    unit = load_files(job.output, planned)
    added = job.added_columns
    with (
        Isolated(seconds=job.record_seconds, memory=job.record_memory, may_wait=True) as reader,
        PartWriter(job.output, planned.unit_id, spec=job.spec, sizes=job.sizes, added=added) as writer,
        # Between two images of a packed tar, much may have to be unpacked.
        HeldUp(job.record_seconds, stages.clock.seconds if shards.is_native(unit) else None),
    ):
        progress = _Progress(writer)
        records = shards.read(unit, apart=reader if apart else None, all_apart=all_apart)
        images = _decode_ahead(records, job, stages, threads=decode_threads(engine), apart=apart)
        for batch in _batches(images, engine, writer):
            stages.notes.update(image.result.note for image in batch if image.result.note)
            before = time.perf_counter()
            rows, vectors = embed_batch(batch, engine, writer.fail, spec=job.spec)
            stages.embed += time.perf_counter() - before
            if rows:
                writer.add(rows, vectors)
            progress.tell(stages.input_bytes)
        writer.flush()
        report = UnitReport(
            unit_id=planned.unit_id,
            source=clean(unit.shard.file.uri),
            start=unit.start,
            stop=unit.stop,
            # Counted where records are read: what got lost on the way would show.
            rows_read=stages.rows_read,
            rows_embedded=writer.embedded,
            rows_failed=writer.failed,
            input_bytes=stages.input_bytes,
            read_seconds=stages.read,
            decode_seconds=stages.decode,
            embed_seconds=stages.embed,
            write_seconds=writer.seconds,
            wall_seconds=time.perf_counter() - started,
            engine=engine.description,
            notes=dict(stages.notes),
        )
        writer.commit(report)
    return report


class _Budget:
    """Holds the reader back while the bytes that wait for decoding are over the limit; one record always passes."""

    def __init__(self, limit: int):
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    def take(self, count: int, stopped: threading.Event) -> None:
        with self._changed:
            while self._used and self._used + count > self._limit and not stopped.is_set():
                self._changed.wait(0.1)
            self._used += count

    def give_back(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify()


def _decode_ahead(
    records: Iterator[EncodedImage | Failure], job: Job, stages: _Stages, *, threads: int, apart: bool = False
) -> Iterator[Decoded | Failure]:
    """Yields the records decoded, in order, while the next two batches are read and decoded in threads."""
    waiting: queue.Queue[Task | Failure | BaseException | None] = queue.Queue(maxsize=2 * job.batch_size)
    stopped = threading.Event()
    budget = _Budget(UNDECODED_BYTES)

    def put(item: Task | Failure | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            before = time.perf_counter()
            stages.clock.begin()
            for record in records:
                stages.read += time.perf_counter() - before
                stages.rows_read += 1
                if stopped.is_set():
                    return
                if isinstance(record, Failure):
                    put(record)
                else:
                    stages.input_bytes += len(record.data)
                    if record.unusable:
                        stages.notes[f"{UNUSABLE_LABEL}: {record.unusable}"] += 1
                    budget.take(len(record.data), stopped)
                    put(decoders.submit(record))
                before = time.perf_counter()
                stages.clock.begin()
            put(None)
        except BaseException as error:
            put(error)

    decoders = Decoders(threads, job, apart=apart, done=lambda image: budget.give_back(len(image.data)))
    reader = threading.Thread(target=read, name="read", daemon=True)
    reader.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield decoders.result(item) if isinstance(item, Task) else item
    finally:
        stopped.set()
        reader.join()
        decoders.close()
        stages.decode += decoders.seconds


def _batches(items: Iterator[Decoded | Failure], engine: Engine, writer: PartWriter) -> Iterator[list[Decoded]]:
    """Yields batches as large as the engine takes (less after it ran out of memory); puts failures aside."""
    batch: list[Decoded] = []
    for item in items:
        if isinstance(item, Failure):
            writer.fail(item)
            continue
        batch.append(item)
        if len(batch) >= engine.batch_size:
            yield batch
            batch = []
    # Also when it is empty: failures alone are progress too.
    yield batch


class _Progress:
    """Says how far a unit has come, once a second, in a small file beside its temporary part; local outputs only."""

    def __init__(self, writer: PartWriter, clock: Callable[[], float] = time.monotonic):
        self._writer, self._clock, self._next = writer, clock, clock() + 1.0
        self._local = storage.is_local(writer.progress_uri)

    def tell(self, input_bytes: int) -> None:
        if self._local and self._clock() >= self._next:
            self._next = self._clock() + 1.0
            with storage.open_write(self._writer.progress_uri) as file:
                file.write(f"{self._writer.embedded} {self._writer.failed} {input_bytes}".encode())
