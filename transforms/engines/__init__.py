"""The seam between a recipe and what computes the base on this machine. One module per engine, one face."""

import os
import re
import sys
from glob import glob
from importlib import import_module
from itertools import takewhile
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from transforms.errors import FeaturemillError, UsageError
from transforms.text import did_you_mean

if TYPE_CHECKING:
    from transforms.engines.engine import Engine, EngineInfo
    from transforms.spec import FeatureSpec

# Each engine's module, which says as `ENGINE` what it is; on a CPU `auto` takes the first that can run.
ENGINES = {
    "auto": "",
    "winograd": "transforms.engines.winograd.engine",
    "ncnn": "transforms.engines.ncnn",
    "keras": "transforms.engines.keras",
    "onnx": "transforms.engines.onnx",
}
# Device files without which no GPU can be seen on Linux: NVIDIA's, AMD's, and Windows' own under WSL. Only the first
# has one for each GPU.
_GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
# Engines that somebody in this process still has, such as Beam the one of its last run, by what they were loaded with.
_alive: "WeakValueDictionary[tuple, Engine]" = WeakValueDictionary()


def load_engine(
    name: str,
    spec: "FeatureSpec",
    weights_source: str,
    *,
    include_top: bool,
    batch_size: int | None,
    threads: int | None,
) -> "Engine":
    """Loads weights and makes an engine, or takes one that is there: it takes seconds and much memory.

    Args:
        name: One of ENGINES.
        spec: What decides the numbers.
        weights_source: `imagenet`, a path, or `random:SEED`.
        include_top: Whether the dense layers may be tapped.
        batch_size: The most images of a batch, None for as many as are fastest.
        threads: CPU threads of this process, None for all cores.

    Raises:
        UsageError: No such engine, a tap that the network hasn't, or dense layers at an image size that can't be.
        FeaturemillError: The weights can't be loaded, or aren't the ones that the spec names; or the engine isn't
            installed or can't run here.
    """
    from transforms.machine import available_cores
    from transforms.network.bases import base_of

    name = choose(name, spec.precision, spec.backbone)
    include_top = include_top and base_of(spec.backbone).has_top
    batch_size = batch_size or default_batch_size(name, threads)
    settings = {"include_top": include_top, "batch_size": batch_size, "threads": threads}
    loaded_with = (name, spec, weights_source, include_top, batch_size, threads or available_cores())
    engine = _alive.get(loaded_with)
    # Where memory was short, it may take less than was asked for.
    if engine is None or engine.batch_size != (batch_size or engine.batch_size):
        engine = _alive[loaded_with] = _info(name).load(spec, weights_source, **settings)
    return engine


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

    name = choose(name, spec.precision, spec.backbone)
    planned_weights(weights_source, computed_layers(spec), spec)
    return load_engine(name, spec, weights_source, include_top=True, batch_size=None, threads=None)


