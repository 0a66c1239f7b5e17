"""Every figure that README quotes, from one command: `make bench`, or `python -m benchmarks --only NAME`.

What is compared runs in turn, each as a whole process; medians are printed with the least and the most. Nothing is
asserted: machines differ, and are shared. It takes the better part of an hour, and wants the machine for itself.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import photos, table
from benchmarks.process import Run, alternate, say
from transforms.engines import choose
from transforms.engines.winograd.kernel import kernels
from transforms.machine import available_cores

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Lab:
    """Where a benchmark works.

    Attributes:
        root: Emptied afterwards.
        photos: What the inputs are filled with.
        rounds: How often each command runs; those of many minutes run less often.
    """

    root: Path
    photos: list[Path]
    rounds: int

    @property
    def long_rounds(self) -> int:
        return max(1, self.rounds - 2)

    @property
    def weights(self) -> Path:
        """A file of VGG19's layout with drawn weights, made once: real ones cost the same."""
        path = self.root / "vgg19.weights.h5"
        if not path.exists():
            base = "keras.applications.VGG19(include_top=False, weights=None)"
            code = f"import keras; keras.utils.set_random_seed(0); {base}.save_weights({str(path)!r})"
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return path

    def images(self, count: int) -> Path:
        folder = self.root / f"photos{count}"
        return folder if folder.exists() else photos.fill(folder, self.photos, count)

    def extract(self, folder: Path, *options: str) -> Callable[[], list[str]]:
        """Returns what prepares an `extract` into an empty OUT, with weights from a file."""

        def command() -> list[str]:
            output = self.root / "out"
            shutil.rmtree(output, ignore_errors=True)
            name = [sys.executable, "-m", "pipeline.cli", "extract", str(folder)]
            return [*name, "--output", str(output), "--weights", str(self.weights), "--quiet", "--json", *options]

        return command

    def keras_script(self, folder: Path) -> list[str]:
        return [sys.executable, str(HERE / "keras_script.py"), str(folder), str(self.root / "baseline.parquet")]

    def beam_runinference(self, folder: Path) -> list[str]:
        return [sys.executable, str(HERE / "beam_runinference.py"), str(folder), str(self.root / "baseline")]


def startup(lab: Lab) -> list[dict]:
    """From the command to its end, for a single image; its part is committed just before."""
    one = lab.images(1)
    engines = {f"extract --engine {name}": lab.extract(one, "--engine", name) for name in ("winograd", "ncnn", "keras")}
    # Converts the weights, as happens once per machine.
    alternate(engines, 1)
    return _processes(alternate(engines, lab.rounds), 1)


def small(lab: Lab) -> list[dict]:
    """Whole commands on 210 photos against what users would write."""
    folder = lab.images(photos.SMALL)
    runs = alternate(
        {
            "extract": lab.extract(folder),
            "extract --precision int16": lab.extract(folder, "--precision", "int16"),
            "extract --engine ncnn": lab.extract(folder, "--engine", "ncnn"),
            "keras_script.py": lab.keras_script(folder),
            "beam_runinference.py": lab.beam_runinference(folder),
            "extract --engine keras": lab.extract(folder, "--engine", "keras"),
        },
        lab.rounds,
    )
    return _processes(runs, photos.SMALL)


def large(lab: Lab) -> list[dict]:
    """The same at 2,000 images, where start-up no longer counts; with the seconds of each stage."""
    folder = lab.images(photos.LARGE)
    runs = alternate(
        {
            "extract": lab.extract(folder),
            "extract --precision int16": lab.extract(folder, "--precision", "int16"),
            "keras_script.py": lab.keras_script(folder),
            "beam_runinference.py": lab.beam_runinference(folder),
        },
        lab.long_rounds,
    )
    return _processes(runs, photos.LARGE)


def bare(lab: Lab) -> list[dict]:
    """The engines alone, warm, on pixels in memory, at the batch and threads that `extract` gives them."""
    command = [sys.executable, "-m", "benchmarks.bare", "engine", "--weights", str(lab.weights)]
    runs = alternate(
        {
            "ncnn": [*command, "ncnn"],
            "winograd": [*command, "winograd"],
            "winograd int16": [*command, "winograd", "--precision", "int16"],
            "keras": [*command, "keras"],
            "keras bfloat16": [*command, "keras", "--precision", "bfloat16"],
        },
        lab.rounds,
    )
    return _figures(runs)


def kernel(lab: Lab) -> list[dict]:
    """The kernel of the engine winograd, one layer in one thread: each instruction set against its own plain loops."""
    command = [sys.executable, "-m", "benchmarks.bare", "kernel"]
    names = [each.name for each in kernels()]
    runs = alternate(
        {f"{name}, {dtype}": [*command, name, dtype] for dtype in ("float32", "int16") for name in names}, lab.rounds
    )
    return _figures(runs)


