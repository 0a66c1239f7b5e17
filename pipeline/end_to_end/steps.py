"""Live progress of a training, step by step."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from transforms.text import duration

LINE_SECONDS = 30.0


class Steps:
    """Shows steps, loss and the time left within an epoch: a bar on a terminal, a line every 30 seconds elsewhere.

    Use as a context; call `tick` after each step.
    """

    def __init__(
        self,
        *,
        steps: int,
        epochs: int,
        quiet: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows nothing until the first step.

        Args:
            steps: Of an epoch.
            epochs: At most so many.
            quiet: Show nothing at all.
            stream: Where; standard error by default.
            clock: Tells the seconds.
        """
        self._steps, self._epochs, self._quiet = steps, epochs, quiet
        self._stream, self._clock = stream or sys.stderr, clock
        self._bar = None

    def __enter__(self) -> "Steps":
        if not self._quiet and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("training", total=self._steps, words="")
            self._bar.start()
        self._next = self._clock() + LINE_SECONDS
        return self

    def tick(self, epoch: int, step: int, loss: float) -> None:
        """Tells that a step of an epoch is done; steps count from 1, `loss` is the mean of them all."""
        now = self._clock()
        if step == 1:
            # This one filled the buffer and compiled: the others don't take as long.
            self._first = now
        left = duration((now - self._first) / (step - 1) * (self._steps - step)) if step > 1 else "–"
        where = f"epoch {epoch} of {self._epochs}"
        words = f"step {step:,} of {self._steps:,}, loss {loss:.4f}, {left} left in this epoch"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=where, words=words)
        elif not self._quiet and now >= self._next:
            print(f"{where}: {words}", file=self._stream, flush=True)
            self._next = now + LINE_SECONDS

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(stream: TextIO):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    return Progress(*columns, console=Console(file=stream), transient=True)
