"""The bare stages, each by itself and warm: an engine on pixels that are there, the decoder on bytes that are there.

Run as `python -m benchmarks.bare engine NAME` or `… decode FOLDER`; prints JSON.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.extraction.options import ExtractOptions
from transforms.engines import load_engine
from transforms.images.decode import decode_image
from transforms.machine import available_cores
from transforms.spec import FeatureSpec

_SECONDS = 15.0


def engine(name: str, weights: str, precision: str, batch_size: int | None) -> dict:
    """Returns images a second of the engine alone, at the batch and with the threads that `extract` gives it."""
    chosen = {"weights": weights, "engine": name, "precision": precision, "batch_size": batch_size}
    options = ExtractOptions(inputs=("none",), output="nowhere", **chosen)
    size = options.engine_batch_size
    loaded = load_engine(
        name,
        options.spec(options.load_weights()),
        weights,
        include_top=False,
        batch_size=size,
        threads=options.engine_threads,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), np.uint8)
    loaded.embed(pixels)
    images, cpu, started = 0, time.process_time(), time.perf_counter()
    while (seconds := time.perf_counter() - started) < _SECONDS:
        loaded.embed(pixels)
        images += size
    return {
        "engine": loaded.description,
        "precision": precision,
        "batch_size": size,
        "images_per_second": images / seconds,
        "cpu_seconds_per_image": (time.process_time() - cpu) / images,
    }


def decode(folder: str, mode: str, threads: int) -> dict:
    """Returns images a second of decoding and resizing alone, the files being in memory."""
    spec = FeatureSpec(backbone="vgg19", weights="", features=(), decode=mode)
    files = [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda data: decode_image(data, spec, max_pixels=89_000_000), files):
            pass
        seconds = time.perf_counter() - started
    return {"mode": mode, "threads": threads, "images": len(files), "images_per_second": len(files) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("engine")
    sub.add_argument("name")
    sub.add_argument("--weights", default="random:0")
    sub.add_argument("--precision", default="float32")
    sub.add_argument("--batch-size", type=int)
    sub = commands.add_parser("decode")
    sub.add_argument("folder")
    sub.add_argument("--mode", default="exact")
    sub.add_argument("--threads", type=int, default=available_cores())
    given = vars(parser.parse_args())
    print(json.dumps({"engine": engine, "decode": decode}[given.pop("command")](**given)))


if __name__ == "__main__":
    main()
