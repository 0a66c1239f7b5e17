"""One unit: threads end whatever happens, memory for waiting bytes is bounded, out of memory shrinks the engine."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.runners.watch import explain
from tests.pipeline.extraction import test_run as te
from tests.support.fakes import FakeEngine
from transforms.embedding import batches as embedding
from transforms.embedding import decoders
from transforms.embedding import unit as recipe
from transforms.embedding.unit import Job
from transforms.engines.engine import OutOfMemory
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage
from transforms.store.parts import PartWriter


@pytest.fixture
def job(tmp_path) -> Job:
    options = te.options("x", tmp_path / "out")
    return Job(
        output=options.output,
        spec=options.spec(te.WEIGHTS),
        sizes={"embedding": 512},
        weights="fake",
        include_top=False,
        engine="fake",
        batch_size=4,
        threads=1,
        max_pixels=10**7,
    )


def png(tmp_path) -> bytes:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return (tmp_path / "red.png").read_bytes()


def decode(records, job, threads=2):
    return recipe._decode_ahead(iter(records), job, recipe._Stages(), threads=threads, batch_size=job.batch_size)


def test_a_reader_that_raises_is_heard_and_its_threads_end(job, tmp_path):
    data = png(tmp_path)

    def records():
        yield EncodedImage("a", None, "s", 0, data)
        raise FeaturemillError("the shard is gone")

    before = set(threading.enumerate())
    with pytest.raises(FeaturemillError, match="the shard is gone"):
        list(decode(records(), job))
    # Others' threads may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_beside_a_gpu_all_cores_decode(job, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "available_cores", lambda: 5)
    threads = {on_cpu: embedding.decode_threads(FakeEngine({}, 4, on_cpu=on_cpu), None) for on_cpu in (True, False)}
    assert threads == {True: 2, False: 5}
    # Only if five decode at once does anyone get past it.
    together = threading.Barrier(5, timeout=60)
    decode_image = embedding.decode_image
    monkeypatch.setattr(embedding, "decode_image", lambda *a, **k: together.wait() >= 0 and decode_image(*a, **k))
    data = png(tmp_path)
    records = [EncodedImage(str(i), None, "s", i, data) for i in range(5)]
    assert [decoded.image.key for decoded in decode(records, job, threads[False])] == list("01234")


class WaitingEngine(FakeEngine):
    """Goes on with a batch only when the whole of the next one has been decoded."""

    images, decoded, embedded = 10, 0, 0

    def embed(self, pixels):
        self.embedded += len(pixels)
        deadline = time.monotonic() + 60
        while WaitingEngine.decoded < min(self.images, self.embedded + self.batch_size):
            assert time.monotonic() < deadline, "the next batch wasn't decoded while the engine computed"
            time.sleep(0.001)
        return super().embed(pixels)


def load_waiting(job: Job) -> WaitingEngine:
    return WaitingEngine(job.sizes, job.batch_size)


def test_the_next_batch_is_decoded_while_the_engine_computes(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(WaitingEngine.images):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    decode_image = embedding.decode_image

    def counted(*args, **more):
        decoded = decode_image(*args, **more)
        WaitingEngine.decoded += 1
        return decoded

    monkeypatch.setattr(embedding, "decode_image", counted)
    # One thread, so that counting needs no lock.
    monkeypatch.setattr(embedding, "CPU_DECODE_THREADS", 1)
    summary = te.extract(folder, tmp_path / "out", batch_size=4, load=load_waiting)
    assert (summary.totals.rows_embedded, summary.totals.rows_failed) == (10, 0)


def colours(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


class MeetingEngine(FakeEngine):
    """Beside another device: two batches must be there at once. On its own cores: never."""

    most, inside, meeting = 0, 0, threading.Barrier(2)

    def embed(self, pixels):
        MeetingEngine.inside += 1
        MeetingEngine.most = max(self.most, self.inside)
        if self.on_cpu:
            time.sleep(0.02)
        else:
            self.meeting.wait(60)
        MeetingEngine.inside -= 1
        return super().embed(pixels)


@pytest.mark.parametrize(("on_cpu", "most"), [(True, 1), (False, 2)])
def test_two_batches_are_on_their_way_to_another_device(tmp_path, monkeypatch, on_cpu, most):
    monkeypatch.setattr(MeetingEngine, "most", 0)
    load = lambda job: MeetingEngine(job.sizes, job.batch_size, on_cpu=on_cpu)  # noqa: E731
    summary = te.extract(colours(tmp_path / "in", 16), tmp_path / "out", batch_size=4, load=load)
    assert (summary.totals.rows_embedded, MeetingEngine.most) == (16, most)
    te.extract(tmp_path / "in", tmp_path / "plain", batch_size=4)
    assert te.rows(tmp_path / "out") == te.rows(tmp_path / "plain")


class TellingEngine(FakeEngine):
    embedded = threading.Semaphore(0)

    def embed(self, pixels):
        self.embedded.release()
        return super().embed(pixels)


def test_a_batch_is_embedded_while_the_one_before_is_written(tmp_path, monkeypatch):
    written, add = [], PartWriter.add

    def slow(self, rows, vectors):
        # This one and the next, but behind the last there is none.
        for _ in range(2 if not written else len(written) < 3):
            assert TellingEngine.embedded.acquire(timeout=60), "the next batch wasn't embedded meanwhile"
        written.append(len(rows))
        add(self, rows, vectors)

    monkeypatch.setattr(PartWriter, "add", slow)
    load = lambda job: TellingEngine(job.sizes, job.batch_size)  # noqa: E731
    te.extract(colours(tmp_path / "in", 16), tmp_path / "out", batch_size=4, load=load)
    assert written == [4, 4, 4, 4]


class FullEngine(FakeEngine):
    """Has memory for two images; the first two batches find that out at the same time."""

    meeting, asked = threading.Barrier(2), []

    def embed(self, pixels):
        if self.batch_size == 4:
            self.meeting.wait(60)
            raise OutOfMemory("4 at once")
        return super().embed(pixels)

    def resize(self, batch_size):
        self.asked.append(batch_size)
        super().resize(batch_size)


def test_two_batches_without_memory_halve_the_size_once(tmp_path):
    load = lambda job: FullEngine(job.sizes, job.batch_size, on_cpu=False)  # noqa: E731
    summary = te.extract(colours(tmp_path / "in", 16), tmp_path / "out", batch_size=4, load=load)
    assert (summary.totals.rows_embedded, FullEngine.asked) == (16, [2, 2])


def test_an_image_without_its_bytes_keeps_all_else():
    image = EncodedImage("k", "l", "s", 3, b"x", unusable="u", split="test", kept=(1, "two"), notes=("n",))
    assert image.without_data() == dataclasses.replace(image, data=b"")


def test_threads_end_when_the_consumer_stops(job, tmp_path):
    data = png(tmp_path)
    endless = (EncodedImage(str(i), None, "s", i, data) for i in range(10**9))
    before = set(threading.enumerate())
    items = decode(endless, job)
    next(items)
    items.close()
    assert set(threading.enumerate()) <= before


def test_bytes_that_wait_for_decoding_are_bounded(job, monkeypatch):
    monkeypatch.setattr(recipe, "UNDECODED_BYTES", 100)
    allowed, read = threading.Semaphore(0), []

    def slow(image, *_):
        allowed.acquire()
        return image

    def records():
        for number in range(20):
            read.append(number)
            yield EncodedImage(str(number), None, "s", number, bytes(60))

    monkeypatch.setattr(decoders, "decode_record", slow)
    items = decode(records(), job)
    results = []
    consumer = threading.Thread(target=lambda: results.extend(items))
    consumer.start()
    # One waits in the decoder, one is held back. Without the budget the queue would take eight in no time.
    deadline = time.monotonic() + 60
    while len(read) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.5)
    assert len(read) == 2
    for _ in range(20):
        allowed.release()
    consumer.join(60)
    assert [image.key for image in results] == [str(number) for number in range(20)]


class PaddingEngine(FakeEngine):
    """Pads to its batch size as the real one does, and has memory for two images."""

    def embed(self, pixels):
        if self.batch_size > 2:
            raise OutOfMemory(f"a batch of {self.batch_size}")
        PaddingEngine.size_in_the_end = self.batch_size
        return super().embed(pixels)


def load_padding(job: Job) -> PaddingEngine:
    return PaddingEngine(job.sizes, job.batch_size)


def test_out_of_memory_with_a_padded_tail(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "only.png")
    summary = te.extract(folder, tmp_path / "out", batch_size=64, load=load_padding)
    assert summary.totals.rows_embedded == 1
    # Halved as often as needed and no further, although there was but one image.
    assert PaddingEngine.size_in_the_end == 2


class NoMemoryEngine(FakeEngine):
    def embed(self, pixels):
        raise OutOfMemory("none at all")


def load_no_memory(job: Job) -> NoMemoryEngine:
    return NoMemoryEngine(job.sizes, job.batch_size)


def test_no_memory_for_a_single_image_is_an_error_in_one_line(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "only.png")
    with pytest.raises(FeaturemillError, match=r"out of memory with a single image .*--image-size$"):
        te.extract(folder, tmp_path / "out", load=load_no_memory)


def test_rows_are_in_the_order_of_the_records(job, tmp_path):
    data = png(tmp_path)
    keys = [item.image.key for item in decode([EncodedImage(str(i), None, "s", i, data) for i in range(50)], job)]
    assert keys == [str(i) for i in range(50)]
    assert np.array_equal(keys, sorted(keys, key=int))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FeaturemillError("disk full [while running 'ExtractUnits/Extract']"), r"^disk full$"),
        (
            RuntimeError("Trace\ntransforms.errors.FeaturemillError: disk full [while running 'x']\n"),
            "^disk full$",
        ),
        (RuntimeError("Traceback …\n  File x\nValueError: odd\n"), r"the pipeline failed: ValueError: odd;"),
        (KeyError("x [while running 'y']"), r"the pipeline failed: KeyError: .x;"),
    ],
)
def test_explain_finds_the_workers_own_words(error, message):
    import re

    assert re.search(message, str(explain(error)))
