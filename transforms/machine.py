"""The cores of this machine, and the user's home on it."""

import os

from transforms.errors import FeaturemillError


def available_cores() -> int:
    """Returns the cores that this process may use, where the system tells (macOS doesn't)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def home_folder() -> str:
    """Returns the user's home folder.

    Raises:
        FeaturemillError: Nobody says where it is, as for users that a container has no entry for.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FeaturemillError("no home folder is known for this user; set HOME to a folder that one may write to")
    return home
