"""Live progress. It counts committed parts, not runner metrics, so it shows the same on every runner."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.object_stores import short_timeout
from transforms.store.layout import part_uri
from transforms.store.listing import read_footer
from transforms.store.output import Output
from transforms.store.units import PlannedUnit
from transforms.text import counted, duration

LINE_SECONDS = 30.0
BAR_SECONDS = 1.0
# A look at a million parts takes a second: looking may take one part in so many of the time.
LOOK_SHARE = 20


@dataclass(frozen=True)
class Count:
    """The images, failures, encoded bytes and units that a run has committed."""

    images: int = 0
    failures: int = 0
    input_bytes: int = 0
    units: int = 0


class Committed:
    """Counts what a run's units have come to so far, from the output alone."""

    def __init__(self, output: Output, todo: Sequence[PlannedUnit]):
        self._output = output
        self._waiting = {planned.unit_id: planned for planned in todo}
        self._done = Count()
        self._started = time.time()
        # Parts that are done again are there already, in an older version. Looking at versions costs a request per file
        # of a disk, so it is only done where there are such.
        self._before = self._versions() if self._there() else {}

    @property
    def is_local(self) -> bool:
        return self._output.is_local

    def count(self) -> Count:
        """Returns the committed units' numbers, plus on a local disk those of the units under way."""
        if self._before:
            done = [name for name, version in self._versions().items() if version != self._before.get(name)]
        else:
            done = self._there()
        for unit_id in done:
            self._add(self._waiting.pop(unit_id))
        images, failures, input_bytes = self._under_way()
        done = self._done
        return Count(done.images + images, done.failures + failures, done.input_bytes + input_bytes, done.units)

    def _there(self) -> list[str]:
        names = storage.list_folder(self._output.path("features"))
        return [unit_id for name in names if (unit_id := name.removesuffix(".parquet")) in self._waiting]

    def _versions(self) -> dict[str, str]:
        infos = storage.list_infos(self._output.path("features"))
        found = {info.uri.rsplit("/", 1)[-1].removesuffix(".parquet"): info.version for info in infos}
        return {name: version for name, version in found.items() if name in self._waiting}

    def _add(self, planned: PlannedUnit) -> None:
        [report] = read_footer(part_uri(self._output.folder, planned.unit_id)).reports
        self._done = Count(
            self._done.images + report.rows_read,
            self._done.failures + report.rows_failed,
            self._done.input_bytes + planned.unit.input_bytes,
            self._done.units + 1,
        )

    def _under_way(self) -> tuple[int, int, int]:
        totals = [0, 0, 0]
        if self.is_local:
            for info in storage.list_infos(self._output.path("_tmp")):
                name = info.uri.rsplit("/", 1)[-1]
                # Not those of a run that was killed before.
                is_ours = int(info.version) / 1e9 >= self._started - 1
                if is_ours and name.endswith(".progress") and name.rsplit(".", 2)[0] in self._waiting:
                    # It may be gone, or empty while it is being written anew.
                    with suppress(OSError, ValueError):
                        embedded, failed, size = map(int, storage.read_bytes(info.uri).split())
                        totals = [totals[0] + embedded + failed, totals[1] + failed, totals[2] + size]
        return totals[0], totals[1], totals[2]


class Progress:
    """Shows a bar on a terminal, a line every 30 seconds elsewhere, nothing when quiet.

    Use as a context; call `tick` as often as you like.
    """

    def __init__(
        self,
        committed: Committed,
        *,
        units: int,
        input_bytes: int,
        quiet: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._committed, self._units, self._bytes = committed, units, max(1, input_bytes)
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        # On an object store a look costs a listing.
        self._seconds = BAR_SECONDS if self._terminal and committed.is_local else LINE_SECONDS
        self._quiet = quiet
        self._bar = None

    def __enter__(self) -> "Progress":
        self._started = self._clock()
        # The first line of a log comes a full interval in: a short run has its summary by then.
        self._next = self._started + (0.0 if self._terminal else LINE_SECONDS)
        if self._terminal and not self._quiet:
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("", total=self._bytes, images=0, rate="–", failures=0, left="–")
            self._bar.start()
        return self

    def tick(self) -> None:
        """Looks at the output and shows what is new, at most once per interval."""
        now = self._clock()
        if self._quiet or now < self._next:
            return
        before = time.perf_counter()
        self._look(now - self._started)
        self._next = now + max(self._seconds, LOOK_SHARE * (time.perf_counter() - before))

    def _look(self, seconds: float) -> None:
        # A store that is silent is the run's to report, whose end no look may hold up.
        with suppress(OSError, FeaturemillError), short_timeout():
            self._show(self._committed.count(), seconds)

    def _show(self, count: Count, seconds: float) -> None:
        rate = count.images / seconds if seconds > 0 else 0.0
        share = min(1.0, count.input_bytes / self._bytes)
        left = duration(seconds * (1 - share) / share) if share > 0 else "–"
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=share * self._bytes,
                images=count.images,
                rate=f"{rate:.1f}",
                failures=count.failures,
                left=left,
            )
        else:
            print(
                f"{counted(count.images, 'image')}, {rate:.1f} images/s, {counted(count.failures, 'failure')}, "
                f"{count.units} of {counted(self._units, 'unit')}, {share:.0%}, {left} left",
                file=self._stream,
                flush=True,
            )

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._look(self._clock() - self._started)
            self._bar.stop()


def _bar(stream: TextIO):
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[images]} images"),
        TextColumn("{task.fields[rate]}/s"),
        TextColumn("{task.fields[left]} left"),
        TextColumn("{task.fields[failures]} failures"),
        console=Console(file=stream),
    )
