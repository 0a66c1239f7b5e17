"""The engine onnx: equal to Keras on VGG19, the same bits in any batch, and no TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT
from tests.support import onnx_files
from tests.support.onnx_files import helper, runtime
from transforms.engines import check_engine, choose, load_engine
from transforms.errors import FeaturemillError, UsageError
from transforms.network.bases import cut, layers, open_file
from transforms.network.files import Tap
from transforms.network.normalise import preprocess
from transforms.network.weights import load_weights
from transforms.spec import Feature, FeatureSpec

SIDE = 32


def pixels_of(count, side=SIDE):
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def loaded(path, features, *, threads=2, batch_size=8, side=SIDE, **more):
    features = tuple(Feature(*feature) for feature in features)
    sha256 = open_file("onnx", str(path)).sha256
    spec = FeatureSpec("onnx", sha256, features, image_size=side, **{"normalise": "torch", **more})
    return load_engine("auto", spec, str(path), include_top=False, batch_size=batch_size, threads=threads)


def saved(tmp_path, model, name="net.onnx"):
    (tmp_path / name).write_bytes(model.SerializeToString())
    return tmp_path / name


def test_vgg19_is_what_keras_computes(tmp_path):
    table = layers("vgg19")
    weights = load_weights("random:4", table, backbone="vgg19")
    path = saved(tmp_path, onnx_files.vgg(table, weights.arrays, SIDE))
    features = [("a", "block5_pool", "avg"), ("b", "block3_conv4", "flatten"), ("c", "block4_pool", "gem")]
    found = loaded(path, features, normalise="caffe").embed(pixels_of(3))
    spec = FeatureSpec("vgg19", weights.sha256, tuple(Feature(*each) for each in features), image_size=SIDE)
    keras = load_engine("keras", spec, "random:4", include_top=False, batch_size=4, threads=2)
    for name, expected in keras.embed(pixels_of(3)).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5 * scale)
    # The order of the channels matters: what isn't normalised as it was is something else.
    other = loaded(path, features, normalise="torch").embed(pixels_of(3))["a"]
    assert np.abs(other - found["a"]).max() > 0.01 * np.abs(found["a"]).max()
    assert len(cut(table, ["block5_pool"])) == len(table)


@pytest.mark.parametrize(
    ("make", "vector", "size", "before"),
    [(onnx_files.clip, "image_embeds", 7, 1), (onnx_files.siglip, "pooled", 12, 0)],
)
def test_towers_that_end_as_those_of_clip_and_siglip(tmp_path, make, vector, size, before):
    path = saved(tmp_path, make())
    file = open_file("onnx", str(path))
    assert set(file.outputs) == {vector, "hidden"}
    taps = file.taps(["hidden", vector], SIDE)
    assert taps["hidden"] == Tap("hidden", (16 + before, 12), 1, before)
    assert (taps[vector].shape, taps[vector].default_pool) == ((size,), "flatten")
    features = [("a", vector, "flatten"), ("b", "hidden", "avg"), ("c", "hidden", "max")]
    features += [("d", "hidden", "cls")] if before else []
    found = loaded(path, features).embed(pixels_of(3))
    pixels = preprocess(pixels_of(3), "torch").transpose(0, 3, 1, 2)
    whole, hidden = runtime.InferenceSession(path).run([vector, "hidden"], {"pixels": pixels})
    patches = hidden[:, before:]
    expected = {"a": whole, "b": patches.mean(axis=1), "c": patches.max(axis=1), "d": hidden[:, 0]}
    for name, features in found.items():
        np.testing.assert_allclose(features, expected[name], rtol=1e-5, atol=1e-6)
    # Each image by itself.
    assert len(np.unique(found["a"], axis=0)) == 3


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_image_has_the_same_bits_in_any_batch(tmp_path, batch):
    path = saved(tmp_path, onnx_files.transformer(batch=batch))
    features = [("a", "hidden", "cls"), ("b", "hidden", "avg"), ("c", "embedded", "flatten")]
    pixels = pixels_of(7)
    engine = loaded(path, features)
    assert engine.description == f"onnx (onnxruntime {runtime.__version__}, CPU, 2 threads)"
    whole, single = engine.embed(pixels), loaded(path, features, threads=1, batch_size=3)
    for name, expected in whole.items():
        alone = np.concatenate([single.embed(pixels[row : row + 1])[name] for row in range(7)])
        np.testing.assert_array_equal(alone, expected)
        np.testing.assert_array_equal(engine.embed(list(pixels[::-1]))[name][::-1], expected)
    # The tokens are what ONNX Runtime says of all at once.
    any_number = saved(tmp_path, onnx_files.transformer(), "any.onnx")
    given = {"pixels": preprocess(pixels, "torch").transpose(0, 3, 1, 2)}
    [hidden] = runtime.InferenceSession(any_number).run(None, given)
    np.testing.assert_allclose(whole["a"], hidden[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole["b"], hidden[:, 1:].mean(axis=1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="1 to 3 images"):
        single.embed(pixels)


def test_neighbours_that_would_change_an_image_are_kept_away(tmp_path):
    # Numbers less the mean over the batch, as normalisation does in training.
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["pixels", "mean"], ["moved"]),
        helper.make_node("GlobalAveragePool", ["moved"], ["colours"]),
    ]
    path = saved(tmp_path, onnx_files.model(nodes, {}, shape=(4, 3, SIDE, SIDE), outputs=["colours"]))
    engine = loaded(path, [("a", "colours", "avg")])
    pixels = pixels_of(4)
    whole = engine.embed(pixels)["a"]
    np.testing.assert_array_equal(np.concatenate([engine.embed(pixels[i : i + 1])["a"] for i in range(4)]), whole)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_come_in_the_order_that_a_file_wants(tmp_path, channels_last):
    shape = ("n", SIDE, SIDE, 3) if channels_last else ("n", 3, SIDE, SIDE)
    path = saved(tmp_path, onnx_files.convolutions(shape=shape))
    own = f"rgb*{0.5},{0.25},{1.0}+{-1.0},{2.0},{1e-05}"
    pixels = pixels_of(2)
    found = loaded(path, [("a", "maps", "avg")], normalise=own).embed(pixels)["a"]
    given = pixels * np.array([0.5, 0.25, 1], np.float32) + np.array([-1, 2, 1e-5], np.float32)
    given = given.astype(np.float32) if channels_last else given.transpose(0, 3, 1, 2).astype(np.float32)
    [vector] = runtime.InferenceSession(path).run(["vector"], {"pixels": given})
    np.testing.assert_allclose(found, vector, rtol=1e-4, atol=1e-4)


def test_engines_for_files_and_for_named_bases():
    assert choose("auto", "float32", "onnx") == "onnx"
    assert choose("auto", "float32", "vgg19") != "onnx"
    for engine in ("winograd", "ncnn", "keras"):
        with pytest.raises(UsageError, match=f"the engine {engine} doesn't compute onnx; pass --engine onnx"):
            check_engine(engine, "float32", "onnx")
    with pytest.raises(UsageError, match="the engine onnx doesn't compute resnet50; pass --engine keras"):
        check_engine("onnx", "float32", "resnet50")
    with pytest.raises(UsageError, match="no engine computes onnx in 'bfloat16'"):
        choose("auto", "bfloat16", "onnx")


def test_another_file_is_refused(tmp_path):
    path = saved(tmp_path, onnx_files.convolutions())
    spec = FeatureSpec("onnx", "0" * 64, (Feature("a", "maps", "avg"),), image_size=SIDE, normalise="torch")
    settings = {"include_top": False, "batch_size": 1, "threads": 1}
    with pytest.raises(FeaturemillError, match=r"the run was planned with 000000000000…: the file was replaced"):
        load_engine("onnx", spec, str(path), **settings)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FeaturemillError, match=r"pip install 'featuremill\[onnx\]'"):
        choose("auto", "float32", "onnx")


def test_neither_tensorflow_nor_pytorch_is_imported(tmp_path):
    path = saved(tmp_path, onnx_files.convolutions())
    code = (
        "import sys, numpy; from transforms.engines import load_stored_engine; from transforms.spec import *;"
        "from transforms.network.bases import open_file;"
        f"path = {str(path)!r}; features = (Feature('a', 'maps', 'avg'),);"
        "spec = FeatureSpec('onnx', open_file('onnx', path).sha256, features, image_size=32, normalise='torch');"
        "engine = load_stored_engine('auto', spec, path);"
        "print(engine.embed(numpy.zeros((1, 32, 32, 3), 'uint8'))['a'].shape);"
        "print([name for name in ('tensorflow', 'keras', 'torch', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(1, 7)", "[]"]
