"""A format, an engine, a pool, a base and a kind of head are added without an edit of the package, and work."""

import hashlib
import json
import re
from importlib import metadata

import numpy as np
import pytest

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items
from pipeline.end_to_end.data import check_head
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.extraction.sample import draw
from pipeline.maintenance.inspect import inspect
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests import ROOT
from tests.pipeline.training.test_run import write_clouds
from tests.support import dummies
from tests.support.fakes import WEIGHTS, load_fake
from transforms import engines, heads, shards
from transforms.engines import check_engine, choose, default_batch_size, device
from transforms.errors import FeaturemillError, UsageError
from transforms.images.decode import decode_image
from transforms.network import bases
from transforms.network.keras_import import import_keras
from transforms.network.weights import load_weights
from transforms.pools import POOLS, pool_output, pool_planes
from transforms.predictors.head import load_head
from transforms.rows.lookup import read_rows
from transforms.rows.table import open_table
from transforms.rows.thumbnails import thumbnails
from transforms.store.features import open_features
from transforms.store.manifest import read_manifest
from transforms.store.output import Output


def quiet(line: str) -> None:
    pass


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.setitem(shards.FORMATS, "lines", dummies.FORMAT)
    items = [item for item in draw_items(per_class=5, size=40, seed=0) if item.data]
    dummies.write_lines(tmp_path / "photos.hex", items)
    return tmp_path / "photos.hex", items


def options(inputs, output, **more) -> ExtractOptions:
    return ExtractOptions(inputs=(str(inputs),), output=str(output), image_size=32, weights="random:0", **more)


def test_a_format(lines, tmp_path):
    path, items = lines
    [shard] = shards.find([str(path.parent)]).shards
    assert shard.format == "lines"
    units = shards.split(shard, 3000)
    assert len(units) > 2
    assert [image.data for unit in units for image in shards.read(unit)] == [item.data for item in items]
    assert draw(shards.find([str(path)]), images=1000, seconds=60).images == len(items)
    out = tmp_path / "out"
    summary = run(options(path, out, unit_bytes=3000, batch_size=4), load=load_fake, weights=WEIGHTS)
    assert summary.totals.units == len(units)
    assert summary.totals.rows_read == len(items)
    assert summary.totals.rows_embedded == 16
    again = run(options(path, out, unit_bytes=3000, batch_size=4), load=load_fake, weights=WEIGHTS)
    assert again.this_run.units == 0
    found = thumbnails(Output(str(out)), read_rows(open_table(str(out)), [1, 7, 13]))
    assert all(found[row].data for row in (1, 7, 13))
    other = tmp_path / "other.txt"
    other.write_bytes(b"hello")
    with pytest.raises(FeaturemillError, match=r"a file of lines \(HEXLINES\)"):
        shards.find([str(other)])


def test_an_engine(lines, tmp_path, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "dummy", "tests.support.dummies")
    assert choose("dummy", "float32") == "dummy"
    assert device("dummy").startswith("CPU")
    assert default_batch_size("dummy", None) == 3
    with pytest.raises(UsageError, match="dummy computes in float32, not bfloat16; pass --engine keras"):
        check_engine("dummy", "bfloat16")
    with pytest.raises(UsageError, match="did you mean dummy"):
        options(lines[0], tmp_path / "out", engine="dumy")
    summary = run(options(lines[0], tmp_path / "out", engine="dummy"))
    assert summary.engines == ("dummy",)
    assert read_manifest(str(tmp_path / "out")).versions["click"] == metadata.version("click")
    assert summary.totals.rows_embedded == 16


