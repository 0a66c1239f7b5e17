"""The engine `keras`: the cut network and its poolings as one graph, of TensorFlow by default, of JAX or of PyTorch."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.engines.backends import load_backend
from transforms.engines.checks import check_arithmetic, check_pixels, computed_layers, planned_weights
from transforms.engines.engine import Engine, EngineInfo, OutOfMemory
from transforms.engines.graphs import Graph, Speed, fastest_graph, keep_graph, kept_graph
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.network.bases import base_of, build, cut, layers, open_file, outputs_of
from transforms.network.keras_import import import_keras
from transforms.network.normalise import preprocess
from transforms.network.vgg import CHANNELS, Layer
from transforms.network.weights import load_weights
from transforms.pools import pool_output
from transforms.spec import VGG_NORMALISATION, Feature, FeatureSpec
from transforms.text import counted, one_line

if TYPE_CHECKING:
    import keras

CPU_INFO = "/proc/cpuinfo"
# What CPUs call their arithmetic of a precision.
_CPU_FLAGS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
# How far the self-check may be off: each is several times what its arithmetic comes to, and what a coarser one exceeds.
SELF_CHECK_TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
# See benchmarks: more gains nothing and costs memory.
_CPU_BATCH = 8
# Long enough for several batches of the largest size.
_MEASURED_SECONDS = 0.5
# NVIDIA's first cards with tensor cores, for float16 alone, and with such for every precision here but float32.
_VOLTA, _AMPERE = (7, 0), (8, 0)
# One for all engines of a process: they share its device, and its switch for TF32.
_turn = threading.Lock()
_log = logging.getLogger(__name__)


class KerasEngine:
    """See `transforms.engines.engine.Engine`. Safe to share between threads: batches take turns."""

    def __init__(
        self, spec: FeatureSpec, weights_source: str, *, include_top: bool, batch_size: int | None, threads: int | None
    ):
        table = computed_layers(spec, include_top=include_top)
        weights = planned_weights(weights_source, table, spec)
        self._spec = spec
        self._backend = load_backend()
        self._backend.prepare(threads)
        _warn_if_slow(spec.precision)
        self._network = _network(table, weights.arrays, spec) if table else _from_file(weights.origin, spec)
        with _turn:
            self._backend.allow_tf32(spec.precision == "tf32")
            device = visible_device()
            self.on_cpu = device.startswith("CPU")
            of_cpu = Graph(self._backend.compiled[0], batch_size or _CPU_BATCH)
            graph = of_cpu if self.on_cpu else self._fastest(batch_size)
            self._compiled = graph.compiled
            checked = (self._network, table, weights.arrays, spec)
            _self_check(*(checked if base_of(spec.backbone).is_chain else _stand_in(spec)), graph.compiled)
        threads = self._backend.threads() or available_cores()
        how = "" if self.on_cpu else f", {'compiled' if graph.compiled else 'not compiled'}"
        self.description = f"keras ({self._backend.version}, {device}{how}, {counted(threads, 'thread')})"
        self.resize(graph.batch_size)

    def resize(self, batch_size: int) -> None:
        """Fixes another batch size; the next batch compiles the graph anew."""
        with _turn:
            self.batch_size = batch_size
            self._model = _graph(self._network, self._spec, batch_size, compiled=self._compiled)

    def embed(self, pixels: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size."""
        count, pixels = len(pixels), self._padded(pixels)
        with _turn:
            # Since then another thread may have run out of memory.
            if len(pixels) != self.batch_size:
                pixels = self._padded(pixels[:count])
            try:
                self._backend.allow_tf32(self._spec.precision == "tf32")
                outputs = self._model.predict_on_batch(pixels)
            except Exception as error:
                if _is_out_of_memory(error):
                    raise OutOfMemory(f"a batch of {self.batch_size} does not fit into memory") from error
                raise
        return {feature.name: np.asarray(outputs[feature.name])[:count] for feature in self._spec.features}

    def _padded(self, pixels: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        size = self.batch_size
        pixels = check_pixels(pixels, side=self._spec.image_size, batch_size=size)
        if len(pixels) == size:
            return pixels
        return np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])

    def _fastest(self, batch_size: int | None) -> Graph:
        facts = _graph_facts(self._spec, batch_size)
        graph = kept_graph(*facts)
        if graph is None:
            _log.info("measuring how %s computes fastest", visible_device())
            graph, is_sure = fastest_graph(self._measure, compiled=self._backend.compiled, batch_size=batch_size)
            if is_sure:
                keep_graph(graph, *facts)
        return graph

    def _measure(self, graph: Graph) -> Speed:
        pixels = np.zeros((graph.batch_size, self._spec.image_size, self._spec.image_size, CHANNELS), np.uint8)
        started = time.perf_counter()
        try:
            model = _graph(self._network, self._spec, graph.batch_size, compiled=graph.compiled)
            model.predict_on_batch(pixels)
            first = time.perf_counter() - started
            # The second may still be slower: libraries choose their kernels then.
            model.predict_on_batch(pixels)
            started, batches = time.perf_counter(), 0
            while (seconds := time.perf_counter() - started) < _MEASURED_SECONDS:
                model.predict_on_batch(pixels)
                batches += 1
        except Exception as error:
            # What a compiler can't do here must not end a run that would do without it.
            if _is_out_of_memory(error) or graph.compiled != self._backend.compiled[0]:
                _log.info("%s: %s", graph, one_line(error))
                return Speed(0.0, 0.0)
            raise
        return Speed(first, batches * graph.batch_size / seconds)


