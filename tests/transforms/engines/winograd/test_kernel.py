"""The compiled kernel against NumPy in float64, and each instruction set against the plain loops, bit by bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from tests.support.properties import examples
from transforms.engines.winograd import kernel as kernel_module
from transforms.engines.winograd.kernel import FREQUENCIES, aligned_bytes, kernels
from transforms.engines.winograd.points import POINTS, header, transform
from transforms.engines.winograd.weights import pack, quantised, transformed
from transforms.errors import FeaturemillError

# Compiling it is part of the install: where a compiler is, a kernel that isn't there is an error, not a reason to skip.
if shutil.which("c++") is None and kernel_module.library_path() is None:
    pytest.skip("no C++ compiler, so no kernel", allow_module_level=True)

# Of what the products can add up to: several times what was seen in 400 examples.
BOUNDS = {np.float32: 1e-6, np.int16: 1e-3}


def converted(weights, panel, dtype):
    """Returns (packed, scales) of 3×3×C×K."""
    spectra = list(transformed(weights))
    if dtype is np.float32:
        return np.concatenate([pack(each.astype(np.float32), panel) for each in spectra]), None
    rounded, scales = zip(*map(quantised, spectra), strict=True)
    return np.concatenate([pack(each, panel) for each in rounded]), np.stack(scales)


def bordered(images, spare=0):
    """Returns N×S×S×C with the border that whole tiles need, and perhaps more."""
    side = images.shape[1]
    beyond = -side % 4 + 1 + spare
    return np.pad(images, ((0, 0), (1, beyond), (1, beyond), (0, 0)))


def convolved(images, weights, bias, pooled):
    """The same in float64, the way textbooks write it."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    output = np.maximum(np.tensordot(windows, weights.astype(np.float64), ((4, 5, 3), (0, 1, 2))) + bias, 0)
    if pooled:
        half = images.shape[1] // 2
        output = output[:, : 2 * half, : 2 * half]
        output = output.reshape(len(images), half, 2, half, 2, output.shape[-1]).max(axis=(2, 4))
    return output


