"""The engine `keras` on a GPU: batch sizes and precisions, alone and in the whole command, against the card's own rate.

Run as `python -m benchmarks.gpu`, with `KERAS_BACKEND=jax` or `torch` where TensorFlow sees no GPU. What it prints is
saved nowhere. It also runs on a CPU, which takes hours at the large batches: try `--batch-sizes 8 --side 1024`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import photos
from benchmarks.__main__ import Lab
from benchmarks.process import run
from transforms.network.vgg import describe, layers

_PRECISIONS = ("float32", "bfloat16", "float16")


def operations() -> float:
    """Returns what VGG19's base computes for an image of 224×224 by direct convolution, in 10^12 operations."""
    return sum(2 * info.macs for info in describe(layers("vgg19"), 224)) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=photos.LARGE, help="Images of the whole command.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, default=_PRECISIONS)
    parser.add_argument("--side", type=int, default=8192, help="Of the matrices that the card's rate is measured with.")
    parser.add_argument("--photos", help="A folder of photos; by default the shared ones, else drawn images.")
    given = parser.parse_args()
    bare = [sys.executable, "-m", "benchmarks.bare"]
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        lab = Lab(Path(folder), photos.source(given.photos)[0], 1)
        images = lab.images(given.images)
        for precision in given.precisions:
            found = run([*bare, "matmul", "--precision", precision, "--side", str(given.side)]).figures
            peak = found["tera_per_second"]
            print(f"{precision}: matrices of {given.side} make {peak:.1f} TFLOP/s")
            best = 0.0
            for size in given.batch_sizes:
                command = [*bare, "engine", "keras", "--precision", precision, "--batch-size", str(size)]
                found = run(command).figures
                rate = found["images_per_second"]
                share = rate * operations() / peak
                print(f"  batch {size}: {rate:.1f} images/s, {share:.0%} of that; {found['engine']}")
                if rate > best:
                    best, best_size = rate, size
            if precision == "float16":
                continue
            options = ("--engine", "keras", "--precision", precision, "--batch-size", str(best_size))
            whole = run(lab.extract(images, *options)())
            summary = json.loads(whole.printed)
            rate = given.images / whole.seconds
            stages = {name: summary["this_run"][f"{name}_seconds"] for name in ("read", "decode", "embed", "write")}
            print(
                f"  extract, batch {best_size}: {rate:.1f} images/s with start-up, {rate / best:.0%} of the bare engine"
            )
            print(
                f"  of {whole.seconds:.1f} s: {', '.join(f'{name} {seconds:.1f}' for name, seconds in stages.items())}"
            )


if __name__ == "__main__":
    main()
