"""An engine that another process can load, and that does there what a test wants."""

import os
import time
from dataclasses import dataclass

import numpy as np

from transforms.engines.engine import OutOfMemory
from transforms.errors import FeaturemillError


@dataclass(frozen=True)
class Settings:
    """How it behaves.

    Attributes:
        name: Of a test, so that no two share an engine.
        most: With more images in a batch it is out of memory.
        seconds: What a batch takes.
        problem: Why it can't be loaded.
    """

    name: str
    batch_size: int = 8
    most: int = 10**9
    seconds: float = 0.0
    problem: str = ""


class Sums:
    """The sums of the images' columns; fails on an image whose first byte is 13, ends its process on 66."""

    on_cpu = False

    def __init__(self, settings: Settings):
        self._settings, self.batch_size, self.description = settings, settings.batch_size, f"sums {os.getpid()}"

    def embed(self, pixels):
        time.sleep(self._settings.seconds)
        if len(pixels) > self.batch_size:
            raise ValueError(f"{len(pixels)} images")
        if len(pixels) > self._settings.most:
            raise OutOfMemory(f"{len(pixels)} are too many")
        firsts = [int(image.flat[0]) for image in pixels]
        if 66 in firsts:
            os.abort()
        if 13 in firsts:
            raise KeyError("13")
        sums = np.stack([image.sum(axis=(0, 2), dtype=np.float32) for image in pixels])
        return {"sums": sums, "first": sums[:, :1] * 2}

    def resize(self, batch_size: int) -> None:
        self.batch_size = batch_size


def load(settings: Settings) -> Sums:
    if settings.problem:
        raise FeaturemillError(settings.problem)
    return Sums(settings)


class Gpus(Sums):
    """Says which GPUs its process sees."""

    def __init__(self, settings):
        self.batch_size, self.description = settings.batch_size, f"gpus {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def load_gpus(settings) -> Gpus:
    return Gpus(settings)
