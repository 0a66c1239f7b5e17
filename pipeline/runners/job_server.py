"""Runners elsewhere: their job server as a process of ours, and whether their cluster is there, asked before any work.

Beam can start a job server by itself, but only in the main thread, in our process group (Ctrl-C would end it before it
can cancel the job), without a limit on how long that may take, and with its output thrown away.
"""

import ctypes
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from transforms.errors import FeaturemillError, UsageError
from transforms.text import one_line

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.job_server import SubprocessJobServer
    from apache_beam.runners.runner import PipelineResult, PipelineRunner

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 45.0
_ASK_SECONDS = 10.0
_STOP_SECONDS = 5.0
# Under Beam's name, so that it is shown with --debug only.
_log = logging.getLogger("apache_beam.featuremill")


@contextmanager
def job_server(runner: "PipelineRunner", options: "PipelineOptions") -> Iterator[None]:
    """Starts the job server that a runner needs, tells the options where it is, and ends it with its files.

    A runner without one, or with one that the user has started (`--job_endpoint`), is left alone.

    Raises:
        FeaturemillError: The cluster, the endpoint or the job server isn't there, or isn't of the version asked for.
    """
    from apache_beam.options.pipeline_options import JobServerOptions, PortableOptions

    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint and endpoint != "embed":
        _check_listening(endpoint)
    server = None if endpoint else _own_server(runner, options)
    if server is None:
        yield
        return
    check_flink(options)
    with tempfile.TemporaryDirectory(prefix="featuremill-") as folder:
        # The server was made before, but asks for its folder only now.
        server._artifacts_dir = options.view_as(JobServerOptions).artifacts_dir or folder
        command, endpoint = _command(server)
        with open(f"{folder}/log", "w+b") as log, _process(command, log) as process:
            _wait_for(process, endpoint, log)
            options.view_as(PortableOptions).job_endpoint = endpoint
            yield


def _own_server(runner: "PipelineRunner", options: "PipelineOptions") -> "SubprocessJobServer | None":
    from apache_beam.runners.portability.job_server import SubprocessJobServer
    from apache_beam.runners.portability.portable_runner import PortableRunner

    # Not FnApiRunner, nor Dataflow's.
    if not isinstance(runner, PortableRunner):
        return None
    try:
        wrapped = runner.default_job_server(options)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(f"{type(runner).__name__} can't start: {one_line(error)}") from error
    server = getattr(wrapped, "_job_server", None)
    return server if isinstance(server, SubprocessJobServer) else None


def _command(server: "SubprocessJobServer") -> tuple[list[str], str]:
    try:
        command, endpoint = server.subprocess_cmd_and_endpoint()
    except Exception as error:
        raise FeaturemillError(
            f"there is no job server: {one_line(error)}; pass its jar (for Prism its program) by "
            "--flink_job_server_jar, --spark_job_server_jar or --prism_location"
        ) from error
    if shutil.which(command[0]) is None:
        raise FeaturemillError(
            f"the job server needs {command[0]}, which isn't installed here; install it (Java 11 or 17)"
        )
    return list(map(str, command)), endpoint


@contextmanager
def _process(command: list[str], log: BinaryIO) -> Iterator[subprocess.Popen]:
    _log.info("starting %s", command)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_us() if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.seek(0)
        _log.info("the job server said:\n%s", log.read().decode(errors="backslashreplace"))


