"""The engine `keras` on a GPU: the bare engine, how exact it is, and the whole command from a tar to Parquet.

Run as `python -m benchmarks.gpu`, with `KERAS_BACKEND=jax` or `torch` where TensorFlow sees no GPU. It begins nothing
after `--minutes`, needs no network, and writes gpu.json and gpu.md into `--out`. What fails (a batch too large, a
precision that the device hasn't) is written down with its error, and the rest goes on. It runs on CPUs, too:
`--batch-sizes 2 --images 20 --image-size 64 --seconds 1 --workers 1 2 --engine-per machine`.
"""

import argparse
import datetime
import io
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.decoding import decoding
from benchmarks.process import run, say, working_seconds
from pipeline.demo.samples import Item, write_tar
from pipeline.extraction.options import ExtractOptions
from transforms.engines import load_engine
from transforms.engines.checks import computed_layers, convolutions
from transforms.engines.keras import KerasEngine
from transforms.images.decode import decode_image
from transforms.machine import available_cores
from transforms.network.normalise import preprocess
from transforms.network.vgg import describe, layers
from transforms.pools import pool_planes
from transforms.spec import FeatureSpec
from transforms.text import counted, one_line

_PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
# Of the photos that the drawn ones stand for, and how many different ones there are: a tar repeats them.
_SIDES, _DRAWN = (500, 375), 100
_COMPARED = 4
_DECODED = 1000
# Of the whole command, for each worker.
_UNITS = 4
_STAGES = ("read", "decode", "embed", "write")


def options(given: argparse.Namespace, precision: str) -> ExtractOptions:
    return ExtractOptions(
        inputs=("none",),
        output="nowhere",
        weights="random:0",
        engine="keras",
        precision=precision,
        image_size=given.image_size,
    )


def photo(seed: int, sides: tuple[int, int] = _SIDES) -> bytes:
    """Returns a drawn JPEG of about a photo's size in bytes: soft colours, with some noise over them."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(sides, Image.Resampling.BICUBIC)
    noisy = np.asarray(soft) + rng.normal(0, 8, (sides[1], sides[0], 1))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def drawn(count: int) -> list[bytes]:
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(photo, range(count)))


def reference(spec: FeatureSpec, pixels: np.ndarray, weights: dict) -> np.ndarray:
    """Returns N×D of the spec's only feature, in float64 by NumPy."""
    kernels = {name: (kernel.reshape(-1, len(bias)).T, bias) for name, (kernel, bias) in weights.items()}
    (feature,), table = spec.features, computed_layers(spec)
    planes = [preprocess(image).transpose(2, 0, 1).astype(np.float64) for image in pixels]
    found = [convolutions(image, table, kernels, channels_first=False)[feature.tap] for image in planes]
    return np.stack([pool_planes(output, feature.pool) for output in found])


def agreement(found: np.ndarray, expected: np.ndarray) -> dict:
    """Returns the largest difference as a share of the largest value, and the least cosine of an image's vectors."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return {
        "largest_relative_difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "least_cosine": float(((found * expected).sum(axis=1) / lengths).min()),
    }


def grid(given: argparse.Namespace) -> dict:
    """Returns rates of the bare engine at one precision: as it chose by itself, then for each batch size both ways.

    Both ways: compiled and not, first as the engine does on a CPU. What `--minutes` are too short for is left out.
    """
    ends = time.monotonic() + 60 * given.minutes
    (precision,) = given.precisions
    chosen = options(given, precision)
    weights = chosen.load_weights()
    spec = chosen.spec(weights)
    started = time.perf_counter()
    settings = {"include_top": False, "batch_size": None, "threads": None}
    engine = load_engine("keras", spec, "random:0", **settings)
    found = {"engine": engine.description, "load_seconds": time.perf_counter() - started, "rates": []}
    found["chosen"] = {"compiled": engine._compiled, "batch_size": engine.batch_size}
    images = [decode_image(photo(seed), spec, max_pixels=10**6).pixels for seed in range(_COMPARED)]
    found |= agreement(engine.embed(np.stack(images))["embedding"], reference(spec, np.stack(images), weights.arrays))
    first = engine._backend.compiled[0]
    ways = [(engine.batch_size, engine._compiled)]
    ways += [(size, compiled) for compiled in (first, not first) for size in given.batch_sizes]
    for size, compiled in dict.fromkeys(ways):
        if time.monotonic() < ends:
            found["rates"].append(_rate(engine, size, compiled, given.seconds))
    return found


def _bare(figures: dict) -> float | None:
    """Returns the rate of the bare engine as it chose to compute, which is how the command's engine does, too."""
    for each in figures.get("rates", ()):
        if {name: each[name] for name in ("compiled", "batch_size")} == figures["chosen"]:
            return each.get("images_per_second")
    return None


