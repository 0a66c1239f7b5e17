"""What a Flink cluster costs over one machine: the same photos, as many engine threads, start-up left out.

Run as `python -m benchmarks.distributed [--rounds 3]` on an idle machine with Java. The time of a run is that between
the first unit's start and the last unit's commit, from `units.parquet` and the parts' times: neither JVMs nor imports
count, on either side. Figures are printed, never asserted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.process import working_seconds
from pipeline.demo.samples import Item, write_tar
from tests.distributed import fetch
from tests.distributed.clusters import ROOT, FlinkCluster, WorkerPool

SETTINGS = ["--weights", "random:0", "--engine", "ncnn", "--threads", "1", "--quiet"]
SHARDS = 12


def extract(shards: Path, output: Path, *more: str) -> float:
    # As nice as the cluster's processes are: on a busy machine the other would win.
    command = [
        "nice",
        "-n",
        "10",
        sys.executable,
        "-m",
        "pipeline.cli",
        "extract",
        str(shards),
        "-o",
        str(output),
        *SETTINGS,
        *more,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return working_seconds(output)


def compare(photos: list[Path], rounds: int, size: int) -> dict[str, object]:
    """Runs two worker processes on this machine and two TaskManagers in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        items = [Item(f"{i:03}-{p.name}", p.parent.name, p.read_bytes()) for i, p in enumerate(sorted(photos))]
        for number in range(SHARDS):
            write_tar(root / "in" / f"{number:02}.tar", items[number::SHARDS])
        common = ("--image-size", str(size))
        cluster, pool = FlinkCluster(fetch.flink(), root / "flink"), WorkerPool(root / "pool")
        seconds: dict[str, list[float]] = {"one machine": [], "Flink": []}
        try:
            cluster.wait()
            pool.wait()
            jar = f"--flink_job_server_jar={fetch.job_server('flink')}"
            beam = ["--runner", "FlinkRunner", "--", *cluster.options, *pool.options, jar]
            for number in range(rounds):
                seconds["one machine"].append(extract(root / "in", root / f"o{number}", *common, "--workers", "2"))
                seconds["Flink"].append(extract(root / "in", root / f"f{number}", *common, *beam))
                print({name: times[-1] for name, times in seconds.items()}, file=sys.stderr, flush=True)
        finally:
            cluster.stop()
            pool.stop()
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {"images": len(items), "seconds": seconds, "overhead": middle["Flink"] / middle["one machine"] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "hymenoptera")
    given = parser.parse_args()
    print(json.dumps(compare(list(given.photos.glob("*/*/*.*")), given.rounds, given.size), indent=2))


if __name__ == "__main__":
    main()
