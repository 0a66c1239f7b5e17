"""The face of an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transforms.machine import available_cores
from transforms.spec import FeatureSpec


class OutOfMemory(Exception):
    """A batch did not fit into memory; a smaller one may."""


class Engine(Protocol):
    """Computes the features of pixels, with the model loaded and the shape of the batch fixed.

    Attributes:
        description: Name, version, device and threads, such as `keras (tensorflow 2.21.0, CPU, 2 threads)`.
        batch_size: The most images that `embed` takes.
        on_cpu: Whether it computes on the cores that decoding needs too.
    """

    description: str
    batch_size: int
    on_cpu: bool

    def embed(self, pixels: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the features of one batch; an image's numbers don't depend on its neighbours.

        Args:
            pixels: N×S×S×3 uint8, RGB, or N images S×S×3; N at most the batch size, S the spec's image size.

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


def batch_per_thread(threads: int | None, on_gpu: bool = False) -> int:
    """Returns the default N of an engine whose threads take images of their own and wait for the last of a batch."""
    # Eight each keep that wait short.
    return 8 * (threads or available_cores())


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """The facts about an engine that are known without loading it.

    Attributes:
        libraries: Distributions that it computes with, whose versions are recorded.
        precisions: What it computes in, as `FeatureSpec` calls it.
        load: Makes one; takes what `transforms.engines.load_engine` does, without the name.
        check: Raises FeaturemillError, with the cure, if it isn't installed or can't run here.
        batch_size: Returns its default N, None where loading the engine finds it; takes its CPU threads (None: all
            cores) and whether it has a GPU.
        idle_gpu: What to say, with the cure, behind "there is a GPU" where it runs on the CPU all the same; by default
            that of one that knows no GPU.
        visible_device: Returns `CPU`, or `GPU (NVIDIA L4)`, as it sees it. None for one that knows no GPU.
        check_precision: Raises FeaturemillError, with the cure, if this machine's device hasn't the arithmetic of one
            of the precisions.
        takes: The kinds of bases that it computes, see `Base.kind`.
        unbuilt: Returns what installing should have made for this machine and has not, with the cure; else nothing.
        gpu_notes: Returns what a plan should say of a spec, and of the N that was asked for, on this machine's GPU.
    """

    libraries: tuple[str, ...]
    precisions: tuple[str, ...]
    load: Callable[..., Engine]
    check: Callable[[], None]
    batch_size: Callable[[int | None, bool], int | None] = batch_per_thread
    idle_gpu: str = ": --engine keras uses it, with pip install 'featuremill[gpu]'"
    visible_device: Callable[[], str] | None = None
    takes: tuple[str, ...] = ("chain",)
    check_precision: Callable[[str], None] = lambda precision: None
    unbuilt: Callable[[], str] = lambda: ""
    gpu_notes: "Callable[[FeatureSpec, int | None], list[str]]" = lambda spec, batch_size: []
