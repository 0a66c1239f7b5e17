"""One unit from bytes to commit: read, decode, batch, embed, write. Plain functions; Beam only calls them."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from transforms import shards, storage
from transforms.embedding.attempts import attempt
from transforms.embedding.batches import Decoded, decode_threads, embed_batch
from transforms.embedding.decoders import Decoders, Task
from transforms.embedding.held_up import HeldUp, ReaderClock
from transforms.embedding.settings import Embedding
from transforms.engines.engine import Engine
from transforms.isolated import Isolated
from transforms.machine import ahead
from transforms.records import UNUSABLE_LABEL, EncodedImage, Failure, Kept, UnitReport
from transforms.rows.sources import stored_only, stored_rows
from transforms.spec import FeatureSpec
from transforms.store.parts import PartWriter
from transforms.store.units import PlannedUnit, load_files
from transforms.text import clean

# Encoded bytes read ahead of decoding; images of many megabytes would add up otherwise.
UNDECODED_BYTES = 64 * 2**20
# Images that a thread takes at once: so many that handing them over costs little, so few that every thread has some
# of the next two batches several times; and of large ones, each is enough.
_GROUP_IMAGES, _GROUPS_A_THREAD, _GROUP_BYTES = 16, 4, 256 << 10


@dataclass(frozen=True, kw_only=True)
class Job(Embedding):
    """The settings that a worker needs besides its unit.

    Attributes:
        sizes: {feature name: D}.
        added_columns: {column: name of its type} that OUT's parts have between an image's own and its features.
        keep: Those of them that come along with the images.
        beside: The OUT that has the rows, where `output` gets an added feature of them: nothing else is embedded.
    """

    output: str
    sizes: dict[str, int]
    added_columns: dict[str, str] = field(default_factory=dict)
    keep: tuple[Kept, ...] = ()
    beside: str = ""


class _Busy:
    """Counts the seconds in which at least one thread is within it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._threads, self._since, self._lock = 0, 0.0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._since = time.perf_counter()
            self._threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self.seconds += time.perf_counter() - self._since


@dataclass
class _Stages:
    """Seconds per stage, records and bytes read, notes on records, added up by the threads of one unit."""

    read: float = 0.0
    decode: float = 0.0
    embed: _Busy = field(default_factory=_Busy)
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
    unit = replace(unit, shard=replace(unit.shard, keep=job.keep))
    added = job.added_columns
    with (
        Isolated(seconds=job.record_seconds, memory=job.record_memory, may_wait=True) as reader,
        PartWriter(job.output, planned.unit_id, spec=job.spec, sizes=job.sizes, added=added) as writer,
        # Between two images of a packed tar, much may have to be unpacked.
        HeldUp(job.record_seconds, stages.clock.seconds if shards.is_native(unit) else None),
    ):
        progress = _Progress(writer)
        read = partial(shards.read, apart=reader if apart else None, all_apart=all_apart)
        records = stored_only(unit, stored_rows(job.beside, planned.unit_id), read) if job.beside else read(unit)
        images = _decode_ahead(
            records, job, stages, threads=decode_threads(engine, job.threads), batch_size=engine.batch_size, apart=apart
        )
        for rows, vectors, failures in _embedded(_batches(images, engine, writer), engine, job.spec, stages):
            for failure in failures:
                writer.fail(failure)
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
            embed_seconds=stages.embed.seconds,
            write_seconds=writer.seconds,
            wall_seconds=time.perf_counter() - started,
            engine=engine.description,
            notes=dict(stages.notes),
        )
        writer.commit(report)
    return report


class _Budget:
    """Holds the reader back while what waits is over the limit; whatever is the first always passes."""

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
    records: Iterator[EncodedImage | Failure],
    job: Job,
    stages: _Stages,
    *,
    threads: int,
    batch_size: int,
    apart: bool = False,
) -> Iterator[Decoded | Failure]:
    """Yields the records decoded, in order, while the next two batches are read and decoded in threads."""
    waiting: queue.SimpleQueue[Task | Failure | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()
    undecoded, decoded = _Budget(UNDECODED_BYTES), _Budget(2 * batch_size)
    most = max(1, min(_GROUP_IMAGES, 2 * batch_size // (_GROUPS_A_THREAD * threads)))

    def read() -> None:
        try:
            for group in _groups(_counted(records, stages), most):
                if stopped.is_set():
                    return
                if isinstance(group, Failure):
                    decoded.take(1, stopped)
                    waiting.put(group)
                else:
                    undecoded.take(sum(len(image.data) for image in group), stopped)
                    task = decoders.submit(group)
                    decoded.take(len(group), stopped)
                    waiting.put(task)
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    decoders = Decoders(threads, job, apart=apart, done=lambda image: undecoded.give_back(len(image.data)))
    reader = threading.Thread(target=read, name="read", daemon=True)
    reader.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Task):
                decoded.give_back(len(item.images))
                yield from decoders.results(item)
            else:
                decoded.give_back(1)
                yield item
    finally:
        stopped.set()
        reader.join()
        decoders.close()
        stages.decode += decoders.seconds


def _counted(records: Iterator[EncodedImage | Failure], stages: _Stages) -> Iterator[EncodedImage | Failure]:
    before = time.perf_counter()
    stages.clock.begin()
    for record in records:
        stages.read += time.perf_counter() - before
        stages.rows_read += 1
        if isinstance(record, EncodedImage):
            stages.input_bytes += len(record.data)
            if record.unusable:
                stages.notes[f"{UNUSABLE_LABEL}: {record.unusable}"] += 1
            stages.notes.update(record.notes)
        yield record
        before = time.perf_counter()
        stages.clock.begin()


def _groups(records: Iterator[EncodedImage | Failure], most: int) -> Iterator[list[EncodedImage] | Failure]:
    """Yields the images in lists of at most so many, and less where they are large; a failure by itself."""
    group: list[EncodedImage] = []
    size = 0
    for record in records:
        if isinstance(record, EncodedImage):
            group.append(record)
            size += len(record.data)
            if len(group) < most and size < _GROUP_BYTES:
                continue
        if group:
            yield group
            group, size = [], 0
        if isinstance(record, Failure):
            yield record
    if group:
        yield group


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


def _embedded(
    batches: Iterator[list[Decoded]], engine: Engine, spec: FeatureSpec, stages: _Stages
) -> Iterator[tuple[list[tuple], dict[str, np.ndarray], list[Failure]]]:
    """Yields what became of each batch: rows, {feature name: N×D}, failures. The next one is embedded meanwhile."""

    def embed(batch: list[Decoded]) -> tuple[list[tuple], dict[str, np.ndarray], list[Failure]]:
        failures: list[Failure] = []
        with stages.embed:
            rows, vectors = embed_batch(batch, engine, failures.append, spec=spec)
        return rows, vectors, failures

    # Two at once beside another device, so that it never waits for Python; on its own cores one takes all of them.
    threads = 1 if engine.on_cpu else 2
    return ahead(embed, _noted(batches, stages), threads=threads, most=threads + 1)


def _noted(batches: Iterator[list[Decoded]], stages: _Stages) -> Iterator[list[Decoded]]:
    for batch in batches:
        stages.notes.update(image.result.note for image in batch if image.result.note)
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
