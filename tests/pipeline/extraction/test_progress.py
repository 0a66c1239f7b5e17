"""Progress: what is counted, what is shown where, and when."""

import io
import time

import pytest

from pipeline.extraction.progress import Committed, Count, Progress
from tests.pipeline.extraction import test_run as te
from tests.support.factories import draw_items, write_tar
from transforms.store.output import Output
from transforms.text import duration


@pytest.fixture
def finished(tmp_path):
    write_tar(tmp_path / "photos.tar", draw_items(per_class=8, size=48, seed=1))
    te.extract(tmp_path / "photos.tar", tmp_path / "out", unit_bytes=4000)
    return str(tmp_path / "out")


def test_committed_units_and_those_under_way_are_counted_once(finished, tmp_path):
    todo = Output(finished).plan
    features, away = tmp_path / "out/features", tmp_path / "away"
    features.rename(away)
    features.mkdir()
    committed = Committed(Output(finished), todo)
    assert committed.count() == Count()
    for planned in todo[1:]:
        (away / f"{planned.unit_id}.parquet").rename(features / f"{planned.unit_id}.parquet")
    before = committed.count()
    assert before.units == len(todo) - 1
    progress = tmp_path / f"out/_tmp/{todo[0].unit_id}.{'0' * 32}.progress"
    progress.write_text("2 1 500")
    under_way = committed.count()
    assert under_way.images == before.images + 3
    assert under_way.failures == before.failures + 1
    (away / f"{todo[0].unit_id}.parquet").rename(features / f"{todo[0].unit_id}.parquet")
    done = committed.count()
    assert (done.images, done.failures, done.units) == (32, 4, len(todo))


def test_parts_that_are_done_again_count_when_they_are_new(finished, tmp_path):
    [unit, *_] = Output(finished).plan
    committed = Committed(Output(finished), [unit])
    assert committed.count().units == 0
    (tmp_path / f"out/features/{unit.unit_id}.parquet").touch()
    assert committed.count().units == 1


def test_a_killed_runs_progress_is_not_counted(finished, tmp_path):
    import os

    [unit, *_] = Output(finished).plan
    (tmp_path / f"out/features/{unit.unit_id}.parquet").unlink()
    old = tmp_path / f"out/_tmp/{unit.unit_id}.{'1' * 32}.progress"
    old.write_text("300 0 500")
    os.utime(old, (1, 1))
    assert Committed(Output(finished), [unit]).count() == Count()


class Screen(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class FakeCommitted:
    is_local = True

    def count(self) -> Count:
        return Count(images=50, failures=2, input_bytes=250, units=1)


def shown(seconds: list[float], *, terminal: bool, quiet: bool = False) -> str:
    screen, times = Screen(terminal), iter([0.0, *seconds, seconds[-1]])
    progress = Progress(
        FakeCommitted(), units=4, input_bytes=1000, quiet=quiet, stream=screen, clock=lambda: next(times)
    )
    with progress:
        for _ in seconds:
            progress.tick()
    return screen.getvalue()


def test_a_line_every_thirty_seconds_where_there_is_no_terminal():
    assert shown([1.0, 29.0], terminal=False) == ""
    lines = shown([1.0, 31.0, 40.0, 62.0], terminal=False).splitlines()
    assert lines[0] == "50 images, 1.6 images/s, 2 failures, 1 of 4 units, 25%, 1 min 33 s left"
    assert len(lines) == 2


def test_a_bar_on_a_terminal():
    bar = shown([1.0, 2.0], terminal=True)
    for part in ("50 images", "25%", "2 failures", "left"):
        assert part in bar


def test_looks_that_take_long_are_taken_less_often():
    looks, times = [], iter([0.0, 1.0, 2.1, 3.2, 3.3])

    class Slow(FakeCommitted):
        def count(self) -> Count:
            looks.append(time.sleep(0.1))
            return Count()

    progress = Progress(Slow(), units=4, input_bytes=1000, quiet=False, stream=Screen(True), clock=lambda: next(times))
    with progress:
        for _ in range(3):
            progress.tick()
        # At 1.0 and, two seconds later or more, perhaps at 3.2.
        assert len(looks) < 3


def test_quiet_shows_nothing():
    assert shown([31.0], terminal=False, quiet=True) == ""
    assert shown([31.0], terminal=True, quiet=True) == ""


def test_durations():
    assert [duration(s) for s in (9.4, 75, 3700)] == ["9 s", "1 min 15 s", "1 h 01 min"]
