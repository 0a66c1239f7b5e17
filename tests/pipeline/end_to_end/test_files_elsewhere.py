"""Networks from files in other processes, and by another runner: the same bits, and one line where a file isn't."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.demo.samples import draw_items, write_tar
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.pipeline.end_to_end.test_keras_file import network
from tests.support import onnx_files
from transforms.errors import FeaturemillError
from transforms.store.features import open_features

FEATURES = {"keras": ("a=tokens:cls", "b=maps:max"), "onnx": ("a=hidden:cls", "b=hidden:avg")}


@pytest.fixture(scope="module", params=FEATURES)
def asked(request, tmp_path_factory):
    """Options, with which it was run in one process."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    if kind == "onnx":
        (folder / "net.onnx").write_bytes(onnx_files.transformer().SerializeToString())
    else:
        network().save(folder / "net.keras")
    items = [item for item in draw_items(per_class=8, size=40, seed=2) if item.name.endswith("jpg")]
    for number in range(4):
        write_tar(folder / f"{number}.tar", items[number::4])
    given = {"backbone": str(folder / f"net.{kind}"), "normalise": "tf", "features": FEATURES[kind]}
    options = ExtractOptions(inputs=(str(folder / "*.tar"),), output=str(folder / "one"), **given)
    run(options)
    return options


def vectors(output):
    return {
        (name, key): vector
        for batch in open_features(output).batches()
        for name in ("a", "b")
        for key, vector in zip(batch.column("key").to_pylist(), batch.column(name).to_pylist(), strict=True)
    }


@pytest.mark.parametrize("more", [{"workers": 2}, {"runner": "DirectRunner"}], ids=["workers", "runner"])
def test_the_same_bits(asked, tmp_path, more):
    summary = run(replace(asked, output=str(tmp_path / "out"), **more))
    expected = vectors(asked.output)
    assert summary.totals.units == 4
    assert len(expected) > 20
    np.testing.assert_equal(vectors(str(tmp_path / "out")), expected)


def moved(job):
    """Makes a worker's engine on a machine where the file isn't."""
    return replace(job, weights=f"{job.weights}.gone").load_engine()


@pytest.mark.parametrize("more", [{"workers": 2}, {"runner": "DirectRunner"}], ids=["workers", "runner"])
def test_each_worker_needs_the_file(asked, tmp_path, more):
    options = replace(asked, output=str(tmp_path / "out"), **more)
    with pytest.raises(FeaturemillError, match=r"no network file .*\.gone; pass --backbone FILE, or") as error:
        run(options, load=moved)
    assert "\n" not in str(error.value)
    # Nor is any worker started where it isn't here either.
    shutil.copy(asked.weights, tmp_path / f"net.{asked.backbone}")
    elsewhere = replace(options, weights=str(tmp_path / f"net.{asked.backbone}"))
    (tmp_path / f"net.{asked.backbone}").unlink()
    with pytest.raises(FeaturemillError, match="no network file"):
        run(elsewhere)
