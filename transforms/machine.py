"""This machine: its cores, its memory, the user's home on it, and how a process of ours is started."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from transforms.errors import FeaturemillError


def available_cores() -> int:
    """Returns the cores that this process may use, where the system tells (macOS doesn't)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the bytes of memory that this process may still take: free ones, or fewer where a container has fewer."""
    available = psutil.virtual_memory().available
    with suppress(OSError, ValueError, KeyError):
        # Version 2 of control groups; "max" where there is no limit. What files have cached is given back.
        most = int((_GROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        used = int((_GROUP / "memory.current").read_text()) - int(stat["inactive_file"])
        available = min(available, max(0, most - used))
    return available


def home_folder() -> str:
    """Returns the user's home folder.

    Raises:
        FeaturemillError: Nobody says where it is, as for users that a container has no entry for.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FeaturemillError("no home folder is known for this user; set HOME to a folder that one may write to")
    return home


def own_command(module: str) -> list[str]:
    """Returns the command that runs one of our modules in a new process, whatever the current folder holds."""
    # Not by `-m`, with which Python looks there first.
    return [sys.executable, str(Path(__file__).parents[1] / "featuremill" / "own.py"), module]
