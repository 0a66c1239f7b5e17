"""Spoils files of every kind for a while, then kills extract for a while. Ends with 1 at the first finding.

    python -m tests.fuzz [--seconds 150] [--kill-seconds 100] [--seed 0] [--kind KIND …] [--only NUMBER]

A crash of a decoder is told and counted, but is no finding: extract lists such an image as a failure, and goes on. A
raw error, a file that takes over a minute or more than 1.5 GB is one; the file is kept, and how to repeat it is said.
"""

import argparse
import collections
import contextlib
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT
from tests.fuzz.kills import kill_and_resume
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutate import mutate

_HUNG_SECONDS, _MOST_MB = 60.0, 1500
# Files of a kind before the next kind has its turn.
_AT_ONCE = 40
_KEPT = ROOT / "fuzz-findings"


class _Child:
    """A process that reads files of a kind."""

    def __init__(self, kind: str):
        self._kind = kind
        self._process: subprocess.Popen | None = None

    def read(self, path: Path) -> str:
        """Returns what came of a file: `read`, `failed`, `crashed …`, `hung`, `memory …` or `raw …`."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz.child", self._kind]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        process = self._process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _HUNG_SECONDS)
        line = process.stdout.readline() if ready else None
        if line:
            peak_mb, _, result = line.rstrip("\n").partition(" ")
            return f"memory: {peak_mb} MB" if int(peak_mb) > _MOST_MB else result
        self.close()
        return "hung" if line is None else f"crashed with {process.returncode}"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _files(kind: str, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yields (number, spoiled file), the same for a seed and number whatever came before."""
    whole, number = list(KINDS[kind].make()), 0
    while True:
        draw = random.Random(f"{seed} {kind} {number}")
        yield number, mutate(draw.choice(whole), draw, whole)
        number += 1


def fuzz(kinds: list[str], *, seed: int, seconds: float, only: int | None, go_on: bool) -> str:
    """Reads spoiled files for so long; returns what was found first, empty if nothing."""
    counts: dict[str, collections.Counter] = {kind: collections.Counter() for kind in kinds}
    streams, children = {kind: _files(kind, seed) for kind in kinds}, {kind: _Child(kind) for kind in kinds}
    found, end = "", time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="featuremill-fuzz-") as folder:
        try:
            while time.monotonic() < end or only is not None:
                for kind in kinds:
                    path = Path(folder, kind, f"x.{KINDS[kind].ending}")
                    path.parent.mkdir(exist_ok=True)
                    for _ in range(_AT_ONCE if only is None else only + 1):
                        number, data = next(streams[kind])
                        if only not in (None, number):
                            continue
                        path.write_bytes(data)
                        result = children[kind].read(path)
                        counts[kind][result.partition(" ")[0]] += 1
                        if not result.startswith(("read", "failed")):
                            kept = _keep(kind, seed, number, data, result)
                            found = found or ("" if result.startswith("crashed") else kept)
                            if found and not go_on:
                                return found
                        if time.monotonic() > end and only is None:
                            break
                if only is not None:
                    break
        finally:
            for child in children.values():
                child.close()
            for kind, count in counts.items():
                print(f"{kind:<10}{sum(count.values()):>8,} files: {', '.join(f'{n} {c:,}' for n, c in count.items())}")
    return found


def _keep(kind: str, seed: int, number: int, data: bytes, result: str) -> str:
    _KEPT.mkdir(exist_ok=True)
    path = _KEPT / f"{kind}-{seed}-{number}.{KINDS[kind].ending}"
    path.write_bytes(data)
    again = f"python -m tests.fuzz --kill-seconds 0 --seed {seed} --kind {kind} --only {number}"
    line = f"{path.relative_to(ROOT)}: {result}; again: {again}"
    print(line, flush=True)
    return line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=150.0, help="how long files are spoiled")
    parser.add_argument("--kill-seconds", type=float, default=100.0, help="how long extract is killed")
    parser.add_argument("--seed", type=int, default=0, help="other files and moments")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may repeat")
    parser.add_argument("--only", type=int, help="only the file of this number")
    parser.add_argument("--go-on", action="store_true", help="look for more after the first finding")
    args = parser.parse_args()
    found = fuzz(args.kind or list(KINDS), seed=args.seed, seconds=args.seconds, only=args.only, go_on=args.go_on)
    if not found and args.kill_seconds:
        found = kill_and_resume(seed=args.seed, seconds=args.kill_seconds)
    if found:
        print(f"FOUND {found}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
