"""Differences between Keras's backends: threads, devices, and how float32 is multiplied."""

import logging
from dataclasses import dataclass
from typing import Protocol

from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.network.keras_import import import_keras

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A graphics card.

    Attributes:
        name: As its driver calls it.
        capability: NVIDIA's compute capability, such as (9, 0); None for another maker's.
    """

    name: str
    capability: tuple[int, int] | None


class Backend(Protocol):
    """A backend's part of the engine, beside Keras's own operations.

    Attributes:
        version: Name and version, such as `tensorflow 2.21.0`.
        compiled: Whether its own compiler makes one program of the graph: what can be, what is so on a CPU first. On a
            GPU the faster is taken, see `transforms.engines.graphs`.
    """

    version: str
    compiled: tuple[bool, ...]

    def prepare(self, threads: int | None) -> None:
        """Sets what has to be set before the first computation."""
        ...

    def threads(self) -> int:
        """Returns how many threads it computes with on a CPU, 0 if it doesn't tell."""
        ...

    def gpus(self) -> list[Gpu]:
        """Returns the cards that it can use."""
        ...

    def allow_tf32(self, allowed: bool) -> None:
        """Lets float32 be rounded to 10 bits of mantissa before it is multiplied, or not, in the whole process."""
        ...


class _TensorFlow:
    # XLA is no faster for these layers on a CPU (measured) and compiles twice as long.
    compiled = (False, True)

    def __init__(self) -> None:
        import tensorflow

        self._tf = tensorflow
        self.version = f"tensorflow {tensorflow.__version__}"

    def prepare(self, threads: int | None) -> None:
        config = self._tf.config
        try:
            # A graph was built before, to be described.
            if threads and threads != (self.threads() or available_cores()):
                config.threading.set_intra_op_parallelism_threads(threads)
                config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError:
            _log.warning("TensorFlow was in use before: its threads stay as they were set then")

    def threads(self) -> int:
        return self._tf.config.threading.get_intra_op_parallelism_threads()

    def gpus(self) -> list[Gpu]:
        # Takes none of their memory.
        config = self._tf.config
        details = [config.experimental.get_device_details(each) for each in config.list_physical_devices("GPU")]
        return [Gpu(each.get("device_name", "unknown"), each.get("compute_capability")) for each in details]

    def allow_tf32(self, allowed: bool) -> None:
        self._tf.config.experimental.enable_tensor_float_32_execution(allowed)


class _Jax:
    # Otherwise each operation would be compiled and run by itself, which is never faster (measured on an H100).
    compiled = (True,)

    def __init__(self) -> None:
        import jax

        self._jax = jax
        self.version = f"jax {jax.__version__}"

    def prepare(self, threads: int | None) -> None:
        """Does nothing: JAX takes all cores, and `import_keras` has told it not to take all of a GPU's memory."""

    def threads(self) -> int:
        return 0

    def gpus(self) -> list[Gpu]:
        return [Gpu(each.device_kind, _capability(each)) for each in self._jax.devices() if each.platform != "cpu"]

    def allow_tf32(self, allowed: bool) -> None:
        self._jax.config.update("jax_default_matmul_precision", "tensorfloat32" if allowed else "highest")


def _capability(device: object) -> tuple[int, int] | None:
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


class _Torch:
    compiled = (False, True)

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.version = f"torch {torch.__version__}"

    def prepare(self, threads: int | None) -> None:
        if threads:
            self._torch.set_num_threads(threads)

    def threads(self) -> int:
        return self._torch.get_num_threads()

    def gpus(self) -> list[Gpu]:
        cuda = self._torch.cuda
        if not cuda.is_available():
            return []
        # AMD's cards answer to the same calls, with numbers of their own.
        numbers = range(cuda.device_count())
        is_nvidia = self._torch.version.cuda is not None
        return [Gpu(cuda.get_device_name(i), cuda.get_device_capability(i) if is_nvidia else None) for i in numbers]

    def allow_tf32(self, allowed: bool) -> None:
        self._torch.backends.cuda.matmul.allow_tf32 = allowed
        self._torch.backends.cudnn.allow_tf32 = allowed


_BACKENDS = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}


def load_backend() -> Backend:
    """Returns the backend that Keras was imported with.

    Raises:
        FeaturemillError: One that this project doesn't know.
        ImportError: It isn't installed.
    """
    name = import_keras().backend.backend()
    if name not in _BACKENDS:
        raise FeaturemillError(
            f"Keras's backend {name} isn't supported; set KERAS_BACKEND to {', '.join(list(_BACKENDS)[:-1])} or torch"
        )
    return _BACKENDS[name]()
