"""The engine `keras` against plain Keras, and its promises: fixed batch, no neighbours, threads, memory, silence."""

import logging
import os
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import ROOT
from transforms import engines
from transforms.engines import backends, checks, choose, default_batch_size, device, load_engine
from transforms.engines import keras as keras_engine
from transforms.engines.backends import Gpu
from transforms.engines.engine import OutOfMemory
from transforms.errors import FeaturemillError, UsageError
from transforms.network.vgg import BACKBONES, build, cut, layers
from transforms.network.weights import load_weights
from transforms.spec import FeatureSpec, parse_feature

SMALL = ("avg=block5_pool:avg", "deep=block4_conv3:max", "gem=block3_pool:gem", "flat=block5_pool:flatten")


def make_pixels(count, side, seed=0):
    """Noise over a ramp of brightness, so that the images differ in more than their noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.2, 1, count).reshape(-1, 1, 1, 1)
    return (rng.integers(0, 256, (count, side, side, 3)) * ramp).astype(np.uint8)


def make_spec(features, *, backbone="vgg19", image_size=32, source="random:1", include_top=False, **settings):
    features = tuple(parse_feature(text) for text in features)
    table = cut(layers(backbone, include_top=include_top), [feature.tap for feature in features])
    weights = load_weights(source, table, backbone=backbone)
    return FeatureSpec(backbone, weights.sha256, features, image_size=image_size, **settings)


def make_engine(features=SMALL, *, batch_size=4, source="random:1", include_top=False, threads=None, **settings):
    spec = make_spec(features, source=source, include_top=include_top, **settings)
    return load_engine("keras", spec, source, include_top=include_top, batch_size=batch_size, threads=threads)


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def relative_difference(found, expected):
    """Largest difference over the feature's largest value, as the issue asks for it."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def keras_outputs(backbone, weights_file, taps, pixels):
    """{tap: N×H×W×C} of `keras.applications`, used as its documentation shows."""
    import keras

    side = pixels.shape[1]
    application = getattr(keras.applications, backbone.upper())
    model = application(weights=str(weights_file), include_top=False, input_shape=(side, side, 3))
    model = keras.Model(model.input, {tap: model.get_layer(tap).output for tap in taps})
    prepared = getattr(keras.applications, backbone).preprocess_input(pixels.astype(np.float32))
    return model.predict(prepared, batch_size=4, verbose=0)


def pooled(output, pool):
    """Poolings in float64, written differently from the engine's."""
    output = np.asarray(output, np.float64)
    positions = output.reshape(len(output), -1, output.shape[-1])
    if pool == "avg":
        return positions.sum(axis=1) / positions.shape[1]
    if pool == "max":
        return np.sort(positions, axis=1)[:, -1]
    if pool == "gem":
        return np.cbrt((np.clip(positions, 1e-6, None) ** 3).mean(axis=1))
    return output.reshape(len(output), -1)


def save_weights(path, backbone, source="random:3"):
    network = build(layers(backbone), 32)
    for name, pair in load_weights(source, layers(backbone), backbone=backbone).arrays.items():
        network.get_layer(name).set_weights(pair)
    network.save_weights(path)


@pytest.mark.parametrize(
    ("backbone", "image_size", "count", "taps"),
    [
        pytest.param("vgg19", 224, 7, ("block5_pool", "block4_conv3"), marks=pytest.mark.long),
        ("vgg16", 48, 5, ("block5_conv1", "block2_pool")),
    ],
)
def test_equals_plain_keras_in_any_order_and_batch(tmp_path, backbone, image_size, count, taps):
    """Two taps, four poolings; the weights go through one file from one to the other. tests/test_real.py has photos."""
    path = tmp_path / "shared.weights.h5"
    save_weights(path, backbone)
    pixels = make_pixels(count, image_size)
    features = {f"{tap}_{pool}": (tap, pool) for tap in taps for pool in ("avg", "max", "gem", "flatten")}
    engine = make_engine(
        [f"{name}={tap}:{pool}" for name, (tap, pool) in features.items()],
        backbone=backbone,
        image_size=image_size,
        source=str(path),
        batch_size=5,
    )
    batches = [engine.embed(pixels[i : i + 5]) for i in range(0, count, 5)]
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in features}
    expected = keras_outputs(backbone, path, taps, pixels)
    assert list(batches[0]) == list(features)
    for name, (tap, pool) in features.items():
        assert found[name].dtype == np.float32
        assert relative_difference(found[name], pooled(expected[tap], pool)) <= 1e-5, name
    # Another order, at another batch size with a partial tail.
    engine.resize(4)
    order = np.random.default_rng(1).permutation(count)
    again = [engine.embed(pixels[order[i : i + 4]]) for i in range(0, len(order), 4)]
    for name in features:
        shuffled = np.concatenate([batch[name] for batch in again])
        assert relative_difference(shuffled, found[name][order]) <= 1e-6, name