def run(kernel, images, weights, bias, *, dtype, pooled=False, tiles=7, spare=0):
    side = images.shape[1] // 2 if pooled else images.shape[1]
    packed, scales = converted(weights, kernel.panel, dtype)
    channels, filters = weights.shape[2:]
    # What isn't overwritten must not be touched.
    target = np.full((len(images), side + 2 + spare, side + 2 + spare, filters), 7, np.float32)
    kernel.conv(
        bordered(images, spare),
        target,
        packed,
        scales,
        bias,
        side=images.shape[1],
        pooled=pooled,
        tiles=tiles,
        workspace=aligned_bytes(kernel.workspace_bytes(packed.dtype, channels, filters, tiles)),
    )
    inner = target[:, 1 : side + 1, 1 : side + 1].copy()
    target[:, 1 : side + 1, 1 : side + 1] = 7
    assert (target == 7).all()
    return inner


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@examples(8)
@given(
    count=st.integers(1, 3),
    side=st.integers(1, 11),
    channels=st.sampled_from([64, 128]),
    filters=st.sampled_from([64, 128]),
    pooled=st.booleans(),
    tiles=st.integers(1, 30),
    spare=st.integers(0, 2),
    sparsity=st.sampled_from([0.0, 0.9, 1.0]),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
    heavy=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_weights(
    dtype, count, side, channels, filters, pooled, tiles, spare, sparsity, scale, heavy, seed
):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, side, side, channels)) * (rng.random((count, side, side, 1)) >= sparsity) * scale
    weights = rng.standard_t(2, (3, 3, channels, filters)) if heavy else rng.normal(size=(3, 3, channels, filters))
    if heavy:
        # A filter that is zero, one that is huge, and a channel that is.
        weights[..., 0] = 0
        weights[..., 1] *= 1e6
        images[..., 1] *= 1e4
    images, weights, bias = (a.astype(np.float32) for a in (images, weights, rng.normal(size=filters) * scale))
    chosen = {"dtype": dtype, "pooled": pooled, "tiles": tiles, "spare": spare}
    found = [run(kernel, images, weights, bias, **chosen) for kernel in kernels()]
    for kernel, values in zip(kernels(), found, strict=True):
        np.testing.assert_array_equal(values, found[-1], err_msg=kernel.name)
    # An error is a share of what the largest number of an image, in any channel, comes to with a filter's weights.
    magnitude = np.abs(images).max() * np.abs(weights).sum(axis=(0, 1, 2), dtype=np.float64) + np.abs(bias)
    error = np.abs(found[0] - convolved(images, weights, bias, pooled)).max(axis=(0, 1, 2), initial=0)
    assert (error <= BOUNDS[dtype] * magnitude).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_neither_neighbours_nor_groups_of_tiles_change_a_bit(dtype):
    rng = np.random.default_rng(0)
    images, weights = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 9, 9, 64), (3, 3, 64, 64)))
    bias = np.zeros(64, np.float32)
    together = run(kernels()[0], images, weights, bias, dtype=dtype, tiles=100)
    for i in range(3):
        alone = run(kernels()[0], images[i : i + 1], weights, bias, dtype=dtype, tiles=i + 1)
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("sign", [1, -1])
def test_int16_sums_cannot_overflow(sign):
    """All inputs and weights at their largest, of one sign, 512 channels: the largest sum that there can be."""
    images, weights = np.full((1, 4, 4, 512), 3e4, np.float32), np.full((3, 3, 512, 64), sign * 5.0, np.float32)
    rounded, _ = quantised(next(transformed(weights)))
    assert np.abs(rounded.astype(np.int64)).sum(axis=0).max() * (2**13 - 1) < 2**31
    bias = np.full(64, 1e9, np.float32)
    for kernel in kernels():
        found = run(kernel, images, weights, bias, dtype=np.int16)
        np.testing.assert_allclose(found, convolved(images, weights, bias, False), atol=1e-3 * bias[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_what_is_not_finite_stays_so(dtype, bad):
    """A ReLU or a rounding that made a number of NaN would hide it."""
    images = np.ones((1, 8, 8, 64), np.float32)
    images[0, 2, 2, 5] = bad
    weights = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    for kernel in kernels():
        for pooled in (False, True):
            [found] = run(kernel, images, weights, np.zeros(64, np.float32), dtype=dtype, pooled=pooled)
            touched = slice(0, 1) if pooled else slice(1, 4)
            assert not np.isfinite(found[touched, touched]).any(), kernel.name


@pytest.mark.parametrize("side", [8, 13, 33])
def test_direct(side):
    rng = np.random.default_rng(side)
    images = rng.integers(-128, 128, (4, side, side, 3)).astype(np.float32)
    # Black and saturated ones among others.
    images[1], images[2] = 0, 255
    weights, bias = rng.normal(size=(3, 3, 3, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    found = []
    for kernel in kernels():
        target = np.zeros((4, side + 3, side + 3, 64), np.float32)
        kernel.direct(bordered(images), target, weights.reshape(27, 64), bias, side=side)
        found.append(target[:, 1 : side + 1, 1 : side + 1])
        np.testing.assert_array_equal(found[-1], found[0], err_msg=kernel.name)
    expected = convolved(images, weights, bias, False)
    np.testing.assert_allclose(found[0], expected, atol=1e-6 * expected.max())


def test_dense():
    rng = np.random.default_rng(0)
    rows, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 1100), (1100, 128)))
    found = [kernel.dense(rows, pack(matrix, kernel.panel), 128) for kernel in kernels()]
    for values in found:
        np.testing.assert_array_equal(values, found[-1])
    expected = rows.astype(np.float64) @ matrix
    np.testing.assert_allclose(found[0], expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(kernels()[0].dense(rows[1:2], pack(matrix, kernels()[0].panel), 128), found[0][1:2])


# Bad arguments


@pytest.fixture
def good():
    kernel = kernels()[0]
    arrays = {
        "source": np.zeros((1, 10, 10, 64), np.float32),
        "target": np.zeros((1, 10, 10, 64), np.float32),
        "weights": np.zeros(FREQUENCIES * 64 * 64, np.float32),
        "scales": None,
        "bias": np.zeros(64, np.float32),
        "workspace": aligned_bytes(kernel.workspace_bytes(np.dtype(np.float32), 64, 64, 4)),
    }
    return arrays, {"side": 8, "pooled": False, "tiles": 4}


def changed(good, name, value):
    arrays, sizes = good
    return {**arrays, **sizes, name: value(arrays.get(name)) if callable(value) else value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", lambda a: a.astype(np.float64)),
        ("source", lambda a: a[:, :, ::-1]),
        ("source", lambda a: np.asfortranarray(a[..., ::2])),
        ("source", lambda a: np.frombuffer(bytes(a.nbytes + 1), np.float32, a.size, 1).reshape(a.shape)),
        ("source", lambda a: a[:, :9]),
        ("source", lambda a: np.zeros((2, 10, 10, 64), np.float32)),
        ("source", lambda a: np.zeros((1, 9, 9, 64), np.float32)),
        ("source", lambda a: np.zeros((0, 10, 10, 64), np.float32)),
        ("source", lambda a: np.zeros((1, 10, 10, 32), np.float32)),
        ("target", lambda a: np.zeros((1, 9, 9, 64), np.float32)),
        ("weights", lambda a: a[:-1]),
        ("weights", lambda a: a.astype(np.int16)),
        ("scales", lambda a: np.zeros((35, 64), np.float32)),
        ("bias", lambda a: a[:-1]),
        ("workspace", lambda a: a[:-64]),
        ("workspace", lambda a: a[1:]),
        ("side", 9),
        ("side", 0),
        ("side", -8),
        ("tiles", 0),
        ("tiles", 5),
    ],
)
def test_bad_arguments_are_refused(good, name, value):
    with pytest.raises(ValueError, match=r"expected|sizes that don't fit|int16 weights need the scales"):
        kernels()[0].conv(**changed(good, name, value))


def test_good_arguments_are_taken(good):
    kernels()[0].conv(**{**good[0], **good[1]})


# The library


def test_the_matrices_are_those_of_the_points():
    assert (ROOT / "transforms/engines/winograd/matrices.hpp").read_text() == header() + "\n"
    matrices = transform()
    outputs, filters, inputs = (np.array(rows, float) for rows in (matrices.outputs, matrices.filters, matrices.inputs))
    rng = np.random.default_rng(0)
    numbers, taps = rng.normal(size=6), rng.normal(size=3)
    expected = [numbers[i : i + 3] @ taps for i in range(4)]
    np.testing.assert_allclose(outputs @ ((filters @ taps) * (inputs @ numbers)), expected, rtol=1e-12)
    # `transform_inputs` and `transform_outputs` take pairs of rows and columns for granted.
    assert POINTS[1::2] == tuple(-point for point in POINTS[2::2])


def test_without_a_library(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_module, "library_path", lambda: None)
    with pytest.raises(FeaturemillError, match=r"could not compile it; install GCC .* install featuremill again, or"):
        kernels()
    monkeypatch.setattr(kernel_module, "library_path", lambda: tmp_path / "gone.so")
    with pytest.raises(FeaturemillError, match=r"can't be loaded: .* install featuremill again"):
        kernels()


def test_installing_goes_on_without_a_compiler(tmp_path):
    pytest.importorskip("setuptools")
    folder = tmp_path / "transforms/engines/winograd"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "transforms/engines/winograd", folder, ignore=ignored)
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    env = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "no engine winograd: its kernel can't be compiled here (" in line
    assert line.endswith("); install GCC 11 or Clang 14, or newer")
    assert not list(folder.glob("*.so"))


