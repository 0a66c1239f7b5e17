"""One Flink cluster and one worker pool for all tests; logs are shown when a test fails, skips are loud."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.distributed import fetch
from tests.distributed.clusters import FlinkCluster, WorkerPool, wait_until

_LOGS: list[Path] = []
_TAIL = 40


def fetched(get: Callable[[], Path]) -> Path:
    """Returns what was fetched; skips the test if it isn't to be had."""
    try:
        return get()
    except fetch.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def logs(tmp_path_factory) -> Path:
    _LOGS.append(tmp_path_factory.mktemp("logs"))
    return _LOGS[0]


@pytest.fixture(scope="session")
def pool(logs) -> Iterator[WorkerPool]:
    # Only the fake engine knows the pause.
    pool = WorkerPool(logs / "pool", env={"FAKE_PAUSE_SECONDS": "0.3"})
    try:
        pool.wait()
        yield pool
    finally:
        pool.stop()


@dataclass
class Flink:
    """A cluster with a pool of workers."""

    cluster: FlinkCluster
    pool: WorkerPool
    jar: Path

    def options(self, parallelism: int = 2) -> list[str]:
        """Returns Beam's options for a job on it."""
        jar = f"--flink_job_server_jar={self.jar}"
        return [*self.cluster.options, *self.pool.options, f"--parallelism={parallelism}", jar]

    def repair(self) -> None:
        """Brings everything back to how it was before a fault."""
        if not self.pool.process.is_alive:
            self.pool.restart()
        alive = [manager for manager in self.cluster.task_managers if manager.is_alive]
        self.cluster.task_managers[:] = alive
        while len(self.cluster.task_managers) < 2:
            self.cluster.add_task_manager()
        self.cluster.wait()

    def assert_quiet(self) -> None:
        """No job goes on, no worker and no job server is left."""
        wait_until(lambda: not self.cluster.running_jobs(), "end of all jobs", 20)
        if self.pool.process.is_alive:
            wait_until(lambda: not self.pool.workers(), "end of all workers", 20)
        servers = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
        assert [command for command in servers if str(self.jar) in command] == []


@pytest.fixture(scope="session")
def _flink(logs, pool) -> Iterator[Flink]:
    jars, jar = fetched(fetch.flink), fetched(lambda: fetch.job_server("flink"))
    cluster = FlinkCluster(jars, logs / "flink")
    try:
        cluster.wait()
        yield Flink(cluster, pool, jar)
    finally:
        cluster.stop()


@pytest.fixture
def flink(_flink) -> Iterator[Flink]:
    """The cluster, whole before a test and quiet after it."""
    _flink.repair()
    yield _flink
    _flink.assert_quiet()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        for path in sorted(path for folder in _LOGS for path in folder.rglob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-_TAIL:]
            report.sections.append((f"end of {path}", "\n".join(line[:300] for line in lines)))


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("SKIPPED: not proved on this machine", sep="!", red=True, bold=True)
        for reason in sorted({str(report.longrepr[-1]) for report in skipped}):
            terminalreporter.line(f"SKIPPED: {reason.removeprefix('Skipped: ')}")
