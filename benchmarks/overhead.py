"""What the pipeline costs beside decoding: CPU per image, memory over a run, and a rerun with nothing to do.

Run as `python -m benchmarks.overhead [--images 20000] [--units 10000]`. A fake engine stands in for the network, so
that nothing hides the rest. Figures are printed, never asserted: machines differ, and are shared.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pipeline.demo.samples import Item, draw_items, write_tar, write_tfrecord
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.support.fakes import WEIGHTS, load_fake
from transforms.images.decode import decode_image


def make_items(count: int) -> list[Item]:
    """Returns `count` images of 160 pixels or so, the same few dozen under other names."""
    good = [
        item for item in draw_items(per_class=15, size=160, seed=0) if not item.name.endswith(("014.jpg", "014.png"))
    ]
    cycle = itertools.islice(itertools.cycle(good), count)
    return [Item(f"{number:06}_{item.name}", item.label, item.data) for number, item in enumerate(cycle)]


def options(inputs: list[Path], output: Path, **more) -> ExtractOptions:
    return ExtractOptions(inputs=tuple(map(str, inputs)), output=str(output), batch_size=32, **more)


def _status_mb(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def overhead(images: int) -> dict[str, float]:
    """Embeds `images` images in tar shards with the fake engine, against a loop that only decodes them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = make_items(images)
        shards = [root / f"{number}.tar" for number in range(8)]
        for number, shard in enumerate(shards):
            write_tar(shard, items[number::8])
        settings = options(shards, root / "out")
        spec = settings.spec(WEIGHTS)
        sample = items[: min(2000, images)]
        started = time.process_time()
        for item in sample:
            decode_image(item.data, spec, max_pixels=10**7)
        decode_ms = (time.process_time() - started) / len(sample) * 1000
        del items, sample
        memory, ended = [], threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                memory.append(_status_mb("VmRSS"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        clock, cpu = time.perf_counter(), time.process_time()
        summary = run(settings, load=load_fake, weights=WEIGHTS)
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        ended.set()
        watcher.join()
    assert summary.totals.rows_embedded == images
    half = len(memory) // 2
    return {
        "images": images,
        "wall_seconds": clock,
        "cpu_ms_per_image": cpu / images * 1000,
        "decode_ms_per_image": decode_ms,
        "overhead_ms_per_image": cpu / images * 1000 - decode_ms,
        "rss_first_half_mb": max(memory[:half]),
        "rss_second_half_mb": max(memory[half:]),
        "peak_mb": _status_mb("VmHWM"),
    }


def rerun(units: int) -> dict[str, float]:
    """Makes an OUT of many small units, then runs the same command again in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = [Item(f"{number:06}.jpg", item.label, item.data) for number, item in enumerate(make_items(units))]
        write_tfrecord(root / "many.tfrecord", items)
        args = [str(root / "many.tfrecord"), "-o", str(root / "out"), "--unit-bytes", "1", "--quiet", "--json"]
        clocks, embedded = [], []
        for _ in range(2):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.fakes", *args], capture_output=True, text=True, check=True
            )
            clocks.append(time.perf_counter() - started)
            embedded.append(json.loads(done.stdout)["this_run"]["rows_read"])
        parts = len(list((root / "out/features").iterdir()))
    return {
        "units": parts,
        "first_run_seconds": clocks[0],
        "first_run_ms_per_unit": clocks[0] / parts * 1000,
        "rerun_seconds": clocks[1],
        "rerun_embedded": embedded[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--units", type=int, default=10_000)
    given = parser.parse_args()
    print(json.dumps(overhead(given.images), indent=2))
    print(json.dumps(rerun(given.units), indent=2))


if __name__ == "__main__":
    main()
