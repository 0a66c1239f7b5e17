"""The seam between a recipe and what computes the base on this machine. One module per engine, one face."""

import os
import sys
from glob import glob
from importlib import import_module
from typing import TYPE_CHECKING

from transforms.errors import FeaturemillError, UsageError
from transforms.text import did_you_mean

if TYPE_CHECKING:
    from transforms.engines.engine import Engine, EngineInfo
    from transforms.spec import FeatureSpec

# Each engine's module, which says as `ENGINE` what it is; on a CPU `auto` takes the first that can run.
ENGINES = {"auto": "", "ncnn": "transforms.engines.ncnn", "keras": "transforms.engines.keras"}
# Where another machine will choose the engine: few enough for any.
_BATCH_SIZE = 8
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
) -> "Engine":
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
    return _info(choose(name, spec.precision)).load(spec, weights_source, **settings)


def _info(name: str) -> "EngineInfo":
    return import_module(ENGINES[name]).ENGINE


def load_stored_engine(name: str, spec: "FeatureSpec", weights_source: str) -> "Engine":
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
    if name != "auto" and precision not in _info(name).precisions:
        raise UsageError(
            f"the engine {name} computes in {' or '.join(_info(name).precisions)}, not {precision}; "
            f"pass --engine {' or '.join(_able(precision))}"
        )


def _able(precision: str) -> list[str]:
    return [name for name in ENGINES if name != "auto" and precision in _info(name).precisions]


def engine_libraries() -> list[str]:
    """Returns the names of the libraries that engines compute with, installed or not."""
    # In the order in which manifests have always named them.
    return [library for name in reversed(ENGINES) if name != "auto" for library in _info(name).libraries]


def choose(name: str, precision: str) -> str:
    """Returns the engine that runs on this machine.

    `auto` is, of those that compute at this precision and can run here, one that sees a GPU, else the first of ENGINES.

    Args:
        name: One of ENGINES.
        precision: As in `FeatureSpec`.

    Raises:
        UsageError: See `check_engine`.
        FeaturemillError: The engine isn't installed, or can't be loaded here, or its device hasn't this precision.
    """
    check_engine(name, precision)
    if name != "auto":
        _check_here(name, precision)
        return name
    here, problem = [], UsageError(f"no engine computes in {precision!r}")
    for candidate in _able(precision):
        try:
            _check_here(candidate, precision)
            here.append(candidate)
        except FeaturemillError as error:
            problem = error
    if not here:
        raise problem
    return next((each for each in here if _info(each).visible_device and _has_gpu(each)), here[0])


def _check_here(name: str, precision: str) -> None:
    _info(name).check()
    _info(name).check_precision(precision)


def _has_gpu(engine: str) -> bool:
    return not device(engine).startswith("CPU")


def device(engine: str) -> str:
    """Returns what an engine will run on: `CPU`, or `GPU (NVIDIA L4)`; says so if a GPU lies idle.

    Without a GPU's device file this is known without importing TensorFlow, which takes seconds.
    """
    has_files = any(glob(pattern) for pattern in _GPU_FILES)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    info = _info(engine)
    may_see = info.visible_device and (has_files or not sys.platform.startswith("linux"))
    found = info.visible_device() if may_see else "CPU"
    return f"CPU (there is a GPU{info.idle_gpu})" if found == "CPU" and has_files and not hidden else found


def precision_note(engine: str, precision: str) -> str:
    """Returns what there is to say of a precision on the GPU that an engine will run on, or nothing."""
    return _info(engine).precision_note(precision) if _has_gpu(engine) else ""


def default_batch_size(engine: str, threads: int | None) -> int:
    """Returns N for an engine on this machine.

    Args:
        engine: One of ENGINES; auto where another machine will choose.
        threads: CPU threads of the engine, None for all cores.
    """
    return _BATCH_SIZE if engine == "auto" else _info(engine).batch_size(threads, _has_gpu(engine))
