"""What a million units cost the driver: plan, commit, resume, totals. A fake reader and engine, on one machine.

Run as `python -m benchmarks.scale [--units 20000] [--folder FOLDER]`. With `--units 1000000` the plan, the listing of a
million parts and the totals are made in full; finding shards, commits and the reading of footers are measured on 20,000
at most, because each of them waits for the disk. Every step runs in a process of its own, so that its peak of memory is
its own. Figures are printed, never asserted.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.process import run, say
from pipeline.demo.samples import draw_items, write_tar
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.output import begin_output
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.progress import Committed
from pipeline.maintenance.compact import CompactOptions, compact
from tests.support.fakes import WEIGHTS, FakeEngine
from transforms.embedding import unit as recipe
from transforms.records import EncodedImage, FileInfo, Shard, Unit, UnitReport
from transforms.shards import Found
from transforms.shards import find as find_inputs
from transforms.store.features import open_features
from transforms.store.layout import part_uri
from transforms.store.listing import list_parts, read_footer
from transforms.store.manifest import new_manifest, write_manifest
from transforms.store.output import Output
from transforms.store.parts import PartWriter
from transforms.store.reports import add_up
from transforms.store.units import Chunk, read_todo

IMAGES_PER_UNIT = 1000
MOST_COMMITS = 20_000
FULL_PARTS = 256
# A file system has a limit of names for one file; ext4's is 65,000.
LINKS = 50_000
OPTIONS = {"image_size": 32, "batch_size": 32, "threads": 1}


def options(output: str) -> ExtractOptions:
    return ExtractOptions(inputs=("s3://bucket",), output=output, **OPTIONS)


def found(units: int) -> Found:
    """Returns as many shards of 100 MB, each of which is a unit, with names as crawls have them."""
    names = (f"s3://bucket/crawl-2026/images/part-{number:07d}.tar" for number in range(units))
    return Found(tuple(Shard(FileInfo(name, 10**8, "1763721600.0"), "tar") for name in names), (), ())


def find(output: str, units: int) -> dict:
    """Finds shards on this disk and looks inside each, as every run does first; all are names of the same small tar."""
    folder = Path(output, "in")
    folder.mkdir()
    write_tar(folder / "0.tar", draw_items(per_class=1, size=32, seed=0))
    count = min(units, MOST_COMMITS)
    for number in range(1, count):
        os.link(folder / "0.tar", folder / f"{number}.tar")
    with timed() as clock:
        shards = find_inputs([str(folder)]).shards
    return {"units": len(shards), "seconds": clock()}


def plan_of(output: str, units: int) -> Plan:
    fingerprint = options(output).spec(WEIGHTS).fingerprint
    return make_plan(Output(output), found(units), fingerprint=fingerprint, unit_bytes=256 * 2**20, workers=1)


def plan(output: str, units: int) -> dict:
    """Plans the units, writes plan and manifest, and what the workers are to do."""
    manifest = new_manifest(options(output).spec(WEIGHTS), weights="fake", weights_are_random=False, limit=None)
    with timed() as clock:
        planned = plan_of(output, units)
    with timed() as writing:
        begin_output(Output(output), manifest, planned)
        chunks = Output(output).write_todo(planned.todo)
    return {
        "units": len(planned.todo),
        "seconds": clock() + writing(),
        "writing_seconds": writing(),
        "plan_bytes": os.path.getsize(f"{output}/plan.parquet"),
        "todo_bytes": os.path.getsize(chunks[0].uri),
        "graph_elements": len(chunks),
    }


def read_one(unit: Unit) -> Iterator[EncodedImage]:
    """Yields one image, the smallest that there is: what is measured is the unit."""
    gif = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    yield EncodedImage(f"{unit.shard.file.uri}#0.gif", "class", unit.shard.file.uri, 512, gif)


def commit(output: str, units: int) -> dict:
    """Takes units through the recipe, from the file that says what is to do to the commit."""
    given = options(output)
    job = given.job(WEIGHTS)
    recipe.shards.read = read_one
    engine = FakeEngine(job.sizes, job.batch_size)
    [todo] = Path(output, "_tmp").glob("todo.*")
    count = min(units, MOST_COMMITS)
    with timed() as clock:
        for number in range(-(-count // 1000)):
            for planned in read_todo(Chunk(str(todo), number))[: count - 1000 * number]:
                recipe.extract_unit(planned, job, engine)
    sizes = [entry.stat().st_size for entry in os.scandir(f"{output}/features")]
    return {"units": len(sizes), "seconds": clock(), "bytes": sum(sizes)}


def fill(output: str, units: int) -> dict:
    """Gives the other units parts too: other names of those that are there."""
    there = sorted(entry.path for entry in os.scandir(f"{output}/features"))
    names = list_parts(output).unit_ids()
    wanted = [planned.unit_id for planned in plan_of(output, units).units if planned.unit_id not in names]
    for number, unit_id in enumerate(wanted):
        os.link(there[number // LINKS], part_uri(output, unit_id))
    return {"units": len(wanted)}


def resume(output: str, units: int) -> dict:
    """Lists the parts and plans again: all that the same command does when nothing is left to embed."""
    with timed() as clock:
        count = len(list_parts(output).unit_ids())
    with timed() as planning:
        planned = plan_of(output, units)
    assert (count, len(planned.done), planned.todo) == (units, units, ())
    return {"units": count, "seconds": clock(), "listing_and_plan_seconds": planning()}


def watch(output: str, units: int) -> dict:
    """Looks for what is new among as many parts, as the progress bar does, with as many units still to come."""
    todo = [replace(planned, unit_id=f"new-{planned.unit_id}") for planned in plan_of(output, units).done]
    with timed() as starting:
        committed = Committed(Output(output), todo)
    with timed() as clock:
        committed.count()
    return {"units": len(todo), "seconds": clock(), "starting_seconds": starting()}


def footers(output: str, units: int) -> dict:
    """Reads the footers of parts, once each, as the end of a run does with those it made."""
    names = [entry.path for entry in os.scandir(f"{output}/features")][: min(units, MOST_COMMITS)]
    reports = {}
    with timed() as clock:
        for name in names:
            [reports[name]] = read_footer(name).reports
    return {"units": len(names), "seconds": clock(), "bytes": sum(map(os.path.getsize, names))}


def manifest(output: str, units: int) -> dict:
    """Writes units.parquet, reads it again, adds it up and writes the manifest."""
    planned = plan_of(output, units)
    report = UnitReport("", "", 0, -1, 1000, 1000, 0, 10**8, 1.5, 2.5, 90.0, 0.3, 95.0, "ncnn (CPU)")
    reports = (
        UnitReport(**{**vars(report), "unit_id": p.unit_id, "source": p.unit.shard.file.uri}) for p in planned.done
    )
    there = Output(output)
    with timed() as writing:
        Output(output).write_reports(list(reports))
    with timed() as clock:
        totals = add_up(there.collect_reports([p.unit_id for p in planned.units], fresh=set()))
        fresh = new_manifest(options(output).spec(WEIGHTS), weights="fake", weights_are_random=False, limit=None)
        write_manifest(output, replace(fresh, totals=totals))
    return {
        "units": totals.units,
        "seconds": clock() + writing(),
        "writing_seconds": writing(),
        "bytes": os.path.getsize(f"{output}/units.parquet"),
    }


def full_parts(output: str, _: int) -> dict:
    """Writes parts of a thousand rows, as full units have them, and merges them."""
    given = options(output)
    spec, random = given.spec(WEIGHTS), np.random.default_rng(0)
    reports = []
    with timed() as clock:
        for number in range(FULL_PARTS):
            source = f"s3://bucket/crawl-2026/images/part-{number:07d}.tar"
            unit_id = f"part-{number:07d}.tar-000000000-{number:016x}"
            rows = [
                (f"{source}#{random.integers(10**9):09d}.jpg", "class", source, 512 * i, random.bytes(32), 500, 375)
                for i in range(IMAGES_PER_UNIT)
            ]
            # Averages of what a ReLU lets through: no zeros to speak of, so hardly any compression.
            vectors = random.exponential(size=(IMAGES_PER_UNIT, 512)).astype(np.float32)
            with PartWriter(output, unit_id, spec=spec, sizes={"embedding": 512}) as writer:
                writer.add(rows, {"embedding": vectors})
                report = UnitReport(unit_id, source, 0, -1, 1000, 1000, 0, 10**8, 0.0, 0.0, 0.0, 0.0, 0.0, "fake")
                writer.commit(report)
            reports.append(report)
    manifest = new_manifest(spec, weights="fake", weights_are_random=False, limit=None)
    write_manifest(output, replace(manifest, status="complete", totals=add_up(reports)))
    Output(output).write_reports(reports)
    merged = compact(CompactOptions(output))
    assert open_features(output).rows == FULL_PARTS * IMAGES_PER_UNIT
    return {
        "units": FULL_PARTS,
        "seconds": clock(),
        "bytes": merged.bytes_before,
        "compact_seconds": merged.wall_seconds,
        "merged_parts": merged.parts_after,
        "merged_bytes": merged.bytes_after,
    }


STEPS = {step.__name__: step for step in (find, plan, commit, fill, resume, watch, footers, manifest, full_parts)}


class timed:
    """Measures a block's seconds, which it gives when it is called."""

    def __enter__(self) -> Callable[[], float]:
        self._seconds = 0.0
        self._started = time.perf_counter()
        return lambda: self._seconds or time.perf_counter() - self._started

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started


def measure(units: int, folder: Path) -> dict[str, dict]:
    """Runs every step in turn and returns its figures, with microseconds and bytes per unit and the peak in MB."""
    figures = {}
    steps = [name for name in STEPS if name != "fill" or units > MOST_COMMITS]
    for name in steps:
        output = folder / ("full" if name == "full_parts" else "many")
        for part in ("features", "failures", "_tmp"):
            (output / part).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.scale", "--units", str(units), "--folder", str(output)]
        done = run([*command, "--step", name])
        # Of the whole process, its start included: on a shared machine it says more than the clock.
        found = {**done.figures, "cpu_seconds": done.cpu_seconds, "peak_mb": done.peak_mb}
        if "seconds" in found:
            found["microseconds_per_unit"] = found["seconds"] / found["units"] * 1e6
        for key in [key for key in found if key.endswith("bytes")]:
            found[f"{key}_per_unit"] = found[key] / found["units"]
        figures[name] = {key: round(value, 3) for key, value in found.items()}
        say(f"{name}: {figures[name]}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--folder", help="where the files go; by default a temporary folder")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(STEPS[given.step](given.folder, given.units)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(json.dumps(measure(given.units, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
