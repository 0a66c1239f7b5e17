"""The seam between a recipe and what computes the base on this machine. One module per engine, one face."""

import os
import sys
from glob import glob
from typing import TYPE_CHECKING, Protocol

from transforms.features import nearest
from transforms.records import UsageError

if TYPE_CHECKING:
    import numpy as np

    from transforms.features import FeatureSpec

ENGINES = ("keras",)
# Device files without which no GPU can be seen on Linux: NVIDIA's, AMD's, and Windows' own under WSL.
_GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


class OutOfMemory(Exception):
    """A batch did not fit into memory; a smaller one may."""


class Engine(Protocol):
    """Computes the features of pixels, with the model loaded and the shape of the batch fixed.

    Attributes:
        description: Name, version, device and threads, such as `keras (tensorflow 2.21.0, CPU, 2 threads)`.
        batch_size: The most images that `embed` takes.
    """

    description: str
    batch_size: int

    def embed(self, pixels: "np.ndarray") -> "dict[str, np.ndarray]":
        """Computes the features of one batch; an image's numbers don't depend on its neighbours.

        Args:
            pixels: N×S×S×3 uint8, RGB; N at most the batch size, S the spec's image size.

        Returns:
            {feature name: N×D float32}, in the order of the spec.

        Raises:
            OutOfMemory: `resize` to less and try again.
            ValueError: Pixels of another shape or dtype, or more than a batch.
        """
        ...

    def resize(self, batch_size: int) -> None:
        """Fixes another batch size from the next `embed` on."""
        ...


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
        batch_size: N of the fixed shape; smaller batches are padded.
        threads: CPU threads of this process, None for all cores.

    Raises:
        UsageError: No such engine, a tap that the network hasn't, or dense layers at an image size that can't be.
        FeaturemillError: The weights can't be loaded, or aren't the ones that the spec names.
    """
    if name != "keras":
        raise UsageError(f"no engine {name!r}{nearest(name, ENGINES)}")
    from transforms.engines.keras import KerasEngine

    return KerasEngine(spec, weights_source, include_top=include_top, batch_size=batch_size, threads=threads)


def device() -> str:
    """Returns what the engine will run on: `CPU`, or `GPU (NVIDIA L4)`; says so if a GPU lies idle.

    Without a GPU's device file this is known without importing TensorFlow, which takes seconds.
    """
    has_files = any(glob(pattern) for pattern in _GPU_FILES)
    if sys.platform.startswith("linux") and not has_files:
        return "CPU"
    from transforms.engines.keras import visible_device

    found = visible_device()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if found == "CPU" and has_files and not hidden:
        return "CPU (there is a GPU, but Keras's backend can't use it: pip install 'featuremill[gpu]')"
    return found


def default_batch_size() -> int:
    """Returns N for this machine's device, see benchmarks: more gains nothing and costs memory."""
    return 8 if device().startswith("CPU") else 64
