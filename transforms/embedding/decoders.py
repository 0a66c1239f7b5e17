"""Threads that decode images beside an engine, and what happens to an image that holds them up."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from functools import partial
from typing import ClassVar

from transforms.embedding.batches import Decoded, decode_record, too_slow
from transforms.embedding.settings import Embedding
from transforms.isolated import Isolated, Overdue
from transforms.records import EncodedImage, Failure


class Task:
    """An image that is waiting, being decoded, or done."""

    def __init__(self, image: EncodedImage):
        self.image = image
        self.future: Future[Decoded | Failure] = Future()
        # Of the thread that decodes it in this process: itself, and its clock.
        self.thread: threading.Thread | None = None
        self.clock: int | None = None
        self._lock = threading.Lock()
        self._is_settled = False

    def settle(self) -> bool:
        """True for the one who comes first: whoever decoded it, or whoever gave it up."""
        with self._lock:
            first, self._is_settled = not self._is_settled, True
        return first


class Decoders:
    """Decodes images in threads, or apart: each thread in a child process.

    A thread can't be stopped. One that computes for longer than `record_seconds` is left behind: its image is a
    failure, another thread takes its place, and from then on decoding is done apart, where what takes too long is
    ended. Threads that are left behind don't keep the process from ending.

    Attributes:
        seconds: Of decoding, summed over the threads.
    """

    # Those of the whole process: while one of them is computing, no other shall join it.
    _left_behind: ClassVar[list[threading.Thread]] = []

    def __init__(
        self,
        threads: int,
        how: Embedding,
        *,
        apart: bool = False,
        done: Callable[[EncodedImage], None] = lambda image: None,
    ):
        """Args: how many threads, how to decode, whether all is decoded apart, and what is called after each image."""
        self.seconds = 0.0
        self._how, self._done = how, done
        self._apart = apart or any(thread.is_alive() for thread in self._left_behind)
        self._waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        for _ in range(threads):
            self._add_thread()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, image: EncodedImage) -> Task:
        """Has an image decoded, after those before it."""
        task = Task(image)
        self._waiting.put(task)
        return task

    def result(self, task: Task) -> Decoded | Failure:
        """Waits for an image, as long as it may take."""
        overdue: Overdue | None = None
        while True:
            with suppress(TimeoutError):
                return task.future.result(overdue.look_seconds if overdue else min(1.0, self._how.record_seconds / 4))
            if task.clock is None:
                # It hasn't begun, or is done apart, where it is watched.
                continue
            overdue = overdue or Overdue(self._how.record_seconds, partial(_cpu_seconds, task.clock))
            if overdue.is_over() and task.settle():
                return self._give_up(task)

    def _give_up(self, task: Task) -> Failure:
        self._apart = True
        self._threads.remove(task.thread)
        self._left_behind.append(task.thread)
        self._add_thread()
        self._done(task.image)
        return too_slow(task.image, self._how)

    def close(self) -> None:
        """Ends the threads. What is waiting isn't done any more."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            # Whoever stops early shouldn't wait for one that hangs.
            thread.join(self._how.record_seconds)

    def _add_thread(self) -> None:
        # Python waits for the end of a ThreadPoolExecutor's threads before it ends, and for a daemon's it doesn't.
        thread = threading.Thread(target=self._work, name="decode", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        how = self._how
        with Isolated(seconds=how.record_seconds, memory=how.record_memory) as child:
            while (task := self._waiting.get()) is not None:
                apart = self._apart
                if not apart:
                    task.thread = threading.current_thread()
                    task.clock = time.pthread_getcpuclockid(threading.get_ident())
                before = time.perf_counter()
                try:
                    outcome = decode_record(task.image, how, child if apart else None)
                except BaseException as error:
                    outcome = error
                if not task.settle():
                    # Another thread has its place.
                    return
                with self._lock:
                    self.seconds += time.perf_counter() - before
                self._done(task.image)
                if isinstance(outcome, BaseException):
                    task.future.set_exception(outcome)
                else:
                    task.future.set_result(outcome)


def _cpu_seconds(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        # The thread has ended meanwhile.
        return 0.0
