"""What a map of 100,000 rows costs: the command, its page, and how the page moves in a browser without a graphics card.

Run as `python -m benchmarks.map [--rows 100000] [--method umap]`. The rows are drawn vectors of 64 numbers, with small
copies of photos as their images. `--page PAGE` measures a map that is there already, such as one that `--keep` left.
`--trust` says instead how trustworthy places of real features are. Figures are printed, never asserted: machines
differ, and are shared.
"""

import argparse
import hashlib
import io
import json
import math
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import photos
from benchmarks.process import run, say
from benchmarks.table import machine
from tests.browser.chromium import open_chromium
from tests.support.pages_data import clusters
from transforms import shards, storage
from transforms.records import Shard, Unit, UnitReport
from transforms.spec import Feature, FeatureSpec
from transforms.store.manifest import new_manifest, write_manifest
from transforms.store.output import Output
from transforms.store.parts import PartWriter
from transforms.store.reports import add_up
from transforms.store.units import PlannedUnit, unit_id

if TYPE_CHECKING:
    from playwright.sync_api import Page

DIMS, CLASSES = 64, 20
# How long each movement goes on, and how long the page then has to come to rest.
MOVE_SECONDS, REST_MS = 2, 700
# Tasks longer than 50 ms are what the browser itself calls long.
WATCH = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((task) => task.duration)))
    .observe({type: "longtask"});
  window.frameTimes = [];
  const tick = (now) => { window.frameTimes.push(now); requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""


def write_tar(path: Path, rows: int) -> None:
    """Writes a tar of small photos, each many times."""
    from PIL import Image

    paths, _ = photos.source(None)
    images = []
    for photo in paths[:200]:
        image = Image.open(photo).convert("RGB")
        image.thumbnail((128, 128))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        images.append(buffer.getvalue())
    with tarfile.open(path, "w") as archive:
        for row in range(rows):
            info = tarfile.TarInfo(f"n{row % CLASSES:08}/photo_{row:08}.jpg")
            info.size = len(images[row % len(images)])
            archive.addfile(info, io.BytesIO(images[row % len(images)]))


def write_out(folder: Path, shard_path: Path, rows: int) -> None:
    """Writes an OUT whose rows are the tar's images, with drawn vectors."""
    vectors, labels = clusters(rows, DIMS, classes=CLASSES)
    spec = FeatureSpec("vgg19", "0" * 64, (Feature("embedding", "block5_pool", "avg"),))
    for name in ("features", "failures", "_tmp"):
        (folder / name).mkdir(parents=True)
    unit = Unit(Shard(storage.stat(str(shard_path)), "tar"))
    name = unit_id(unit, spec.fingerprint)
    report = UnitReport(name, str(shard_path), 0, -1, rows, rows, 0, unit.shard.file.size, 1, 1, 1, 1, 1, "drawn")
    with PartWriter(str(folder), name, spec=spec, sizes={"embedding": DIMS}) as writer:
        for row, image in enumerate(shards.read(unit)):
            content = hashlib.sha256(image.data).digest()
            facts = (image.key, labels[row], image.source, image.position, content, 128, 96)
            writer.add([facts], {"embedding": vectors[row : row + 1]})
        writer.commit(report)
    Output(str(folder)).write_plan([PlannedUnit(name, unit)])
    Output(str(folder)).write_reports([report])
    manifest = new_manifest(spec, weights="drawn", weights_are_random=True, limit=None)
    write_manifest(str(folder), replace(manifest, status="complete", totals=add_up([report])))


def browse(page_path: Path) -> dict:
    """Returns how many seconds headless Chromium takes to paint and to draw, and its frames while the map is moved."""
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(page_path.as_uri())
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        figures = page.evaluate(
            """() => ({
              first_paint_s: performance.getEntriesByName("first-contentful-paint")[0].startTime / 1000,
              points_drawn_s: performance.getEntriesByName("map-drawn")[0].startTime / 1000,
            })"""
        )
        figures = {"chromium": browser.version, **{name: round(value, 2) for name, value in figures.items()}}
        page.evaluate(WATCH)
        page.wait_for_timeout(REST_MS)
        box = page.locator("#plot").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        figures["hover"] = _measure(page, lambda: _walk(page, x, y))
        page.mouse.move(x, y)
        page.mouse.down()
        figures["pan"] = _measure(page, lambda: _walk(page, x, y))
        figures["end_of_pan"] = _measure(page, page.mouse.up)
        page.mouse.move(x, y)
        figures["wheel"] = _measure(page, lambda: _turn(page))
        figures["legend"] = _measure(page, lambda: page.locator("#legend input").first.click())
    return figures


def _walk(page: "Page", x: float, y: float) -> None:
    """Moves the mouse along a circle; by the clock, because a busy page answers late."""
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < MOVE_SECONDS:
        page.mouse.move(x + 150 * math.sin(3 * passed), y + 150 * (1 - math.cos(3 * passed)))
        page.wait_for_timeout(8)


def _turn(page: "Page") -> None:
    """Turns the wheel in and out again."""
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < MOVE_SECONDS:
        page.mouse.wheel(0, -40 if passed < MOVE_SECONDS / 2 else 40)
        page.wait_for_timeout(50)


def _measure(page: "Page", act: Callable[[], None]) -> dict:
    """Returns the waits for the next frame while something is done, and the tasks that held the page up."""
    page.evaluate("() => { window.longTasks.length = 0; window.frameTimes.splice(0, Infinity, performance.now()); }")
    act()
    page.wait_for_timeout(REST_MS)
    tasks, times = page.evaluate("() => [window.longTasks, [...window.frameTimes, performance.now()]]")
    waits = sorted(after - before for before, after in pairwise(times))
    return {
        "frames": len(waits),
        "median_frame_ms": round(statistics.median(waits)),
        "longest_frame_ms": round(waits[-1]),
        "long_tasks": len(tasks),
        "longest_task_ms": round(max(tasks, default=0)),
    }


def trust() -> dict[str, dict[str, list[float]]]:
    """Returns {method: {vectors: trustworthiness of each seed's places}} of real features, as they are and of length 1.

    It is that of Venna and Kaski (2001) by the 15 nearest rows by cosine, which are what `map` shows as neighbours.
    """
    import numpy as np
    import pyarrow.parquet as pq
    from sklearn.manifold import trustworthiness

    from transforms.similarity.projection import METHODS, flatten
    from transforms.similarity.unit_vectors import unit_length

    path = photos.shared_data("vgg19_block5_pool_real.parquet")
    vectors = np.stack(pq.read_table(path, columns=["embedding"])["embedding"].to_numpy()).astype(np.float32)
    figures: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        for name, placed in (("as they are", vectors), ("of length 1", unit_length(vectors))):
            places = [flatten(placed, method, seed=seed) for seed in range(1 if method == "pca" else 5)]
            found = [float(trustworthiness(vectors, one, n_neighbors=15, metric="cosine")) for one in places]
            say(f"{method} of vectors {name}: {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
            figures.setdefault(method, {})[name] = found
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--method", default="umap")
    parser.add_argument("--keep", metavar="PAGE", help="Leave the page there.")
    parser.add_argument("--page", metavar="PAGE", help="Make none, and open this one.")
    parser.add_argument("--trust", action="store_true", help="Measure places of the real features in shared/data.")
    given = parser.parse_args()
    if given.trust:
        print(json.dumps(trust(), indent=2))
        return
    figures = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as name:
        page = Path(given.page or given.keep or f"{name}/map.html").absolute()
        if not given.page:
            figures |= make(Path(name), page, rows=given.rows, method=given.method)
        figures |= {"page_mb": round(page.stat().st_size / 1e6, 1), "browser": browse(page)}
    print(json.dumps(figures, indent=2))


def make(folder: Path, page: Path, *, rows: int, method: str) -> dict:
    """Writes an OUT of so many rows and its map, by the command; returns what that took."""
    say(f"writing {rows:,} rows")
    write_tar(folder / "photos.tar", rows)
    write_out(folder / "out", folder / "photos.tar", rows)
    command = [sys.executable, "-m", "pipeline.cli", "map", str(folder / "out"), "--html", str(page), "--overwrite"]
    done = run([*command, "--method", method])
    say(done.printed.strip())
    return {"rows": rows, "method": method, "seconds": round(done.seconds, 1), "peak_mb": round(done.peak_mb)}


if __name__ == "__main__":
    main()
