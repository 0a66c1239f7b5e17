"""Commands started as a user starts them, in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests import ROOT

# Only what hangs takes so long, also on a machine that is busy with other things.
SECONDS = 240.0


def start(command: Sequence[str], **more: Any) -> subprocess.Popen:
    """Starts a command at the head of a session, with pipes for what it says; it hears Ctrl-C and a hang-up.

    What is started by a shell in the background, or by nohup, has these ignored, and children inherit that. A signal
    with a handler is set to its default in a child; to set it there, by `preexec_fn`, isn't safe beside threads.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        settings = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **settings)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def killed_before(moment: int, code: str, *args: object, events: Sequence[str] = ("os.rename",)) -> list[str]:
    """Returns a command that runs Python code and is killed before the so manieth rename; never if that is 0 or less.

    With all of its processes, so it has to be started by `start`, in a session of its own.

    Args:
        moment: Which one, from 1 on.
        code: What runs, with `args` as `sys.argv[1:]`.
        args: Its arguments.
        events: Python's audit events that count.
    """
    killer = (
        "import os, signal, sys\n"
        f"left = {moment}\n"
        "def kill(event, args):\n"
        "    global left\n"
        f"    if event in {tuple(events)!r}:\n"
        "        left -= 1\n"
        "        left or os.killpg(0, signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
    )
    return [sys.executable, "-c", f"{killer}{code}", *map(str, args)]


def finish(command: subprocess.Popen, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error; kills what takes longer."""
    try:
        out, err = command.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(command.pid, signal.SIGKILL)
        out, err = command.communicate()
        raise AssertionError(f"the command did not end within {seconds:.0f} s: {err}") from None
    return command.returncode, out, err
