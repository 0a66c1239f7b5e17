"""The engine `keras`: the cut network and its poolings as one compiled graph. TensorFlow by default."""

import logging
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.engines.checks import check_pixels, computed_layers, planned_weights
from transforms.engines.engine import Engine, EngineInfo, OutOfMemory
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.network.keras_import import import_keras
from transforms.network.vgg import CHANNELS, Layer, build, preprocess
from transforms.pools import pool_output
from transforms.spec import FeatureSpec
from transforms.text import counted, one_line

if TYPE_CHECKING:
    import keras

CPU_INFO = "/proc/cpuinfo"
_log = logging.getLogger(__name__)


class KerasEngine:
    """See `transforms.engines.engine.Engine`. Safe to share between threads: batches take turns."""

    def __init__(
        self, spec: FeatureSpec, weights_source: str, *, include_top: bool, batch_size: int, threads: int | None
    ):
        table = computed_layers(spec, include_top=include_top)
        weights = planned_weights(weights_source, table, spec)
        self._spec = spec
        self._lock = threading.Lock()
        backend = _prepare_backend(threads)
        _warn_if_slow(spec.precision)
        self._network = _network(table, weights.arrays, spec)
        device = visible_device()
        self.on_cpu = device.startswith("CPU")
        self.description = f"keras ({backend}, {device}, {_threads()})"
        self.resize(batch_size)

    def resize(self, batch_size: int) -> None:
        """Fixes another batch size; the next batch compiles the graph anew."""
        with self._lock:
            self.batch_size = batch_size
            self._model = _graph(self._network, self._spec, batch_size)

    def embed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size."""
        with self._lock:
            check_pixels(pixels, side=self._spec.image_size, batch_size=self.batch_size)
            count = len(pixels)
            try:
                if count < self.batch_size:
                    empty = np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)
                    pixels = np.concatenate([pixels, empty])
                outputs = self._model.predict_on_batch(pixels)
            except Exception as error:
                if _is_out_of_memory(error):
                    raise OutOfMemory(f"a batch of {self.batch_size} does not fit into memory") from error
                raise
        return {feature.name: np.asarray(outputs[feature.name])[:count] for feature in self._spec.features}


def _network(table: Sequence[Layer], arrays: Any, spec: FeatureSpec) -> "keras.Sequential":
    network = build(table, spec.image_size, dtype=spec.precision)
    for name, pair in arrays.items():
        network.get_layer(name).set_weights(pair)
    return network


def _graph(network: "keras.Sequential", spec: FeatureSpec, batch_size: int) -> "keras.Model":
    """Returns the model from N×S×S×3 uint8 to {feature name: N×D float32}; its layers are the network's own."""
    keras = import_keras()
    pixels = keras.Input(batch_shape=(batch_size, spec.image_size, spec.image_size, CHANNELS), dtype="uint8")
    outputs, current = {}, preprocess(pixels)
    for layer in network.layers:
        current = layer(current)
        for feature in spec.features:
            if feature.tap == layer.name:
                outputs[feature.name] = pool_output(current, feature.pool)
    model = keras.Model(pixels, outputs)
    # Keras would choose XLA, which is no faster for these layers (measured on a CPU) and compiles twice as long.
    model.compile(jit_compile=False)
    return model


def _prepare_backend(threads: int | None) -> str:
    """Sets what has to be set before the first computation; returns the backend's name and version."""
    keras = import_keras()
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend()
    import tensorflow as tf

    threading_options = tf.config.threading
    try:
        if threads and threads != threading_options.get_intra_op_parallelism_threads():
            threading_options.set_intra_op_parallelism_threads(threads)
            threading_options.set_inter_op_parallelism_threads(threads)
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise the first process takes all of the memory, and a second has none.
            tf.config.experimental.set_memory_growth(gpu, True)
    except (RuntimeError, ValueError):
        _log.warning("TensorFlow was in use before: its threads and memory stay as they were set then")
    # Ampere and later round float32 to 10 bits of mantissa in convolutions unless told not to: 1e-3 off, not 1e-6.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return f"tensorflow {tf.__version__}"


def visible_device() -> str:
    """Returns `CPU`, or `GPU (NVIDIA L4)`, as the backend sees it, without taking any of the GPU's memory."""
    keras = import_keras()
    if keras.backend.backend() != "tensorflow":
        names = [str(name) for name in keras.distribution.list_devices()]
        return "CPU" if all(name.startswith("cpu") for name in names) else names[0]
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown")
        return f"GPU ({name})" if len(gpus) == 1 else f"GPU ({name}, first of {len(gpus)})"
    return "CPU"


def _threads() -> str:
    """Says how many threads the backend computes with, as far as it tells: else all the cores that we may use."""
    count = 0
    if import_keras().backend.backend() == "tensorflow":
        import tensorflow as tf

        count = tf.config.threading.get_intra_op_parallelism_threads()
    return counted(count or available_cores(), "thread")


def _warn_if_slow(precision: str) -> None:
    if precision == "float32" or not visible_device().startswith("CPU"):
        return
    try:
        with open(CPU_INFO, encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        _log.warning("this CPU has no bfloat16 arithmetic (AVX512-BF16, AMX): float32 is likely faster, and exacter")


def _is_out_of_memory(error: Exception) -> bool:
    # Backends agree on the words, not on a type: TensorFlow and JAX say RESOURCE_EXHAUSTED, PyTorch "out of memory".
    text = f"{type(error).__name__} {error}".lower().replace("_", "")
    return isinstance(error, MemoryError) or "resourceexhausted" in text or "out of memory" in text


def _load(spec: FeatureSpec, weights_source: str, **settings: Any) -> Engine:
    try:
        return KerasEngine(spec, weights_source, **settings)
    except ImportError as error:
        raise FeaturemillError(
            f"the engine keras can't run here: {one_line(error)}; pip install tensorflow, or set KERAS_BACKEND to a "
            "backend that is installed"
        ) from error


def _check() -> None:
    if find_spec("keras") is None:
        raise FeaturemillError("the engine keras isn't installed; pip install keras tensorflow")


ENGINE = EngineInfo(
    libraries=("keras", "tensorflow"),
    precisions=("float32", "bfloat16"),
    load=_load,
    check=_check,
    # See benchmarks: more gains nothing and costs memory.
    batch_size=lambda threads, on_gpu: 64 if on_gpu else 8,
    idle_gpu=", but Keras's backend can't use it: pip install 'featuremill[gpu]'",
    visible_device=lambda: visible_device(),
)
