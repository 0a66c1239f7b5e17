"""How fast images reach an engine: the whole command with an engine that costs nothing, against decoding alone.

Run as `python -m benchmarks.feed`, on any machine; no GPU is needed. The engine is shared by the workers, as one on a
GPU is; once more it takes as long as a device of 1,000 images/s. Figures are printed, never asserted. A run counts from
its first unit's start to its last one's commit; rounds go on until `--minutes` would be over.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
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
from transforms.text import counted

# {pixels: how often --images}; the smaller ones are decoded so much faster.
_SIDES = {(500, 375): 1, (224, 224): 2}
_DRAWN = 50
_BATCH, _UNITS = 64, 16
# Of the memory: workers come and go by seconds.
_LOOK_SECONDS = 0.5
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


def options(given: argparse.Namespace) -> ExtractOptions:
    settings = {"engine": "ncnn", "engine_per": "machine", "batch_size": _BATCH, "workers": given.workers[0]}
    return ExtractOptions(inputs=(str(given.tar),), output=given.out, unit_bytes=given.unit_bytes, **settings)


def whole(tar: Path, unit_bytes: int, workers: int, *, rate: float = 0.0, look_seconds: float | None = None) -> dict:
    """Returns what the whole command makes, with an engine of so many images a second; 0: one that costs nothing."""
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as output:
        command = [sys.executable, "-m", "benchmarks.feed", "--tar", str(tar), "--out", output]
        command += ["--unit-bytes", str(unit_bytes)]
        done = run([*command, "--workers", str(workers), "--rate", str(rate)], look_seconds=look_seconds)
        seconds = working_seconds(Path(output))
    images = done.figures["embedded"]
    found = {"rate": images / seconds, "seconds": done.seconds, "images": images}
    return found | {"cpu_seconds": done.figures["cpu_seconds"], "memory_mb": done.together_mb}


def one(given: argparse.Namespace) -> dict:
    """Is the command, with that engine."""
    os.environ["FEED_RATE"] = str(given.rate)
    began = time.process_time()
    summary = extract(options(given), load=load_device, weights=WEIGHTS)
    return {"embedded": summary.totals.rows_embedded, "cpu_seconds": time.process_time() - began}


@dataclass(frozen=True)
class Tars:
    """Photos of one size.

    Attributes:
        encoded: The different ones.
        few: A tar of an eighth of the images.
        many: A tar of all images.
        unit_bytes: Several units for each worker, so that little is left to one alone at the end, but each with over
            1,000 images, as units of 256 MiB have 4,000 photos: at a unit's end the last batches are waited for, and
            its memory is given back. Of both tars, so that their difference is the cost of images in units, too.
    """

    encoded: list[bytes]
    few: Path
    many: Path

    @property
    def unit_bytes(self) -> int:
        return self.many.stat().st_size // _UNITS + 1


def drawn(folder: Path, sides: tuple[int, int], images: int) -> Tars:
    tars = Tars([photo(seed, sides) for seed in range(_DRAWN)], folder / f"few{sides}.tar", folder / f"many{sides}.tar")
    for path, count in ((tars.few, images // 8), (tars.many, images)):
        write_tar(path, (Item(f"{i:06}.jpg", f"class{i % 2}", tars.encoded[i % _DRAWN]) for i in range(count)))
    return tars


def one_round(tars: Tars, given: argparse.Namespace) -> dict:
    few, many = whole(tars.few, tars.unit_bytes, 1), whole(tars.many, tars.unit_bytes, 1)
    found = {"decoding": decoding(tars.encoded, _SPEC, many["images"], processes=available_cores())}
    # Of one process, in which the engine's isn't.
    seconds, images = (many[name] - few[name] for name in ("cpu_seconds", "images"))
    found["beyond_ms"] = seconds / images * 1000 - found["decoding"]["cpu_ms"]
    found["rates"] = {
        count: many["rate"] if count == 1 else whole(tars.many, tars.unit_bytes, count)["rate"]
        for count in given.workers
    }
    found["held"] = whole(tars.many, tars.unit_bytes, available_cores(), rate=given.rate)["rate"]
    return found


def measure(given: argparse.Namespace) -> dict:
    began = time.monotonic()
    found = {"cores": available_cores(), "images": given.images, "rate": given.rate}
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        tars = {
            f"{sides[0]}×{sides[1]}": drawn(Path(folder), sides, times * given.images)
            for sides, times in _SIDES.items()
        }
        largest = next(iter(tars.values()))
        found["memory_mb"] = {
            count: whole(largest.many, largest.unit_bytes, count, look_seconds=_LOOK_SECONDS)["memory_mb"]
            for count in given.workers
        }
        say(f"memory: {found['memory_mb']}")
        found["sizes"] = {size: [] for size in tars}
        for number in range(given.rounds):
            started = time.monotonic()
            for size, each in tars.items():
                found["sizes"][size].append(one_round(each, given))
                say(f"{number + 1}/{given.rounds} {size}: {found['sizes'][size][-1]}")
            ended = time.monotonic()
            if ended + (ended - started) > began + 60 * given.minutes:
                break
    return found


def tabled(found: dict) -> str:
    """Returns the figures as a Markdown table: medians, with the least and the largest."""
    rows = []
    rounds = len(next(iter(found["sizes"].values())))
    for size, measured in found["sizes"].items():
        alone = statistics.median(each["decoding"]["images_per_second"] for each in measured)
        name = f"{size}: decoding alone, {found['cores']} processes, images/s"
        rows.append((name, spread([each["decoding"]["images_per_second"] for each in measured], 0), ""))
        for count in measured[0]["rates"]:
            name = f"{size}: {counted(count, 'worker')}, an engine that costs nothing, images/s"
            rows.append(_against(name, [each["rates"][count] for each in measured], alone))
        name = f"{size}: {counted(found['cores'], 'worker')}, an engine of {found['rate']:,.0f}/s, images/s"
        rows.append(_against(name, [each["held"] for each in measured], min(alone, found["rate"])))
        name = f"{size}: processor beyond decoding, one worker, ms an image"
        rows.append((name, spread([each["beyond_ms"] for each in measured], 3), ""))
    for (fewer, before), (more, after) in itertools.pairwise(found["memory_mb"].items()):
        name = f"memory of each further worker, from {fewer} to {more}, MB"
        # Only a single worker is in the runner's own process.
        rest = f"{before:.0f} to {after:.0f} in all{', with a process for the runner' if fewer == 1 else ''}"
        rows.append((name, f"{(after - before) / (more - fewer):.0f}", rest))
    times = " and ".join(f"{n * found['images']:,} JPEGs of {w}×{h}" for (w, h), n in _SIDES.items())
    head = f"{times}, in a tar of {_UNITS} units each; {found['cores']} cores, {counted(rounds, 'round')}."
    table = ["| figure | median (least–most) | share of what can be |", "|---|---|---|"]
    return "\n".join([head, "", *table, *(f"| {' | '.join(row)} |" for row in rows)])


def _against(name: str, rates: list[float], most: float) -> tuple[str, str, str]:
    return name, spread(rates, 0), f"{statistics.median(rates) / most:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--rate",
        type=float,
        default=1000.0,
        help="Images/s of an engine that takes its time, with a worker for each core.",
    )
    parser.add_argument("--rounds", type=int, default=3, help="At most.")
    parser.add_argument("--minutes", type=float, default=15.0, help="No round begins that would end later.")
    parser.add_argument("--tar", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--unit-bytes", type=int, help=argparse.SUPPRESS)
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