def test_neighbours_and_padding_change_no_bit(engine):
    pixels = make_pixels(4, 32)
    expected = engine.embed(pixels)
    reversed_order = engine.embed(pixels[::-1])
    for name, values in expected.items():
        np.testing.assert_array_equal(reversed_order[name][::-1], values)
    for count in (1, 3):
        for name, values in engine.embed(pixels[:count]).items():
            assert len(values) == count
            np.testing.assert_array_equal(values, expected[name][:count])
    assert len(np.unique(expected["avg"], axis=0)) == 4


def test_compiled_once_for_all_batches(engine):
    for count in (4, 1, 2, 3, 4):
        engine.embed(make_pixels(count, 32))
    assert engine._model.predict_function.experimental_get_tracing_count() == 1


def test_resize(engine):
    pixels = make_pixels(4, 32)
    expected = engine.embed(pixels)
    engine.resize(2)
    try:
        with pytest.raises(ValueError, match="1 to 2 images, not 4"):
            engine.embed(pixels)
        found = engine.embed(pixels[:2])
    finally:
        engine.resize(4)
    for name in expected:
        assert relative_difference(found[name], expected[name][:2]) <= 1e-6


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((5, 32, 32, 3), np.uint8), "1 to 4 images, not 5"),
        (np.zeros((0, 32, 32, 3), np.uint8), "1 to 4 images, not 0"),
        (np.zeros((2, 32, 32, 3), np.float32), "uint8, got .* float32"),
        (np.zeros((2, 33, 32, 3), np.uint8), r"expected N×32×32×3"),
        (np.zeros((32, 32, 3), np.uint8), r"got \(32, 32, 3\)"),
    ],
)
def test_wrong_pixels_are_value_errors(engine, pixels, says):
    with pytest.raises(ValueError, match=says):
        engine.embed(pixels)


def test_one_graph_ends_at_the_deepest_tap():
    engine = make_engine(["a=block2_conv1:avg", "b=block1_pool:max"])
    assert engine._network.layers[-1].name == "block2_conv1"
    assert {name: values.shape for name, values in engine.embed(make_pixels(2, 32)).items()} == {
        "a": (2, 128),
        "b": (2, 64),
    }


