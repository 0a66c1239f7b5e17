"""The pipeline against a plain loop, and what runs on the same output do to each other. A fake engine throughout."""

import gc
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo.samples import Item, draw_items, write_folder, write_parquet, write_tar, write_tfrecord
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.maintenance import inspect as inspecting
from tests.support.fakes import WEIGHTS, FakeEngine, load_fake
from transforms import engines
from transforms.embedding.unit import Job
from transforms.engines import keras as keras_engine
from transforms.engines.backends import Gpu
from transforms.engines.engine import OutOfMemory
from transforms.engines.winograd import kernel as winograd_kernel
from transforms.errors import FeaturemillError, UsageError
from transforms.images.decode import ImageError, decode_image
from transforms.store.features import open_features

SIZE = 32
# Of an engine in this process, and in one of its own.
SHARED = ({}, {"engine": "ncnn", "engine_per": "machine"})


def options(inputs, output, **more) -> ExtractOptions:
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    settings = {"image_size": SIZE, "batch_size": 4, **more}
    return ExtractOptions(inputs=tuple(map(str, inputs)), output=str(output), **settings)


def extract(inputs, output, *, load=load_fake, weights=WEIGHTS, say=lambda line: None, **more):
    return run(options(inputs, output, **more), load=load, weights=weights, say=say)


def rows(output) -> dict[str, tuple]:
    """{key: all other columns}, features as bytes."""
    features = open_features(str(output))
    found = {}
    for batch in features.batches():
        for row in batch.to_pylist():
            key = row.pop("key")
            assert key not in found
            found[key] = tuple(np.asarray(v, np.float32).tobytes() if isinstance(v, list) else v for v in row.values())
    return found


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return draw_items(per_class=8, size=48, seed=1)


@pytest.fixture
def photos(items, tmp_path) -> dict[str, Path]:
    paths = {kind: tmp_path / f"in/photos.{kind}" for kind in ("tfrecord", "tar", "parquet")}
    paths["folder"] = tmp_path / "in/photos"
    paths["folder"].parent.mkdir()
    write_folder(paths["folder"], items)
    write_tfrecord(paths["tfrecord"], items)
    write_tar(paths["tar"], items)
    write_parquet(paths["parquet"], items, row_group_size=5)
    return paths


def plain_loop(items: list[Item], sizes: dict[str, int]) -> tuple[dict[str, tuple], set[str]]:
    """What must come out: {name: (label, width, height, side, vectors)}, and the names that fail."""
    spec = options("x", "y").spec(WEIGHTS)
    engine = FakeEngine(sizes, 1)
    good, bad = {}, set()
    for item in items:
        try:
            decoded = decode_image(item.data, spec, max_pixels=10**7)
        except ImageError:
            bad.add(item.name)
            continue
        vectors = engine.embed(decoded.pixels[None])
        good[item.name] = (item.label, decoded.width, decoded.height, None, *(v[0].tobytes() for v in vectors.values()))
    return good, bad


TWO_FEATURES = ("a=block1_pool:avg", "b=block5_pool:max")


@pytest.mark.parametrize("kind", ["folder", "tfrecord", "tar", "parquet"])
@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 3, "unit_bytes": 3000}, {"batch_size": 64}])
def test_equals_the_plain_loop(photos, items, tmp_path, kind, settings):
    summary = extract(photos[kind], tmp_path / "out", features=TWO_FEATURES, **settings)
    good, bad = plain_loop(items, {"a": 64, "b": 512})
    found = {}
    for key, (label, _source, _position, _sha256, *rest) in rows(tmp_path / "out").items():
        found[key.replace("#", "/").rsplit("/", 1)[1]] = (label, *rest)
    assert found == good
    assert len(bad) == 4
    assert summary.totals.rows_embedded == len(good)
    assert summary.totals.rows_failed == sum(summary.failures.values()) == len(bad)
    if "unit_bytes" in settings and kind != "folder":
        assert summary.totals.units > 2
    assert inspecting.inspect(str(tmp_path / "out")).problems == ()


