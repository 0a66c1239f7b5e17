"""The cores of this machine."""

import os


def available_cores() -> int:
    """Returns the cores that this process may use, where the system tells (macOS doesn't)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