def decoding(lab: Lab) -> list[dict]:
    """Decoding and resizing alone, on photos and on JPEGs of 12 megapixels."""
    command = [sys.executable, "-m", "benchmarks.bare", "decode"]
    small, big = str(lab.images(photos.SMALL)), str(_big(lab))
    runs = alternate(
        {
            "photos, 1 thread": [*command, small, "--threads", "1"],
            "photos, 2 threads": [*command, small, "--threads", "2"],
            "12 megapixels exact, 1 thread": [*command, big, "--threads", "1"],
            "12 megapixels fast, 1 thread": [*command, big, "--threads", "1", "--mode", "fast"],
        },
        lab.rounds,
    )
    return _figures(runs)


def fast(lab: Lab) -> list[dict]:
    """Whole commands on JPEGs of 12 megapixels, decoded exactly and at reduced scale."""
    folder = _big(lab)
    runs = alternate(
        {f"extract --decode {mode}": lab.extract(folder, "--decode", mode) for mode in ("fast", "exact")}, lab.rounds
    )
    return _processes(runs, photos.BIG)


def _big(lab: Lab) -> Path:
    folder = lab.root / "big"
    return folder if folder.exists() else photos.fill_big(folder, lab.photos, photos.BIG)


def _processes(runs: dict[str, list[Run]], images: int) -> list[dict]:
    """Returns a row per command; the first one's ratio to each other is taken round by round."""
    first = next(iter(runs.values()))
    rows = []
    for name, done in runs.items():
        row = {
            "what": name,
            "images": images,
            "seconds": [run.seconds for run in done],
            "images_per_second": [images / run.seconds for run in done],
            "cpu_seconds": [run.cpu_seconds for run in done],
            "peak_mb": [run.peak_mb for run in done],
        }
        if done is not first and len(done) == len(first):
            row["first_is_faster_by"] = [run.seconds / ours.seconds for run, ours in zip(done, first, strict=True)]
        if name.startswith("extract"):
            this_run = done[-1].figures["this_run"]
            stages = ("read", "decode", "embed", "write")
            row["stage_seconds"] = {stage: this_run[f"{stage}_seconds"] for stage in stages}
        rows.append(row)
    return rows


def _figures(runs: dict[str, list[Run]]) -> list[dict]:
    return [
        {
            "what": name,
            "images_per_second": [run.figures["images_per_second"] for run in done],
            "peak_mb": [run.peak_mb for run in done],
            "note": done[0].figures.get("engine", ""),
        }
        for name, done in runs.items()
    ]


SECTIONS = {section.__name__: section for section in (bare, kernel, decoding, startup, fast, small, large)}


def steady_state(found: dict[str, list[dict]]) -> list[dict]:
    """Returns `extract`'s rate at each precision, with and without its start-up, and its share of the bare engine's.

    The limit is the share that is left where decoding takes its time of the same cores.
    """
    if not {"bare", "decoding", "small", "large"} <= found.keys():
        return []

    def median(section: str, what: str, figure: str) -> float:
        [row] = [row for row in found[section] if row["what"] == what]
        return statistics.median(row[figure])

    decoding = 2 / median("decoding", "photos, 2 threads", "images_per_second") / available_cores()
    rows = []
    for precision, command, suffix in (("float32", "extract", ""), ("int16", "extract --precision int16", " int16")):
        # What `extract` chooses by itself.
        bare = median("bare", choose("auto", precision, "vgg19") + suffix, "images_per_second")
        small, large = (median(section, command, "seconds") for section in ("small", "large"))
        whole, steady = photos.LARGE / large, (photos.LARGE - photos.SMALL) / (large - small)
        rows.append(
            {
                "what": command,
                "images_per_second": whole,
                "share_of_bare_engine": whole / bare,
                "images_per_second_without_startup": steady,
                "share_of_bare_engine_without_startup": steady / bare,
                "limit": 1 / (1 + bare * decoding),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=SECTIONS, help="A section; repeatable. By default all.")
    parser.add_argument("--photos", help="A folder of photos; by default the shared ones, else drawn images.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each command runs; two less at 2,000 images.")
    parser.add_argument("--save", default=str(HERE / "results"), help="Where to: NAME.json and NAME.md.")
    given = parser.parse_args()
    paths, origin = photos.source(given.photos)
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        lab = Lab(Path(folder), paths, given.rounds)
        # The user's own cache isn't for weights that nobody will ask for again.
        os.environ["FEATUREMILL_CACHE"] = str(lab.root / "cache")
        for name in given.only or SECTIONS:
            say(f"{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
            found[name] = SECTIONS[name](lab)
    titles = {name: SECTIONS[name].__doc__.splitlines()[0] for name in found}
    result = {"machine": table.machine(), "inputs": origin, "sections": found, "steady_state": steady_state(found)}
    text = table.markdown(result, titles)
    Path(f"{given.save}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{given.save}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