def test_auto_takes_an_engine_where_the_others_cannot_run(monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", {"auto": "", "dummy": "tests.support.dummies"})
    assert choose("auto", "float32") == "dummy"
    with pytest.raises(UsageError, match="no engine computes in 'bfloat16'"):
        choose("auto", "bfloat16")


def test_the_flex_template_takes_every_engine_and_pool():
    listed = json.loads((ROOT / "flex_template/metadata.json").read_text())["parameters"]
    patterns = {parameter["name"]: parameter.get("regexes", [""])[0] for parameter in listed}
    assert all(re.search(patterns["engine"], name) for name in engines.ENGINES)
    assert all(re.search(patterns["feature"], f"a=block1_pool:{name}") for name in POOLS)


@pytest.mark.parametrize("engine", ["ncnn", "keras"])
def test_a_pool(lines, tmp_path, monkeypatch, engine):
    monkeypatch.setitem(POOLS, "middle", dummies.POOL)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    middle = (pixels.min(axis=(1, 2)) + pixels.max(axis=(1, 2))) / 2
    np.testing.assert_allclose(pool_output(pixels, "middle"), middle, rtol=1e-6)
    np.testing.assert_allclose(pool_planes(pixels[0].transpose(2, 0, 1), "middle"), middle[0], rtol=1e-6)
    features = ("a=block1_pool:middle", "b=block1_pool:flatten")
    run(options(lines[0], tmp_path / "out", engine=engine, features=features))
    found = 0
    for batch in open_features(str(tmp_path / "out")).batches():
        whole, pooled = (np.stack(batch.column(name).to_numpy(zero_copy_only=False)) for name in ("b", "a"))
        whole = whole.reshape(len(whole), -1, 64)
        np.testing.assert_allclose(pooled, (whole.min(axis=1) + whole.max(axis=1)) / 2, rtol=1e-5)
        found += len(whole)
    assert found == 16


def test_a_base(lines, tmp_path, monkeypatch, capsys):
    keras = import_keras()
    monkeypatch.setitem(bases.BASES, "dummy", dummies.BASE)
    monkeypatch.setattr(keras.applications, "Dummy", dummies.build_network, raising=False)
    path, items = lines
    out, head, added = str(tmp_path / "out"), str(tmp_path / "head"), str(tmp_path / "added")

    def says(*arguments):
        assert run_cli([*map(str, arguments)]) == 0
        return "".join(capsys.readouterr())

    described = says("describe", "dummy")
    assert "48×48" in described
    assert re.search(r"^last .*6", described, re.MULTILINE)
    named = ("--backbone", "dummy", "--weights", "random:0")
    extracted = says("extract", path, "-o", out, *named)
    assert "embedding=last:avg (6 × float32)" in extracted
    assert "read 19 = embedded 16 + failed 3" in extracted
    assert inspect(out).problems == ()
    # What its own network gives, with its weights, of images normalised as its record says.
    stored = open_features(out)
    network = dummies.build_network(include_top=False, weights=None, pooling="avg", input_shape=(48, 48, 3))
    for name, arrays in load_weights("random:0", bases.layers("dummy"), backbone="dummy").arrays.items():
        network.get_layer(name).set_weights(arrays)
    data = {hashlib.sha256(item.data).digest(): item.data for item in items}
    for row in (row for batch in stored.batches() for row in batch.to_pylist()):
        pixels = decode_image(data[row["sha256"]], stored.spec, max_pixels=10**6).pixels
        expected = np.asarray(network(pixels[None] / 127.5 - 1))[0]
        np.testing.assert_allclose(row["embedding"], expected, rtol=1e-4, atol=1e-5)
    # In the other commands, too.
    says("verify", out, "--sample", "4")
    assert "rows" in says("estimate", path, *named, "--images", "4")
    says("train", out, "-o", head, "--head", "ridge", "--quiet")
    says("predict", head, path, "-o", tmp_path / "pred", "--quiet")
    says("extract", path, "-o", added, "--image-size", "32", "--weights", "random:0", "--quiet")
    says("extract", path, "-o", added, "--add-feature", "more=dummy:first:max", "--weights", "random:0", "--quiet")
    assert open_features(added).to_numpy("more").shape == (16, 8)
    with pytest.raises(UsageError, match="did you mean dummy"):
        options(path, tmp_path / "new", backbone="dumy")


def test_a_kind_of_head(tmp_path, monkeypatch):
    monkeypatch.setitem(heads.KINDS, "centres", "tests.support.dummies")
    features = write_clouds(tmp_path / "vectors.parquet")
    trained = TrainOptions(features=str(features), output=str(tmp_path / "head"), kinds=("centres", "ridge"))
    train(trained, say=quiet)
    one = TrainOptions(features=str(features), output=str(tmp_path / "one"), kinds=("centres",))
    train(one, say=quiet)
    head = load_head(str(tmp_path / "one"))
    assert head.model.kind == "centres"
    pred = tmp_path / "pred"
    summary = predict(
        PredictOptions(head=str(tmp_path / "one"), inputs=(str(features),), output=str(pred), evaluate=True),
        say=quiet,
        quiet=True,
    )
    assert summary.manifest.totals.predicted == 300
    assert summary.metrics["metrics"]["accuracy"]["value"] > 0.95
    with pytest.raises(FeaturemillError, match="is a centres head, which has no layers to train"):
        check_head(head, FinetuneOptions(head=str(tmp_path / "one"), features="x", output="y"))