def check_engine(name: str, precision: str, backbone: str | None = None) -> None:
    """Checks what can be known without looking at this machine.

    Raises:
        UsageError: No such engine, or one that doesn't compute at this precision, or this base.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine {name!r}{did_you_mean(name, ENGINES)}")
    if name != "auto" and precision not in _info(name).precisions:
        raise UsageError(
            f"the engine {name} computes in {' or '.join(_info(name).precisions)}, not {precision}; "
            f"pass --engine {' or '.join(_able(precision, backbone))}"
        )
    if name != "auto" and backbone and not _takes(name, backbone):
        raise UsageError(
            f"the engine {name} doesn't compute {backbone}; pass --engine {' or '.join(_able(precision, backbone))}"
            if _able(precision, backbone)
            else f"no engine computes {backbone} in {precision}; pass --precision float32"
        )


def _takes(name: str, backbone: str | None) -> bool:
    # Not above: the engines' names alone are wanted at once.
    from transforms.network.bases import base_of

    return (base_of(backbone).kind if backbone else "chain") in _info(name).takes


def _able(precision: str, backbone: str | None) -> list[str]:
    names = [name for name in ENGINES if name != "auto"]
    return [name for name in names if precision in _info(name).precisions and _takes(name, backbone)]


def engine_libraries() -> list[str]:
    """Returns the names of the libraries that engines compute with, installed or not."""
    # In the order in which manifests have always named them.
    return [library for name in reversed(ENGINES) if name != "auto" for library in _info(name).libraries]


def choose(name: str, precision: str, backbone: str | None = None) -> str:
    """Returns the engine that runs on this machine.

    `auto` is, of those that compute this base at this precision and can run here, one that sees a GPU, else the first
    of ENGINES.

    Args:
        name: One of ENGINES.
        precision: As in `FeatureSpec`.
        backbone: One of `transforms.network.bases.BASES`; None where any engine will do.

    Raises:
        UsageError: See `check_engine`.
        FeaturemillError: The engine isn't installed, or can't be loaded here, or its device hasn't this precision.
    """
    check_engine(name, precision, backbone)
    if name != "auto":
        _check_here(name, precision)
        return name
    what = f"{backbone} in" if backbone else "in"
    here, problem = [], UsageError(f"no engine computes {what} {precision!r}; pass another --precision")
    for candidate in _able(precision, backbone):
        try:
            _check_here(candidate, precision)
            here.append(candidate)
        except FeaturemillError as error:
            problem = error
    if not here:
        raise problem
    return next((each for each in here if _info(each).visible_device and on_gpu(each)), here[0])


def _check_here(name: str, precision: str) -> None:
    _info(name).check()
    _info(name).check_precision(precision)


def on_gpu(engine: str) -> bool:
    """Returns whether an engine will run on a GPU here."""
    return not device(engine).startswith("CPU")


def may_have_gpu(engine: str) -> bool:
    """Returns whether an engine, or what auto will choose, could run on a GPU here, without asking it."""
    names = [name for name in ENGINES if name != "auto"] if engine == "auto" else [engine]
    return not _are_gpus_hidden() and _has_gpu_files() and any(_info(name).visible_device for name in names)


def _has_gpu_files() -> bool:
    return any(glob(pattern) for pattern in _GPU_FILES)


def _are_gpus_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")


def uses_gpu(engine: str) -> bool:
    """Returns whether an engine, or one that auto may choose, can use a GPU at all."""
    return engine == "auto" or _info(engine).visible_device is not None


def chosen_gpus(engine: str, asked: str) -> list[str]:
    """Returns GPUs of this machine as `CUDA_VISIBLE_DEVICES` takes them, without loading what would use them.

    Args:
        engine: One of ENGINES.
        asked: `all`, or numbers with commas between them, counted as the driver or `CUDA_VISIBLE_DEVICES` does.

    Raises:
        UsageError: It is neither, or the engine uses no GPU.
        FeaturemillError: There are fewer.
    """
    if not uses_gpu(engine):
        raise UsageError(f"the engine {engine} uses no GPU; leave --gpus out, or pass --engine keras")
    visible = _visible_gpus()
    numbers = list(range(len(visible))) if asked == "all" else parse_gpus(asked)
    if not numbers or max(numbers) >= len(visible):
        there = f"only {len(visible)}" if visible else "none"
        raise FeaturemillError(
            f"--gpus {asked}: this machine has {there} with a number (NVIDIA's alone have one); "
            "name fewer, or leave it out"
        )
    return [visible[number] for number in numbers]


def parse_gpus(asked: str) -> list[int]:
    """Returns the numbers of GPUs; of `all`, which only their machine knows, none.

    Raises:
        UsageError: It is something else, or names one twice.
    """
    if asked == "all":
        return []
    parts = [part.strip() for part in asked.split(",")]
    if not all(re.fullmatch("[0-9]{1,4}", part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UsageError(f"--gpus {asked!r} isn't all, nor numbers with commas between them, each once, such as 0,1")
    return [int(part) for part in parts]


def _visible_gpus() -> list[str]:
    files = glob(_GPU_FILES[0]) if _GPU_FILES else []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not files:
        return [str(number) for number in range(len(files))]
    # As CUDA reads it: up to the first that can't be one.
    return list(takewhile(lambda each: each and not each.startswith("-"), (part.strip() for part in named.split(","))))


def device(engine: str) -> str:
    """Returns what an engine will run on: `CPU`, or `GPU (NVIDIA L4)`; says so if a GPU lies idle.

    Without a GPU's device file this is known without importing TensorFlow, which takes seconds.
    """
    has_files = _has_gpu_files()
    info = _info(engine)
    may_see = info.visible_device and (has_files or not sys.platform.startswith("linux"))
    found = info.visible_device() if may_see else "CPU"
    return f"CPU (there is a GPU{info.idle_gpu})" if found == "CPU" and has_files and not _are_gpus_hidden() else found


def gpu_notes(engine: str, spec: "FeatureSpec", batch_size: int | None) -> list[str]:
    """Returns what a plan should say of a spec, and of the N that was asked for, on the GPU that an engine will use."""
    return _info(engine).gpu_notes(spec, batch_size) if on_gpu(engine) else []


def passed_over(engine: str, precision: str, backbone: str) -> list[str]:
    """Returns what a plan should say of faster engines that auto would have chosen, had installing them gone well."""
    before = takewhile(lambda name: name != engine, [] if on_gpu(engine) else _able(precision, backbone))
    return [f"the engine {name}, which is faster, {why}" for name in before if (why := _info(name).unbuilt())]


def default_batch_size(engine: str, threads: int | None) -> int | None:
    """Returns N for an engine on this machine; None where it is found when the engine is loaded.

    Args:
        engine: One of ENGINES; auto where another machine will choose.
        threads: CPU threads of the engine, None for all cores.
    """
    return None if engine == "auto" else _info(engine).batch_size(threads, on_gpu(engine))
