"""Faults injected for real: kills, Ctrl-C, full and read-only disks, vanished inputs. After each, the totals balance.

The command runs in a process of its own, with the fake engine of `tests.support.fakes` slowed down.
"""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.demo.samples import draw_items, write_folder, write_tar, write_tfrecord
from pipeline.maintenance.inspect import inspect
from tests.pipeline.extraction.test_run import extract, rows
from tests.support import commands
from tests.support.commands import finish
from transforms.errors import FeaturemillError
from transforms.store.features import open_features

pytestmark = pytest.mark.long

SHARING = "transforms.engines.sharing"
SETTINGS = ["--image-size", "32", "--batch-size", "4", "--unit-bytes", "8000", "--quiet"]


SHARED = ["--workers", "2", "--engine-per", "machine"]


def start(*args, pause: float = 0.0, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.fakes", *map(str, args), *SETTINGS]
    return commands.start(command, env={**os.environ, "FAKE_PAUSE_SECONDS": str(pause), **environment})


def workers_of(command: subprocess.Popen) -> list[psutil.Process]:
    started = psutil.Process(command.pid).children(recursive=True)
    return [process for process in started if "pipeline.runners.worker" in process.cmdline()]


def parts(output: Path) -> int:
    return len(os.listdir(output / "features")) if (output / "features").is_dir() else 0


def wait_for_parts(command: subprocess.Popen, output: Path, count: int = 1) -> None:
    """Waits until there are so many parts, or the command has ended."""
    deadline = time.monotonic() + commands.SECONDS
    while parts(output) < count and command.poll() is None:
        assert time.monotonic() < deadline, f"no {count} parts in {commands.SECONDS} s"
        time.sleep(0.02)


def all_readable(output: Path) -> bool:
    return all(pq.read_table(part).num_columns == 9 for part in (output / "features").glob("*"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    items = draw_items(per_class=25, size=48, seed=2)
    write_folder(folder / "photos", items)
    write_tar(folder / "photos.tar", items)
    write_tfrecord(folder / "photos.tfrecord", items)
    return [folder / "photos", folder / "photos.tar", folder / "photos.tfrecord"]


@pytest.fixture(scope="module")
def clean(inputs, tmp_path_factory) -> dict[str, tuple]:
    """The rows of an undisturbed run."""
    output = tmp_path_factory.mktemp("clean") / "out"
    code, _, err = finish(start(*inputs, "-o", output))
    assert code == 0, err
    return rows(output)


def assert_resumes(inputs, output: Path, clean: dict[str, tuple]) -> None:
    assert all_readable(output)
    code, out, err = finish(start(*inputs, "-o", output, "--json"))
    assert code == 0, err
    totals = json.loads(out)["totals"]
    assert totals["rows_read"] == totals["rows_embedded"] + totals["rows_failed"] == 300
    assert rows(output) == clean
    assert inspect(str(output)).problems == ()
    assert os.listdir(output / "_tmp") == []


def test_twenty_kills_then_one_run(inputs, clean, tmp_path):
    output = tmp_path / "out"
    moments = random.Random(0)
    # Start-up is about a second and a half, in which there is nothing to break: most kills come later.
    for number in range(20):
        command = start(*inputs, "-o", output, pause=0.1)
        if number % 4 == 0:
            time.sleep(moments.uniform(0, 1.5))
        else:
            wait_for_parts(command, output, parts(output) + 1)
            time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
        if (output / "features").exists():
            assert all_readable(output)
    assert parts(output) > 0
    assert_resumes(inputs, output, clean)


def test_what_a_killed_write_of_a_small_file_left_is_removed(inputs, tmp_path):
    output = tmp_path / "out"
    extract(inputs, output)
    for name in ("manifest.json", "plan", "units.parquet"):
        (output / "_tmp" / f"{name}.{'0' * 32}").touch()
    # Another run on the same OUT may be writing this one.
    young = output / "_tmp" / f"manifest.json.{'1' * 32}"
    young.touch()
    os.utime(young, (time.time() + 600,) * 2)
    # A run that finds all of it done looks no further.
    (output / "units.parquet").unlink()
    extract(inputs, output)
    assert os.listdir(output / "_tmp") == [young.name]


@pytest.mark.parametrize("per", ["worker", "machine"])
def test_a_killed_worker_is_replaced(inputs, clean, tmp_path, per):
    output = tmp_path / "out"
    command = start(*inputs, "-o", output, "--workers", "2", "--engine-per", per, pause=0.2)
    wait_for_parts(command, output)
    workers = workers_of(command)
    workers[-1].kill()
    # Without the death watch the command hangs for good.
    code, _, err = finish(command)
    assert code == 0
    assert [line for line in err.splitlines() if "crashed (signal 9" not in line] == []
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE] == []
    assert_resumes(inputs, output, clean)


def test_a_shared_engine_that_is_killed_ends_the_run(inputs, clean, tmp_path):
    output = tmp_path / "out"
    command = start(*inputs, "-o", output, *SHARED, pause=0.2)
    wait_for_parts(command, output)
    [engine] = [p for p in psutil.Process(command.pid).children(recursive=True) if SHARING in p.cmdline()]
    engine.kill()
    code, _, err = finish(command)
    assert code == 1
    assert "the process with the engine ended" in err
    assert err.strip().endswith("run the same command again to go on")
    assert len(err.strip().splitlines()) == 1, err
    assert_resumes(inputs, output, clean)


def test_a_worker_that_stands_still_holds_up_nobody(inputs, clean, tmp_path):
    output = tmp_path / "out"
    command = start(*inputs, "-o", output, *SHARED, pause=0.1)
    wait_for_parts(command, output)
    slow = workers_of(command)[-1]
    slow.suspend()
    # The other one goes on.
    wait_for_parts(command, output, parts(output) + 4)
    assert command.poll() is None
    slow.resume()
    code, _, err = finish(command)
    assert (code, err) == (0, "")
    assert rows(output) == clean


def test_no_room_for_a_batch_ends_the_run(inputs, clean, tmp_path):
    output = tmp_path / "out"
    code, _, err = finish(start(*inputs, "-o", output, *SHARED, FAKE_NO_ROOM="1"))
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "a worker has no room for the 12.3 kB of a batch that it shares with the engine ([Errno 28]" in err
    assert_resumes(inputs, output, clean)


@pytest.mark.parametrize(("workers", "per"), [("1", "worker"), ("2", "worker"), ("2", "machine")])
def test_ctrl_c_stops_and_tells_how_to_resume(inputs, clean, tmp_path, workers, per):
    output = tmp_path / "out"
    command = start(*inputs, "-o", output, "--workers", workers, "--engine-per", per, pause=0.5)
    wait_for_parts(command, output)
    command.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    code, _, err = finish(command)
    assert time.monotonic() - interrupted < 5
    assert code == 130
    assert err.strip().splitlines()[-1].endswith("run the same command again to go on")
    assert "Traceback" not in err
    assert_resumes(inputs, output, clean)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 kB; needs the right to mount."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("cannot mount a small disk here; needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_full_disk(inputs, clean, small_disk):
    output = small_disk / "out"
    code, _, err = finish(start(*inputs, "-o", output))
    assert code == 1
    assert "No space left on device" in err
    assert len(err.strip().splitlines()) == 1, err
    assert all_readable(output)
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert_resumes(inputs, output, clean)


def test_read_only_output(inputs, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, err = finish(start(*inputs, "-o", small_disk / "out"))
    assert code == 1
    assert "Read-only file system" in err
    assert len(err.strip().splitlines()) == 1, err


def test_output_that_vanishes(inputs, clean, tmp_path):
    output = tmp_path / "out"
    command = start(*inputs, "-o", output, pause=0.2)
    wait_for_parts(command, output)
    output.rename(tmp_path / "away")
    (tmp_path / "out").write_text("in the way")
    code, _, err = finish(command)
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    (tmp_path / "out").unlink()
    (tmp_path / "away").rename(output)
    assert_resumes(inputs, output, clean)


@pytest.mark.parametrize("victim", [0, 1])
def test_input_that_vanishes(inputs, clean, tmp_path, victim):
    output = tmp_path / "out"
    command = start(inputs[victim], "-o", output, pause=0.2)
    wait_for_parts(command, output)
    away = inputs[victim].with_name("away")
    inputs[victim].rename(away)
    try:
        code, _, err = finish(command)
    finally:
        away.rename(inputs[victim])
    assert code == 1
    assert "cannot read" in err
    assert len(err.strip().splitlines()) == 1, err
    assert_resumes(inputs, output, clean)


@pytest.mark.parametrize("name", ["features", "failures", "_tmp"])
def test_overwrite_where_a_folder_is_gone(inputs, tmp_path, name):
    output = tmp_path / "out"
    extract(inputs[1], output)
    shutil.rmtree(output / name)
    assert extract(inputs[1], output, overwrite=True).totals.rows_read == 100
    assert inspect(str(output)).problems == ()


def test_an_output_may_be_a_link_but_nothing_in_it(inputs, tmp_path):
    output = tmp_path / "out"
    extract(inputs[1], output)
    (output / "features").rename(tmp_path / "disk")
    (output / "features").symlink_to(tmp_path / "disk")
    before = os.listdir(tmp_path / "disk")
    with pytest.raises(FeaturemillError, match="features is a link"):
        extract(inputs[1], output, overwrite=True)
    assert os.listdir(tmp_path / "disk") == before != []
    # As the message says.
    (output / "features").unlink()
    (tmp_path / "disk").rename(output / "features")
    output.rename(tmp_path / "disk")
    output.symlink_to(tmp_path / "disk")
    assert extract(inputs[1], output, overwrite=True).totals.rows_read == 100
    assert output.is_symlink()


def test_no_room_for_temporary_files(inputs, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    assert extract(inputs[1], output).repeats is None
    assert open_features(str(output)).complete


def test_three_runs_with_other_inputs_on_one_output(inputs, tmp_path):
    """One does its work; the others touch nothing and say who is at work; each ends well afterwards."""
    output = tmp_path / "out"
    commands = [start(each, "-o", output, pause=0.3) for each in inputs]
    ended = [(*finish(command), command.pid) for command in commands]
    [done] = [pid for code, _, _, pid in ended if code == 0]
    assert [code for code, *_ in sorted(ended)] == [0, 1, 1]
    for code, _, err, _ in ended:
        assert code == 0 or f"out is in use by another command (process {done} on " in err.splitlines()[-1]
    assert inspect(str(output)).totals.rows_read == 100
    for each in inputs:
        code, _, err = finish(start(each, "-o", output))
        assert code == 0, err
    assert inspect(str(output)).totals.rows_read == 300
    assert inspect(str(output)).problems == ()


def test_two_runs_on_one_output_at_once(inputs, clean, tmp_path):
    output = tmp_path / "out"
    commands = [start(*inputs, "-o", output, pause=0.05) for _ in range(2)]
    ended = [finish(command) for command in commands]
    # The second never touches a new OUT that the first holds, and names its process.
    [(_, _, error)] = [command for command in ended if command[0] == 1]
    assert [code for code, _, _ in sorted(ended)] == [0, 1]
    pids = [command.pid for command in commands]
    assert re.search(rf"out is in use by another command \(process ({pids[0]}|{pids[1]}) on ", error)
    assert_resumes(inputs, output, clean)


def test_hostile_names_in_a_tar_are_only_keys(tmp_path):
    import io
    import tarfile

    good = next(item for item in draw_items(per_class=2, size=48, seed=0))
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("../../escaped.jpg", "/etc/escaped.jpg", "a/../../escaped2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(good.data)
            tar.addfile(info, io.BytesIO(good.data))
    before = set(tmp_path.parent.rglob("*escaped*"))
    code, _, err = finish(start(tmp_path / "evil.tar", "-o", tmp_path / "out"))
    assert code == 0, err
    keys = rows(tmp_path / "out")
    assert set(keys) == {
        f"{tmp_path}/evil.tar#{n}" for n in ("../../escaped.jpg", "/etc/escaped.jpg", "a/../../escaped2.jpg")
    }
    assert set(tmp_path.parent.rglob("*escaped*")) == before
    assert not os.path.exists("/etc/escaped.jpg")


def test_failures_over_the_rate_are_exit_code_3(inputs, tmp_path):
    code, out, err = finish(start(inputs[1], "-o", tmp_path / "out", "--max-failure-rate", "0.01"))
    assert code == 3
    assert "over --max-failure-rate 1.00%" in err
    assert "read 100 = embedded 96 + failed 4" in out
    shutil.rmtree(tmp_path / "out")
    code, _, _ = finish(start(inputs[1], "-o", tmp_path / "out", "--max-failure-rate", "0.05"))
    assert code == 0