def test_two_worker_processes_give_the_same_rows(photos, tmp_path):
    one = extract(photos["tar"], tmp_path / "one", unit_bytes=4000)
    two = extract(photos["tar"], tmp_path / "two", unit_bytes=4000, workers=2)
    assert one.totals.rows_read == two.totals.rows_read > 0
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_a_second_run_does_nothing(photos, tmp_path):
    first = extract(photos["tar"], tmp_path / "out", unit_bytes=4000)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    def never(job: Job):
        raise AssertionError("nothing is left to embed")

    again = extract(photos["tar"], tmp_path / "out", unit_bytes=4000, load=never)
    assert again.this_run.units == 0
    assert again.totals == first.totals
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_a_missing_part_is_done_again(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out", unit_bytes=4000)
    clean = rows(tmp_path / "out")
    victim = sorted((tmp_path / "out/features").iterdir())[1]
    victim.unlink()
    assert inspecting.inspect(str(tmp_path / "out")).problems
    again = extract(photos["tar"], tmp_path / "out", unit_bytes=4000)
    assert again.this_run.units == 1
    assert rows(tmp_path / "out") == clean


def test_other_unit_bytes_keep_the_units_of_before(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out", unit_bytes=4000)
    assert extract(photos["tar"], tmp_path / "out", unit_bytes=9000).this_run.units == 0


def test_added_inputs_only_embed_what_is_new(photos, tmp_path):
    extract(photos["folder"], tmp_path / "out")
    Image.new("RGB", (40, 40), "red").save(photos["folder"] / "disc" / "0_first_by_name.png")
    more = extract([photos["folder"], photos["tar"]], tmp_path / "out")
    assert more.this_run.units == 2
    assert more.this_run.rows_read == 1 + 32
    assert more.totals.rows_read == 32 + 1 + 32
    # Inputs of before need not be named again.
    assert extract(photos["tar"], tmp_path / "out").totals.rows_read == 65


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_changed_input_is_refused_until_pruned(photos, tmp_path, kind, items):
    extract([photos["parquet"], photos[kind]], tmp_path / "out")
    changed = photos[kind] if kind == "tar" else sorted(photos["folder"].rglob("*.jpg"))[0]
    changed.write_bytes(changed.read_bytes() + bytes(512))
    with pytest.raises(FeaturemillError, match=r"--prune") as refused:
        extract([photos["parquet"], photos[kind]], tmp_path / "out")
    assert changed.name in str(refused.value)
    again = extract([photos["parquet"], photos[kind]], tmp_path / "out", prune=True)
    assert again.totals.rows_read == 64
    assert 0 < again.this_run.rows_read <= 32
    assert inspecting.inspect(str(tmp_path / "out")).problems == ()


def test_vanished_input_is_refused_until_pruned(photos, tmp_path):
    extract([photos["parquet"], photos["tar"]], tmp_path / "out")
    photos["tar"].unlink()
    with pytest.raises(FeaturemillError, match="is gone"):
        extract(photos["parquet"], tmp_path / "out")
    assert extract(photos["parquet"], tmp_path / "out", prune=True).totals.rows_read == 32
    assert all("tar" not in key for key in rows(tmp_path / "out"))


def test_retry_failed_does_only_units_with_failures(photos, tmp_path):
    first = extract(photos["parquet"], tmp_path / "out", unit_bytes=4000, max_pixels=2000)
    assert first.totals.rows_embedded < first.totals.rows_read
    second = extract(photos["parquet"], tmp_path / "out", unit_bytes=4000, retry_failed=True)
    assert 0 < second.this_run.units <= first.totals.units
    assert (second.totals.rows_read, second.totals.rows_failed) == (32, 4)
    third = extract(photos["parquet"], tmp_path / "out", unit_bytes=4000, retry_failed=True)
    assert 0 < third.this_run.units < first.totals.units
    assert inspecting.inspect(str(tmp_path / "out")).problems == ()


def test_another_fingerprint_is_refused_with_the_differences(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out")
    with pytest.raises(FeaturemillError, match=r"resize squash \| crop") as refused:
        extract(photos["tar"], tmp_path / "out", resize="crop", features=("e=block4_pool:avg",))
    assert "features embedding=block5_pool:avg | e=block4_pool:avg" in str(refused.value)
    other = replace(WEIGHTS, sha256="1" * 64, origin="other.h5")
    with pytest.raises(FeaturemillError, match=r"weights fake \(000000000000\) \| other.h5 \(111111111111\)"):
        extract(photos["tar"], tmp_path / "out", weights=other)
    overwritten = extract(photos["tar"], tmp_path / "out", resize="crop", overwrite=True)
    assert overwritten.totals.rows_read == 32


def test_overwrite_leaves_what_is_not_ours(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    extract(photos["tar"], out)
    extract(photos["tar"], out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "manifest.json").unlink()
    with pytest.raises(FeaturemillError, match="manifest"):
        extract(photos["tar"], out, overwrite=True)
    assert list((out / "features").iterdir())


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_a_sample_has_n_images_and_is_not_continued(photos, tmp_path, kind):
    sample = extract(photos[kind], tmp_path / "out", limit=7, unit_bytes=3000)
    assert sample.totals.rows_read == 7
    assert sample.sample_limit == 7
    for again in ({}, {"limit": 9}):
        with pytest.raises(FeaturemillError, match="is a sample of 7 images"):
            extract(photos[kind], tmp_path / "out", **again)


def test_a_finished_output_does_not_become_a_sample(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out")
    with pytest.raises(FeaturemillError, match="is not a sample"):
        extract(photos["tar"], tmp_path / "out", limit=3)


def test_output_and_inputs_must_lie_apart(photos, tmp_path):
    with pytest.raises(UsageError, match="inside"):
        options(photos["folder"], photos["folder"] / "features")
    extract(f"{photos['folder']}/disc/*", photos["folder"] / "disc/out")
    (tmp_path / "link").symlink_to(photos["folder"])
    for given in (f"{photos['folder']}/disc/**", tmp_path / "link"):
        with pytest.raises(UsageError, match="inside the output"):
            extract(given, photos["folder"] / "disc/out")


def test_an_unfinished_sample_is_made_anew(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.extraction.run.close_output", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(photos["tar"], tmp_path / "out", limit=7)
    assert extract(photos["tar"], tmp_path / "out", limit=7).totals.rows_read == 7
    with pytest.raises(FeaturemillError, match="is a sample"):
        extract(photos["tar"], tmp_path / "out", limit=7)


def test_a_run_killed_before_its_manifest_was_written(photos, tmp_path):
    for name in ("features", "failures", "_tmp"):
        (tmp_path / "out" / name).mkdir(parents=True)
    assert extract(photos["tar"], tmp_path / "out").totals.rows_read == 32


def test_a_shard_in_a_folder_that_is_none_is_refused(photos, tmp_path):
    (photos["folder"] / "disc/junk.tar").write_bytes(b"garbage" * 100)
    with pytest.raises(FeaturemillError, match=r"unknown format: .*junk.tar"):
        extract(photos["folder"], tmp_path / "out")


def test_quoted_globs_reach_folders_and_any_label_beats_none(photos, tmp_path):
    summary = extract([f"{photos['folder']}/d*", photos["folder"]], tmp_path / "out")
    assert summary.totals.rows_read == 32
    labels = open_features(str(tmp_path / "out")).labels
    assert sorted(set(labels)) == ["checker", "disc", "square", "stripes"]


class PoisonedEngine(FakeEngine):
    """Fails on every batch that holds a pure red image."""

    def embed(self, pixels):
        pixels = np.stack(pixels)
        if ((pixels[..., 0] == 255) & (pixels[..., 1] == 0)).all(axis=(1, 2)).any():
            raise RuntimeError("red")
        return super().embed(pixels)


def load_poisoned(job: Job) -> PoisonedEngine:
    return PoisonedEngine(job.sizes, job.batch_size)


@pytest.mark.parametrize("shared", SHARED)
def test_a_batch_that_fails_loses_only_the_guilty_image(tmp_path, shared):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (40, 40), "red" if number in (3, 8) else (number, 9, 9)).save(folder / f"{number}.png")
    summary = extract(folder, tmp_path / "out", load=load_poisoned, **shared)
    assert (summary.totals.rows_embedded, summary.totals.rows_failed) == (8, 2)
    assert summary.failures == {"embed: RuntimeError": 2}
    [listed] = (tmp_path / "out/failures").iterdir()
    assert [Path(key).name for key in pq.read_table(listed)["key"].to_pylist()] == ["3.png", "8.png"]


class BrokenEngine(FakeEngine):
    def embed(self, pixels):
        raise RuntimeError("no GPU")


def load_broken(job: Job) -> BrokenEngine:
    return BrokenEngine(job.sizes, job.batch_size)


@pytest.mark.parametrize("shared", SHARED)
def test_a_broken_engine_is_an_error_and_not_a_failure_of_every_image(photos, tmp_path, shared):
    with pytest.raises(FeaturemillError, match="fails on any image: no GPU"):
        extract(photos["tar"], tmp_path / "out", load=load_broken, **shared)
    assert list((tmp_path / "out/features").iterdir()) == []


class NarrowEngine(FakeEngine):
    """Has memory for two images."""

    def embed(self, pixels):
        if len(pixels) > 2:
            raise OutOfMemory(f"{len(pixels)} images")
        return super().embed(pixels)


def load_narrow(job: Job) -> NarrowEngine:
    return NarrowEngine(job.sizes, job.batch_size)


@pytest.mark.parametrize("shared", [*SHARED, {**SHARED[1], "workers": 2, "unit_bytes": 8000}])
def test_out_of_memory_halves_the_batch(photos, tmp_path, shared):
    extract(photos["tar"], tmp_path / "wide", batch_size=8)
    narrow = extract(photos["tar"], tmp_path / "narrow", batch_size=8, load=load_narrow, **shared)
    assert narrow.totals.rows_failed == 4
    assert rows(tmp_path / "narrow") == rows(tmp_path / "wide")


@pytest.mark.long
def test_a_network_that_workers_share_gives_the_bits_of_one_in_process(photos, tmp_path):
    asked = {"weights": "random:0", "engine": "ncnn", "unit_bytes": 8000}
    for name, more in (("own", {}), ("shared", {"workers": 2, "engine_per": "machine"})):
        summary = run(options(photos["tar"], tmp_path / name, **asked, **more))
    assert summary.this_run.units > 2
    assert rows(tmp_path / "own") == rows(tmp_path / "shared")


class NanEngine(FakeEngine):
    def embed(self, pixels):
        vectors = super().embed(pixels)
        for array in vectors.values():
            array[1::2] = np.nan
        return vectors


def load_nan(job: Job) -> NanEngine:
    return NanEngine(job.sizes, job.batch_size)


def test_numbers_that_are_not_finite_are_failures(photos, tmp_path):
    summary = extract(photos["tar"], tmp_path / "out", load=load_nan)
    assert summary.failures["embed: not finite"] == 14
    assert np.isfinite(open_features(str(tmp_path / "out")).to_numpy()).all()


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("float16", "too large for float16; --precision bfloat16 holds them"),
        ("bfloat16", "NaN, or numbers too large for float32"),
    ],
)
def test_a_failure_says_which_numbers_are_too_large(photos, tmp_path, precision, says):
    summary = extract(photos["tar"], tmp_path / "out", load=load_nan, engine="keras", precision=precision)
    failures = pq.read_table(tmp_path / "out" / "failures")["message"].to_pylist()
    assert sum(says in message for message in failures) == summary.failures["embed: not finite"]


def test_the_plan_says_what_a_precision_leaves_idle(photos, tmp_path, monkeypatch):
    card = SimpleNamespace(gpus=lambda: [Gpu("NVIDIA H100", (9, 0))], version="torch 2")
    monkeypatch.setattr(keras_engine, "load_backend", lambda: card)
    monkeypatch.setattr(engines, "device", lambda engine: "GPU (NVIDIA H100)")
    lines = []
    for precision in ("float32", "bfloat16"):
        settings = {"engine": "keras", "batch_size": 4, "precision": precision, "limit": 1}
        extract(photos["tar"], tmp_path / precision, say=lines.append, **settings)
    [note] = [line for line in lines if "tensor cores" in line]
    assert note == "note     float32 doesn't use this card's tensor cores; --precision tf32, bfloat16 and float16 do"


@pytest.mark.parametrize(
    ("engine", "machine", "says"), [("auto", "x86_64", True), ("ncnn", "x86_64", False), ("auto", "aarch64", False)]
)
def test_the_plan_says_that_a_faster_engine_was_not_built(photos, tmp_path, monkeypatch, engine, machine, says):
    monkeypatch.setattr(winograd_kernel, "library_path", lambda: None)
    monkeypatch.setattr(winograd_kernel.platform, "machine", lambda: machine)
    lines = []
    extract(photos["tar"], tmp_path / "out", say=lines.append, engine=engine, limit=1)
    notes = [line for line in lines if "winograd" in line]
    assert len(notes) == says
    for note in notes:
        assert "the engine winograd, which is faster, isn't here: installing could not compile it" in note
        assert note.endswith("(apt install g++), and install featuremill again")


def test_float16_overflow_is_a_failure_and_small_numbers_are_stored_as_float16(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (32, 32), (0, 0, 3)).save(folder / "dark.png")
    Image.new("RGB", (32, 32), "white").save(folder / "bright.png")
    summary = extract(folder, tmp_path / "out", dtype="float16")
    assert summary.failures == {"embed: not finite": 1}
    assert open_features(str(tmp_path / "out")).to_numpy().dtype == np.float16


def test_keys_and_contents_seen_twice_are_counted_and_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (40, 40), "blue").save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.png")
    data = (folder / "a.png").read_bytes()
    write_tfrecord(tmp_path / "same.tfrecord", [Item("x.png", "l", data), Item("x.png", "l", data + b"!")])
    summary = extract([folder, tmp_path / "same.tfrecord"], tmp_path / "out")
    assert summary.repeats["keys"] == 1
    assert summary.repeats["named_keys"] == (f"{tmp_path}/same.tfrecord#x.png",)
    assert summary.repeats["contents"] == 1
    assert inspecting.inspect(str(tmp_path / "out")).repeats.contents == 1


def test_inspect_counts_labels_failures_and_vectors(photos, tmp_path):
    extract(photos["parquet"], tmp_path / "out")
    found = inspecting.inspect(str(tmp_path / "out"))
    assert found.labels == {"disc": 7, "square": 7, "stripes": 7, "checker": 7}
    assert sum(found.failures.values()) == 4
    assert found.vectors["embedding"].rows == 28
    assert found.vectors["embedding"].nan_count == 0
    assert "read 32 = embedded 28 + failed 4" in inspecting.inspection_text(found)


def test_inspect_notices_what_does_not_agree(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out", unit_bytes=4000)
    parts = sorted((tmp_path / "out/features").iterdir())
    shutil.copy(parts[0], parts[0].with_name("copy.parquet"))
    problems = " ".join(inspecting.inspect(str(tmp_path / "out")).problems)
    assert "copy.parquet: its footer calls it" in problems
    parts[0].with_name("copy.parquet").unlink()
    [failures, *_] = (tmp_path / "out/failures").iterdir()
    failures.unlink()
    assert "0 failures listed" in " ".join(inspecting.inspect(str(tmp_path / "out")).problems)


def test_a_part_of_another_spec_is_refused(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out")
    extract(photos["tar"], tmp_path / "other", resize="crop")
    [part] = (tmp_path / "other/features").iterdir()
    shutil.copy(part, tmp_path / "out/features/stranger.parquet")
    with pytest.raises(FeaturemillError, match=r"stranger.parquet is not a readable part \(its footer calls it"):
        open_features(str(tmp_path / "out"))
    (tmp_path / "out/features/stranger.parquet").rename(tmp_path / "out/features" / part.name)
    with pytest.raises(FeaturemillError, match=rf"{part.name} has fingerprint"):
        open_features(str(tmp_path / "out"))


def test_open_features_in_python(photos, tmp_path):
    extract(photos["folder"], tmp_path / "out", features=TWO_FEATURES)
    features = open_features(str(tmp_path / "out"))
    assert features.spec.features[1].tap == "block5_pool"
    assert features.complete
    assert features.to_numpy("b").shape == (28, 512)
    assert len(features.keys) == len(features.labels) == features.rows == 28
    assert sum(len(batch) for batch in features.batches(["key"], rows=5)) == 28
    with pytest.raises(FeaturemillError, match="did you mean"):
        next(features.batches(["labels"]))
    with pytest.raises(FeaturemillError, match="no feature 'embedding'"):
        features.to_numpy()


def test_large_features_are_written_in_several_row_groups(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.store.parts.ROW_GROUP_BYTES", 20_000)
    extract(photos["tar"], tmp_path / "out")
    [part] = (tmp_path / "out/features").iterdir()
    assert pq.ParquetFile(part).num_row_groups > 1
    assert open_features(str(tmp_path / "out")).to_numpy().shape == (28, 512)


def test_stored_rows_are_plain_parquet(photos, tmp_path):
    import duckdb
    import polars

    extract(photos["tar"], tmp_path / "out")
    pattern = f"{tmp_path}/out/features/*.parquet"
    by_label = duckdb.sql(f"SELECT label, count(*), len(first(embedding)) FROM '{pattern}' GROUP BY 1 ORDER BY 1")
    assert by_label.fetchall() == [(label, 7, 512) for label in ("checker", "disc", "square", "stripes")]
    frame = polars.read_parquet(pattern)
    assert frame["embedding"].to_numpy().shape == (28, 512)


def test_nothing_but_good_rows_is_under_features(photos, tmp_path):
    extract(list(photos.values()), tmp_path / "out")
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == ["_tmp", "failures", "features", "manifest.json", "plan.parquet", "units.parquet"]
    assert os.listdir(tmp_path / "out/_tmp") == []
    for part in (tmp_path / "out/features").iterdir():
        with io.BytesIO(part.read_bytes()) as file:
            assert pq.read_table(file).num_rows > 0


def test_file_names_that_are_not_text_and_links_to_nothing(tmp_path):
    folder = os.fsencode(tmp_path / "in" / "class")
    os.makedirs(folder)
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "plain.png")
    shutil.copy(tmp_path / "plain.png", os.path.join(folder, b"caf\xe9.png"))
    os.symlink("/nowhere", os.path.join(folder, b"link.png"))
    os.mkfifo(os.path.join(folder, b"pipe.png"))
    summary = extract(tmp_path / "in", tmp_path / "out")
    assert (summary.totals.rows_embedded, summary.failures) == (1, {"read: vanished": 1})
    assert next(iter(rows(tmp_path / "out"))).endswith("caf\\udce9.png")
    assert extract(tmp_path / "in", tmp_path / "out").this_run.units == 0


class LooksAtGarbage(FakeEngine):
    """Notes how many objects are set aside from garbage collection while it computes."""

    # Beam pickles what a function closes over, and not what a module has.
    seen: ClassVar[list[int]] = []

    def embed(self, pixels):
        self.seen.append(gc.get_freeze_count())
        return super().embed(pixels)


def load_looking(job: Job) -> FakeEngine:
    return LooksAtGarbage(job.sizes, 8)


def test_what_a_worker_set_aside_from_garbage_collection_is_given_back(photos, tmp_path):
    extract(photos["tar"], tmp_path / "out", load=load_looking)
    assert min(LooksAtGarbage.seen) > 1000
    assert gc.get_freeze_count() == 0
