"""The engines of CPUs against `keras` at every tap and pooling; `ncnn`'s cache; and that it needs no TensorFlow."""

import logging
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from pipeline.demo.samples import draw_items, write_tar
from tests import ROOT
from tests.transforms.engines.test_keras import (
    check_shared_between_threads,
    make_pixels,
    make_spec,
    relative_difference,
)
from transforms import engines, storage
from transforms.engines import cache as cache_module
from transforms.engines import checks, choose, device, load_engine, ncnn_model
from transforms.engines.cache import cache_folder
from transforms.engines.engine import OutOfMemory
from transforms.engines.winograd import kernel as kernel_module
from transforms.errors import FeaturemillError, UsageError
from transforms.network.bases import tap_names
from transforms.network.vgg import BACKBONES, describe, layers
from transforms.network.weights import load_weights
from transforms.pools import POOLS, pool_planes
from transforms.spec import FeatureSpec, parse_feature

ncnn_engine = pytest.importorskip("transforms.engines.ncnn")
pytest.importorskip("ncnn", reason="no ncnn wheel for this machine")


def make_engine(features, *, source="random:1", engine="ncnn", batch_size=4, threads=2, include_top=False, **settings):
    spec = make_spec(features, source=source, include_top=include_top, **settings)
    return load_engine(engine, spec, source, include_top=include_top, batch_size=batch_size, threads=threads)


def cpu_engines():
    """Returns those that run here, beside Keras; tests/transforms/engines/winograd/ fails where a kernel is missing."""
    names = []
    for name in ("ncnn", "winograd"):
        with suppress(FeaturemillError):
            names.append(choose(name, "float32"))
    return names