def _network(table: Sequence[Layer], arrays: Any, spec: FeatureSpec) -> "keras.Model":
    drawn = {"kernels": "zeros"} if base_of(spec.backbone).is_chain else {}
    network = build(table, spec.image_size, dtype=spec.layer_dtype, **drawn)
    for name, of_layer in arrays.items():
        network.get_layer(name).set_weights(of_layer)
    return network


def _from_file(path: str, spec: FeatureSpec) -> "keras.Model":
    file, names = open_file("keras", path), list(dict.fromkeys(feature.tap for feature in spec.features))
    taps = file.taps(names, spec.image_size)
    for feature in spec.features:
        taps[feature.tap].size(feature)
    return file.cut(names)


def _stand_in(spec: FeatureSpec) -> tuple["keras.Model", Sequence[Layer], Any, FeatureSpec]:
    """Returns a few convolutions to check this machine's arithmetic by, where NumPy can't compute the base itself."""
    table = cut(layers("vgg16"), ["block2_pool"])
    arrays = load_weights("random:0", table, backbone="vgg16").arrays
    spec = replace(spec, backbone="vgg16", normalise=VGG_NORMALISATION)
    return _network(table, arrays, spec), table, arrays, spec


def _graph(network: "keras.Model", spec: FeatureSpec, batch_size: int, *, compiled: bool) -> "keras.Model":
    """Returns the model from N×S×S×3 uint8 to {feature name: N×D float32}; its layers are the network's own.

    At float16, all features of an image are NaN if any layer's output is too large for it. They may not show it
    themselves: the first such number is an infinity, but later ones are NaN, and some ReLUs and poolings make 0 of it.
    """
    keras = import_keras()
    pixels = keras.Input(batch_shape=(batch_size, spec.image_size, spec.image_size, CHANNELS), dtype="uint8")
    taps = [feature.tap for feature in spec.features]
    weighted = [layer.name for layer in network.layers if layer.weights] if spec.precision == "float16" else []
    given = outputs_of(network, preprocess(pixels, spec.normalise), [*taps, *weighted])
    outputs = {feature.name: pool_output(given[feature.tap], feature.pool) for feature in spec.features}
    if weighted:
        peaks = [keras.ops.max(given[name], axis=tuple(range(1, len(given[name].shape)))) for name in weighted]
        fits = keras.ops.all(keras.ops.isfinite(keras.ops.stack(peaks, axis=1)), axis=1, keepdims=True)
        outputs = {name: keras.ops.where(fits, output, np.nan) for name, output in outputs.items()}
    model = keras.Model(pixels, outputs)
    model.compile(jit_compile=compiled)
    return model


