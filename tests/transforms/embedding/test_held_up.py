"""A process that is held up ends by a signal, where it is ours; what only computes for long goes on."""

import signal
import subprocess
import sys

import pytest

from tests import ROOT
from tests.support.commands import SECONDS
from transforms.embedding import held_up
from transforms.embedding.held_up import HeldUp, ReaderClock

_HEAD = "import signal, time\nfrom tests.support import deadly\nfrom transforms.embedding import held_up\n"
_OURS = f"{_HEAD}held_up.allow()\nheld_up._SPARE_SECONDS_OF_CORE = 0.3\n"


def ended(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=SECONDS).returncode


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("deadly.hold()", -signal.SIGPROF),
        # Much more than it may compute without a pause; other threads have theirs in between.
        ("while time.process_time() < 4: pass", 0),
    ],
)
def test_only_what_keeps_the_lock_ends(body, code):
    assert ended(f"{_OURS}with held_up.HeldUp(0.2, None):\n    {body}\n") == code


@pytest.mark.long
def test_a_reader_that_computes_for_too_long_ends_the_process():
    begun = "clock = held_up.ReaderClock()\nclock.begin()\n"
    body = "with held_up.HeldUp(0.2, clock.seconds):\n    while time.process_time() < 4: pass\n"
    assert ended(f"{_OURS}{begun}{body}") == -signal.SIGPROF
    assert ended(f"{_HEAD}{begun}{body}") == 0, "it isn't ours"
    measured = "signal.signal(signal.SIGPROF, lambda *_: None)\n"
    assert ended(f"{_OURS}{measured}{begun}{body}") == 0, "somebody measures it"


def test_a_readers_clock_starts_anew_with_each_record():
    clock = ReaderClock()
    assert clock.seconds() == 0
    for _ in range(2):
        clock.begin()
        assert clock.seconds() == 0
        sum(range(100_000))
        assert clock.seconds() > 0


def test_nothing_is_wound_up_in_other_peoples_processes_or_afterwards(monkeypatch):
    with HeldUp(0.01, None):
        assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    monkeypatch.setattr(held_up, "_is_ours", True)
    with HeldUp(100, ReaderClock().seconds) as held:
        assert held._thread.is_alive()
    assert not held._thread.is_alive()
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