def every_feature(backbone):
    return [
        f"{tap}_{pool}={tap}:{pool}"
        for tap in tap_names(backbone, False)
        for pool in POOLS
        if not POOLS[pool].takes_class
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Agreement


@pytest.mark.parametrize("image_size", [32, 47, 64])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_tap_and_pooling_agrees_with_keras(backbone, image_size):
    features, settings = every_feature(backbone), {"backbone": backbone, "image_size": image_size}
    pixels = make_pixels(3, image_size)
    expected = make_engine(features, engine="keras", batch_size=3, **settings).embed(pixels)
    assert len(expected) == len(tap_names(backbone, False)) * 4
    for engine in cpu_engines():
        found = make_engine(features, engine=engine, **settings).embed(pixels)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name].shape == values.shape, name
            assert found[name].dtype == np.float32
            assert values.any(), name
            for mine, theirs in zip(found[name], values, strict=True):
                assert relative_difference(mine, theirs) <= 1e-5, (engine, name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_agrees_with_keras_at_224(backbone):
    features = ("embedding=block5_pool:avg", "a=block4_conv3:gem", "b=block1_conv2:max", "c=block5_pool:flatten")
    pixels = make_pixels(2, 224)
    expected = make_engine(features, engine="keras", backbone=backbone, image_size=224, batch_size=2).embed(pixels)
    for engine in cpu_engines():
        found = make_engine(features, engine=engine, backbone=backbone, image_size=224).embed(pixels)
        for name, values in expected.items():
            assert relative_difference(found[name], values) <= 1e-5, (engine, name)


@pytest.mark.long
@pytest.mark.parametrize("image_size", [224, 331])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_winograd_agrees_with_keras_at_every_tap_and_pooling_of_large_images(backbone, image_size):
    if "winograd" not in cpu_engines():
        pytest.skip("no kernel")
    features, settings = every_feature(backbone), {"backbone": backbone, "image_size": image_size, "batch_size": 1}
    pixels = make_pixels(1, image_size)
    expected = make_engine(features, engine="keras", **settings).embed(pixels)
    found = make_engine(features, engine="winograd", **settings).embed(pixels)
    assert list(found) == list(expected)
    differences = {name: relative_difference(found[name], values) for name, values in expected.items()}
    assert {name: each for name, each in differences.items() if not each <= 1e-5} == {}


@pytest.mark.long
@pytest.mark.parametrize("backbone", BACKBONES)
def test_dense_taps_with_the_top(backbone, monkeypatch):
    """The dense layers against NumPy in float64, from the same engine's `flatten`: the order of its numbers matters."""
    table = layers(backbone, include_top=True)
    weights = load_weights("random:2", table, backbone=backbone)
    monkeypatch.setattr(checks, "load_weights", lambda *args, **options: weights)
    taps = ("block5_pool", "flatten", "fc1", "fc2", "predictions")
    spec = FeatureSpec(backbone, weights.sha256, tuple(parse_feature(f"{tap}={tap}:flatten") for tap in taps))
    for name in cpu_engines():
        engine = load_engine(name, spec, "random:2", include_top=True, batch_size=1, threads=1)
        found = engine.embed(make_pixels(1, 224))
        assert [found[tap].shape for tap in taps[1:]] == [(1, 25_088), (1, 4096), (1, 4096), (1, 1000)]
        np.testing.assert_array_equal(found["flatten"], found["block5_pool"])
        values = found["flatten"].astype(np.float64)
        for tap in taps[2:]:
            kernel, bias = weights.arrays[tap]
            values = values @ kernel.astype(np.float64) + bias
            if tap == "predictions":
                values = np.exp(values - values.max())
                values /= values.sum()
            values = np.maximum(values, 0)
            assert relative_difference(found[tap], values) <= 1e-5, (name, tap)
    for path in cache_folder().glob(f"{weights.sha256}*"):
        path.unlink()


def test_poolings_by_hand():
    output = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_allclose(pool_planes(output, "avg"), [5.5, 17.5])
    np.testing.assert_array_equal(pool_planes(output, "max"), [11, 23])
    np.testing.assert_allclose(pool_planes(output, "gem"), [363 ** (1 / 3), 5985 ** (1 / 3)], rtol=1e-6)
    assert pool_planes(output, "flatten")[:4].tolist() == [0, 12, 1, 13]
    np.testing.assert_allclose(pool_planes(-output, "gem"), [1e-6, 1e-6], rtol=1e-6)


# The face of an engine


@pytest.fixture(scope="module")
def engine():
    return make_engine(["avg=block5_pool:avg", "deep=block4_conv3:max", "flat=block3_pool:flatten"])


def test_any_batch_order_neighbour_and_thread_give_the_same_bits(engine):
    pixels = make_pixels(4, 32)
    expected = engine.embed(pixels)
    other = make_engine(["avg=block5_pool:avg"], threads=1)
    for name, values in expected.items():
        assert len(np.unique(values, axis=0)) == 4
        np.testing.assert_array_equal(engine.embed(pixels[::-1])[name][::-1], values)
        for count in (1, 3):
            np.testing.assert_array_equal(engine.embed(pixels[:count])[name], values[:count])
    np.testing.assert_array_equal(other.embed(pixels[2:3])["avg"], expected["avg"][2:3])


def test_shared_between_threads(engine):
    check_shared_between_threads(engine)


def test_wrong_pixels_and_resize(engine):
    with pytest.raises(ValueError, match="1 to 4 images, not 5"):
        engine.embed(np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="expected N×32×32×3 uint8"):
        engine.embed(np.zeros((1, 33, 32, 3), np.uint8))
    engine.resize(2)
    try:
        with pytest.raises(ValueError, match="1 to 2 images, not 3"):
            engine.embed(np.zeros((3, 32, 32, 3), np.uint8))
    finally:
        engine.resize(4)
    assert engine.description.startswith("ncnn (1.")
    assert engine.description.endswith("CPU, 2 threads)")


def test_each_layer_is_computed_once(engine):
    """Several taps are stations of one pass: asked for in the order of depth, whatever order the features have."""
    assert engine._taps == ["block3_pool", "block4_conv3", "block5_pool"]


class Failing:
    """A network whose extractor fails with a code."""

    def __init__(self, code):
        self.code = code

    def create_extractor(self):
        return self

    def input(self, name, mat):
        return 0

    def extract(self, name):
        return self.code, None


def test_out_of_memory_is_distinguished(engine, monkeypatch):
    monkeypatch.setattr(engine, "_net", Failing(-100))
    with pytest.raises(OutOfMemory, match="32×32"):
        engine.embed(make_pixels(1, 32))
    monkeypatch.setattr(engine, "_net", Failing(-1))
    with pytest.raises(RuntimeError, match="code -1"):
        engine.embed(make_pixels(1, 32))


def test_reduced_precision_is_off(engine):
    options = engine._net.opt
    names = ncnn_engine.reduced_switches(options)
    assert {"use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"} <= set(names)
    assert {"use_int8_inference", "use_int8_storage", "use_int8_arithmetic"} <= set(names)
    assert not any(getattr(options, name) for name in names)
    assert options.use_winograd_convolution
    assert options.num_threads == 1


def test_self_check_refuses_with_the_figure(monkeypatch, cache):
    real = ncnn_engine._run

    def off_by_a_thousandth(*args):
        return {tap: output * 1.001 for tap, output in real(*args).items()}

    monkeypatch.setattr(ncnn_engine, "_run", off_by_a_thousandth)
    with pytest.raises(FeaturemillError, match=r"block2_pool differs from NumPy's by 1\.0e-03 .* pass --engine keras"):
        make_engine(["a=block2_pool:avg"])


def test_self_check_refuses_nan(monkeypatch, cache):
    monkeypatch.setattr(
        ncnn_engine, "_run", lambda net, pixels, taps: {tap: np.full((64, 32, 32), np.nan) for tap in taps}
    )
    with pytest.raises(FeaturemillError, match="miscalculates"):
        make_engine(["a=block1_conv1:avg"])


# The cache of converted weights


def cached(cache):
    [path] = cache.iterdir()
    return path


def test_converted_once_and_then_taken_from_the_cache(cache, monkeypatch):
    first = make_engine(["a=block2_pool:avg"])
    written = cached(cache).stat().st_mtime_ns
    spec = make_spec(["a=block2_pool:avg"])
    assert cached(cache).name == f"{spec.weights}-v2.ncnn.bin"
    monkeypatch.setattr(checks, "load_weights", None)
    again = load_engine("ncnn", spec, "gone.h5", include_top=False, batch_size=4, threads=1)
    assert cached(cache).stat().st_mtime_ns == written
    pixels = make_pixels(2, 32)
    np.testing.assert_array_equal(first.embed(pixels)["a"], again.embed(pixels)["a"])


def damage(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:-5],
            "short": data[:7],
            "empty": b"",
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "longer": data + b"x",
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "short", "empty", "flipped", "longer"])
def test_damaged_cache_is_rebuilt(cache, caplog, how):
    make_engine(["a=block2_pool:avg"])
    whole = cached(cache).read_bytes()
    damage(cached(cache), how)
    with caplog.at_level(logging.WARNING):
        make_engine(["a=block2_pool:avg"])
    assert "damaged or cut off" in caplog.text
    assert cached(cache).read_bytes() == whole