def _self_check(network: "keras.Model", table: Sequence[Layer], arrays: Any, spec: FeatureSpec, compiled: bool) -> None:
    """Compares the convolutions, on one small image, with NumPy's; see `check_arithmetic`.

    Through a graph that is made as the real one is: its compiler may err where single operations don't.
    """

    def embed(pixels: np.ndarray, tap: str) -> np.ndarray:
        small = replace(spec, features=(Feature("all", tap, "flatten"),), image_size=len(pixels))
        model = _graph(network, small, 1, compiled=compiled)
        return np.asarray(model.predict_on_batch(pixels[None])["all"])[0]

    check_arithmetic(
        f"keras at {spec.precision}",
        embed,
        table,
        {name: (kernel.reshape(-1, len(bias)).T, bias) for name, (kernel, bias) in arrays.items()},
        channels_first=False,
        tolerance=SELF_CHECK_TOLERANCES[spec.precision],
        cure="pass another --precision or --engine, or install another version of Keras's backend",
    )


def visible_device() -> str:
    """Returns `CPU`, or `GPU (NVIDIA L4)`, as the backend sees it."""
    gpus = load_backend().gpus()
    if not gpus:
        return "CPU"
    return f"GPU ({gpus[0].name})" if len(gpus) == 1 else f"GPU ({gpus[0].name}, first of {len(gpus)})"


def _check_precision(precision: str) -> None:
    # Everything else is computed everywhere, if slowly.
    if precision == "tf32" and not _has_tensor_cores():
        raise FeaturemillError(
            "--precision tf32 needs an NVIDIA GPU of compute capability 8.0 or more, and Keras runs on "
            f"{visible_device()} here; pass --precision float32"
        )


def _has_tensor_cores() -> bool:
    gpus = load_backend().gpus()
    return bool(gpus and gpus[0].capability and gpus[0].capability >= _AMPERE)


def _precision_note(precision: str) -> str:
    gpus = load_backend().gpus()
    if precision != "float32" or not gpus or (gpus[0].capability or (0, 0)) < _VOLTA:
        return ""
    others = "tf32, bfloat16 and float16 do" if _has_tensor_cores() else "float16 does"
    return f"float32 doesn't use this card's tensor cores; --precision {others}"


def _gpu_notes(spec: FeatureSpec, batch_size: int | None) -> list[str]:
    graph = kept_graph(*_graph_facts(spec, batch_size))
    found = f"{graph}, as was measured on this card" if graph else "measured on this card now, and kept for other runs"
    return [note for note in (_precision_note(spec.precision), f"how the graph is computed: {found}") if note]


def _graph_facts(spec: FeatureSpec, batch_size: int | None) -> tuple[str, ...]:
    """Returns what the fastest way to compute a graph depends on."""
    versions = f"keras {import_keras().__version__}, {load_backend().version}"
    # With --gpus an engine sees one card, and who plans sees all.
    return load_backend().gpus()[0].name, versions, spec.fingerprint, str(batch_size)


def _warn_if_slow(precision: str) -> None:
    if precision not in _CPU_FLAGS or not visible_device().startswith("CPU"):
        return
    try:
        with open(CPU_INFO, encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return
    if not set(_CPU_FLAGS[precision]) & set(flags):
        names = ", ".join(flag.upper().replace("_", "-") for flag in _CPU_FLAGS[precision])
        _log.warning("this CPU has no %s arithmetic (%s): float32 is likely faster, and exacter", precision, names)


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
    precisions=("float32", "tf32", "bfloat16", "float16"),
    load=_load,
    check=_check,
    batch_size=lambda threads, on_gpu: None if on_gpu else _CPU_BATCH,
    idle_gpu=", but Keras's backend can't use it: pip install 'featuremill[gpu]'",
    visible_device=lambda: visible_device(),
    takes=("chain", "graph"),
    check_precision=_check_precision,
    gpu_notes=_gpu_notes,
)
