"""What breaks on a cluster, broken for real. After each: the same rows, and the right exit code and message.

`FEATUREMILL_FAULT_ROUNDS=5` does each that often.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.demo.samples import draw_items, write_tar
from pipeline.maintenance.inspect import inspect
from pipeline.runners.options import TOKEN
from tests.distributed.clusters import WorkerPool, wait_until
from tests.distributed.commands import assert_one_line, assert_whole, start
from tests.pipeline.extraction.test_faults import SHARING
from tests.pipeline.extraction.test_run import rows
from tests.support import deadly
from tests.support.commands import finish
from tests.transforms.embedding.test_guard import DEEDS, failures, write_photos

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.parametrize("time", range(int(os.environ.get("FEATUREMILL_FAULT_ROUNDS", "1")))),
]
SETTINGS = ["--image-size", "32", "--batch-size", "4"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """240 small images in twelve tar shards, a few of them broken; with the pool's pause a unit takes 1.5 s."""
    folder = tmp_path_factory.mktemp("shards")
    items = draw_items(per_class=60, size=48, seed=2)
    for number in range(12):
        write_tar(folder / f"{number:02}.tar", items[number::12])
    return folder


@pytest.fixture(scope="module")
def expected(shards, tmp_path_factory) -> dict[str, tuple]:
    """The rows of an undisturbed run on one machine."""
    output = tmp_path_factory.mktemp("clean") / "out"
    code, _, err = finish(start(shards, output, SETTINGS, fake=True))
    assert code == 0, err
    found = rows(output)
    assert len(found) == 236
    return found


def parts(output: Path) -> int:
    return len(os.listdir(output / "features")) if (output / "features").is_dir() else 0


def in_the_middle(
    shards: Path, output: Path, flink, parallelism: int = 2, settings: Sequence[str] = SETTINGS
) -> subprocess.Popen:
    """Starts a job and waits until some of it is done."""
    command = start(shards, output, settings, "FlinkRunner", flink.options(parallelism), fake=True)
    wait_until(lambda: parts(output) >= 2 or command.poll() is not None, "two parts", 120)
    assert command.poll() is None, finish(command)
    assert parts(output) < 10
    return command


def assert_survives(command: subprocess.Popen, output: Path, expected: dict[str, tuple]) -> None:
    code, _, err = finish(command)
    assert (code, err) == (0, ""), err
    assert_whole(output, expected)


def assert_resumes(shards: Path, output: Path, flink, expected: dict[str, tuple]) -> None:
    before = {part.name: part.stat().st_mtime_ns for part in (output / "features").iterdir()}
    assert 2 <= len(before) < 12
    flink.repair()
    again = start(shards, output, SETTINGS, "FlinkRunner", flink.options(), fake=True)
    assert_survives(again, output, expected)
    # What was committed wasn't done again.
    assert all((output / "features" / name).stat().st_mtime_ns == when for name, when in before.items())


