"""Threads that decode images beside an engine, and what happens to an image that holds them up."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar

from transforms.embedding.batches import Decoded, decode_record, too_slow
from transforms.embedding.settings import Embedding
from transforms.isolated import Isolated, Overdue
from transforms.records import EncodedImage, Failure


class Task:
    """Some images that one thread decodes: handing each over by itself would cost as much as reading it."""

    def __init__(self, images: Sequence[EncodedImage]):
        self.images = images
        self.outcomes: list[Decoded | Failure] = []
        self.error: BaseException | None = None
        self.is_done = threading.Event()
        # Of the thread that decodes them in this process: itself, and its clock.
        self.thread: threading.Thread | None = None
        self.clock: int | None = None
        self._lock = threading.Lock()
        self._is_given_up = False

    def add(self, outcome: Decoded | Failure | BaseException) -> bool:
        """Keeps what became of the next image; False where that was given up meanwhile."""
        with self._lock:
            if self._is_given_up:
                return False
            if isinstance(outcome, BaseException):
                self.error = outcome
            else:
                self.outcomes.append(outcome)
        return True

    def give_up(self, number: int) -> bool:
        """Takes no more outcomes, if this image's would still be the next one."""
        with self._lock:
            self._is_given_up = len(self.outcomes) == number and self.error is None
        return self._is_given_up


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
        """Takes the number of threads, how to decode, whether all is decoded apart, and a call after each image."""
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

    def submit(self, images: Sequence[EncodedImage]) -> Task:
        """Has images decoded by one thread, after those before them."""
        task = Task(images)
        self._waiting.put(task)
        return task

    def results(self, task: Task) -> list[Decoded | Failure]:
        """Waits for the images of a task, as long as it may take, and returns what became of each, in their order."""
        overdue: Overdue | None = None
        number = -1
        while not task.is_done.wait(overdue.look_seconds if overdue else min(1.0, self._how.record_seconds / 4)):
            if task.clock is None:
                # It hasn't begun, or is done apart, where it is watched.
                continue
            if overdue is None or len(task.outcomes) != number:
                number = len(task.outcomes)
                overdue = Overdue(self._how.record_seconds, partial(_cpu_seconds, task.clock))
            if overdue.is_over() and task.give_up(number):
                failure, rest = self._leave_behind(task, task.images[number]), task.images[number + 1 :]
                return [*task.outcomes, failure, *(self.results(self.submit(rest)) if rest else ())]
        if task.error:
            raise task.error
        return task.outcomes

    def _leave_behind(self, task: Task, image: EncodedImage) -> Failure:
        self._apart = True
        self._threads.remove(task.thread)
        self._left_behind.append(task.thread)
        self._add_thread()
        self._done(image)
        return too_slow(image, self._how)

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
                if not self._decode(task, child if self._apart else None):
                    # Another thread has its place.
                    return

    def _decode(self, task: Task, apart: Isolated | None) -> bool:
        """Decodes the images of a task; returns False where this thread was left behind."""
        if not apart:
            task.thread = threading.current_thread()
            task.clock = time.pthread_getcpuclockid(threading.get_ident())
        before = time.perf_counter()
        for image in task.images:
            try:
                outcome = decode_record(image, self._how, apart)
            except BaseException as error:
                outcome = error
            if not task.add(outcome):
                return False
            self._done(image)
            if task.error:
                break
        with self._lock:
            self.seconds += time.perf_counter() - before
        task.is_done.set()
        return True


def _cpu_seconds(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        # The thread has ended meanwhile.
        return 0.0
