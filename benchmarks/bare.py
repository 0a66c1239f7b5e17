"""The bare stages, each by itself and warm: an engine on pixels that are there, the decoder on bytes that are there.

Run as `python -m benchmarks.bare engine NAME`, `… kernel NAME DTYPE` or `… decode FOLDER`; prints JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.decoding import decoding
from pipeline.extraction.options import ExtractOptions
from transforms.engines import load_engine
from transforms.engines.winograd.kernel import FREQUENCIES, aligned_bytes, kernels
from transforms.machine import available_cores
from transforms.spec import FeatureSpec

_SECONDS, _KERNEL_SECONDS = 15.0, 3.0


def engine(name: str, weights: str, precision: str, batch_size: int | None) -> dict:
    """Returns images a second of the engine alone, at the batch and with the threads that `extract` gives it."""
    chosen = {"weights": weights, "engine": name, "precision": precision, "batch_size": batch_size}
    options = ExtractOptions(inputs=("none",), output="nowhere", **chosen)
    loaded = load_engine(
        name,
        options.spec(options.load_weights()),
        weights,
        include_top=False,
        batch_size=options.engine_batch_size,
        threads=options.engine_threads,
    )
    size = loaded.batch_size
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


def kernel(name: str, dtype: str) -> dict:
    """Returns images a second through one layer, 28×28×512 to 512, with one instruction set and one thread."""
    [chosen] = [each for each in kernels() if each.name == name]
    side, channels, tiles = 28, 512, 96
    rng = np.random.default_rng(0)
    source = np.zeros((4, side + 2, side + 2, channels), np.float32)
    source[:, 1:-1, 1:-1] = np.maximum(rng.normal(size=(4, side, side, channels)), 0)
    target = np.zeros_like(source)
    weights = rng.integers(-99, 99, FREQUENCIES * channels**2).astype(dtype)
    scales = np.ones((FREQUENCIES, channels), np.float32) if dtype == "int16" else None
    workspace = aligned_bytes(chosen.workspace_bytes(weights.dtype, channels, channels, tiles))
    sizes = {"side": side, "pooled": False, "tiles": tiles, "workspace": workspace}
    images, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _KERNEL_SECONDS:
        chosen.conv(source, target, weights, scales, np.zeros(channels, np.float32), **sizes)
        images += len(source)
    return {"images_per_second": images / seconds}


def decode(folder: str, mode: str, threads: int) -> dict:
    """Returns images a second of decoding and resizing alone, the files being in memory."""
    spec = FeatureSpec(backbone="vgg19", weights="", features=(), decode=mode)
    files = [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {
        "mode": mode,
        "threads": threads,
        "images": len(files),
        **decoding(files, spec, len(files), threads=threads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("engine")
    sub.add_argument("name")
    sub.add_argument("--weights", default="random:0")
    sub.add_argument("--precision", default="float32")
    sub.add_argument("--batch-size", type=int)
    sub = commands.add_parser("kernel")
    sub.add_argument("name")
    sub.add_argument("dtype", choices=("float32", "int16"))
    sub = commands.add_parser("decode")
    sub.add_argument("folder")
    sub.add_argument("--mode", default="exact")
    sub.add_argument("--threads", type=int, default=available_cores())
    given = vars(parser.parse_args())
    print(json.dumps({"engine": engine, "kernel": kernel, "decode": decode}[given.pop("command")](**given)))


if __name__ == "__main__":
    main()
