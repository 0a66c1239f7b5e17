"""One engine for several workers: threads, processes, and what happens to them. The engine by itself is the oracle."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.extraction.options import ExtractOptions
from tests import ROOT
from tests.pipeline.extraction import test_run as te
from tests.support.fakes import no_room
from tests.support.sharable import Settings, Sums, load, load_gpus
from transforms import engines
from transforms.engines import chosen_gpus, sharing
from transforms.engines.engine import OutOfMemory
from transforms.engines.sharing import SharedEngine
from transforms.errors import FeaturemillError

_SECONDS = 30.0


@pytest.fixture
def settings(request) -> Settings:
    return Settings(f"{request.node.name} {os.getpid()}")


def drawn(count: int, seed: int = 0, side: int = 6) -> np.ndarray:
    # No image begins with a byte that means something.
    return np.random.default_rng(seed).integers(100, 256, (count, side, side, 3), np.uint8)


def pid(engine: SharedEngine) -> int:
    return int(engine.description.split()[1])


def same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def gone(number: int) -> bool:
    """Waits for the end of a process."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def locks_waited_for() -> set[int]:
    """Returns the inodes of files that somebody waits to lock."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(row[6].split(":")[-1]) for row in rows if row[1] == "->"}


def test_gives_what_the_engine_gives(settings):
    engine, own = SharedEngine(load, settings), Sums(settings)
    assert (engine.batch_size, engine.on_cpu) == (8, False)
    for count in (8, 1, 3, 8):
        same(engine.embed(drawn(count, seed=count)), own.embed(drawn(count, seed=count)))
    same(engine.embed(list(drawn(5))), own.embed(drawn(5)))


def test_all_workers_have_one_process_which_ends_with_the_last(settings):
    with ThreadPoolExecutor(4) as threads:
        engines = list(threads.map(lambda _: SharedEngine(load, settings), range(4)))
        [number] = {pid(engine) for engine in engines}
        batches = [drawn(8, seed=seed) for seed in range(40)]
        found = list(threads.map(lambda engine, batch: engine.embed(batch), engines * 10, batches))
    own = Sums(settings)
    for batch, features in zip(batches, found, strict=True):
        same(features, own.embed(batch))
    del engines
    assert gone(number)


def test_a_killed_worker_takes_nothing_with_it(settings):
    code = (
        "import sys, time\n"
        "from tests.support.sharable import Settings, load\n"
        "from transforms.engines.sharing import SharedEngine\n"
        "engine = SharedEngine(load, Settings(sys.argv[1]))\n"
        "print(engine.description.split()[1], flush=True)\n"
        "time.sleep(3600)\n"
    )
    command = [sys.executable, "-c", code, settings.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        number = int(starter.stdout.readline())
        engine = SharedEngine(load, settings)
        assert pid(engine) == number
        starter.kill()
    same(engine.embed(drawn(8)), Sums(settings).embed(drawn(8)))
    del engine
    assert gone(number)


def test_no_memory_halves_the_batch_for_all(settings):
    first, second = (SharedEngine(load, Settings(settings.name, most=4)) for _ in range(2))
    with pytest.raises(OutOfMemory, match="8 are too many"):
        first.embed(drawn(8))
    # Both were out of memory at once.
    first.resize(4)
    second.resize(4)
    assert (first.batch_size, second.batch_size) == (4, 4)
    third = SharedEngine(load, Settings(settings.name, most=4))
    assert third.batch_size == 4


def test_a_batch_that_was_gathered_before_goes_in_pieces(settings):
    first, second = (SharedEngine(load, Settings(settings.name, most=3)) for _ in range(2))
    first.resize(3)
    same(second.embed(drawn(8)), Sums(settings).embed(drawn(8)))
    assert second.batch_size == 3


def test_an_engines_error_is_its_own(settings):
    engine = SharedEngine(load, settings)
    bad = drawn(2)
    bad[1, 0, 0, 0] = 13
    with pytest.raises(KeyError, match="13"):
        engine.embed(bad)
    same(engine.embed(drawn(2)), Sums(settings).embed(drawn(2)))


def test_why_it_cant_be_loaded_is_reported_to_each_worker(settings):
    for _ in range(2):
        with pytest.raises(FeaturemillError, match=r"^no weights; fetch them$"):
            SharedEngine(load, Settings(settings.name, problem="no weights; fetch them"))


def test_no_room_for_a_batch_is_reported(settings, monkeypatch):
    engine = SharedEngine(load, settings)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(FeaturemillError, match=r"^a worker has no room for the 864 B of .*left on device\); free"):
            engine.embed(drawn(8))
        assert os.listdir("/proc/self/fd") == before
    same(engine.embed(drawn(8)), Sums(settings).embed(drawn(8)))


def test_a_worker_that_stands_still_holds_up_nobody(settings):
    code = (
        "import sys\n"
        "from tests.support.sharable import Settings, load\n"
        "from tests.transforms.engines.test_sharing import drawn\n"
        "from transforms.engines.sharing import SharedEngine\n"
        "engine = SharedEngine(load, Settings(sys.argv[1]))\n"
        "while True:\n"
        "    print(engine.embed(drawn(2))['sums'].tobytes().hex(), flush=True)\n"
    )
    expected = Sums(settings).embed(drawn(2))
    command = [sys.executable, "-c", code, settings.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as slow:
        try:
            assert slow.stdout.readline().strip() == expected["sums"].tobytes().hex()
            engine = SharedEngine(load, settings)
            slow.send_signal(signal.SIGSTOP)
            for _ in range(20):
                same(engine.embed(drawn(2)), expected)
            del engine
            # Longer than a process without workers stays.
            time.sleep(sharing._GRACE_SECONDS + 3 * sharing._LOOK_SECONDS)
            slow.send_signal(signal.SIGCONT)
            # More than a pipe holds.
            for _ in range(2000):
                assert slow.stdout.readline().strip() == expected["sums"].tobytes().hex()
        finally:
            # It never ends by itself, and may be stopped.
            slow.kill()


@pytest.mark.parametrize("how", ["aborts", "is killed"])
def test_the_end_of_the_process_is_reported(settings, how):
    starter, other = SharedEngine(load, settings), SharedEngine(load, settings)
    batch = drawn(2)
    if how == "aborts":
        batch[0, 0, 0, 0] = 66
    else:
        os.kill(pid(starter), signal.SIGKILL)
    number = 6 if how == "aborts" else 9
    with pytest.raises(FeaturemillError, match=rf"the process with the engine ended \(signal {number}, .*run the same"):
        starter.embed(batch)
    with pytest.raises(FeaturemillError, match="the process with the engine ended; what was committed is kept"):
        other.embed(drawn(1))
    # The next one starts another.
    same(SharedEngine(load, settings).embed(drawn(1)), Sums(settings).embed(drawn(1)))


def test_a_folder_of_others_isnt_used(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"featuremill-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"featuremill-{os.getuid()}").chmod(0o777)
    with pytest.raises(FeaturemillError, match="isn't a folder of this user alone"):
        SharedEngine(load, settings)


def test_a_folder_with_a_long_name_is_reported(settings, tmp_path, monkeypatch):
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with pytest.raises(FeaturemillError, match="set TMPDIR to a shorter path"):
        SharedEngine(load, settings)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"featuremill-{os.getuid()}"
    folder.mkdir(mode=0o700)
    return folder


def test_the_last_process_leaves_nothing_behind(settings, own_folder):
    engines = [SharedEngine(load_gpus, settings, ["0", "1"]) for _ in range(3)]
    assert sorted(path.suffix for path in own_folder.iterdir()) == ["", "", ".lock", ".lock", ".turn"]
    engines.pop(1)
    wait_until(lambda: sorted(path.suffix for path in own_folder.iterdir()) == ["", ".lock", ".turn"])
    engines.clear()
    wait_until(lambda: os.listdir(own_folder) == [])


def test_what_belongs_to_nobody_is_swept_away_by_the_next_to_start(settings, own_folder):
    killed, alive = (SharedEngine(load, Settings(f"{settings.name} {number}")) for number in range(2))
    with sharing._locked(str(own_folder / f"{'a' * 16}.lock")):
        turned = SharedEngine(load_gpus, settings, ["0"])
        os.kill(pid(killed), signal.SIGKILL)
        assert gone(pid(killed))
        kept = set(os.listdir(own_folder)) - {
            f"{sharing._name(load, Settings(f'{settings.name} 0'))}{end}" for end in ("", ".lock")
        }
        for name in ("b" * 16 + ".lock", "c" * 16 + ".turn", "notes.lock"):
            (own_folder / name).touch()
        starter = SharedEngine(load, settings)
        new = sharing._name(load, settings)
        wait_until(lambda: set(os.listdir(own_folder)) == {*kept, "notes.lock", new, f"{new}.lock"})
    for engine in (alive, starter):
        same(engine.embed(drawn(2)), Sums(settings).embed(drawn(2)))
    assert turned.batch_size == 8


def test_who_waited_for_a_lock_that_was_swept_away_has_the_next(tmp_path):
    path, entered = tmp_path / "a.lock", threading.Event()

    def wait() -> None:
        with sharing._locked(str(path)):
            if path.exists():
                entered.set()

    with sharing._locked(str(path)):
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: os.stat(path).st_ino in locks_waited_for())
        path.unlink()
    waiting.join()
    assert entered.is_set()


def test_workers_are_spread_over_the_gpus_by_turns(settings):
    with ThreadPoolExecutor(4) as threads:
        # By number, and by name as parts of a card have one.
        engines = list(threads.map(lambda _: SharedEngine(load_gpus, settings, ["2", "MIG-7"]), range(4)))
    assert sorted(engine.description for engine in engines) == ["gpus 2", "gpus 2", "gpus MIG-7", "gpus MIG-7"]


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(engines, "_GPU_FILES", (str(tmp_path / "nvidia[0-9]*"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "asked", "expected"),
    [
        (None, "all", ["0", "1"]),
        (None, "1", ["1"]),
        ("5, GPU-x,-1,7", "all", ["5", "GPU-x"]),
        ("5,GPU-x", "1,0", ["GPU-x", "5"]),
    ],
)
def test_gpus_are_counted_as_cuda_does(two_gpus, monkeypatch, visible, asked, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert chosen_gpus("keras", asked) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "2", "workers": 3}, r"^--gpus 2: this machine has only 2 with a number .*name fewer"),
        ({"gpus": "all"}, r"^--gpus all are 2, and need a worker each at least; pass --workers 2$"),
        ({"gpus": "0", "engine": "winograd"}, "^the engine winograd uses no GPU; leave --gpus out"),
        ({"gpus": "0", "engine_per": "worker"}, "--engine-per worker can't be"),
        ({"gpus": "0,0"}, "^--gpus '0,0' isn't all, nor numbers"),
        ({"gpus": ""}, "^--gpus '' isn't all, nor numbers"),
        ({"gpus": "one", "runner": "FlinkRunner"}, "^--gpus 'one' isn't all, nor numbers"),
    ],
)
def test_gpus_that_cant_be_are_refused(two_gpus, tmp_path, options, message):
    with pytest.raises(FeaturemillError, match=message):
        ExtractOptions(inputs=("in",), output=str(tmp_path / "out"), **options)


def test_where_there_is_no_gpu_none_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_GPU_FILES", ())
    with pytest.raises(FeaturemillError, match="this machine has none"):
        ExtractOptions(inputs=("in",), output=str(tmp_path / "out"), gpus="all")


def test_a_worker_joins_the_engine_of_its_gpu(two_gpus, tmp_path):
    options = te.options("in", tmp_path / "out", engine="ncnn")
    job = replace(options.job(te.WEIGHTS), engine="keras", engine_per="machine", gpus="1")
    assert job.join_engine(load_gpus).description == "gpus 1"
    with pytest.raises(FeaturemillError, match="winograd uses no GPU"):
        replace(job, engine="winograd").join_engine(load_gpus)
