"""Extract, killed at any moment and run again: in the end its rows are those of a run that nobody disturbed."""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.dataset as ds

from pipeline.demo.samples import draw_items
from tests.support import commands
from tests.support.factories import write_every_format

# Start-up takes about two seconds, the work about four.
_PAUSE_SECONDS, _MOMENTS = "0.1", (1.0, 7.0)
_KILLS = 6
_SETTINGS = ("--image-size", "32", "--batch-size", "4", "--unit-bytes", "8000", "--json")


def _start(inputs: Path, output: Path, pause: str):
    command = [sys.executable, "-m", "tests.support.fakes", str(inputs), "-o", str(output), *_SETTINGS]
    return commands.start(command, env={**os.environ, "FAKE_PAUSE_SECONDS": pause})


def _rows(output: Path) -> list[dict]:
    return sorted(ds.dataset(output / "features").to_table().to_pylist(), key=lambda row: row["key"])


def kill_and_resume(*, seed: int, seconds: float) -> str:
    """Kills runs for so long; returns what was found first, empty if nothing.

    Each output is killed a few times, then left alone, then compared.
    """
    draw, end, kills, outputs = random.Random(seed), time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory(prefix="featuremill-kills-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        write_every_format(folder / "in", draw_items(per_class=20, size=32, seed=seed), row_group_size=7)
        code, out, err = commands.finish(_start(folder / "in", folder / "clean", "0"))
        if code:
            return f"extract ended with {code}: {err}"
        clean, totals = _rows(folder / "clean"), _totals(out)
        while time.monotonic() < end:
            output = folder / f"out{outputs}"
            for _ in range(draw.randint(1, _KILLS)):
                command = _start(folder / "in", output, _PAUSE_SECONDS)
                time.sleep(draw.uniform(*_MOMENTS))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)
                command.communicate()
                kills += 1
            code, out, err = commands.finish(_start(folder / "in", output, "0"))
            again = f"(seed {seed}, output {outputs}; again: python -m tests.fuzz --seconds 0 --seed {seed})"
            if code:
                return f"extract ended with {code} after kills: {err} {again}"
            if _rows(output) != clean or _totals(out) != totals:
                return f"after kills the rows or totals are not those of an undisturbed run {again}"
            if left := os.listdir(output / "_tmp"):
                return f"after kills {left[:3]} stayed in _tmp {again}"
            outputs += 1
    print(f"kills     {kills:>8,} of extract on {outputs} outputs: all rows as in a run that nobody disturbed")
    return ""


def _totals(out: str) -> dict[str, int]:
    totals = json.loads(out)["totals"]
    return {name: totals[name] for name in ("rows_read", "rows_embedded", "rows_failed")}
