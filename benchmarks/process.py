"""Whole processes, timed from outside: seconds from start to end, and the most memory they held."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: Wall clock, imports and all.
        cpu_seconds: User and system, of all its threads.
        peak_mb: Its largest resident set, in 10^6 bytes.
        printed: Standard output.
        together_mb: The most that it and all processes below it held at one look, where that was asked for: what
            several map is shared out among them (PSS).
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    printed: str
    together_mb: float = 0.0

    @property
    def figures(self) -> dict:
        """The JSON object that it printed."""
        return json.loads(self.printed)


def run(command: Sequence[str], *, look_seconds: float | None = None) -> Run:
    """Runs a command to its end.

    Args:
        command: Program and arguments.
        look_seconds: How often to look at the memory of all its processes; by default never, since it costs some
            milliseconds for each.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=errors)
        memory = _Memory(process.pid, look_seconds) if look_seconds else None
        # Not `wait`: only the system knows what a process that is gone held at its peak.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        together_mb = memory.most_mb() if memory else 0.0
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        if process.returncode:
            errors.seek(0)
            end = errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {end}")
        # Linux counts in kibibytes.
        peak_mb = usage.ru_maxrss * 1024 / 1e6
        return Run(seconds, usage.ru_utime + usage.ru_stime, peak_mb, printed.read().decode(), together_mb)


class _Memory:
    """Looks again and again, in a thread, at what a process and those below it hold."""

    def __init__(self, pid: int, seconds: float):
        self._pid, self._seconds, self._most = pid, seconds, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def most_mb(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._most / 1e6

    def _look(self) -> None:
        while not self._ended.wait(self._seconds):
            with suppress(psutil.NoSuchProcess):
                command = psutil.Process(self._pid)
                self._most = max(self._most, sum(map(_pss, [command, *command.children(recursive=True)])))


def _pss(process: psutil.Process) -> int:
    # A process that just ended holds nothing.
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.memory_full_info().pss
    return 0


def alternate(commands: Mapping[str, Sequence[str] | Callable[[], Sequence[str]]], rounds: int) -> dict[str, list[Run]]:
    """Runs the commands in turn, A B C A B C …, so that a machine that slows down slows all of them down.

    Args:
        commands: {name: command, or what prepares and returns it}.
        rounds: How often each.
    """
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(1, rounds + 1):
        for name, command in commands.items():
            done = run(command() if callable(command) else command)
            runs[name].append(done)
            say(f"  {number}/{rounds} {name}: {done.seconds:.1f} s, {done.peak_mb:.0f} MB")
    return runs


def working_seconds(output: Path) -> float:
    """Returns the seconds from the first unit's start to the last unit's commit, idle ends of workers included."""
    columns = pq.read_table(output / "units.parquet", columns=["unit_id", "wall_seconds"]).to_pydict()
    seconds = dict(zip(*columns.values(), strict=True))
    ended = {name: (output / "features" / f"{name}.parquet").stat().st_mtime for name in seconds}
    return max(ended.values()) - min(ended[name] - seconds[name] for name in seconds)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns `median (least–most)`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