def test_another_version(monkeypatch):
    monkeypatch.setattr(kernel_module, "_VERSION", 0)
    with pytest.raises(FeaturemillError, match="is of another version; install featuremill again"):
        kernels()


# A read or write beside an array, or arithmetic without a meaning, ends this process.
CHECKED = """
import sys
from pathlib import Path
import numpy as np
from transforms.engines.winograd import kernel
kernel.library_path = lambda: Path(sys.argv[1])
import tests.transforms.engines.winograd.test_kernel as tests
layer = {"count": 2, "channels": 64, "filters": 64, "tiles": 5, "spare": 0, "scale": 1.0, "seed": 0}
for dtype in (np.float32, np.int16):
    # With a filter of zeros, a huge one and a huge channel where it is heavy, and black where sparsity is 1.
    for side, pooled, sparsity, heavy in ((1, False, 0, True), (5, True, 1, False), (7, False, 0, False)):
        more = {"side": side, "pooled": pooled, "sparsity": sparsity, "heavy": heavy}
        tests.test_any_shape_and_weights.hypothesis.inner_test(dtype, **layer, **more)
    for bad in (np.nan, np.inf):
        tests.test_what_is_not_finite_stays_so(dtype, bad)
for sign in (1, -1):
    tests.test_int16_sums_cannot_overflow(sign)
tests.test_direct(13)
tests.test_dense()
print("checked", [each.name for each in kernel.kernels()])
"""


def sanitizer_libraries():
    names = [subprocess.run(["c++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
             for name in ("asan", "ubsan")]  # fmt: skip
    return names if all(map(os.path.isabs, names)) else []


def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    if not sanitizer_libraries():
        pytest.skip("the compiler has no sanitizers")
    options = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-w"]
    # The last isn't among the others: what a number that isn't finite is rounded to.
    options += ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    sources = sorted(Path(kernel_module.__file__).parent.glob("*.cpp"))
    # All at once: one alone takes long.
    objects = [(source, tmp_path / f"{source.stem}.o") for source in sources]
    compiling = [subprocess.Popen(["c++", *options, "-c", str(a), "-o", str(b)]) for a, b in objects]
    assert [process.wait() for process in compiling] == [0] * len(objects)
    library = str(tmp_path / "library.so")
    linked = [str(path) for _, path in objects]
    subprocess.run(["c++", "-shared", "-fsanitize=address,undefined", *linked, "-o", library], check=True)
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(sanitizer_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", CHECKED, library], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked" in done.stdout
