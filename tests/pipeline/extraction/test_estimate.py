"""Estimate: against runs and known numbers. The clock is a fake one, so that no figure depends on the machine."""

import json
import random
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.app import cli, run_cli
from pipeline.demo.samples import Item, draw_items, encode, write_folder, write_parquet, write_tar, write_tfrecord
from pipeline.extraction import estimate as estimating
from pipeline.extraction import sample, timing
from pipeline.extraction.estimate import NO_OUTPUT, Estimate, EstimateOptions, Workers, estimate_json, estimate_text
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.timing import Cost, together_seconds
from tests.pipeline.extraction import test_run as test_extract
from tests.support.factories import shared_data
from tests.support.fakes import WEIGHTS, FakeEngine, load_fake
from tests.support.properties import examples
from transforms import shards
from transforms.embedding import decoders
from transforms.engines.engine import OutOfMemory
from transforms.errors import FeaturemillError, UsageError

WRITERS = {"folder": write_folder, "tfrecord": write_tfrecord, "tar": write_tar, "parquet": write_parquet}


def estimate(inputs, *, load=load_fake, weights=WEIGHTS, **more) -> Estimate:
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    settings = {"image_size": 32, "batch_size": 4, "images": 10_000, "seconds": 1e6, **more}
    options = EstimateOptions(inputs=tuple(map(str, inputs)), **settings)
    return estimating.estimate(options, load=load, weights=weights)


