"""Verify: true features pass with either engine, and each thing that can be wrong is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items, write_folder, write_parquet, write_tar, write_tfrecord
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.maintenance import verify as verifying
from tests.support.manifests import edit_manifest
from transforms.engines.winograd import kernel
from transforms.errors import FeaturemillError, UsageError
from transforms.spec import source_of
from transforms.store.features import open_features

WRITERS = {"folder": write_folder, "tfrecord": write_tfrecord, "tar": write_tar, "parquet": write_parquet}
FEATURES = ("embedding=block3_pool:avg", "deep=block4_conv1:gem")


def extract(inputs, output, **more):
    settings = {"weights": "random:0", "image_size": 32, "features": FEATURES, "unit_bytes": 6000, **more}
    return run(ExtractOptions(inputs=(str(inputs),), output=str(output), **settings))


@pytest.fixture
def made(tmp_path, request):
    """An input of 32 images, 28 of them good, and its features."""
    kind = getattr(request, "param", "folder")
    WRITERS[kind](tmp_path / "photos", draw_items(per_class=8, size=48, seed=1))
    if kind != "folder":
        (tmp_path / "photos").rename(tmp_path / f"photos.{kind}")
    extract(next(tmp_path.glob("photos*")), tmp_path / "out")
    return tmp_path


def verify(folder, **more):
    return verifying.verify(verifying.VerifyOptions(str(folder / "out"), **more))


@pytest.mark.parametrize("made", list(WRITERS), indirect=True)
def test_true_features_pass(made):
    found = verify(made, sample=10)
    assert found.ok
    assert (found.rows, found.sampled, found.compared) == (28, 10, 10)
    assert list(found.features) == ["embedding", "deep"]
    for drift in found.features.values():
        assert 0 <= drift.median <= drift.worst <= 1e-6
        assert drift.cosine_worst > 1 - 1e-9
    assert found.stored_by == (found.engine,)
    assert verify(made, sample=1000).compared == 28


def test_the_other_engine_agrees_but_is_another(made):
    found = verify(made, engine="keras")
    assert found.ok
    assert found.engine.startswith("keras")
    if found.stored_by != (found.engine,):
        assert 0 < found.features["embedding"].worst <= 1e-5


def change_part(part, change):
    """Rewrites a part with other vectors in `embedding`, and OUT as one of an earlier version, without hashes."""
    table = pq.read_table(part)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    change(vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    at = table.schema.get_field_index("embedding")
    footer = pq.read_metadata(part).metadata
    names = (b"featuremill.fingerprint", b"featuremill.spec", b"featuremill.report")
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table.set_column(at, table.schema.field(at), column))
        writer.add_key_value_metadata({name: footer[name] for name in names})
    edit_manifest(part.parents[1], parts_sha256="")


def test_a_row_that_is_off_is_named(made, capsys):
    part = sorted((made / "out/features").iterdir())[0]
    key = pq.read_table(part, columns=["key"])["key"][2].as_py()

    def change(vectors):
        vectors[2, 5] += 0.01 * np.abs(vectors[2]).max()

    change_part(part, change)
    found = verify(made, sample=28)
    assert not found.ok
    drift = found.features["embedding"]
    assert drift.worst == pytest.approx(0.01, rel=0.02)
    assert drift.median < 1e-6
    assert drift.worst_key == key
    assert found.features["deep"].worst < 1e-6
    args = ["verify", str(made / "out"), "--sample", "28"]
    assert run_cli(args) == 1
    printed = capsys.readouterr().out
    assert "embedding drifts by" in printed
    assert key in printed
    assert run_cli([*args, "--tolerance", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_nan_and_zeros_are_off(made, value):
    for part in (made / "out/features").iterdir():
        change_part(part, lambda vectors: vectors.fill(value))
    assert not verify(made).ok


def test_changed_and_vanished_files_are_named(made, capsys):
    good = [Path(key) for key in open_features(str(made / "out")).keys]
    good[3].unlink()
    Image.new("RGB", (40, 40), "red").save(good[4])
    found = verify(made, sample=28)
    assert found.compared == 26
    assert not found.ok
    assert len(found.problems) == 2
    assert any(f"{good[3]}: cannot read" in problem for problem in found.problems)
    assert f"{good[4]}: its content changed since it was embedded" in found.problems
    assert run_cli(["verify", str(made / "out"), "--sample", "28"]) == 1
    assert str(good[4]) in capsys.readouterr().out


@pytest.mark.parametrize("made", ["tar"], indirect=True)
def test_a_vanished_shard_is_named(made):
    (made / "photos.tar").unlink()
    found = verify(made, sample=28)
    assert found.compared == 0
    assert found.features == {}
    assert len(found.problems) == 28
    assert not any("resumes" in problem for problem in found.problems)
    assert all("cannot read" in problem and "photos.tar" in problem for problem in found.problems)


def test_of_a_folder_that_is_gone_each_row_gets_its_own_reason(made, capsys):
    keys = open_features(str(made / "out")).keys
    shutil.rmtree(made / "photos")
    found = verify(made, sample=28)
    assert sorted(found.problems) == sorted(f"{key}: cannot read its source: No such file or directory" for key in keys)
    assert run_cli(["verify", str(made / "out")]) == 1
    assert "resumes" not in capsys.readouterr().out


@pytest.mark.parametrize("made", ["tar"], indirect=True)
def test_a_rewritten_shard_is_named(made):
    write_tar(made / "photos.tar", draw_items(per_class=3, size=48, seed=2))
    found = verify(made, sample=28)
    assert found.compared == 0
    assert any("changed since" in problem or "no longer holds it" in problem for problem in found.problems)
    assert not found.ok


def test_weights_elsewhere_and_wrong_ones(made):
    with pytest.raises(FeaturemillError, match="made with weights random:0, not random:1; leave --weights out"):
        verify(made, weights="random:1")
    with pytest.raises(FeaturemillError, match=r"no weight file .*moved\.h5; pass --weights"):
        verify(made, weights=str(made / "moved.h5"))
    assert verify(made, sample=2, weights="random:0").ok


def test_float16_may_differ_by_its_rounding(tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=3, size=48, seed=1))
    extract(tmp_path / "photos", tmp_path / "out", dtype="float16")
    found = verify(tmp_path)
    assert found.ok
    assert found.tolerance == 1e-3
    assert found.features["embedding"].worst > 1e-5
    assert not verify(tmp_path, tolerance=1e-6).ok


@pytest.mark.skipif(kernel.library_path() is None, reason="no kernel")
def test_int16_has_the_same_bits_and_may_differ_by_what_other_decoders_find(tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=3, size=48, seed=1))
    extract(tmp_path / "photos", tmp_path / "out", precision="int16")
    found = verify(tmp_path)
    assert found.ok
    assert found.tolerance == 5e-3
    assert found.features["embedding"].worst == 0
    for off, is_fine in ((4e-3, True), (8e-3, False)):
        for part in (tmp_path / "out/features").iterdir():
            change_part(part, lambda vectors, off=off: np.multiply(vectors, 1 + off, out=vectors))
        assert verify(tmp_path).ok is is_fine


@pytest.mark.parametrize("made", ["tar"], indirect=True)
def test_the_draw_is_seeded_and_spread(made):
    features = open_features(str(made / "out"))
    assert len(features.parts) > 3

    def draw(sample, seed):
        return list(verifying._draw(features, sample, seed))

    assert draw(9, 0) == draw(9, 0)
    assert draw(9, 0) != draw(9, 1)
    for sample in (1, 9, 27, 28, 99):
        rows = [(part, row) for part, inside in draw(sample, 5) for row in inside]
        assert len(rows) == len(set(rows)) == min(sample, 28)
    seen = {(part, row) for seed in range(60) for part, inside in draw(3, seed) for row in inside}
    assert len(seen) == 28


def test_few_parts_are_read_where_there_are_many(made, monkeypatch):
    features = open_features(str(made / "out"))
    monkeypatch.setattr(verifying, "UNITS", 1)
    assert len(list(verifying._draw(features, 1, 0))) == 1


def test_what_cannot_be_verified(made, capsys):
    with pytest.raises(UsageError, match="--sample must be at least 1, not 0"):
        verify(made, sample=0)
    with pytest.raises(UsageError, match="--tolerance must be at least 0, not nan"):
        verify(made, tolerance=float("nan"))
    with pytest.raises(UsageError, match="--seed -1: a seed is from 0"):
        verify(made, seed=-1)
    with pytest.raises(UsageError, match="no engine 'ncn'"):
        verify(made, engine="ncn")
    (made / "out/plan.parquet").unlink()
    with pytest.raises(FeaturemillError, match=r"plan.parquet doesn't know .* run featuremill extract again"):
        verify(made)
    for part in (made / "out/features").iterdir():
        part.unlink()
    with pytest.raises(FeaturemillError, match=r"holds (no|0) rows"):
        verify(made)
    shutil.rmtree(made / "out")
    assert run_cli(["verify", str(made / "out")]) == 1
    assert "holds no features" in capsys.readouterr().err


def test_where_weights_come_from():
    assert source_of("imagenet (vgg19_notop.h5)") == "imagenet"
    assert source_of("/data/imagenet (1).h5") == "/data/imagenet (1).h5"
    assert source_of("random:3") == "random:3"
