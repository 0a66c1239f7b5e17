"""This machine: its cores, and how a process of ours is started on it."""

import os
import sys
from pathlib import Path


def available_cores() -> int:
    """Returns the cores that this process may use, where the system tells (macOS doesn't)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_command(module: str) -> list[str]:
    """Returns the command that runs one of our modules in a new process, whatever the current folder holds."""
    # Not by `-m`, with which Python looks there first.
    return [sys.executable, str(Path(__file__).parents[1] / "featuremill" / "own.py"), module]