def test_other_weights_under_that_name_are_not_taken(cache, monkeypatch):
    """Whoever can write to the cache could else change features without changing their fingerprint."""
    spec = make_spec(["a=block2_pool:avg"])
    expected = make_engine(["a=block2_pool:avg"]).embed(make_pixels(1, 32))["a"]
    whole = cached(cache).read_bytes()
    table = checks.computed_layers(spec)
    others = load_weights("random:99", table, backbone=spec.backbone)
    with cached(cache).open("wb") as file:
        ncnn_model.write_arrays(others.arrays, file)
    assert cached(cache).read_bytes() != whole
    np.testing.assert_array_equal(make_engine(["a=block2_pool:avg"]).embed(make_pixels(1, 32))["a"], expected)
    assert cached(cache).read_bytes() == whole
    # ncnn takes numbers behind another flag for others.
    cached(cache).write_bytes(b"\x47" + whole[1:])
    make_engine(["a=block2_pool:avg"])
    assert cached(cache).read_bytes() == whole


def test_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "file" / "cache"))
    # Of this test alone: others run beside it.
    monkeypatch.setattr(cache_module.tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        engine = make_engine(["a=block1_pool:avg"])
    assert "set FEATUREMILL_CACHE" in caplog.text
    assert engine.embed(make_pixels(1, 32))["a"].any()
    assert list(tmp_path.glob("featuremill-*")) == []


def test_no_room_anywhere_says_what_to_do(cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(FeaturemillError, match="No space left on device; free some space, or set FEATUREMILL_CACHE"):
        make_engine(["a=block1_pool:avg"])
    assert list(cache.iterdir()) == []


def test_refuses_weights_that_the_spec_does_not_name(cache):
    spec = make_spec(["a=block1_pool:avg"])
    with pytest.raises(FeaturemillError, match=r"random:2 have SHA-256 .* but the run was planned with"):
        load_engine("ncnn", spec, "random:2", include_top=False, batch_size=1, threads=None)
    assert not cache.exists()


def test_network_text():
    """Layers and blobs are counted in its second line; every tap is a blob."""
    table = layers("vgg19", include_top=True)
    magic, counts, *lines = ncnn_model.network_text(table).splitlines()
    assert magic == "7767517"
    assert counts == f"{len(lines)} {len(lines)}"
    assert [layer.name for layer in table if not any(f" {layer.name} " in f"{line} " for line in lines)] == []
    sizes = {info.name: info.parameters - info.layer.units for info in describe(table, 224)}
    assert f" 6={sizes['block3_conv1']} 9=1" in next(line for line in lines if " block3_conv1 1 1" in line)


# Which engine runs


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(engines, "_GPU_FILES", ())
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_the_first_that_runs_on_a_cpu(monkeypatch):
    assert choose("auto", "float32") == cpu_engines()[-1]
    monkeypatch.setattr(kernel_module, "library_path", lambda: None)
    assert choose("auto", "float32") == "ncnn"
    assert choose("auto", "bfloat16") == "keras"
    assert choose("keras", "float32") == "keras"


def test_auto_takes_keras_where_it_sees_a_gpu(monkeypatch):
    monkeypatch.setattr(engines, "device", lambda engine: "GPU (NVIDIA L4)")
    assert choose("auto", "float32") == "keras"
    assert choose("ncnn", "float32") == "ncnn"


def test_ncnn_says_when_a_gpu_lies_idle(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(engines, "_GPU_FILES", (str(tmp_path / "nvidia*"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "--engine keras" in device("ncnn")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device("ncnn") == "CPU"


@pytest.mark.usefixtures("no_gpu")
def test_without_ncnn(monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    monkeypatch.setattr(kernel_module, "library_path", lambda: None)
    assert choose("auto", "float32") == "keras"
    with pytest.raises(FeaturemillError, match="pip install ncnn, or pass --engine keras"):
        choose("ncnn", "float32")


@pytest.mark.parametrize(
    ("name", "precision", "says"),
    [("ncn", "float32", "did you mean ncnn"), ("ncnn", "bfloat16", "in float32, not bfloat16; pass --engine keras")],
)
def test_wrong_engine_is_a_usage_error(name, precision, says):
    with pytest.raises(UsageError, match=says):
        choose(name, precision)


def test_a_missing_keras_backend_says_what_to_install(monkeypatch):
    from transforms.engines import keras as keras_engine

    def missing(*args, **more):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(keras_engine, "KerasEngine", missing)
    with pytest.raises(FeaturemillError, match="No module named 'torch'; pip install tensorflow, or set KERAS_BACKEND"):
        make_engine(["a=block1_pool:avg"], engine="keras")


# A whole run


def write_h5(path, backbone="vgg19"):
    """Writes a weight file as Keras publishes it, without Keras."""
    import h5py

    with h5py.File(path, "w") as root:
        for name, pair in load_weights("random:5", layers(backbone), backbone=backbone).arrays.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}_W", f"{name}_b"]
            for weight, array in zip(group.attrs["weight_names"], pair, strict=True):
                group[weight] = array


def test_a_whole_run_with_an_h5_file_never_imports_tensorflow(tmp_path):
    write_h5(tmp_path / "weights.h5")
    write_tar(tmp_path / "photos.tar", draw_items(per_class=2, size=40, seed=0))
    code = f"""
import sys
from pipeline.extraction.run import run
from pipeline.extraction.options import ExtractOptions
inputs, output = ({str(tmp_path / "photos.tar")!r},), {str(tmp_path / "out")!r}
summary = run(ExtractOptions(inputs=inputs, output=output, weights={str(tmp_path / "weights.h5")!r}, image_size=32,
                             engine="ncnn"))
print(summary.totals.rows_embedded, summary.engines)
print([name for name in ("tensorflow", "keras") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("4 ('ncnn (1.")
    assert second == "[]"
    assert '"ncnn (1.' in (tmp_path / "out/manifest.json").read_text()


def test_memory_that_the_process_may_not_have_is_reported_before_ncnn_crashes():
    """As under `ulimit -v`."""
    code = (
        "import resource, sys; from tests.transforms.engines.test_ncnn import make_engine\n"
        "from transforms.errors import FeaturemillError\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**28\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "try:\n    make_engine(['embedding=block5_pool:avg'])\n"
        "except FeaturemillError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ncnn would need about" in done.stdout
    assert "ulimit -v" in done.stdout