def _rate(engine: KerasEngine, size: int, compiled: bool, seconds: float) -> dict:
    found = {"batch_size": size, "compiled": compiled}
    side = engine._spec.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
    started = time.perf_counter()
    try:
        engine.resize(size)
        engine._model.compile(jit_compile=compiled)
        for _ in range(2):
            engine.embed(pixels)
        found["first_seconds"] = time.perf_counter() - started
        started, images = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds:
            engine.embed(pixels)
            images += size
    except Exception as error:
        return found | {"error": f"{type(error).__name__}: {one_line(error)[:200]}"}
    return found | {"images_per_second": images / passed}


def decoding_alone(encoded: list[bytes], given: argparse.Namespace) -> dict[str, float]:
    """Returns images a second of decoding, by how it is done."""
    spec = FeatureSpec(backbone="vgg19", weights="", features=(), image_size=given.image_size)
    images, cores = min(given.images, _DECODED), available_cores()
    ways = {
        "one thread": {},
        f"{cores} threads of one process": {"threads": cores},
        f"{cores} processes": {"processes": cores},
    }
    return {name: decoding(encoded, spec, images, **way)["images_per_second"] for name, way in ways.items()}


def whole(given: argparse.Namespace, precision: str, workers: int, tar: Path) -> dict:
    """Returns what `extract` of a tar makes at one precision, by its own summary and by the clock."""
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as output:
        command = [sys.executable, "-m", "pipeline.cli", "extract", str(tar), "--output", output, "--quiet", "--json"]
        command += ["--engine", "keras", "--weights", "random:0", "--image-size", str(given.image_size)]
        # Several units for each worker.
        command += ["--unit-bytes", str(tar.stat().st_size // (_UNITS * workers) + 1)]
        command += ["--workers", str(workers), "--engine-per", given.engine_per]
        done = run([*command, "--precision", precision])
        # What is left of the command's time is start-up and the last look at OUT.
        working = working_seconds(Path(output))
    summary = json.loads(done.printed)
    stages = summary["this_run"]
    found = {
        "workers": workers,
        "images": stages["rows_embedded"],
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "peak_mb": done.peak_mb,
        "working_seconds": working,
    }
    return found | {f"{name}_seconds": stages[f"{name}_seconds"] for name in _STAGES}


def tabled(found: dict) -> str:
    """Returns the figures as Markdown."""
    lines = [f"{found['device']}, {found['versions']}, {found['date']}, {found['image_size']} pixels.", ""]
    sizes = found["batch_sizes"]
    head = [*(f"batch {size}" for size in sizes), "TFLOP/s", "largest difference", "least cosine"]
    lines += [f"| bare engine, images/s | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for precision, figures in found["precisions"].items():
        if "error" in figures:
            lines.append(f"| {precision} | {figures['error']} |{' |' * (len(head) - 1)}")
            continue
        exact = f"{figures['largest_relative_difference']:.1e} | {figures['least_cosine']:.7f}"
        for compiled in dict.fromkeys(each["compiled"] for each in figures["rates"]):
            own = {each["batch_size"]: each for each in figures["rates"] if each["compiled"] == compiled}
            rates = [own.get(size, {}).get("images_per_second") for size in sizes]
            best = max(filter(None, rates), default=0.0) * found["tera"]
            shown = " | ".join(f"{rate:,.0f}" if rate else "–" for rate in rates)
            lines.append(f"| {precision}, {_way(compiled)} | {shown} | {best:.0f} | {exact} |")
    head = [
        "whole command",
        "images/s at work",
        "of bare",
        "of the slower",
        "seconds",
        "at work",
        *_STAGES,
        "processor",
    ]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    decoded = max(found["decoding"].values())
    for precision, figures in found["precisions"].items():
        for each in figures.get("whole", ()):
            name = f"{precision}, {counted(each['workers'], 'worker')}"
            if "error" in each:
                lines.append(f"| {name} | {each['error']} |{' |' * (len(head) - 2)}")
                continue
            rate, bare = each["images"] / each["working_seconds"], _bare(figures)
            shares = [f"{rate / most:.2f}" if most else "–" for most in (bare, bare and min(bare, decoded))]
            seconds = [each["seconds"], each["working_seconds"], *(each[f"{stage}_seconds"] for stage in _STAGES)]
            lines.append(
                f"| {name} | {rate:,.0f} | {' | '.join(shares)} | {' | '.join(f'{value:.1f}' for value in seconds)} | "
                f"{each['cpu_seconds']:.1f} |"
            )
    alone = ", ".join(f"{rate:,.0f} by {way}" for way, rate in found["decoding"].items())
    jpegs = f"{found['images']:,} JPEGs of {_SIDES[0]}×{_SIDES[1]} and {found['jpeg_bytes'] / 1000:.0f} kB in a tar"
    chosen = []
    for precision, figures in found["precisions"].items():
        if each := figures.get("chosen"):
            rate = _bare(figures)
            makes = f", {rate:,.0f} images/s" if rate else ""
            chosen.append(f"{precision} {_way(each['compiled'])}, batches of {each['batch_size']}{makes}")
    lines += ["", f"{jpegs}. Decoding alone, images/s: {alone}."]
    return "\n".join([*lines, "", f"Chosen when the engine was loaded: {'; '.join(chosen)}.", ""])


def _way(compiled: bool) -> str:
    return "compiled" if compiled else "not compiled"


def _versions() -> tuple[str, str]:
    """Returns the device, and what computes on it."""
    printed = run([sys.executable, "-c", _ASK]).printed.splitlines()
    return printed[-2], printed[-1]


_ASK = """
import keras
from transforms.engines.backends import load_backend
from transforms.engines.keras import visible_device
print(visible_device())
print(load_backend().version + ", keras " + keras.__version__)
"""


def measure(given: argparse.Namespace) -> dict:
    ends = time.monotonic() + 60 * given.minutes
    device, versions = _versions()
    say(f"{device}, {versions}")
    cores = available_cores()
    found = {
        "device": f"{device}, {cores} cores",
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "image_size": given.image_size,
        "images": given.images,
        "batch_sizes": given.batch_sizes,
        "tera": sum(2 * info.macs for info in describe(layers("vgg19"), given.image_size)) / 1e12,
        "precisions": {},
    }
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        # What is measured of a card is measured here and now, and the user's own cache isn't for it.
        os.environ["FEATUREMILL_CACHE"] = str(Path(folder, "cache"))
        encoded = drawn(min(_DRAWN, given.images))
        found["jpeg_bytes"] = sum(map(len, encoded)) / len(encoded)
        tar = Path(folder, "photos.tar")
        numbers = range(given.images)
        write_tar(tar, (Item(f"{i:06}.jpg", f"class{i % 2}", encoded[i % len(encoded)]) for i in numbers))
        found["decoding"] = decoding_alone(encoded, given)
        say(f"decoding alone: {found['decoding']}")
        for number, precision in enumerate(given.precisions):
            # Each precision has an equal share of what is left; half of that is for the bare engine.
            minutes = (ends - time.monotonic()) / 60 / (len(given.precisions) - number)
            figures = found["precisions"][precision] = _grid_apart(given, precision, minutes / 2)
            say(f"{precision}: {figures}")
            figures["whole"] = []
            for workers in () if "error" in figures else given.workers:
                figures["whole"].append(_whole_or_why(given, precision, workers, tar, ends))
                say(f"{precision}, whole: {figures['whole'][-1]}")
            _save(given, found)
    return found


def _whole_or_why(given: argparse.Namespace, precision: str, workers: int, tar: Path, ends: float) -> dict:
    if time.monotonic() > ends:
        return {"workers": workers, "error": f"not tried: {given.minutes:g} minutes were over"}
    try:
        return whole(given, precision, workers, tar)
    except RuntimeError as error:
        return {"workers": workers, "error": _last_line(error)}


def _grid_apart(given: argparse.Namespace, precision: str, minutes: float) -> dict:
    """Runs `grid` in a process of its own: what breaks there breaks nothing else, and its memory goes with it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--grid", "--precisions", precision]
    command += ["--image-size", str(given.image_size), "--seconds", str(given.seconds)]
    command += ["--minutes", str(minutes)]
    try:
        return run([*command, "--batch-sizes", *map(str, given.batch_sizes)]).figures
    except RuntimeError as error:
        return {"error": _last_line(error)}


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]


def _save(given: argparse.Namespace, found: dict) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "gpu.md").write_text(tabled(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000, help="Of the whole command.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, default=_PRECISIONS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each rate.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="Of the whole command.")
    parser.add_argument("--engine-per", default="auto", help="As extract takes it; machine, to try on a CPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="Nothing begins later.")
    parser.add_argument("--out", type=Path, default=Path("."), help="Folder of gpu.json and gpu.md.")
    parser.add_argument("--grid", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.grid:
        print(json.dumps(grid(given)))
    else:
        print(tabled(measure(given)))


if __name__ == "__main__":
    main()
