"""The page with a head's errors at its largest: 1,000 classes, 100,000 predicted rows, as `predict --evaluate` does it.

Run as `python -m benchmarks.errors_page [--rows 100000] [--classes 1000]`; prints what the command takes, how large the
page is, and when Chromium first paints it. Vectors are drawn, and photos are drawn images under many names.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.process import say
from pipeline.demo.samples import draw_items
from transforms.heads.model import Model, dense_arrays
from transforms.predictors.head import Head, save_head
from transforms.records import FileInfo, ListedFile, Shard, Unit, UnitReport
from transforms.spec import ADDED_COLUMNS, Feature, FeatureSpec
from transforms.store.manifest import new_manifest, write_manifest
from transforms.store.output import Output
from transforms.store.parts import PartWriter
from transforms.store.reports import add_up
from transforms.store.units import PlannedUnit, unit_id

DIMS = 512
_RUN = """
import resource, sys
from pipeline.cli.app import run_cli
code = run_cli(sys.argv[1:])
own, children = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = sum(of.ru_utime + of.ru_stime for of in (own, children))
print(cpu, own.ru_maxrss // 1024, file=sys.stderr)
sys.exit(code)
"""


def write_out(folder: Path, rows: int, classes: int) -> tuple[Path, np.ndarray]:
    """Writes an OUT of rows whose photos are there; returns it and its C×D centres."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, DIMS)).astype(np.float32)
    codes = random.integers(0, classes, rows)
    drawn = [item.data for item in draw_items(per_class=40, size=400, seed=0)]
    drawn = [data for data in drawn if len(data) > 10_000]
    hashes = [hashlib.sha256(data).digest() for data in drawn]
    for number, data in enumerate(drawn):
        (folder / f"{number}.jpg").write_bytes(data)
    files, facts = [], []
    (folder / "photos").mkdir()
    for row in range(rows):
        # Another name for the same file takes no room.
        path, one = str(folder / "photos" / f"{row:06}.jpg"), row % len(drawn)
        os.link(folder / f"{one}.jpg", path)
        files.append(ListedFile(FileInfo(path, len(drawn[one]), "1"), f"class {codes[row]:04}"))
        facts.append((path, files[-1].label, path, 0, hashes[one], 400, 400, None))
    spec = FeatureSpec("vgg19", "0" * 64, (Feature("embedding", "block5_pool", "avg"),))
    out = folder / "OUT"
    for name in ("features", "failures", "_tmp"):
        (out / name).mkdir(parents=True)
    unit = Unit(Shard(FileInfo(str(folder / "photos"), 0, "1"), "files"), 0, rows, files=tuple(files))
    name = unit_id(unit, spec.fingerprint)
    report = UnitReport(name, str(folder / "photos"), 0, rows, rows, rows, 0, 1, 0.1, 0.1, 0.1, 0.1, 0.1, "drawn")
    with PartWriter(
        str(out), name, spec=spec, sizes={"embedding": DIMS}, added=dict.fromkeys(ADDED_COLUMNS, "string")
    ) as writer:
        for start in range(0, rows, 20_000):
            some = slice(start, start + 20_000)
            noise = random.normal(size=(len(codes[some]), DIMS)).astype(np.float32) * 5
            writer.add(facts[some], {"embedding": centres[codes[some]] + noise})
        writer.commit(report)
    Output(str(out)).write_plan([PlannedUnit(name, unit)])
    Output(str(out)).write_reports([report])
    manifest = new_manifest(spec, weights="drawn", weights_are_random=False, limit=None, versions={})
    write_manifest(str(out), replace(manifest, status="complete", totals=add_up([report])))
    head = Head(
        Model("ridge", dense_arrays([(centres.T.astype(np.float64), np.zeros(classes))])),
        tuple(f"class {number:04}" for number in range(classes)),
        25.0,
        ("embedding",),
        (DIMS,),
        spec,
        "drawn",
    )
    save_head(head, str(folder / "HEAD"))
    return out, centres


def first_paint(page: Path) -> float:
    """Returns seconds from opening the page to its first paint."""
    from tests.browser.chromium import open_chromium

    with open_chromium() as browser:
        opened = browser.new_page()
        opened.goto(page.as_uri(), wait_until="commit")
        opened.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        return opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as name:
        folder = Path(name)
        out, _ = write_out(folder, given.rows, given.classes)
        command = ["predict", str(folder / "HEAD"), str(out), "-o", str(folder / "PRED"), "--evaluate", "-q"]
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", _RUN, *command], capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if ended.returncode:
            sys.exit(ended.stderr)
        page = folder / "PRED" / "errors.html"
        figures = {
            "rows": given.rows,
            "classes": given.classes,
            "seconds": seconds,
            "cpu_seconds": float(ended.stderr.split()[-2]),
            "memory_mb": int(ended.stderr.split()[-1]),
            "page_mb": page.stat().st_size / 1e6,
            "first_paint_seconds": first_paint(page),
        }
    say(", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
