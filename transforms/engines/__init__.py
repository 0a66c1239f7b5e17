"""The seam between a recipe and what computes the base on this machine. One module per engine, one face."""

import os
import sys
from glob import glob
from importlib.util import find_spec
from typing import TYPE_CHECKING

from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError, UsageError
from transforms.machine import available_cores
from transforms.text import did_you_mean, one_line

if TYPE_CHECKING:
    from transforms.spec import FeatureSpec

ENGINES = ("auto", "keras", "ncnn")
# Images of a batch, see benchmarks: more gains nothing and costs memory.
_BATCH_CPU, _BATCH_GPU = 8, 64
# Device files without which no GPU can be seen on Linux: NVIDIA's, AMD's, and Windows' own under WSL.
_GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


def load_engine(
    name: str,
    spec: "FeatureSpec",
    weights_source: str,
    *,
    include_top: bool,
    batch_size: int,
    threads: int | None,
) -> Engine:
    """Loads weights and makes an engine; once per worker process, since it takes seconds and much memory.

    Args:
        name: One of ENGINES.
        spec: What decides the numbers.
        weights_source: `imagenet`, a path, or `random:SEED`.
        include_top: Whether the dense layers may be tapped.
        batch_size: The most images of a batch.
        threads: CPU threads of this process, None for all cores.

    Raises:
        UsageError: No such engine, a tap that the network hasn't, or dense layers at an image size that can't be.
        FeaturemillError: The weights can't be loaded, or aren't the ones that the spec names; or the engine isn't
            installed or can't run here.
    """
    settings = {"include_top": include_top, "batch_size": batch_size, "threads": threads}
    if choose(name, spec.precision) == "ncnn":
        from transforms.engines.ncnn import NcnnEngine

        return NcnnEngine(spec, weights_source, **settings)
    from transforms.engines.keras import KerasEngine

    try:
        return KerasEngine(spec, weights_source, **settings)
    except ImportError as error:
        raise FeaturemillError(
            f"the engine keras can't run here: {one_line(error)}; pip install tensorflow, or set KERAS_BACKEND to a "
            "backend that is installed"
        ) from error


def load_stored_engine(name: str, spec: "FeatureSpec", weights_source: str) -> Engine:
    """Loads an engine that computes again what is stored, with its own default batch and all cores.

    Args:
        name: One of ENGINES.
        spec: Of the stored features.
        weights_source: As `load_engine` takes it.

    Raises:
        FeaturemillError: As `load_engine` does; also if the weights aren't there or aren't the spec's where the engine
            would take them from its cache: others would look like other images.
    """
    from transforms.engines.checks import computed_layers, planned_weights

    name = choose(name, spec.precision)
    planned_weights(weights_source, computed_layers(spec), spec)
    return load_engine(
        name, spec, weights_source, include_top=True, batch_size=default_batch_size(name, None), threads=None
    )


def check_engine(name: str, precision: str) -> None:
    """Checks what can be known without looking at this machine.

    Raises:
        UsageError: No such engine, or one that doesn't compute at this precision.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine {name!r}{did_you_mean(name, ENGINES)}")
    if name == "ncnn" and precision != "float32":
        raise UsageError(f"the engine ncnn computes in float32, not {precision}; pass --engine keras")


def choose(name: str, precision: str) -> str:
    """Returns the engine that runs on this machine: keras or ncnn.

    `auto` takes keras if it sees a GPU, else ncnn if that can be imported and the precision is float32, else keras.

    Args:
        name: One of ENGINES.
        precision: As in `FeatureSpec`.

    Raises:
        UsageError: See `check_engine`.
        FeaturemillError: The engine isn't installed, or can't be loaded here.
    """
    check_engine(name, precision)
    if name == "ncnn" or (name == "auto" and precision == "float32" and device("keras").startswith("CPU")):
        from transforms.engines.ncnn import import_ncnn

        try:
            import_ncnn()
            return "ncnn"
        except FeaturemillError:
            if name == "ncnn":
                raise
    if find_spec("keras") is None:
        raise FeaturemillError("the engine keras isn't installed; pip install keras tensorflow")
    return "keras"


def device(engine: str) -> str:
    """Returns what an engine will run on: `CPU`, or `GPU (NVIDIA L4)`; says so if a GPU lies idle.

    Without a GPU's device file this is known without importing TensorFlow, which takes seconds; so is it for ncnn.
    """
    has_files = any(glob(pattern) for pattern in _GPU_FILES)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if engine == "ncnn":
        idle = " (there is a GPU: --engine keras uses it, with pip install 'featuremill[gpu]')"
        return f"CPU{idle if has_files and not hidden else ''}"
    if sys.platform.startswith("linux") and not has_files:
        return "CPU"
    from transforms.engines.keras import visible_device

    found = visible_device()
    if found == "CPU" and has_files and not hidden:
        return "CPU (there is a GPU, but Keras's backend can't use it: pip install 'featuremill[gpu]')"
    return found


def default_batch_size(engine: str, threads: int | None) -> int:
    """Returns N for an engine on this machine.

    Args:
        engine: keras or ncnn; or auto, where another machine will choose.
        threads: CPU threads of the engine, None for all cores.
    """
    if engine == "ncnn":
        # Threads take an image each and wait for the last of a batch: eight each keeps that wait short.
        return _BATCH_CPU * (threads or available_cores())
    return _BATCH_CPU if engine == "auto" or device(engine).startswith("CPU") else _BATCH_GPU
