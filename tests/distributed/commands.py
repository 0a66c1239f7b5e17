"""The command on a runner, started as a user starts it, with the fake engine or the real one; and OUT, judged."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.maintenance.inspect import inspect
from tests.pipeline.extraction.test_run import rows
from tests.support import commands


def start(
    inputs: Path,
    output: Path,
    settings: Sequence[str],
    runner: str = "FnApiRunner",
    beam: Sequence[str] = (),
    fake=False,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Starts `featuremill extract` in a session of its own."""
    module = ["-m", "tests.support.fakes"] if fake else ["-m", "pipeline.cli", "extract"]
    command = [sys.executable, *module, str(inputs), "-o", str(output), "--quiet", "--runner", runner, *settings]
    command = ["nice", "-n", "10", *command, *(["--", *beam] if beam else [])]
    return commands.start(command, env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})})


def assert_one_line(err: str, *words: str) -> None:
    """A line for people with these words in it, and nothing of Java."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("featuremill: ")
    for word in words:
        assert word in lines[0], err


def assert_whole(output: Path, expected: dict[str, tuple]) -> None:
    """The same rows, none lost, none doubled, no half part, nothing left over."""
    assert rows(output) == expected
    assert inspect(str(output)).problems == ()
    assert os.listdir(output / "_tmp") == []
