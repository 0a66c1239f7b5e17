"""This machine: its cores, memory and threads, the user's home on it, and how a process of ours is started."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from transforms.errors import FeaturemillError

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
_GROUP = Path("/sys/fs/cgroup")
# A process whose parent is gone ends within so many seconds.
_LOOK_SECONDS = 0.5


def available_cores() -> int:
    """Returns the cores that this process may use, where the system tells (macOS doesn't)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def ahead(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int = 16,
    most: int = 1000,
    size: Callable[[_Item], int] = lambda item: 0,
    most_bytes: int = 1,
) -> Iterator[_Result]:
    """Yields the results of the items, in their order, while threads work on the next ones.

    An error rises where its result would come. After one, or where the caller stops, what hasn't begun isn't done.

    Args:
        work: Is called with each item, in a thread.
        items: Are taken as they are needed.
        threads: How many; they hide a store's latency.
        most: Items whose results are made or wait at once.
        size: Bytes of an item's result, about.
        most_bytes: With so many under way or waiting, no more is begun.
    """
    waiting: deque[tuple[Future[_Result], int]] = deque()
    waiting_bytes = 0
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in items:
                while len(waiting) >= most or waiting_bytes >= most_bytes:
                    future, count = waiting.popleft()
                    waiting_bytes -= count
                    yield future.result()
                waiting.append((pool.submit(work, item), size(item)))
                waiting_bytes += waiting[-1][1]
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def home_folder() -> str:
    """Returns the user's home folder.

    Raises:
        FeaturemillError: Nobody says where it is, as for users that a container has no entry for.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FeaturemillError("no home folder is known for this user; set HOME to a folder that one may write to")
    return home


def ended_as(code: int) -> str:
    """Returns the end of a process in words, given its exit code or, negative, its signal."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def end_with(parent: int) -> None:
    """Lets this process end as soon as its parent, given by its id, is gone."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def own_command(module: str) -> list[str]:
    """Returns the command that runs one of our modules in a new process, whatever the current folder holds."""
    # Not by `-m`, with which Python looks there first.
    return [sys.executable, str(Path(__file__).parents[1] / "featuremill" / "own.py"), module]