class Clock:
    """Time that passes only where a test says so: by the wall, and on the CPU."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._lock = threading.Lock()

    def pass_by(self, wall: float, cpu: float) -> None:
        with self._lock:
            self.wall += wall
            self.cpu += cpu


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "perf_counter", lambda: made.wall)
    monkeypatch.setattr(timing, "process_time", lambda: made.cpu)
    monkeypatch.setattr(sample, "perf_counter", lambda: made.wall)
    return made


def ticking(clock: Clock, *, wall: float, cpu: float, first: float = 0.0):
    """Returns a loader of engines that take so many seconds for an image, and for the first batch some more."""

    class Ticking(FakeEngine):
        batches = 0

        def embed(self, pixels):
            clock.pass_by(wall * len(pixels) + first * (self.batches == 0), cpu * len(pixels))
            self.batches += 1
            return super().embed(pixels)

    return lambda job: Ticking(job.sizes, job.batch_size)


def written(folder: Path, kind: str, **more) -> Path:
    items = draw_items(per_class=8, size=48, seed=1)
    path = folder / f"photos{'' if kind == 'folder' else f'.{kind}'}"
    WRITERS[kind](path, items, **more)
    return path


@pytest.mark.parametrize("kind", list(WRITERS))
@pytest.mark.parametrize("batch_size", [1, 3, 32, 64])
def test_an_input_that_is_embedded_whole_is_estimated_as_it_is(tmp_path, clock, kind, batch_size):
    path = written(tmp_path, kind)
    found = estimate(path, batch_size=batch_size, load=ticking(clock, wall=0.5, cpu=0.25))
    summary = test_extract.extract(path, tmp_path / "out", batch_size=batch_size)
    totals = summary.totals
    assert (found.images, found.sampled, found.images_are_counted) == (32, 32, True)
    assert (totals.rows_read, totals.rows_embedded, totals.rows_failed) == (32, 28, 4)
    assert found.failed == totals.rows_failed
    assert found.sampled_failures == summary.failures
    assert found.hours * 3600 - found.start_seconds == pytest.approx(28 * 0.5)
    assert found.input_bytes == (totals.input_bytes if kind == "folder" else path.stat().st_size)
    stored = [path.stat().st_size for path in (tmp_path / "out").glob("f*/*.parquet")]
    # The rows are in another order, and the footer has another unit's id.
    assert len(stored) == 2
    assert found.output_bytes == pytest.approx(sum(stored), rel=0.01)


@examples(25)
@given(
    good=st.integers(1, 30), bad=st.integers(0, 9), batch_size=st.integers(1, 12), kind=st.sampled_from(list(WRITERS))
)
def test_whole_inputs_of_any_size(good, bad, batch_size, kind):
    image = draw_items(per_class=2, size=32, seed=0)[0].data
    items = [Item(f"{i:03}.jpg", "a", image if i < good else b"no image") for i in range(good + bad)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{kind}"
        WRITERS[kind](path, items)
        found = estimate(path, batch_size=batch_size)
    assert (found.images, found.sampled, found.failed) == (good + bad, good + bad, bad)
    assert found.images_are_counted


seconds = st.floats(0, 10)
costs = st.fixed_dictionaries(
    {name: st.builds(Cost, seconds, seconds) for name in ("read", "decode", "embed", "write")}
)


@given(costs=costs, cores=st.integers(1, 64))
def test_stages_that_overlap_take_as_long_as_the_slowest_or_as_the_cores_need(costs, cores):
    together = together_seconds(costs, cores)
    bounds = [
        costs["read"].seconds,
        costs["decode"].seconds,
        costs["embed"].seconds + costs["write"].seconds,
        sum(cost.cpu_seconds for cost in costs.values()) / cores,
    ]
    assert together == max(bounds)


def good_items(count: int) -> list[Item]:
    # Only the last of each class is broken.
    return draw_items(per_class=count + 1, size=32, seed=0)[:count]


@pytest.mark.parametrize("slow", ["read", "decode", "embed", "write"])
def test_each_stage_can_be_the_bottleneck(tmp_path, clock, monkeypatch, slow):
    write_tar(tmp_path / "x.tar", good_items(12))
    wall = {stage: 0.5 if stage == slow else 0.125 for stage in ("read", "decode", "embed", "write")}
    read = shards.read

    def read_slowly(unit, **more):
        for record in read(unit, **more):
            clock.pass_by(wall["read"], 0)
            yield record

    def slowly(function, stage):
        def call(*args, **more):
            clock.pass_by(wall[stage], 0)
            return function(*args, **more)

        return call

    monkeypatch.setattr(shards, "read", read_slowly)
    monkeypatch.setattr(decoders, "decode_record", slowly(decoders.decode_record, "decode"))
    monkeypatch.setattr(timing.PartWriter, "add", slowly(timing.PartWriter.add, "write"))
    found = estimate(tmp_path / "x.tar", batch_size=1, load=ticking(clock, wall=wall["embed"], cpu=0))
    assert {stage: cost.seconds for stage, cost in found.costs.items()} == wall
    assert found.bottleneck == slow
    # Embedding and writing take turns.
    assert 1 / found.images_per_second == (0.625 if slow in ("embed", "write") else 0.5)
    assert f"the bottleneck is {slow}" in estimate_text(found)


def test_cores_that_all_stages_need_hold_up_a_run(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(estimating, "available_cores", lambda: 2)
    write_tar(tmp_path / "x.tar", good_items(12))
    decode = decoders.decode_record
    monkeypatch.setattr(decoders, "decode_record", lambda *a, **k: clock.pass_by(0.5, 1.0) or decode(*a, **k))
    found = estimate(tmp_path / "x.tar", load=ticking(clock, wall=0.75, cpu=1.5))
    assert 1 / found.images_per_second == 1.25
    assert found.bottleneck == "embed"


def test_a_slow_first_batch_is_not_extrapolated(tmp_path, clock):
    write_folder(tmp_path / "x", good_items(12))
    found = estimate(tmp_path / "x", load=ticking(clock, wall=0.5, cpu=0, first=60.0))
    assert found.costs["embed"].seconds == 0.5


def test_a_last_batch_that_is_not_full_is_not_extrapolated(tmp_path, clock):
    class Padding(FakeEngine):
        def embed(self, pixels):
            clock.pass_by(1.0, 0)
            return super().embed(pixels)

    write_folder(tmp_path / "x", good_items(12))
    found = estimate(tmp_path / "x", batch_size=5, load=lambda job: Padding(job.sizes, job.batch_size))
    assert found.costs["embed"].seconds == pytest.approx(1 / 5)
    found = estimate(tmp_path / "x", batch_size=20, load=lambda job: Padding(job.sizes, job.batch_size))
    assert found.costs["embed"].seconds == pytest.approx(1 / 12)


def test_measuring_ends_when_its_time_is_up(tmp_path, clock):
    write_folder(tmp_path / "x", good_items(40))
    slow = ticking(clock, wall=0.25, cpu=0)
    # A quarter of the time is for reading; a batch of four takes a second.
    assert estimate(tmp_path / "x", seconds=4, load=slow).sampled == 12
    assert estimate(tmp_path / "x", seconds=1e-6, load=slow).sampled == 4
    assert estimate(tmp_path / "x", images=6, load=slow).sampled == 6
    assert estimate(tmp_path / "x", images=1, load=slow).sampled == 1


def noisy(count: int, size: int, seed: int) -> list[Item]:
    """Items that are no images, and that gzip can't make smaller."""
    rng = random.Random(seed)
    return [Item(f"{i:05}.jpg", "a", rng.randbytes(size // 2 + rng.randrange(size))) for i in range(count)]


def drawn(folder, **more):
    more = {"images": 200, "seconds": 1e6, **more}
    return sample.draw(shards.find([str(folder)]), **more)


@pytest.mark.parametrize("kind", ["tfrecord", "tar", "tfrecord.gz", "tar.gz"])
@pytest.mark.parametrize("size", [300, 5000])
def test_images_in_shards_are_estimated_by_their_bytes(tmp_path, kind, size):
    kind, _, gzip = kind.partition(".")
    counts = [150, 500, 15, 300, 40, 100, 250, 10, 200, 50]
    for i, count in enumerate(counts):
        WRITERS[kind](tmp_path / f"{i}.{kind}", noisy(count, size, i), gzip=bool(gzip))
    found = drawn(tmp_path)
    assert not found.is_counted
    assert len(found.records) == 200
    # What packs a tar's headers is not known from its images: they count for something where these are tiny.
    assert found.images == pytest.approx(sum(counts), rel=0.1 if size > 1000 or not gzip else 0.5)
    found = drawn(tmp_path, images=10_000)
    assert found.is_counted
    assert found.images == len(found.records) == sum(counts)


def test_parquet_and_folders_are_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", noisy(700, 100, 0))
    write_parquet(tmp_path / "b.parquet", noisy(70, 10_000, 0))
    write_folder(tmp_path / "photos", noisy(33, 100, 0))
    found = drawn(tmp_path, images=20)
    assert found.is_counted
    assert found.images == 803
    # A damaged footer can't tell, and a part of a shard that can't be read counts as one failure.
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    found = drawn(tmp_path, images=2000)
    assert (found.images, len(found.records)) == (734, 734)


def test_shards_without_a_record_and_damaged_ones(tmp_path):
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    write_tfrecord(tmp_path / "a.tfrecord", noisy(100, 1000, 0))
    whole = (tmp_path / "a.tfrecord").read_bytes()
    (tmp_path / "b.tfrecord").write_bytes(whole[: len(whole) // 2])
    found = drawn(tmp_path, images=1000)
    assert found.is_counted
    half = sum(1 for record in found.records if record.source.endswith("b.tfrecord"))
    assert 40 < half < 60
    assert found.images == len(found.records) == 100 + half
    assert drawn(tmp_path, images=20).images == pytest.approx(150, rel=0.15)


def test_the_sample_is_spread_and_the_same_again(tmp_path):
    for i in range(30):
        write_tfrecord(tmp_path / f"{i:02}.tfrecord", noisy(50, 100, i))
    write_folder(tmp_path / "photos", noisy(1000, 270, 99))
    found = drawn(tmp_path, images=100)
    assert len({record.key for record in found.records}) == 100
    files = [record.source for record in found.records if record.source.endswith("jpg")]
    # Both have half of the bytes.
    assert 40 <= len(files) <= 60
    assert max(files) > str(tmp_path / "photos/a/00900")
    assert min(files) < str(tmp_path / "photos/a/00100")
    assert len({record.source for record in found.records} - set(files)) >= 5
    # Also its beginning, all that a slow engine gets to see.
    assert len({record.source.endswith("jpg") for record in found.records[:16]}) == 2
    assert len({record.source for record in found.records[:16] if record.source.endswith("tfrecord")}) >= 3
    assert drawn(tmp_path, images=100).records == found.records


def test_large_shards_are_drawn_before_small_ones(tmp_path):
    for i in range(40):
        write_tfrecord(tmp_path / f"small{i}.tfrecord", noisy(20, 50, i))
    for i in range(4):
        write_tfrecord(tmp_path / f"large{i}.tfrecord", noisy(500, 1000, i))
    sources = [record.source for record in drawn(tmp_path, images=64).records]
    assert sum(Path(source).name.startswith("large") for source in sources) == 32


def test_reading_ends_when_its_time_is_up(tmp_path, clock, monkeypatch):
    read = shards.read

    def read_slowly(unit, **more):
        clock.pass_by(1.0, 0)
        for record in read(unit, **more):
            clock.pass_by(1.0, 0)
            yield record

    monkeypatch.setattr(shards, "read", read_slowly)
    for i in range(12):
        write_tfrecord(tmp_path / f"{i:02}.tfrecord", noisy(50, 100, i))
    found = drawn(tmp_path, seconds=20.0)
    assert len(found.records) == 24
    assert found.read == Cost(27 / 24, 0.0)
    assert found.images == pytest.approx(600, rel=0.2)
    assert len(drawn(tmp_path, seconds=0.001).records) == 8
    assert len(drawn(tmp_path, images=3).records) == 3


def test_no_time_at_all_is_enough_for_a_turn(tmp_path):
    write_tfrecord(tmp_path / "a.tfrecord", noisy(50, 100, 0))
    assert len(drawn(tmp_path, seconds=1e-12).records) == 8


def test_a_quarter_of_the_time_is_for_reading(tmp_path, clock, monkeypatch):
    read = shards.read
    monkeypatch.setattr(
        shards, "read", lambda unit, **more: (clock.pass_by(1.0, 0) or record for record in read(unit, **more))
    )
    write_tfrecord(tmp_path / "x.tfrecord", good_items(40))
    assert estimate(tmp_path / "x.tfrecord", seconds=40.0).sampled == 16


def test_samples_of_huge_images_and_features_are_smaller(tmp_path, monkeypatch):
    write_tfrecord(tmp_path / "a.tfrecord", noisy(100, 10_000, 0))
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 100_000)
    assert 8 <= len(drawn(tmp_path).records) <= 24
    write_folder(tmp_path / "x", good_items(12))
    monkeypatch.setattr(estimating, "_FEATURE_BYTES", 5 * 64 * 4)
    assert estimate(tmp_path / "x", features=("x=block1_pool:avg",)).sampled == 5
    for features, dtype, fitting in (("avg", "float16", 10), ("avg", "float32", 5), ("flatten", "float32", 1)):
        options = EstimateOptions(inputs=("x",), features=(f"x=block1_pool:{features}",), dtype=dtype)
        assert estimating._fitting(options) == fitting


def test_a_batch_that_does_not_fit_is_halved_as_in_a_run(tmp_path):
    class Small(FakeEngine):
        def embed(self, pixels):
            if self.batch_size > 2:
                raise OutOfMemory("no room")
            return super().embed(pixels)

    write_folder(tmp_path / "x", good_items(12))
    found = estimate(tmp_path / "x", batch_size=8, load=lambda job: Small(job.sizes, job.batch_size))
    assert (found.batch_size, found.sampled, found.failed) == (2, 12, 0)


def test_failures_of_every_stage_are_extrapolated(tmp_path):
    class Choosy(FakeEngine):
        def embed(self, pixels):
            vectors = super().embed(pixels)
            for values in vectors.values():
                values[np.stack(pixels).reshape(len(pixels), -1).std(axis=1) == 0] = np.nan
            return vectors

    plain = encode(np.full((40, 40, 3), 9, np.uint8), "png")
    good = good_items(10)
    items = [*good, *(Item(f"plain{i}.png", "a", plain) for i in range(3)), Item("bad.jpg", "a", b"no")]
    write_tfrecord(tmp_path / "x.tfrecord", items)
    whole = (tmp_path / "x.tfrecord").read_bytes()
    (tmp_path / "x.tfrecord").write_bytes(whole + b"cut")
    found = estimate(tmp_path / "x.tfrecord", load=lambda job: Choosy(job.sizes, job.batch_size))
    assert found.sampled_failures == {"embed: not finite": 3, "decode: not an image": 1, "read: truncated": 1}
    assert (found.images, found.failed) == (15, 5)
    many = replace(found, images=1500)
    assert many.failed == 500
    assert "1,000 rows and 500 failures" in estimate_text(many)


def an_estimate(**more) -> Estimate:
    costs = {stage: Cost(0.1, 0.1) for stage in ("read", "decode", "embed")}
    values = {
        **{"shards": 2, "files": 0, "input_bytes": 10**9, "images": 7_200_000, "images_are_counted": False},
        **{"sampled": 100, "sampled_failures": {}, "engine": "fake", "batch_size": 8, "cores": 8},
        **{"costs": {**costs, "write": Cost(0.0, 0.0)}, "start_seconds": 3.0, "output_bytes": 10**9, "workers": None},
    }
    return Estimate(**{**values, **more})


def test_workers_elsewhere():
    alone = an_estimate()
    assert alone.images_per_second == 10
    assert alone.hours == pytest.approx(200 + 3 / 3600)
    assert (alone.worker_hours, alone.dollars) == (None, None)
    like_this = an_estimate(workers=Workers(20))
    assert (like_this.worker_hours, like_this.dollars) == (pytest.approx(10), None)
    asked = an_estimate(workers=Workers(20, rate=50, price=0.5))
    assert (asked.worker_hours, asked.dollars) == (pytest.approx(2), pytest.approx(20))
    text = estimate_text(asked)
    assert "about 7,200,000 images" in text
    assert "time     200 hours on this machine" in text
    assert "2 hours and 20.00 dollars on 20 workers of 50 images/s" in text
    assert "minutes that they take to start come on top" in text
    assert "dollars" not in estimate_text(like_this)
    assert "workers " not in estimate_text(alone)
    assert len(text.splitlines()) <= 10


@pytest.mark.parametrize(
    ("hours", "text"), [(1e5, "100,000 hours"), (1.234, "1.23 hours"), (0.5, "30 minutes"), (0.001, "3.6 seconds")]
)
def test_times_for_people(hours, text):
    assert estimating._time_text(hours) == text


@pytest.fixture
def fake_engine(monkeypatch):
    real = estimating.estimate
    monkeypatch.setattr(estimating, "estimate", lambda o, **more: real(o, load=load_fake, weights=WEIGHTS, **more))


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made in this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.usefixtures("fake_engine")
def test_command(tmp_path, temporary, capsys):
    path = written(tmp_path, "tar")
    args = ["estimate", str(path), "--image-size", "32", "--batch-size", "4"]
    assert run_cli([*args, "--json", "--dataflow-workers", "3", "--worker-rate", "2", "--worker-price", "1.5"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert (found["images"], found["failed"], found["engine"], found["batch_size"]) == (32, 4, "fake", 4)
    assert found["worker_hours"] == pytest.approx(32 / 6 / 3600)
    assert found["dollars"] == pytest.approx(32 / 2 / 3600 * 1.5)
    assert found["costs"]["decode"]["cpu_seconds"] > 0
    assert run_cli(args) == 0
    out = capsys.readouterr().out
    assert "28 rows and 4 failures" in out
    assert "32 images, 4 failed (1 decode: " in out
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, FeaturemillError("broken"), ValueError("x")])
def test_nothing_is_left_behind(tmp_path, temporary, monkeypatch, capsys, error):
    class Stopped(FakeEngine):
        calls = 0

        def embed(self, pixels):
            assert [path.name[:21] for path in temporary.iterdir()] == ["featuremill-estimate-"]
            Stopped.calls += 1
            if Stopped.calls > 3:
                raise error
            return super().embed(pixels)

    real = estimating.estimate
    load = lambda job: Stopped(job.sizes, job.batch_size)  # noqa: E731
    monkeypatch.setattr(estimating, "estimate", lambda o, **more: real(o, load=load, weights=WEIGHTS, **more))
    code = run_cli(["estimate", str(written(tmp_path, "folder")), "--image-size", "32", "--batch-size", "4"])
    assert code == (130 if error is KeyboardInterrupt else 1)
    assert Stopped.calls > 3
    assert list(temporary.iterdir()) == []
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images", "0"], "--images must be at least 1, not 0"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--seconds", "nan"], "--seconds must be above 0"),
        (["--seconds", "inf"], "--seconds must be above 0"),
        (["--dataflow-workers", "0"], "--dataflow-workers must be at least 1"),
        (["--dataflow-workers", "2", "--worker-rate", "0"], "--worker-rate must be above 0"),
        (["--dataflow-workers", "2", "--worker-rate", "nan"], "--worker-rate must be above 0"),
        (["--dataflow-workers", "2", "--worker-price", "-1"], "--worker-price must be at least 0"),
        (["--dataflow-workers", "2", "--worker-price", "inf"], "--worker-price must be at least 0"),
        (["--worker-rate", "5"], "--worker-rate is of use only with --dataflow-workers"),
        (["--worker-price", "5"], "--worker-price is of use only with --dataflow-workers"),
        (["--images", "many"], "--images"),
        (["--backbone", "vgg18"], "did you mean vgg1"),
        (["--engine", "ncnn", "--precision", "bfloat16"], "pass --engine keras"),
        (["--output", "x"], "--output"),
    ],
)
def test_wrong_numbers_exit_2(tmp_path, capsys, args, message):
    assert run_cli(["estimate", str(written(tmp_path, "tar")), "--weights", "random:0", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("fake_engine")
def test_inputs_without_an_image_exit_1(tmp_path, temporary, capsys):
    def error_of(path) -> str:
        assert run_cli(["estimate", str(path), "--image-size", "32"]) == 1
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        return err

    write_folder(tmp_path / "bad", [Item(f"{i}.jpg", "a", b"no image" * (i % 2)) for i in range(6)])
    err = error_of(tmp_path / "bad")
    assert "none of the sample's 6 images can be embedded" in err
    assert "decode: not an image (3)" in err
    assert "decode: empty (3)" in err
    write_tar(tmp_path / "empty.tar", [])
    assert "hold no image" in error_of(tmp_path / "empty.tar")
    assert "no match" in error_of(tmp_path / "missing.tar")
    assert list(temporary.iterdir()) == []


def test_any_folder_can_be_an_input():
    """Only a run's own output may not lie in its input."""
    folders = ("/", "~", ".", tempfile.gettempdir(), "gs://bucket")
    assert ExtractOptions(inputs=folders, output=NO_OUTPUT).output == NO_OUTPUT


def test_options_are_those_of_extract():
    """What decides numbers or speed means the same for both commands."""
    theirs = {p.name: p for p in cli.commands["extract"].params}
    ours = {p.name: p for p in cli.commands["estimate"].params}
    own = {"images", "seconds", "dataflow_workers", "worker_rate", "worker_price"}
    assert set(ours) - own <= set(theirs)
    for name in set(ours) - own - {"as_json"}:
        assert ours[name].to_info_dict() == theirs[name].to_info_dict()
    about_output = {"output", "keep", "add_feature", "prune", "retry_failed", "overwrite", "yes"}
    about_output |= {"max_failure_rate", "limit"}
    about_running = {"workers", "runner", "unit_bytes", "quiet"}
    assert set(theirs) - about_output - about_running <= set(ours)


def test_defaults_of_the_command_are_those_of_the_function():
    defaults = {p.name: p.default for p in cli.commands["estimate"].params}
    options = EstimateOptions(inputs=("photos",))
    assert (defaults["images"], defaults["seconds"]) == (options.images, options.seconds) == (200, 20.0)


def test_no_such_numbers_for_the_function(tmp_path):
    with pytest.raises(UsageError, match="--images must be at least 1"):
        estimate(tmp_path, images=0)


def test_real_photos_and_a_real_engine(tmp_path):
    """The figures that don't depend on the machine, from a sample, against a run."""
    photos = shared_data() / "hymenoptera"
    inputs = [photos / "train", photos / "val"]
    settings = {"image_size": 32, "batch_size": 8, "weights": "random:0", "features": ("embedding=block3_pool:avg",)}
    asked = {"inputs": tuple(map(str, inputs)), **settings}
    found = estimating.estimate(EstimateOptions(**asked, images=80, seconds=600))
    summary = test_extract.run(ExtractOptions(**asked, output=str(tmp_path / "out")))
    assert (found.images, found.sampled, found.failed) == (210, 80, 0)
    assert found.images_are_counted
    assert found.engine == summary.engines[0]
    assert found.output_bytes == pytest.approx(summary.stored_bytes, rel=0.05)
    assert found.input_bytes == summary.totals.input_bytes
    for cost in found.costs.values():
        assert cost.seconds > 0
    assert json.loads(json.dumps(estimate_json(found)))["images"] == 210
