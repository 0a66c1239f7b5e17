"""An end by force to a process of ours that something holds up for good.

A library that computes and keeps Python's lock (GIL) stops every thread, also one that would notice. The system's timer
of processor time needs no lock: a thread winds it up again and again, and where that one can't run any more, the
process ends by a signal. Whoever started it goes on, as after a crash (`transforms.embedding.attempts`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from transforms.machine import available_cores

SIGNAL = signal.SIGPROF
_WIND_SECONDS = 0.25
# So much may all threads together compute while the one that winds waits for its turn on a busy machine.
_SPARE_SECONDS_OF_CORE = 1.0
# Beam's own worker, as its containers start it.
_BEAM_WORKER = "apache_beam.runners.worker.sdk_worker_main"

_is_ours = False


def allow() -> None:
    """Says that this process is ours, and will be started again: nobody else's is ever ended."""
    global _is_ours
    _is_ours = True


def _may_end() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_ours = _is_ours or (spec is not None and spec.name == _BEAM_WORKER)
    # Not where somebody measures this process by the same timer.
    return is_ours and signal.getsignal(SIGNAL) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_PROF)[0] == 0


class HeldUp:
    """While it is entered, a process of ours ends if Python's lock is kept for long, or a reader computes for long.

    Args:
        seconds: Of computing: most that a record may take.
        reader_seconds: Returns what a native reader has computed since its last record: Arrow may hang without the
            lock, too, in a thread that nobody can end. None: there is no such reader.
    """

    def __init__(self, seconds: float, reader_seconds: Callable[[], float] | None):
        self._seconds, self._reader_seconds = seconds, reader_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "HeldUp":
        if _may_end():
            self._thread = threading.Thread(target=self._wind, name="held up", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _wind(self) -> None:
        most = self._seconds + _SPARE_SECONDS_OF_CORE * available_cores()
        while True:
            signal.setitimer(signal.ITIMER_PROF, most)
            if self._stopped.wait(_WIND_SECONDS):
                return
            if self._reader_seconds and self._reader_seconds() > self._seconds:
                os.kill(os.getpid(), SIGNAL)


class ReaderClock:
    """CPU time of the thread that reads, since another thread first saw it at its present record.

    The reader only counts: its own look at its clock would be a system call for each record.
    """

    def __init__(self) -> None:
        self._clock: int | None = None
        self._records = self._seen = 0
        self._last = 0.0

    def begin(self) -> None:
        """Is called by the thread that reads, before each record."""
        if self._clock is None:
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._records += 1

    def seconds(self) -> float:
        try:
            now = time.clock_gettime(self._clock) if self._clock is not None else 0.0
        except OSError:
            # The thread has ended meanwhile.
            return 0.0
        if self._records != self._seen:
            self._seen, self._last = self._records, now
        return now - self._last
