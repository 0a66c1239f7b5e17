"""How fast images reach an engine: the whole command with an engine that costs nothing, against decoding alone.

Run as `python -m benchmarks.feed`, on any machine; no GPU is needed. The engine is shared by the workers, as one on a
GPU is. With `--rate 1000` it takes as long as a device of 1,000 images/s. Figures are printed, never asserted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.decoding import decoding
from benchmarks.gpu import photo
from benchmarks.process import run, say, spread, working_seconds
from pipeline.demo.samples import Item, write_tar
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run as extract
from tests.support.fakes import WEIGHTS
from transforms.embedding.unit import Job
from transforms.machine import available_cores
from transforms.spec import FeatureSpec

_SIDES = ((500, 375), (224, 224))
_DRAWN = 50
_BATCH = 64
_SPEC = FeatureSpec(backbone="vgg19", weights="", features=(), image_size=224)


class Device:
    """Takes pixels and gives zeros, at a rate."""

    on_cpu, description = False, "a device that only counts"

    def __init__(self, job: Job, rate: float):
        self._sizes, self.batch_size, self._rate = job.sizes, job.batch_size, rate
        self._free = 0.0

    def embed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        if self._rate:
            # The next batch begins when this one ends, as on a device.
            self._free = max(self._free, time.monotonic()) + len(pixels) / self._rate
            time.sleep(max(0.0, self._free - time.monotonic()))
        return {name: np.zeros((len(pixels), size), np.float32) for name, size in self._sizes.items()}

    def resize(self, batch_size: int) -> None:
        self.batch_size = batch_size


def load_device(job: Job) -> Device:
    return Device(job, float(os.environ["FEED_RATE"]))


def options(inputs: Path, output: str, workers: int) -> ExtractOptions:
    settings = {"engine": "ncnn", "engine_per": "machine", "batch_size": _BATCH, "workers": workers}
    # Several units for each worker: the last ones are shared out, too.
    return ExtractOptions(inputs=(str(inputs),), output=output, unit_bytes=8 << 20, **settings)


def whole(tar: Path, workers: int, images: int) -> dict:
    """Returns images a second of the whole command, from its first unit's start to its last one's end."""
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as output:
        done = run(
            [sys.executable, "-m", "benchmarks.feed", "--tar", str(tar), "--workers", str(workers), "--out", output]
        )
        seconds = working_seconds(Path(output))
    assert done.figures["embedded"] == images
    return {"rate": images / seconds, "seconds": done.seconds}


def cost(few: Path, many: Path) -> float:
    """Returns CPU milliseconds of one image more in one process; what the engine's process takes isn't in it."""
    found = []
    for tar in (few, many):
        with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as output:
            found.append(run([sys.executable, "-m", "benchmarks.feed", "--tar", str(tar), "--out", output]).figures)
    seconds, images = ([each[name] for each in found] for name in ("cpu_seconds", "embedded"))
    return (seconds[1] - seconds[0]) / (images[1] - images[0]) * 1000


def one(given: argparse.Namespace) -> dict:
    """Is the command, with that engine."""
    began = time.process_time()
    summary = extract(options(given.tar, given.out, given.workers[0]), load=load_device, weights=WEIGHTS)
    return {"embedded": summary.totals.rows_embedded, "cpu_seconds": time.process_time() - began}


def measure(given: argparse.Namespace) -> dict:
    os.environ["FEED_RATE"] = str(given.rate)
    found = {"cores": available_cores(), "images": given.images, "engine_rate": given.rate, "sizes": {}}
    for sides in _SIDES:
        with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
            encoded = [photo(seed, sides) for seed in range(_DRAWN)]
            few, tar = Path(folder, "few.tar"), Path(folder, "photos.tar")
            for path, count in ((few, given.images // 8), (tar, given.images)):
                items = (Item(f"{i:06}.jpg", f"class{i % 2}", encoded[i % _DRAWN]) for i in range(count))
                write_tar(path, items)
            rounds = []
            for _ in range(given.rounds):
                alone = decoding(encoded, _SPEC, given.images, processes=available_cores())
                figures = {"decoding": alone, "cpu_ms": cost(few, tar)}
                figures |= {count: whole(tar, count, given.images) for count in given.workers}
                rounds.append(figures)
                say(f"{sides[0]}×{sides[1]}: {figures}")
        found["sizes"][f"{sides[0]}×{sides[1]}"] = rounds
    return found


def tabled(found: dict) -> str:
    """Returns the figures as Markdown: medians, with the least and the largest."""
    lines = []
    for size, rounds in found["sizes"].items():
        alone = [each["decoding"]["images_per_second"] for each in rounds]
        lines.append(f"{size}: decoding alone {spread(alone, 0)} images/s on {found['cores']} cores")
        for count in (name for name in rounds[0] if isinstance(name, int)):
            rates = [each[count]["rate"] for each in rounds]
            most = min(filter(None, (statistics.median(alone), found["engine_rate"])))
            share = statistics.median(rates) / most
            lines.append(f"  {count} workers: {spread(rates, 0)} images/s, {share:.2f} of what can be")
        beyond = [each["cpu_ms"] - each["decoding"]["cpu_ms"] for each in rounds]
        lines.append(f"  CPU beyond decoding, one worker: {spread(beyond, 3)} ms an image")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rate", type=float, default=0.0, help="Images/s of the engine; 0: it costs nothing.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tar", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tar:
        print(json.dumps(one(given)))
    else:
        print(tabled(measure(given)))


if __name__ == "__main__":
    # By its importable name, so that worker processes find the engine.
    from benchmarks import feed

    feed.main()