def test_bfloat16_is_near_and_only_inside(caplog):
    import keras

    features = ("avg=block3_pool:avg", "flat=block3_conv1:flatten")
    exact = make_engine(features).embed(make_pixels(4, 32))
    with caplog.at_level(logging.WARNING):
        engine = make_engine(features, precision="bfloat16")
    rough = engine.embed(make_pixels(4, 32))
    for name, values in exact.items():
        assert rough[name].dtype == np.float32
        assert 1e-4 < relative_difference(rough[name], values) < 5e-2
    assert keras.config.dtype_policy().name == "float32"
    # Pooled in float32: not a bfloat16 that was widened afterwards.
    assert np.any(rough["avg"].view(np.uint32) & 0xFFFF)
    assert not np.any(rough["flat"].view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize(("flags", "warned"), [("fpu avx2", True), ("fpu avx512_bf16", False), ("amx_bf16", False)])
def test_bfloat16_warns_where_the_cpu_has_none(tmp_path, monkeypatch, caplog, flags, warned):
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: {flags}\n")
    monkeypatch.setattr(keras_engine, "CPU_INFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(keras_engine, "visible_device", lambda: "CPU")
    with caplog.at_level(logging.WARNING):
        keras_engine._warn_if_slow("bfloat16")
        assert ("no bfloat16 arithmetic" in caplog.text) == warned
        caplog.clear()
        keras_engine._warn_if_slow("float32")
        monkeypatch.setattr(keras_engine, "visible_device", lambda: "GPU (x)")
        keras_engine._warn_if_slow("bfloat16")
        assert not caplog.text


def test_float16_is_near_and_says_what_is_too_large_for_it():
    """Above 65504 the first number is an infinity, and what follows may be 0, which shows nothing by itself."""
    features = ("deep=block2_pool:avg", "first=block1_conv1:max")
    pixels = make_pixels(3, 32)
    # Nothing is left of it but the means that preprocessing takes off.
    pixels[1] = (124, 117, 104)
    exact = make_engine(features).embed(pixels)
    engine = make_engine(features, precision="float16")
    for name, values in engine.embed(pixels).items():
        assert values.dtype == np.float32
        assert 1e-5 < relative_difference(values, exact[name]) < 1e-2
    kernel, bias = engine._network.get_layer("block1_conv2").get_weights()
    engine._network.get_layer("block1_conv2").set_weights([kernel * 5000, bias])
    for values in engine.embed(pixels).values():
        np.testing.assert_array_equal(np.isnan(values).all(axis=1), [True, False, True])
        assert np.isfinite(values[1]).all()


def cards(*found):
    return lambda: SimpleNamespace(gpus=lambda: list(found))


@pytest.mark.parametrize(
    ("card", "runs"),
    [
        (Gpu("NVIDIA H100", (9, 0)), True),
        (Gpu("NVIDIA A100", (8, 0)), True),
        (Gpu("Tesla T4", (7, 5)), False),
        (Gpu("Tesla P100", (6, 0)), False),
        (Gpu("Radeon", None), False),
        (None, False),
    ],
)
def test_tf32_needs_tensor_cores_for_it(monkeypatch, card, runs):
    monkeypatch.setattr(keras_engine, "load_backend", cards(*filter(None, [card])))
    has_some = card is not None and (card.capability or (0, 0)) >= (7, 0)
    assert [bool(keras_engine._precision_note(each)) for each in ("float32", "bfloat16")] == [has_some, False]
    assert ("tf32" in keras_engine._precision_note("float32")) == runs
    if runs:
        assert choose("keras", "tf32") == choose("auto", "tf32") == "keras"
        return
    for name in ("keras", "auto"):
        place = re.escape(f"GPU ({card.name})") if card else "CPU"
        with pytest.raises(FeaturemillError, match=f"--precision tf32 needs an NVIDIA GPU .*{place} here; pass"):
            choose(name, "tf32")
    assert choose("keras", "float16") == "keras"


def test_tf32_is_off_again_for_each_batch(engine):
    """Another engine of the same process may have let it on."""
    import tensorflow as tf

    engine._backend.allow_tf32(True)
    engine.embed(make_pixels(1, 32))
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_self_check_refuses_with_the_figure(monkeypatch):
    real = keras_engine._graph

    def off(network, spec, *args, **options):
        """As far off as TF32."""
        model = real(network, spec, *args, **options)
        batch = model.predict_on_batch
        model.predict_on_batch = lambda pixels: {name: values * 1.001 for name, values in batch(pixels).items()}
        return model

    monkeypatch.setattr(keras_engine, "_graph", off)
    with pytest.raises(
        FeaturemillError,
        match=r"keras at float32 miscalculates .* block2_pool differs from NumPy's by 1\.0e-03 of .*--prec",
    ):
        make_engine(["a=block2_pool:avg"])


def test_jax_and_pytorch_are_told_whether_tf32_is_allowed(monkeypatch):
    """By stand-ins: neither is installed for the tests. docs/running.md says what it does on a card."""
    told = []
    config = SimpleNamespace(update=lambda name, value: told.append((name, value)))
    flags = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace()), cudnn=SimpleNamespace())
    modules = {"jax": SimpleNamespace(config=config), "torch": SimpleNamespace(backends=flags)}
    for name, module in modules.items():
        module.__version__ = "1.0"
        monkeypatch.setitem(sys.modules, name, module)
        keras = SimpleNamespace(backend=SimpleNamespace(backend=lambda name=name: name))
        monkeypatch.setattr(backends, "import_keras", lambda keras=keras: keras)
        backend = backends.load_backend()
        for allowed in (True, False):
            backend.allow_tf32(allowed)
            if name == "torch":
                told.append((flags.cuda.matmul.allow_tf32, flags.cudnn.allow_tf32))
    name = "jax_default_matmul_precision"
    assert told == [(name, "tensorfloat32"), (name, "highest"), (True, True), (False, False)]


