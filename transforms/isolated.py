"""Native code in a child process: what it does to that process, it doesn't do to ours.

A decoder that writes over its memory, or Arrow on a damaged file, ends the process that runs it. In a child that costs
a second, and what was asked for comes back as `Crashed`. The child also has what a thread can't have: an end by force
after a time, and a limit to its memory.

A child that is done with waits for the next one who wants one, because a start takes half a second. It ends when
nothing was asked of it for a while, and with this process. It says nothing on the screen.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

import psutil

from transforms.errors import FeaturemillError
from transforms.machine import end_with, ended_as, own_command
from transforms.text import one_line

T = TypeVar("T")

_MODULE = "transforms.isolated"
# A child that nobody asks for so long ends, and is started again when it is needed.
_IDLE_SECONDS = 60.0
# How often a waiting process looks at the child's clock, and a child whether its parent is still there.
_LOOK_SECONDS = 0.5
# What is called may wait for a busy machine, so the limit is on the time that it computes. What waits for ever, and
# doesn't compute, is ended after so many times the limit.
WAITING = 10
# One that has grown larger than this isn't kept.
_KEPT_BYTES = 256 << 20
_ONE, _MANY = "one", "many"
_NEXT, _STOP = b"next", b"stop"
_BEGAN, _VALUE, _ITEM, _ERROR, _END = "began", "value", "item", "error", "end"


class Crashed(Exception):
    """The call ended its process, or had to be ended.

    Attributes:
        reason: `crashed` or `too slow`.
        how: The end, in words, such as `signal 6`.
    """

    def __init__(self, reason: str, how: str):
        super().__init__(f"{reason} ({how})")
        self.reason, self.how = reason, how


@dataclass(frozen=True)
class _Child:
    """A child process, and the environment that it was started in."""

    process: subprocess.Popen
    pipe: Connection
    environment: dict[str, str]


# Children that nobody uses now.
_idle: list[_Child] = []
_idle_lock = threading.Lock()


class Isolated:
    """A child process for calls, one at a time. It is started at the first one, and again after a crash.

    Functions and arguments are pickled, so functions are found in the child by their module's name.

    Args:
        seconds: Most seconds that a call may compute, or an iteration between two of its values; None: no limit.
        memory: Most bytes that a call may take besides what the child had before; over it is a MemoryError, or what
            native code makes of that. None: no limit.
        may_wait: Only what computes is limited; what waits, as for a slow disk or store, may do so for ever.
    """

    def __init__(self, *, seconds: float | None = None, memory: int | None = None, may_wait: bool = False):
        self._limits, self._may_wait = (seconds, memory), may_wait
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function in the child and returns what it does, or raises what it does.

        Raises:
            Crashed: The process ended by it, or it took too long.
        """
        with self._lock:
            self._begin(_ONE, function, arguments)
            return self._received()[1]

    def iterate(self, function: Callable[..., Iterator[T]], *arguments: Any) -> Iterator[T]:
        """Yields what a generator does in the child, each value when it is asked for. No other call meanwhile.

        Raises:
            Crashed: As `call`; what came before was yielded.
        """
        with self._lock:
            self._begin(_MANY, function, arguments)
            while True:
                kind, value = self._received()
                if kind == _END:
                    return
                wish = _STOP
                try:
                    yield value
                    wish = _NEXT
                finally:
                    if self._child is not None:
                        self._child.pipe.send_bytes(wish)
                        if wish == _STOP:
                            self._received()

    def close(self) -> None:
        """Leaves the child to others; ends one that is in the middle of something, or has grown large."""
        child = self._child
        # Its own call has ended, then; and what a crash left is no child.
        if child is not None and self._lock.acquire(blocking=False):
            try:
                if _rss(child.process) <= _KEPT_BYTES:
                    self._child = None
                    with _idle_lock:
                        _idle.append(child)
            finally:
                self._lock.release()
        self._kill()

    def _begin(self, kind: str, function: Callable, arguments: tuple) -> None:
        """Sends a call, and waits until the child has imported what it needs for it: that takes none of its time."""
        request = pickle.dumps((kind, function, arguments, *self._limits))
        for attempt in (1, 2):
            if self._child is None:
                # The second time none that waited, which may be as dead.
                self._child = (_taken() if attempt == 1 else None) or _started()
            try:
                self._child.pipe.send_bytes(request)
                self._received(are_limited=False)
                return
            except (Crashed, OSError):
                # Not by the call, which hasn't begun: it may have ended because it was idle.
                self._kill()
                if attempt == 2:
                    raise

    def _received(self, *, are_limited: bool = True) -> tuple[str, Any]:
        seconds = self._limits[0] if are_limited else None
        if seconds and not self._child.pipe.poll(min(seconds, _LOOK_SECONDS)):
            self._watch(seconds)
        try:
            kind, value = pickle.loads(self._child.pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._crashed() from None
        if kind == _ERROR:
            error, cause = value
            raise error from cause
        return kind, value

    def _watch(self, seconds: float) -> None:
        """Waits until there is something to receive; ends a child that takes too long for it."""
        clock = Overdue(seconds, self._cpu_seconds, may_wait=self._may_wait)
        while not self._child.pipe.poll(clock.look_seconds):
            if clock.is_over():
                self._kill()
                raise Crashed("too slow", f"over {seconds:g} s")

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._child.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system

    def _crashed(self) -> Crashed:
        """Returns the end of a child that has hung up."""
        code = self._child.process.wait()
        self._kill()
        if code == -signal.SIGXCPU:
            return Crashed("too slow", f"over {self._limits[0]:g} s")
        return Crashed("crashed", ended_as(code))

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            _end(child)


def _started() -> _Child:
    pipe, theirs = Pipe()
    environment = dict(os.environ)
    with theirs:
        number = theirs.fileno()
        nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = [*own_command(_MODULE), str(number), str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=[number], env=environment, **nowhere)
    return _Child(process, pipe, environment)


def _taken() -> _Child | None:
    """Returns a child that waits, if there is one that was started as one would be now."""
    with _idle_lock:
        for child in [child for child in _idle if child.process.poll() is not None]:
            _idle.remove(child)
            _end(child)
        found = next((child for child in _idle if child.environment == os.environ), None)
        if found is not None:
            _idle.remove(found)
    return found


def _end(child: _Child) -> None:
    child.pipe.close()
    child.process.kill()
    child.process.wait()


def _rss(process: subprocess.Popen) -> float:
    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return float("inf")


class Overdue:
    """Says when something has computed for too long, or waited for very long.

    Args:
        seconds: Of computing.
        cpu_seconds: Returns what it has computed so far. What it did before this object was made doesn't count.
        may_wait: It may wait for ever.
    """

    def __init__(self, seconds: float, cpu_seconds: Callable[[], float], *, may_wait: bool = False):
        self._seconds, self._cpu_seconds, self._may_wait = seconds, cpu_seconds, may_wait
        self._began = cpu_seconds()
        self.look_seconds = min(seconds / 4, _LOOK_SECONDS)
        self._looks = 0

    def is_over(self) -> bool:
        """Is to be called after each `look_seconds`. They are counted: a clock would go on while all is stopped."""
        self._looks += 1
        has_waited = not self._may_wait and self._looks * self.look_seconds >= WAITING * self._seconds
        return has_waited or self._cpu_seconds() - self._began >= self._seconds


def _serve(pipe: Connection) -> None:
    while pipe.poll(_IDLE_SECONDS):
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        try:
            kind, function, arguments, seconds, memory = pickle.loads(request)
            _limit(seconds, memory)
            pipe.send((_BEGAN, None))
            if kind == _ONE:
                answer = _VALUE, function(*arguments)
            else:
                for item in function(*arguments):
                    pipe.send((_ITEM, item))
                    if pipe.recv_bytes() == _STOP:
                        break
                    _limit(seconds, None)
                answer = _END, None
            data = pickle.dumps(answer)
        except (BrokenPipeError, EOFError):
            return
        except BaseException as error:
            data = pickle.dumps((_ERROR, portable(error)))
        # The next request may be large, and has its own limit.
        _set(resource.RLIMIT_DATA, resource.RLIM_INFINITY)
        pipe.send_bytes(data)


def portable(error: BaseException) -> tuple[BaseException, BaseException | None]:
    """Returns an error and its cause, which it would lose alone, as they can be pickled: at worst its words."""
    for cause in (error.__cause__, None):
        with suppress(Exception):
            pickle.loads(pickle.dumps((error, cause)))
            return error, cause
    return FeaturemillError(f"{type(error).__name__}: {one_line(error)}"), None


def _limit(seconds: float | None, memory: int | None) -> None:
    """Limits what this process may take from now on."""
    # Where nobody is left to end it: twice what the parent allows. Another parent's limit doesn't count any more.
    most = int(time.process_time() + 2 * seconds) + 2 if seconds else resource.RLIM_INFINITY
    _set(resource.RLIMIT_CPU, most)
    if memory:
        # Not RLIMIT_AS: allocators set whole gigabytes of addresses aside that they may never use.
        _set(resource.RLIMIT_DATA, _data_bytes() + memory)


def _set(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    # Infinity is -1.
    resource.setrlimit(kind, (min((most, hard), key=lambda value: value % 2**64), hard))


def _data_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))


def main() -> None:
    """Is the child, until its parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, parent = map(int, sys.argv[1:])
    end_with(parent)
    _serve(Connection(number))
    # What was called may have left threads behind.
    os._exit(0)


if __name__ == "__main__":
    main()
