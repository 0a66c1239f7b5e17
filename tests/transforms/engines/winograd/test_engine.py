"""The engine `winograd`: int16, its promises, its cache, and where it isn't. test_ncnn.py has float32 against Keras."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT
from tests.transforms.engines.test_keras import (
    check_shared_between_threads,
    make_pixels,
    make_spec,
    relative_difference,
)
from tests.transforms.engines.test_ncnn import damage, every_feature, make_engine, write_h5
from transforms.engines import checks, choose, load_engine
from transforms.engines import engine as face
from transforms.engines.winograd import engine as engine_module
from transforms.engines.winograd import kernel, network, weights
from transforms.errors import FeaturemillError, UsageError
from transforms.network.weights import load_weights
from transforms.pools import pool_planes

PRECISIONS = engine_module.ENGINE.precisions
# Shallow taps: little to convert.
SMALL = ("avg=block2_pool:avg", "before=block2_conv2:max", "flat=block2_pool:flatten")

if kernel.library_path() is None:
    pytest.skip("no kernel", allow_module_level=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def winograd(features=SMALL, **settings):
    return make_engine(features, engine="winograd", **settings)


def exact(pixels, taps, source="random:1"):
    """{tap: H×W×C} of one image in float64."""
    spec = winograd_spec(taps, source)
    arrays = load_weights(source, checks.computed_layers(spec), backbone="vgg19").arrays
    kernels = {
        name: (kernel.reshape(-1, len(bias)).T.astype(np.float64), bias) for name, (kernel, bias) in arrays.items()
    }
    planes = checks.preprocess(pixels).transpose(2, 0, 1).astype(np.float64)
    outputs = checks.convolutions(planes, checks.computed_layers(spec), kernels, channels_first=False)
    return {tap: outputs[tap] for tap in taps}


def winograd_spec(taps, source):
    return make_spec([f"{tap}={tap}:flatten" for tap in taps], source=source)


# Numbers


def test_int16_at_every_tap_and_pooling():
    features, pixels = every_feature("vgg19"), make_pixels(3, 47)
    expected = make_engine(features, engine="ncnn", image_size=47).embed(pixels)
    found = winograd(features, precision="int16", image_size=47).embed(pixels)
    assert list(found) == list(expected)
    for name, values in expected.items():
        for mine, theirs in zip(found[name], values, strict=True):
            assert relative_difference(mine, theirs) <= 1e-2, name
            cosine = mine.astype(float) @ theirs / np.linalg.norm(mine.astype(float)) / np.linalg.norm(theirs)
            assert cosine >= 0.99995, name
    # It is another arithmetic, not float32 under another name.
    assert relative_difference(found["block5_pool_avg"], expected["block5_pool_avg"]) > 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pixels", ["zero", "saturated", "one white pixel"])
def test_flat_images(precision, pixels):
    image = np.full((1, 32, 32, 3), 255 if pixels == "saturated" else 0, np.uint8)
    if pixels == "one white pixel":
        image[0, 31, 31] = 255
    found = winograd(["a=block2_pool:flatten"], precision=precision).embed(image)["a"][0]
    expected = pool_planes(exact(image[0], ["block2_pool"])["block2_pool"], "flatten")
    assert relative_difference(found, expected) <= {"float32": 1e-5, "int16": 5e-3}[precision]


def test_at_331():
    features, pixels = ["a=block3_pool:flatten", "b=block3_conv1:avg"], make_pixels(1, 331)
    expected = make_engine(features, engine="ncnn", image_size=331).embed(pixels)
    found = winograd(features, image_size=331).embed(pixels)
    for name, values in expected.items():
        assert relative_difference(found[name], values) <= 1e-5, name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_with_plain_loops(precision, monkeypatch):
    """Every instruction set is compared with these; so all CPUs find the same."""
    pixels = make_pixels(2, 32)
    found = winograd(precision=precision).embed(pixels)
    monkeypatch.setattr(engine_module, "checked_kernel", lambda: kernel.kernels()[-1])
    plain = winograd(precision=precision).embed(pixels)
    for name, values in found.items():
        np.testing.assert_array_equal(plain[name], values)


# The face of an engine


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request):
    features = ["avg=block3_pool:avg", "deep=block3_conv3:max", "flat=block2_pool:flatten"]
    return winograd(features, precision=request.param, batch_size=9)


def test_any_batch_order_neighbour_and_thread_give_the_same_bits(engine, monkeypatch):
    pixels = make_pixels(9, 32)
    expected = engine.embed(pixels)
    for name, values in expected.items():
        assert len(np.unique(values, axis=0)) == 9
        np.testing.assert_array_equal(engine.embed(pixels[::-1])[name][::-1], values)
        for count in (1, 3, 5):
            np.testing.assert_array_equal(engine.embed(pixels[:count])[name], values[:count])
    for threads in (1, 3):
        monkeypatch.setattr(engine, "_threads", threads)
        np.testing.assert_array_equal(engine.embed(pixels)["avg"], expected["avg"])


def test_shared_between_threads():
    check_shared_between_threads(winograd(SMALL, batch_size=4))


def test_pixels_however_they_lie_in_memory(engine):
    pixels = make_pixels(2, 32)
    expected = engine.embed(pixels)["avg"]
    wide = np.zeros((2, 32, 64, 3), np.uint8)
    wide[:, :, ::2] = pixels
    for same in (wide[:, :, ::2], np.asfortranarray(pixels), pixels[::-1, ::-1][::-1, ::-1]):
        np.testing.assert_array_equal(engine.embed(same)["avg"], expected)


def test_wrong_pixels_and_resize(engine):
    with pytest.raises(ValueError, match="1 to 9 images, not 10"):
        engine.embed(np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="expected N×32×32×3 uint8"):
        engine.embed(np.zeros((1, 32, 32, 3), np.float32))
    engine.resize(2)
    try:
        with pytest.raises(ValueError, match="1 to 2 images, not 3"):
            engine.embed(np.zeros((3, 32, 32, 3), np.uint8))
    finally:
        engine.resize(9)
    assert engine.description.startswith(f"winograd ({kernel.kernels()[0].name}, ")
    assert engine.description.endswith(", CPU, 2 threads)")


def test_no_memory_for_activations(monkeypatch):
    engine, pixels = winograd(), make_pixels(1, 32)

    def full(*args):
        raise MemoryError

    monkeypatch.setattr(network.np, "zeros", full)
    with pytest.raises(face.OutOfMemory, match="do not fit into memory"):
        engine.embed(pixels)
    monkeypatch.undo()
    monkeypatch.setattr(kernel.np, "empty", full)
    with pytest.raises(face.OutOfMemory, match="workspace do not fit into memory"):
        engine.embed(pixels)


# The self-check and the cache


def test_self_check_refuses_with_the_figure(monkeypatch):
    real = engine_module._run

    def off_by_a_thousandth(*args):
        return [{key: output * 1.001 for key, output in image.items()} for image in real(*args)]

    monkeypatch.setattr(engine_module, "_run", off_by_a_thousandth)
    with pytest.raises(FeaturemillError, match=r"winograd at float32 with .* by 1\.0e-03 .* pass --engine ncnn"):
        winograd(["a=block1_pool:avg"])


def transformed_file(cache):
    [path] = cache.glob("*.winograd.bin")
    return path


def test_transformed_once_and_then_mapped_from_the_cache(cache, monkeypatch):
    first = winograd()
    written = transformed_file(cache).stat().st_mtime_ns
    monkeypatch.setattr(weights, "transformed", None)
    monkeypatch.setattr(checks, "load_weights", None)
    again = load_engine("winograd", first._spec, "gone.h5", include_top=False, batch_size=4, threads=1)
    assert transformed_file(cache).stat().st_mtime_ns == written
    pixels = make_pixels(2, 32)
    np.testing.assert_array_equal(first.embed(pixels)["avg"], again.embed(pixels)["avg"])
    # Workers share its pages: none holds a copy.
    mapped = again._network._weights["block2_conv2"]["weights"]
    while not isinstance(mapped, np.memmap):
        mapped = mapped.base
    assert mapped.mode == "r"


@pytest.mark.parametrize("how", ["cut", "short", "empty", "flipped", "longer"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_damaged_cache_is_rebuilt(cache, caplog, how, precision):
    winograd(precision=precision)
    whole = transformed_file(cache).read_bytes()
    damage(transformed_file(cache), how)
    with caplog.at_level(logging.WARNING):
        winograd(precision=precision)
    assert "damaged or cut off" in caplog.text
    assert transformed_file(cache).read_bytes() == whole


def test_other_weights_under_that_name_are_not_taken(cache):
    """The file's own hash is right, but the self-check knows the network's weights by theirs."""
    winograd()
    mine = transformed_file(cache)
    whole = mine.read_bytes()
    mine.unlink()
    winograd(source="random:99")
    [others] = cache.glob("*.winograd.bin")
    mine.write_bytes(others.read_bytes())
    with pytest.raises(FeaturemillError, match=r"miscalculates on this machine: .*; delete the cached weights"):
        winograd()
    assert mine.read_bytes() != whole


def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "file" / "cache"))
    assert winograd(["a=block1_pool:avg"]).embed(make_pixels(1, 32))["a"].any()


def test_memory_that_the_process_may_not_have(monkeypatch, tmp_path):
    def full(*args):
        raise OSError(12, "Cannot allocate memory")

    layout = weights.Layout([], "float32", 16)
    monkeypatch.setattr(weights.np, "memmap", full)
    with pytest.raises(FeaturemillError, match=r"cannot map x into memory: .*Cannot allocate memory; raise the limit"):
        layout.open("x")


def test_nan_weights_are_refused(tmp_path, cache):
    import h5py

    write_h5(tmp_path / "weights.h5")
    with h5py.File(tmp_path / "weights.h5", "r+") as root:
        root["block1_conv2"]["block1_conv2_W"][0, 0, 0, 0] = np.nan
    with pytest.raises(FeaturemillError, match="block1_conv2's kernel holds 1 values that are NaN"):
        winograd(["a=block1_conv2:avg"], source=str(tmp_path / "weights.h5"))


# Where it isn't


def test_int16_is_refused_by_name_where_it_cannot_be(monkeypatch):
    assert choose("auto", "int16") == "winograd"
    with pytest.raises(UsageError, match="ncnn computes in float32, not int16; pass --engine winograd"):
        choose("ncnn", "int16")
    monkeypatch.setattr(kernel, "library_path", lambda: None)
    for name in ("auto", "winograd"):
        with pytest.raises(FeaturemillError, match=r"the only one at --precision int16, isn't here: .* --engine ncnn"):
            choose(name, "int16")


def test_neither_keras_nor_ncnn_is_imported():
    code = (
        f"import sys\n{MAKE_ENGINE}\n"
        "make_engine(['a=block1_pool:avg'], engine='winograd', precision='int16')\n"
        "print([name for name in ('tensorflow', 'keras', 'ncnn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MAKE_ENGINE = """
from transforms.engines import load_engine
from transforms.network.vgg import cut, layers
from transforms.network.weights import load_weights
from transforms.spec import FeatureSpec, parse_feature
def make_engine(features, *, engine, precision):
    features = tuple(map(parse_feature, features))
    table = cut(layers("vgg19"), [feature.tap for feature in features])
    spec = FeatureSpec("vgg19", load_weights("random:1", table, backbone="vgg19").sha256, features, precision=precision)
    return load_engine(engine, spec, "random:1", include_top=False, batch_size=1, threads=1)
"""