def test_unknown_backend_is_named(monkeypatch):
    backend = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "openvino"))
    monkeypatch.setattr(backends, "import_keras", lambda: backend)
    with pytest.raises(
        FeaturemillError, match="openvino isn't supported; set KERAS_BACKEND to tensorflow, jax or torch"
    ):
        backends.load_backend()


class Failing:
    def __init__(self, error):
        self.error = error

    def predict_on_batch(self, pixels):
        raise self.error


def out_of_memory_errors():
    import tensorflow as tf

    return [
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[32,224,224,64]"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: failed to allocate"),
    ]


def test_out_of_memory_is_distinguished(engine, monkeypatch):
    pixels = make_pixels(2, 32)
    for error in out_of_memory_errors():
        monkeypatch.setattr(engine, "_model", Failing(error))
        with pytest.raises(OutOfMemory, match="a batch of 4"):
            engine.embed(pixels)
    monkeypatch.setattr(engine, "_model", Failing(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        engine.embed(pixels)


def test_dense_taps_with_the_top(monkeypatch):
    """The dense layers against NumPy; everything before them is compared with Keras elsewhere."""
    table = layers("vgg16", include_top=True)
    weights = load_weights("random:2", table, backbone="vgg16")
    monkeypatch.setattr(checks, "load_weights", lambda *args, **options: weights)
    taps = ("flatten", "fc1", "fc2", "predictions")
    features = tuple(parse_feature(f"{tap}={tap}:flatten") for tap in taps)
    spec = FeatureSpec("vgg16", weights.sha256, features)
    engine = load_engine("keras", spec, "random:2", include_top=True, batch_size=1, threads=None)
    found = engine.embed(make_pixels(1, 224))
    assert [found[tap].shape for tap in taps] == [(1, 25_088), (1, 4096), (1, 4096), (1, 1000)]
    values = found["flatten"]
    for tap in taps[1:]:
        kernel, bias = weights.arrays[tap]
        values = values @ kernel + bias
        if tap == "predictions":
            values = np.exp(values - values.max())
            values /= values.sum()
        values = np.maximum(values, 0)
        assert relative_difference(found[tap], values) <= 1e-4, tap


def test_refuses_weights_that_the_spec_does_not_name():
    spec = make_spec(["a=block1_pool:avg"])
    with pytest.raises(FeaturemillError, match=r"random:2 have SHA-256 .* but the run was planned with .* restore it"):
        load_engine("keras", spec, "random:2", include_top=False, batch_size=1, threads=None)


@pytest.mark.parametrize(
    ("name", "feature", "settings", "says"),
    [
        ("kers", "a=block1_pool:avg", {}, "no engine 'kers'; did you mean keras"),
        ("keras", "a=fc1:flatten", {}, "pass --include-top"),
        ("keras", "a=fc1:flatten", {"include_top": True, "image_size": 256}, "image_size must be 224…255"),
        ("keras", "a=block5_conv4:avg", {"backbone": "vgg16"}, "vgg16 has no layer 'block5_conv4'"),
    ],
)
def test_refuses_before_loading_anything(monkeypatch, name, feature, settings, says):
    monkeypatch.setattr(checks, "load_weights", None)
    include_top = settings.pop("include_top", False)
    spec = FeatureSpec(settings.pop("backbone", "vgg19"), "", (parse_feature(feature),), **settings)
    with pytest.raises(UsageError, match=says):
        load_engine(name, spec, "random:1", include_top=include_top, batch_size=1, threads=None)


def check_shared_between_threads(engine):
    """Beam's shared objects: one engine, several threads of a worker. The engines' tests call it, each with its own."""
    batches = [make_pixels(4, 32, seed) for seed in range(6)]
    expected = [engine.embed(pixels)["avg"] for pixels in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(lambda pixels: engine.embed(pixels)["avg"], batches))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_shared_between_threads(engine):
    check_shared_between_threads(engine)
    assert weakref.ref(engine)() is engine


def test_one_that_is_alive_is_taken_again():
    first = make_engine(["a=block1_pool:avg"])
    assert make_engine(["a=block1_pool:avg"]) is first
    assert make_engine(["b=block1_pool:avg"]) is not first
    # Memory was short for it: whoever asks for a whole batch tries again.
    first.resize(first.batch_size - 1)
    assert make_engine(["a=block1_pool:avg"]) is not first


def run_python(code, **environment):
    environment = {**os.environ, **environment}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )


def test_silent_and_with_as_many_threads_as_asked():
    done = run_python(
        "from tests.transforms.engines.test_keras import *; engine = make_engine(['a=block1_pool:avg'], threads=1);"
        "engine.embed(make_pixels(1, 32)); print(engine.description);"
        "import tensorflow as tf; print(tf.config.threading.get_inter_op_parallelism_threads());"
        # A second one that asks for more comes too late, and says so.
        "print(make_engine(['a=block1_pool:avg'], threads=2).description)"
    )
    first, inter, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("keras (tensorflow 2.")
    assert first.endswith("CPU, 1 thread)") or "GPU" in first
    assert inter == "1"
    assert done.stderr.strip() == "TensorFlow was in use before: its threads stay as they were set then"


def test_quiet_import_lets_other_words_through():
    done = run_python(
        "import sys, os\n"
        "from transforms.network import keras_import\n"
        "with keras_import._without_chatter():\n"
        "    os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called\\n')\n"
        "    os.write(2, b'I0000 00:00:1795233922.208104    9245 cudart_stub.cc:31] Could not find cuda\\n')\n"
        "    os.write(2, b'E0000 00:00:1795233922.208104    9245 x.cc:31] broken\\n')\n"
        "    print('progress', file=sys.stderr)\n"
        "print('after', file=sys.stderr)"
    )
    lines = done.stderr.splitlines()
    assert [line.split()[-1] for line in lines] == ["broken", "progress", "after"]


def test_device_needs_no_tensorflow_without_a_gpu(monkeypatch):
    monkeypatch.setattr(engines, "_GPU_FILES", ())
    monkeypatch.setattr(keras_engine, "visible_device", None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert device("keras") == device("ncnn") == "CPU"
    assert default_batch_size("keras", 2) == 8
    assert [default_batch_size(name, 2) for name in ("winograd", "ncnn", "onnx")] == [16, 16, 16]


@pytest.mark.parametrize(
    ("visible", "hidden", "expected"),
    [
        ("GPU (NVIDIA L4)", None, "GPU (NVIDIA L4)"),
        ("CPU", None, "CPU (there is a GPU, but Keras's backend can't use it: pip install 'featuremill[gpu]')"),
        ("CPU", "-1", "CPU"),
    ],
)
def test_device_says_when_a_gpu_lies_idle(monkeypatch, tmp_path, visible, hidden, expected):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(engines, "_GPU_FILES", (str(tmp_path / "nvidia*"),))
    monkeypatch.setattr(keras_engine, "visible_device", lambda: visible)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device("keras") == expected
    assert default_batch_size("keras", None) == (None if visible.startswith("GPU") else 8)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_real_photos_have_many_different_features(backbone):
    """A smoke test on real pixels: random weights, but neither dead nor exploding."""
    folder = (
        Path(os.environ.get("FEATUREMILL_SHARED", ROOT.parent / "shared")) / "data" / "hymenoptera" / "val" / "bees"
    )
    if not folder.is_dir():
        pytest.skip("no shared data")
    from PIL import Image

    photos = [Image.open(path).convert("RGB").resize((64, 64)) for path in sorted(folder.glob("*.jpg"))[:3]]
    engine = make_engine(["a=block5_pool:avg"], backbone=backbone, image_size=64, batch_size=3)
    values = engine.embed(np.stack([np.asarray(photo) for photo in photos]))["a"]
    assert np.isfinite(values).all()
    assert (values > 0).mean() > 0.3
    assert 1e-3 < values.max() < 1e5
    assert np.abs(values[0] - values[1]).max() > 0.01 * values.max()
