"""The benchmark of feeding an engine runs on any machine, tiny, and prints every figure that was asked for."""

import re
import sys

import pytest

from benchmarks import feed
from benchmarks.process import run


@pytest.mark.long
def test_tiny_on_this_machine(monkeypatch, capsys):
    monkeypatch.setattr(feed, "_SIDES", {(48, 32): 1})
    monkeypatch.setattr(feed, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(feed, "available_cores", lambda: 2)
    monkeypatch.setattr("sys.argv", ["feed", "--images", "16", "--workers", "1", "2", "--rounds", "1"])
    feed.main()
    head, _, *table = capsys.readouterr().out.splitlines()
    assert head == "16 JPEGs of 48×32, in a tar of 16 units each; 2 cores, 1 round."
    rows = dict(re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups() for line in table[2:])
    assert [name.removeprefix("48×32: ") for name in rows] == [
        "decoding alone, 2 processes, images/s",
        "1 worker, an engine that costs nothing, images/s",
        "2 workers, an engine that costs nothing, images/s",
        "2 workers, an engine of 1,000/s, images/s",
        "processor beyond decoding, one worker, ms an image",
        "memory of each further worker, from 1 to 2, MB",
    ]
    [*_, memory] = rows.values()
    assert 0 < int(memory.split()[0]) < 1000


def test_memory_is_that_of_all_processes():
    holds = "import time; held = bytearray(b'1') * 60_000_000; time.sleep(1)"
    above = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}]) ; held = 0"
    together = run([sys.executable, "-c", f"held = bytearray(b'1') * 40_000_000; {above}"], look_seconds=0.05)
    assert 100 < together.together_mb < 160
    assert run([sys.executable, "-c", ""]).together_mb == 0
