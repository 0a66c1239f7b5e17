"""Calls in a child process: results and errors come back, and so does word of whatever ended the child."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests import ROOT
from tests.support import deadly
from tests.support.commands import SECONDS
from transforms import isolated
from transforms.errors import FeaturemillError
from transforms.images.decode import ImageError, decode_image
from transforms.isolated import Crashed, Isolated
from transforms.spec import FeatureSpec

MEMORY = 300 << 20


@pytest.fixture
def child():
    with Isolated(seconds=1.0, memory=MEMORY) as child:
        yield child


def fail_because():
    try:
        os.stat("/no/such/file")
    except OSError as error:
        raise FeaturemillError("what it was about") from error


def test_results_and_errors_come_back(child):
    pid = child.call(os.getpid)
    assert pid != os.getpid()
    assert child.call(divmod, 7, 3) == (2, 1)
    assert list(child.iterate(map, abs, [-1, 2])) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        child.call(divmod, 1, 0)
    with pytest.raises(ImageError) as caught:
        child.call(decode_one, b"no image")
    assert caught.value.reason == "not an image"
    with pytest.raises(FeaturemillError) as caught:
        child.call(fail_because)
    assert str(caught.value) == "what it was about"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.__cause__.strerror == "No such file or directory"
    with pytest.raises(TypeError, match="pickle"):
        child.call(open, os.devnull)
    with pytest.raises(FeaturemillError, match="Unlike: cannot be told"):
        child.call(raise_unlike)
    assert child.call(os.getpid) == pid, "it was started anew for nothing"


def decode_one(data: bytes) -> int:
    return decode_image(data, FeatureSpec("", "", (), image_size=8), max_pixels=100).width


class Unlike(Exception):
    """Can be pickled, but not made again."""

    def __init__(self, one, two):
        super().__init__("cannot be told")


def raise_unlike() -> None:
    raise Unlike(1, 2)


@pytest.mark.parametrize(
    ("function", "reason", "how"),
    [
        (deadly.abort, "crashed", f"signal {signal.SIGABRT:d}"),
        (deadly.segfault, "crashed", f"signal {signal.SIGSEGV:d}"),
        (deadly.leave, "crashed", "exit code 3"),
        (deadly.loop, "too slow", "over 1 s"),
    ],
)
def test_what_ends_it_is_reported_and_the_next_call_goes_on(child, function, reason, how):
    with pytest.raises(Crashed) as caught:
        child.call(function)
    assert (caught.value.reason, caught.value.how) == (reason, how)
    assert child.call(abs, -1) == 1
    found = []
    with pytest.raises(Crashed) as caught:
        found.extend(child.iterate(deadly.count_then, function, 3))
    assert caught.value.reason == reason
    assert child.call(abs, -1) == 1


def test_its_memory_is_limited(child):
    with pytest.raises(MemoryError):
        child.call(deadly.memory)
    assert child.call(len, bytes(MEMORY // 2)) == MEMORY // 2


def test_what_waits_for_ever_is_ended(monkeypatch):
    monkeypatch.setattr(isolated, "WAITING", 3)
    with Isolated(seconds=0.5) as child, pytest.raises(Crashed, match="too slow"):
        child.call(deadly.wait)


def test_what_came_before_a_crash_is_yielded(child):
    found = []
    with pytest.raises(Crashed):
        found.extend(child.iterate(deadly.count_then, deadly.abort, 5))
    assert found == [0, 1, 2, 3, 4]


def test_an_iteration_that_is_left_ends(child):
    for number in child.iterate(deadly.count_then, deadly.loop, 10**9):
        if number == 3:
            break
    assert child.call(abs, -1) == 1


def test_an_idle_child_ends_and_is_started_again(monkeypatch):
    with Isolated() as child:
        first = psutil.Process(child.call(os.getpid))
        # Its end when it is idle looks just like this.
        first.terminate()
        first.wait(SECONDS)
        assert child.call(os.getpid) != first.pid


@pytest.mark.parametrize("function", ["loop", "wait"])
def test_it_dies_with_its_parent(function):
    code = (
        "import sys, threading, time\n"
        "from tests.support import deadly\n"
        "from transforms.isolated import Isolated\n"
        "child = Isolated()\n"
        "import os; print(child.call(os.getpid), flush=True)\n"
        f"child.call(deadly.{function})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    child.wait(SECONDS)


def where() -> tuple[int, str]:
    return os.getpid(), os.environ.get("ISOLATED_TEST", "")


def test_a_child_that_is_done_with_serves_the_next(monkeypatch):
    monkeypatch.setenv("ISOLATED_TEST", "these tests' own")
    with Isolated(seconds=1.0) as first, Isolated() as second:
        pids = {first.call(os.getpid), second.call(os.getpid)}
        assert len(pids) == 2
    with Isolated() as child:
        assert child.call(os.getpid) in pids
        # Not while somebody has it, nor one of another environment.
        monkeypatch.setenv("ISOLATED_TEST", "another")
        with Isolated() as other:
            pid, value = other.call(where)
            assert pid not in pids
            assert value == "another"


def test_a_child_that_died_or_grew_meanwhile_serves_nobody(monkeypatch):
    monkeypatch.setenv("ISOLATED_TEST", "one that dies")
    with Isolated() as child:
        first = child.call(os.getpid)
    os.kill(first, signal.SIGKILL)
    with Isolated() as child:
        second = child.call(os.getpid)
        assert second != first
        child.call(grow)
    assert not psutil.pid_exists(second)


def test_a_child_in_the_middle_of_something_serves_nobody(monkeypatch):
    monkeypatch.setenv("ISOLATED_TEST", "in the middle")
    with Isolated() as child:
        pid = child.call(os.getpid)
        values = child.iterate(deadly.count_then, os.getpid, 2)
        assert next(values) == 0
    assert not psutil.pid_exists(pid)
    values.close()


_grown = []


def grow() -> None:
    _grown.append(bytearray(b"x") * (300 << 20))