def _end_with_us() -> Callable[[], None]:
    """Returns what a new process has to call for Linux to kill it when this one is killed."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for(process: subprocess.Popen, endpoint: str, log: BinaryIO) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _listens(endpoint, 1.0):
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            lines = [line.strip() for line in log.read().decode(errors="backslashreplace").splitlines()]
            errors = [line for line in lines if re.search(r"error|exception", line, re.I)]
            message = " ".join((errors or lines or ["it said nothing"])[0].split())
            how = "ended at once" if process.poll() is not None else f"did not listen within {_START_SECONDS:.0f} s"
            raise FeaturemillError(f"the job server {how}: {message}; check its jar and java -version (11 or 17)")
        time.sleep(0.1)


def _listens(endpoint: str, seconds: float) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def _check_listening(endpoint: str) -> None:
    if not _listens(endpoint, _ASK_SECONDS):
        raise FeaturemillError(f"no job server at {endpoint}; start it, or correct --job_endpoint (HOST:PORT)")


def check_flink(options: "PipelineOptions") -> None:
    """Asks a remote Flink cluster for its version; the job server has to be made for the same.

    Raises:
        FeaturemillError: The cluster can't be reached, or is of another version.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    flink = options.view_as(FlinkRunnerOptions)
    if flink.flink_master.startswith("["):
        return
    try:
        with urllib.request.urlopen(f"{flink.flink_master}/config", timeout=_ASK_SECONDS) as answer:
            cluster = json.load(answer)["flink-version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeaturemillError(
            f"no Flink cluster at {flink.flink_master}: {one_line(error)}; start it, or correct --flink_master "
            "(HOST:PORT of the JobManager's REST interface)"
        ) from error
    ours = _flink_of_jar(flink.flink_job_server_jar) or flink.flink_version
    if cluster.split(".")[:2] != ours.split(".")[:2]:
        raise FeaturemillError(
            f"the cluster at {flink.flink_master} is Flink {cluster}, but the job server is made for {ours}; pass "
            f"--flink_version={'.'.join(cluster.split('.')[:2])} and a job server jar of that version"
        )


def cancel(result: "PipelineResult", options: "PipelineOptions") -> None:
    """Cancels a job. A batch on Flink goes on when Beam's job server is told, so Flink itself is told as well."""
    result.cancel()
    for url in _flink_jobs(result, options):
        request = urllib.request.Request(f"{url}?mode=cancel", method="PATCH")
        urllib.request.urlopen(request, timeout=_ASK_SECONDS).close()


def failures(result: "PipelineResult", options: "PipelineOptions") -> str:
    """Returns all that a Flink cluster says of why a job failed, in all its attempts; empty for other runners.

    Beam hands on the last failure alone, and that may be the interruption of a task by the failure of another. Flink
    itself may tell of that other one in its history, among the failures at the same time, or with its task alone.
    """
    messages: list[str] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        for url in _flink_jobs(result, options):
            with urllib.request.urlopen(f"{url}/exceptions", timeout=_ASK_SECONDS) as answer:
                messages += _strings(json.load(answer))
    return "\n".join(messages)


def _strings(value: object) -> Iterator[str]:
    """Yields every text in a JSON value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _flink_jobs(result: "PipelineResult", options: "PipelineOptions") -> Iterator[str]:
    """Yields the REST addresses of a job on a remote Flink cluster; none for other runners."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    master = options.view_as(FlinkRunnerOptions).flink_master
    if master.startswith("["):
        return
    # Beam's id is Flink's name and a number.
    name = result._job_id.rpartition("_")[0]
    with urllib.request.urlopen(f"{master}/jobs/overview", timeout=_ASK_SECONDS) as answer:
        jobs = json.load(answer)["jobs"]
    yield from (f"{master}/jobs/{job['jid']}" for job in jobs if job["name"] == name)


def _flink_of_jar(jar: str | None) -> str | None:
    """Returns the Flink version that a job server's jar is made for, None if it doesn't say."""
    if not jar:
        return None
    marker = re.compile(r"beam-runners-flink-(\d+\.\d+)")
    try:
        with zipfile.ZipFile(jar) as archive:
            names = [name for name in archive.namelist() if name.startswith("META-INF/")]
    except (OSError, zipfile.BadZipFile):
        # Missing or broken: whoever starts it says so.
        names = []
    found = [match[1] for match in map(marker.search, [*names, jar]) if match]
    return found[0] if found else None
