"""A fake engine: the pipeline's tests need numbers that depend on the pixels, not a network.

Run as `python -m tests.support.fakes ARGS` it is the extract command with that engine: same module, same exit codes, no
TensorFlow, so that it can be killed twenty times in a test.
"""

import dataclasses
import errno
import fcntl
import os
import sys
import time

import numpy as np

from transforms.embedding.unit import Job
from transforms.network.weights import Weights

# No arrays: the fake engine has none, and the pipeline needs only the hash.
WEIGHTS = Weights(arrays={}, sha256="0" * 64, origin="fake", is_random=False)


@dataclasses.dataclass
class FakeEngine:
    """The first D bytes of each image, as numbers, after an optional pause."""

    sizes: dict[str, int]
    batch_size: int
    pause_seconds: float = 0.0
    description: str = "fake"
    on_cpu: bool = True

    def embed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        pixels = np.asarray(pixels)
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] <= self.batch_size
        time.sleep(self.pause_seconds)
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        return {name: flat[:, :size] + flat.sum(axis=1, keepdims=True) for name, size in self.sizes.items()}

    def resize(self, batch_size: int) -> None:
        self.batch_size = batch_size


def load_fake(job: Job) -> FakeEngine:
    return FakeEngine(job.sizes, job.batch_size or 8, float(os.environ.get("FAKE_PAUSE_SECONDS", "0")))


def _no_locks(*_: object) -> None:
    """What some network file systems answer."""
    raise OSError(errno.ENOTSUP, "Operation not supported")


def no_room(*_: object) -> None:
    """What the system answers where memory is short."""
    raise OSError(errno.ENOSPC, "No space left on device")


if "FAKE_NO_ROOM" in os.environ:
    # Of workers too: they import this to load the engine.
    os.posix_fallocate = no_room


def main() -> None:
    from pipeline import cli
    from pipeline.extraction import run as extract

    real = extract.run

    def run(options, **more):
        return real(options, load=load_fake, weights=WEIGHTS, **more)

    extract.run = run
    if "FAKE_NO_LOCKS" in os.environ:
        fcntl.flock = _no_locks
    sys.argv[1:1] = ["extract"]
    cli.main()


if __name__ == "__main__":
    # By its importable name, so that worker processes find the loader.
    from tests.support import fakes

    fakes.main()
