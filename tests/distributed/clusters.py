"""Real runners on loopback, each process in a session of its own: Flink standalone, worker pools.

Everything logs into one folder. Nothing outlives `stop`: sessions are killed whole.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests import ROOT

# What Flink's own start scripts open to it on Java 17.
_OPENED = "lang net io nio lang.reflect text time util util.concurrent util.concurrent.atomic util.concurrent.locks"
JAVA_FLAGS = [
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED.split()),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
]
JOB_SERVER_FLAGS = [f"--job_server_jvm_properties={flag}" for flag in JAVA_FLAGS]
_START_SECONDS = 60.0
# Each job leaves its classes behind in a Java process that isn't started anew, some 30 MB.
_METASPACE = "2g"


def free_port() -> int:
    """Returns a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port: int) -> bool:
    """True if somebody listens on this port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], object], what: str, seconds: float = _START_SECONDS) -> None:
    """Waits until the condition holds.

    Raises:
        AssertionError: It doesn't within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.1)


class Process:
    """A process at the head of its own session, with a log file."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT):
        with open(log, "ab") as file:
            self._popen = subprocess.Popen(
                ["nice", "-n", "10", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        """Kills the whole session, and waits."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(30)


class FlinkCluster:
    """A standalone cluster: a JobManager and TaskManagers of one slot each, as separate processes."""

    def __init__(self, jars: Path, folder: Path, *, task_managers: int = 2, retries: int = 4):
        """Args: the distribution's `lib`, where logs go, how many TaskManagers, how often a job is started again."""
        self._classpath, self._folder, self._retries, self._started = f"{jars}/*", folder, retries, 0
        self.rest_port, self._rpc_port = free_port(), free_port()
        folder.mkdir(parents=True)
        (folder / "flink-conf.yaml").write_text(
            "".join(f"{name}: {value}\n" for name, value in self._settings().items())
        )
        # Tasks' errors show up in the job's own messages; DEBUG lines would not help beside them.
        (folder / "log4j.properties").write_text(
            "rootLogger.level = INFO\nrootLogger.appenderRef.c.ref = C\n"
            "appender.c.name = C\nappender.c.type = CONSOLE\n"
            "appender.c.layout.type = PatternLayout\nappender.c.layout.pattern = %d %-5p %c - %m%n\n"
        )
        self.job_manager = self._java(
            "jobmanager", "512m", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        )
        self.task_managers: list[Process] = []
        for _ in range(task_managers):
            self.add_task_manager()

    def _settings(self) -> dict[str, object]:
        # Started by class, nobody works these sizes out from a total as Flink's scripts do.
        memory = {"task.heap.size": "192m", "task.off-heap.size": "0", "managed.size": "64m", "network.min": "64m"}
        memory |= {"network.max": "64m", "jvm-metaspace.size": _METASPACE, "jvm-overhead.min": "64m"}
        memory |= {"jvm-overhead.max": "64m"}
        return {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self._rpc_port,
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.process.size": "1g",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.rest_port,
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": 1,
            "taskmanager.cpu.cores": 1.0,
            "taskmanager.memory.framework.heap.size": "128m",
            "taskmanager.memory.framework.off-heap.size": "128m",
            **{f"taskmanager.memory.{name}": value for name, value in memory.items()},
            # Beam's job server can't set this for a batch job, so it is the cluster's.
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": self._retries,
            "restart-strategy.fixed-delay.delay": "2 s",
            # A killed TaskManager is noticed in seconds, not in the default's 50.
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 8000,
            "io.tmp.dirs": self._folder / "tmp",
            "blob.storage.directory": self._folder / "tmp",
        }

    def _java(self, name: str, heap: str, entry: str, *settings: str) -> Process:
        (self._folder / "tmp").mkdir(exist_ok=True)
        log4j = f"-Dlog4j.configurationFile={self._folder}/log4j.properties"
        command = ["java", f"-Xmx{heap}", "-XX:+UseSerialGC", f"-XX:MaxMetaspaceSize={_METASPACE}", *JAVA_FLAGS, log4j]
        command += ["-cp", self._classpath, entry, "--configDir", str(self._folder), *settings]
        return Process(command, self._folder / f"{name}.log")

    def add_task_manager(self) -> Process:
        """Starts one more TaskManager."""
        name = f"taskmanager-{self._started}"
        self._started += 1
        self.task_managers.append(self._java(name, "320m", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"))
        return self.task_managers[-1]

    def wait(self, slots: int | None = None) -> None:
        """Waits until all TaskManagers have registered."""
        wanted = len([manager for manager in self.task_managers if manager.is_alive]) if slots is None else slots
        wait_until(lambda: self._slots() == wanted, f"Flink cluster of {wanted} slots (logs in {self._folder})")

    def _slots(self) -> int:
        try:
            return self.get("overview")["slots-total"]
        except OSError:
            return -1

    def get(self, path: str) -> dict:
        """Asks the JobManager's REST interface."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}/{path}", timeout=10) as answer:
            return json.load(answer)

    def running_jobs(self) -> list[str]:
        """Returns the ids of the jobs that haven't ended."""
        ended = ("FINISHED", "FAILED", "CANCELED")
        return [job["id"] for job in self.get("jobs")["jobs"] if job["status"] not in ended]

    def cancel(self, job: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}/jobs/{job}", method="PATCH")
        urllib.request.urlopen(request, timeout=10).close()

    @property
    def options(self) -> list[str]:
        """Returns Beam's options for a job on this cluster, but for its workers."""
        master = f"--flink_master=127.0.0.1:{self.rest_port}"
        return [master, "--flink_version=1.19", f"--parallelism={len(self.task_managers)}", *JOB_SERVER_FLAGS]

    def stop(self) -> None:
        for process in [*self.task_managers, self.job_manager]:
            process.kill()


class WorkerPool:
    """Our worker pool: starts a worker process for each TaskManager that asks for one."""

    def __init__(
        self,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        address: str = "localhost",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._env, self.port, self._address = folder, env, port or free_port(), address
        self._start()

    def _start(self) -> None:
        self.process = Process(
            [
                *(sys.executable, "-m", "featuremill.own", "pipeline.runners.worker_pool"),
                *(f"--port={self.port}", f"--address={self._address}"),
            ],
            self._folder / "pool.log",
            env=self._env,
        )

    def restart(self) -> None:
        """Starts it again on its port, as a supervisor would."""
        self.process.kill()
        self._start()
        self.wait()

    def wait(self) -> None:
        wait_until(lambda: listens(self.port), f"worker pool (log in {self._folder})")

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in self.process.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "--control" in child.cmdline():
                    found.append(child)
        return found

    @property
    def options(self) -> list[str]:
        """Returns Beam's options for a job on these workers."""
        return ["--environment_type=EXTERNAL", f"--environment_config=localhost:{self.port}"]

    def stop(self) -> None:
        self.process.kill()