def test_a_killed_worker_is_replaced(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    flink.pool.workers()[0].kill()
    assert_survives(command, tmp_path / "out", expected)


def test_a_killed_worker_pool_that_comes_back(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    flink.pool.restart()
    assert_survives(command, tmp_path / "out", expected)
    # Beam's Flink runner (2.62) forgets a worker whose attempt was given up while it was starting: it idles until its
    # TaskManager or its pool ends.
    flink.pool.restart()


def test_a_killed_worker_pool_that_stays_away(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    flink.pool.process.kill()
    code, _, err = finish(command)
    assert code == 1
    assert_one_line(err, "a worker pool can't be reached", "run the same command again")
    assert_resumes(shards, tmp_path / "out", flink, expected)


def test_a_killed_task_manager_is_replaced(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    flink.cluster.task_managers[0].kill()
    flink.repair()
    assert_survives(command, tmp_path / "out", expected)


def test_a_cancelled_job(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    [job] = flink.cluster.running_jobs()
    flink.cluster.cancel(job)
    code, _, err = finish(command)
    assert code == 1
    assert_one_line(err, "the job was cancelled on the cluster", "run the same command again")
    assert_resumes(shards, tmp_path / "out", flink, expected)


def test_ctrl_c_cancels_the_job(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    os.killpg(command.pid, signal.SIGINT)
    code, _, err = finish(command, 20)
    assert code == 130
    assert_one_line(err, "interrupted", "run the same command again")
    flink.assert_quiet()
    assert_resumes(shards, tmp_path / "out", flink, expected)


def test_a_second_job_on_an_output_is_refused(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink)
    second = start(shards, tmp_path / "out", SETTINGS, "FlinkRunner", flink.options(), fake=True)
    code, _, err = finish(second)
    assert code == 1
    assert_one_line(err, "is in use by another command (process ", "wait for that to end")
    assert_survives(command, tmp_path / "out", expected)


def test_workers_of_a_host_share_an_engine_that_is_killed(shards, expected, tmp_path, flink, time):
    command = in_the_middle(shards, tmp_path / "out", flink, settings=[*SETTINGS, "--engine-per", "machine"])
    wait_until(lambda: len(flink.pool.workers()) == 2, "second worker")
    [engine] = [process for process in flink.pool.process.children() if SHARING in process.cmdline()]
    engine.kill()
    assert parts(tmp_path / "out") < 12
    # Both workers have lost it; the job is tried again, and they start another.
    assert_survives(command, tmp_path / "out", expected)


def test_two_jobs_on_one_output_without_locks(shards, expected, tmp_path, flink, time):
    jobs = [(shards, tmp_path / "out", SETTINGS, "FlinkRunner", flink.options(1)) for _ in range(2)]
    commands = [start(*job, fake=True, env={"FAKE_NO_LOCKS": "yes"}) for job in jobs]
    wait_until(lambda: len(flink.cluster.running_jobs()) == 2, "two jobs at once", 120)
    ended = [finish(command) for command in commands]
    assert [(code, err) for code, _, err in ended] == [(0, ""), (0, "")], ended
    assert_whole(tmp_path / "out", expected)


@pytest.mark.parametrize(("deed", "end"), [("abort", signal.SIGABRT), ("hold", signal.SIGPROF)])
def test_an_image_that_ends_its_worker(tmp_path, logs, flink, deed, end, time):
    """Native code that crashes, and a record that keeps Python's lock for ever: a failure, with its reason."""
    write_photos(tmp_path / "photos", [deed])
    folder = logs / f"deadly-{deed}-{time}"
    pool = WorkerPool(folder, env=deadly.codecs(tmp_path / "codecs"))
    try:
        pool.wait()
        settings = [*SETTINGS, "--record-seconds", "2"]
        options = replace(flink, pool=pool).options()
        code, _, err = finish(start(tmp_path / "photos", tmp_path / "out", settings, "FlinkRunner", options, fake=True))
        assert (code, err) == (0, ""), err
    finally:
        pool.stop()
    assert f"a worker was killed by signal {end:d}" in (folder / "pool.log").read_text()
    found = failures(tmp_path / "out")
    assert [error for name, (error, _) in found.items() if deed in name] == [DEEDS[deed][0]]
    assert len(rows(tmp_path / "out")) + len(found) == len(os.listdir(tmp_path / "photos"))
    assert inspect(str(tmp_path / "out")).problems == ()
    assert os.listdir(tmp_path / "out" / "_tmp") == []


def test_a_worker_pool_with_a_token(shards, expected, tmp_path, logs, flink, time):
    pool = WorkerPool(logs / f"token-{time}", env={TOKEN: "of this test"})
    try:
        pool.wait()
        job = (shards, tmp_path / "out", SETTINGS, "FlinkRunner", replace(flink, pool=pool).options())
        code, _, err = finish(start(*job, fake=True))
        assert code == 1
        assert_one_line(err, "was asked with no token", f"set {TOKEN} where the job is launched")
        assert_survives(start(*job, fake=True, env={TOKEN: "of this test"}), tmp_path / "out", expected)
    finally:
        pool.stop()
