"""A command in a child process, which is started again when native code has crashed it while units were under way.

Units that were under way are then done apart (`transforms.embedding.attempts`), so the next attempt gets further. Where
one gets no further, it isn't the images.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from transforms.embedding import held_up
from transforms.machine import ended_as

# How a process ends that native code has crashed, or the system for lack of memory.
_CRASHES = (
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
    signal.SIGKILL,
    # By itself, where a record holds it up.
    held_up.SIGNAL,
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Of siginfo_t: sent by a process. What a terminal sends, it sends to all.
_BY_PROCESS = 0
_PR_SET_PDEATHSIG = 1
_TOGETHER_SECONDS = 0.5
_LIMITED = "which ulimit -v limits"
# An option that begins anew, which is left out where an attempt goes on with what is there.
_ANEW = "--overwrite"

# In the child: where it tells its parent what it is about.
_telling: int | None = None
_interrupted = float("-inf")
# In the child: where an attempt before it wrote units.
_earlier: str | None = None


def supervise(args: Sequence[str]) -> list[str]:
    """Returns in a child process, with the arguments of its attempt; ends this one as the last of them ended.

    Must be called before there are threads. Signals reach the child as well, and it dies with this process.
    """
    global _earlier
    args = list(args)
    # Where it is ignored, a child's end isn't reported.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (hasattr(os, "fork") and hasattr(signal, "sigwaitinfo")):
        return args
    before = None
    while True:
        reader, writer = os.pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
        child = os.fork()
        if not child:
            _become_child(reader, writer, mask)
            return args
        os.close(writer)
        reported: dict[str, str] = {}
        status = _wait(child)
        with open(reader) as file:
            for line in file:
                reported |= json.loads(line)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = os.waitstatus_to_exitcode(status)
        # What ends by itself says so; native code may also have called exit.
        is_crash = -code in _CRASHES or (code >= 0 and "ended" not in reported)
        if not is_crash and "died" not in reported:
            _end_as(code)
        how = described(code) if is_crash else reported["died"]
        state = _state(reported.get("output"))
        if state is None or state == before:
            _give_up(reported, how, units=before[1] if before else frozenset())
        names = ", ".join(sorted(state[1])[:3])
        _say(f"crashed ({how}) while {names} was under way; going on, and decoding that in processes of its own")
        before, _earlier = state, reported["output"]
        if "begun" in reported:
            args = [arg for arg in args if arg != _ANEW]


def _become_child(reader: int, writer: int, mask: set) -> None:
    global _telling
    os.close(reader)
    _telling = writer
    held_up.allow()
    with suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _interrupt_once(number: int, frame: object) -> None:
    """Raises KeyboardInterrupt: once where a signal came to all processes, and then from the parent too."""
    global _interrupted
    before, _interrupted = _interrupted, time.monotonic()
    if _interrupted - before > _TOGETHER_SECONDS:
        raise KeyboardInterrupt


def _wait(child: int) -> int:
    """Returns how the child ended; meanwhile it gets the signals that only this process got."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        caught = signal.sigwaitinfo((*_FORWARDED, signal.SIGCHLD))
        if caught.si_signo != signal.SIGCHLD and caught.si_code <= _BY_PROCESS:
            os.kill(child, caught.si_signo)


def _end_as(code: int) -> NoReturn:
    """Ends this process as the child ended: with the same exit code, or by the same signal if it is negative."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code % 256)


def described(code: int) -> str:
    """Returns the end of a process in words, given its exit code or, negative, its signal."""
    hints = {-signal.SIGKILL: ", perhaps for lack of memory", -held_up.SIGNAL: ", a record took too long"}
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        hints |= dict.fromkeys((-signal.SIGABRT, -signal.SIGSEGV), f", perhaps for lack of memory, {_LIMITED}")
    return f"{ended_as(code)}{hints.get(code, '')}"


def _state(output: str | None) -> tuple[int, frozenset[str]] | None:
    """Returns how many parts OUT has, and its units that were under way; None if there are none."""
    if output is None:
        return None
    from transforms import storage
    from transforms.embedding.attempts import begun

    try:
        units = frozenset(begun(output))
        return (len(storage.list_folder(storage.join(output, "features"))), units) if units else None
    except Exception:
        return None


def _give_up(reported: dict[str, str], how: str, units: frozenset[str]) -> NoReturn:
    if "message" in reported:
        _say(reported["message"])
    else:
        cure = "raise the limit" if _LIMITED in how else "please report this with what --debug shows"
        again = f" again while {sorted(units)[0]} was under way, and not by decoding it" if units else ""
        _say(f"crashed ({how}){again}; what was committed is kept; {cure}")
    os._exit(1)


def _say(line: str) -> None:
    print(f"featuremill: {line}", file=sys.stderr, flush=True)


def earlier_output() -> str | None:
    """Returns where an attempt of this command wrote units before native code ended it; None for the first attempt."""
    return _earlier


def tell(**facts: str) -> bool:
    """Tells the process that supervises this one, and returns whether there is one.

    Args:
        facts: `output`, where units are written to; `begun`, once what was there is removed; `died` and `message`, of a
            worker; `ended`, at the end.
    """
    if _telling is None:
        return False
    with suppress(OSError):
        os.write(_telling, f"{json.dumps(facts)}\n".encode())
    return True
