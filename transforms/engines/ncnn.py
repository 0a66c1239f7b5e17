"""The engine `ncnn`: the base on a CPU by Winograd's convolution, float32, without Keras or TensorFlow.

Source of the method: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from transforms.engines.checks import check_arithmetic, check_pixels, computed_layers, planned_weights
from transforms.engines.engine import EngineInfo, OutOfMemory
from transforms.engines.ncnn_model import INPUT, network_text, read_weights, weight_file
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.network.normalise import preprocess
from transforms.network.vgg import Layer, describe
from transforms.pools import pool_planes
from transforms.spec import FeatureSpec
from transforms.text import counted, one_line, size_text

# Far above float rounding (about 1e-6), far below any reduced precision (1e-3).
SELF_CHECK_TOLERANCE = 1e-4
_OUT_OF_MEMORY = -100
# The file's, and those turned for Winograd: 36 numbers for each 9. A thread's workspace is 100 MB at 224 pixels.
_WEIGHT_COPIES, _WORKSPACE_PIXEL_BYTES, _OTHER_BYTES = 5, 2_100, 256 << 20
# Parts of the names of ncnn's switches for numbers of fewer bits. Which there are changes with the version; some are on
# by default, and on ARM they would be used.
_REDUCED = ("fp16", "bf16", "int8")


class NcnnEngine:
    """See `transforms.engines.engine.Engine`. Safe to share between threads.

    Each image has a thread of its own. Why not all threads on one image, as ncnn would have it: that is no faster when
    the cores are free, and less than half as fast when something else wants some of them, because the threads of an
    image wait for the slowest after each layer. It also makes the numbers the same at any number of threads.
    """

    on_cpu = True

    def __init__(
        self, spec: FeatureSpec, weights_source: str, *, include_top: bool, batch_size: int, threads: int | None
    ):
        ncnn = import_ncnn()
        table = computed_layers(spec, include_top=include_top)
        self._spec = spec
        # In the order of depth: each is then a station on the way to the next, and nothing is computed twice.
        tapped = {feature.tap for feature in spec.features}
        self._taps = [layer.name for layer in table if layer.name in tapped]
        threads = threads or available_cores()
        _check_memory(table, spec.image_size, threads)
        with weight_file(spec.weights, table, lambda: planned_weights(weights_source, table, spec)) as path:
            self._net = _load(table, path)
            _self_check(self._net, table, path)
        self._pool = ThreadPoolExecutor(threads, "ncnn")
        self.description = f"ncnn ({ncnn.__version__}, CPU, {counted(threads, 'thread')})"
        self.batch_size = batch_size

    def resize(self, batch_size: int) -> None:
        """Takes at most so many images from now on; fewer than threads also use less memory."""
        self.batch_size = batch_size

    def embed(self, pixels: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size."""
        pixels = check_pixels(pixels, side=self._spec.image_size, batch_size=self.batch_size)
        images = list(self._pool.map(self._embed_image, pixels))
        return {feature.name: np.stack([image[i] for image in images]) for i, feature in enumerate(self._spec.features)}

    def _embed_image(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Returns D float32 for each feature of S×S×3 uint8 pixels."""
        outputs = _run(self._net, pixels, self._taps)
        return [pool_planes(outputs[feature.tap], feature.pool) for feature in self._spec.features]


def import_ncnn() -> Any:
    """Returns the module.

    Raises:
        FeaturemillError: It isn't installed, or can't be loaded on this machine.
    """
    try:
        import ncnn
    except ImportError as error:
        raise FeaturemillError(
            f"the engine ncnn can't run here: {one_line(error)}; pip install ncnn, or pass --engine keras"
        ) from error
    return ncnn


def _check_memory(table: Sequence[Layer], side: int, threads: int) -> None:
    """Raises FeaturemillError where the process may not take what ncnn needs: it would crash, since it doesn't look."""
    weights = 4 * sum(info.parameters for info in describe(table, side))
    needed = _WEIGHT_COPIES * weights + threads * side * side * _WORKSPACE_PIXEL_BYTES + _OTHER_BYTES
    try:
        mmap.mmap(-1, needed, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise FeaturemillError(
            f"ncnn would need about {size_text(needed)} more memory for {counted(threads, 'thread')}, and this process "
            f"can't have it ({one_line(error)}); raise the limit (ulimit -v), pass fewer --threads or --engine keras"
        ) from error


def _load(table: Sequence[Layer], path: str) -> Any:
    """Returns the network with its weights, for one thread an image."""
    net = import_ncnn().Net()
    for name in reduced_switches(net.opt):
        setattr(net.opt, name, False)
    net.opt.num_threads = 1
    # Not `load_model_mem`, which keeps a pointer to memory that Python frees.
    if net.load_param_mem(network_text(table)) or net.load_model(path):
        raise FeaturemillError(f"ncnn can't load the weights in {path}; delete that file and run again")
    return net


def reduced_switches(options: Any) -> list[str]:
    """Returns the names of ncnn's switches for numbers of fewer bits."""
    return [name for name in dir(options) if name.startswith("use_") and any(part in name for part in _REDUCED)]


def _run(net: Any, pixels: np.ndarray, taps: Sequence[str]) -> dict[str, np.ndarray]:
    """Runs one image, S×S×3 uint8, as far as the last tap; returns {tap: C×H×W or D float32}."""
    planes = np.ascontiguousarray(preprocess(pixels).transpose(2, 0, 1))
    extractor = net.create_extractor()
    # ncnn doesn't copy them: `planes` has to live as long as the extractor.
    extractor.input(INPUT, import_ncnn().Mat(planes))
    outputs = {}
    for tap in taps:
        code, output = extractor.extract(tap)
        if code == _OUT_OF_MEMORY:
            raise OutOfMemory(f"an image of {len(pixels)}×{len(pixels)} does not fit into memory")
        if code:
            raise RuntimeError(f"ncnn fails at {tap} with code {code}")
        outputs[tap] = np.array(output)
    return outputs


def _self_check(net: Any, table: Sequence[Layer], path: str) -> None:
    """Compares the convolutions, on one small image, with NumPy's; see `check_arithmetic`."""
    check_arithmetic(
        "ncnn",
        lambda pixels, tap: pool_planes(_run(net, pixels, [tap])[tap], "flatten"),
        table,
        read_weights(path, table),
        channels_first=True,
        tolerance=SELF_CHECK_TOLERANCE,
        cure="pass --engine keras, or install another version of ncnn",
    )


ENGINE = EngineInfo(
    libraries=("ncnn",),
    precisions=("float32",),
    load=NcnnEngine,
    check=import_ncnn,
)
