"""The same rows on every runner, bit for bit; and one line with the cure where a runner can't be used."""

import json
import os
import shutil
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.demo.samples import Item, write_tar
from pipeline.maintenance.inspect import inspect
from tests.distributed import fetch
from tests.distributed.clusters import Process, free_port, listens, wait_until
from tests.distributed.commands import assert_one_line, assert_whole, start
from tests.distributed.conftest import fetched
from tests.pipeline.extraction.test_run import rows
from tests.support import onnx_files
from tests.support.commands import finish
from tests.support.factories import shared_data

# What is fetched the first time takes minutes.
pytestmark = pytest.mark.timeout(1500)
SETTINGS = ["--weights", "random:0", "--engine", "ncnn", "--threads", "1"]
SMALL = [*SETTINGS, "--image-size", "64"]
LIMIT_SECONDS = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """210 photos in twelve tar shards."""
    folder = tmp_path_factory.mktemp("shards")
    photos = sorted((shared_data() / "hymenoptera").glob("*/*/*.*"))
    items = [Item(f"{i:03}-{path.name}", path.parent.name, path.read_bytes()) for i, path in enumerate(photos)]
    assert len(items) == 210
    for number in range(12):
        write_tar(folder / f"{number:02}.tar", items[number::12])
    return folder


def extract(shards: Path, output: Path, settings: list[str], runner: str = "FnApiRunner", beam: list[str] = ()) -> dict:
    code, _, err = finish(start(shards, output, settings, runner, beam))
    assert (code, err) == (0, ""), err
    found = rows(output)
    assert len(found) == 210
    return found


@pytest.fixture(scope="module")
def in_one(shards, tmp_path_factory) -> Path:
    """What a run in one process wrote."""
    extract(shards, out := tmp_path_factory.mktemp("one") / "out", SMALL)
    return out


@pytest.fixture(scope="module")
def expected(in_one) -> dict[str, tuple]:
    return rows(in_one)


def contents(output: Path) -> dict[str, bytes]:
    """{part: its bytes}, without the parts of added features."""
    return {path.name: path.read_bytes() for path in (output / "features").iterdir()}


def test_two_processes(shards, expected, tmp_path):
    extract(shards, tmp_path / "out", [*SMALL, "--workers", "2"])
    assert_whole(tmp_path / "out", expected)


def test_flink(shards, expected, tmp_path, flink):
    extract(shards, tmp_path / "out", SMALL, "FlinkRunner", flink.options())
    assert_whole(tmp_path / "out", expected)
    # And both TaskManagers had some of it.
    job = max(flink.cluster.get("jobs/overview")["jobs"], key=lambda job: job["start-time"])["jid"]
    wait_until(lambda: not flink.cluster.running_jobs(), "end of the job")
    vertices = flink.cluster.get(f"jobs/{job}")["vertices"]
    [extracting] = [
        vertex["id"] for vertex in vertices if "Extract" in vertex["name"] and "Sink" not in vertex["name"]
    ][-1:]
    subtasks = flink.cluster.get(f"jobs/{job}/vertices/{extracting}")["subtasks"]
    assert len({subtask["endpoint"] for subtask in subtasks}) == 2
    assert all(subtask["metrics"]["read-records"] > 0 for subtask in subtasks)


def test_flink_at_full_size(shards, tmp_path, flink):
    alone = extract(shards, tmp_path / "one", SETTINGS)
    extract(shards, tmp_path / "out", SETTINGS, "FlinkRunner", flink.options())
    assert_whole(tmp_path / "out", alone)


def test_flink_with_a_network_of_ones_own(shards, tmp_path, flink):
    (tmp_path / "net.onnx").write_bytes(onnx_files.transformer().SerializeToString())
    settings = ["--backbone", f"{tmp_path}/net.onnx", "--normalise", "tf", "--threads", "1"]
    settings += ["--feature", "class=hidden:cls", "--feature", "patches=hidden:avg"]
    alone = extract(shards, tmp_path / "one", settings)
    extract(shards, tmp_path / "out", settings, "FlinkRunner", flink.options())
    assert_whole(tmp_path / "out", alone)
    assert all(report.engine.startswith("onnx (") for report in inspect(str(tmp_path / "out")).reports)


def test_flink_adds_a_feature(shards, in_one, expected, tmp_path, flink):
    """To rows that were embedded here, and stay as they are."""
    places = {"one": ("FnApiRunner", []), "out": ("FlinkRunner", flink.options())}
    for name, runner in places.items():
        shutil.copytree(in_one, tmp_path / name)
        extract(shards, tmp_path / name, [*SMALL, "--add-feature", "more=block2_pool:avg"], *runner)
    with_it = rows(tmp_path / "one")
    assert_whole(tmp_path / "out", with_it)
    assert {key: row[:-1] for key, row in with_it.items()} == expected
    assert contents(tmp_path / "out") == contents(in_one)
    assert inspect(str(tmp_path / "out")).added["more"].rows == 210


def test_spark(shards, expected, tmp_path, pool):
    jar = fetched(lambda: fetch.job_server("spark"))
    beam = ["--spark_master_url=local[2]", f"--spark_job_server_jar={jar}", *pool.options]
    extract(shards, tmp_path / "out", SMALL, "SparkRunner", beam)
    assert_whole(tmp_path / "out", expected)


def test_prism(shards, expected, tmp_path, pool):
    beam = [f"--prism_location={fetched(fetch.prism)}", *pool.options]
    extract(shards, tmp_path / "out", SMALL, "PrismRunner", beam)
    assert_whole(tmp_path / "out", expected)


def fails(shards: Path, output: Path, beam: list[str], *words: str, runner: str = "FlinkRunner") -> None:
    started = time.monotonic()
    code, _, err = finish(start(shards, output, SMALL, runner, beam), LIMIT_SECONDS)
    assert code == 1
    assert_one_line(err, *words)
    assert time.monotonic() - started < LIMIT_SECONDS


def test_no_cluster(shards, tmp_path):
    fails(shards, tmp_path / "out", [f"--flink_master=127.0.0.1:{free_port()}"], "no Flink cluster", "--flink_master")


def test_no_job_server(shards, tmp_path):
    beam = [f"--job_endpoint=127.0.0.1:{free_port()}", "--environment_type=LOOPBACK"]
    fails(shards, tmp_path / "out", beam, "no job server", "--job_endpoint", runner="PortableRunner")


def test_a_job_server_jar_that_is_none(shards, tmp_path, flink):
    (tmp_path / "server.jar").write_text("no jar")
    beam = [*flink.options(), f"--flink_job_server_jar={tmp_path}/server.jar"]
    fails(shards, tmp_path / "out", beam, "the job server ended at once", "check its jar")


@pytest.fixture
def newer_cluster() -> str:
    """A cluster of the next version, as far as its version goes."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"flink-version": "1.20.1"}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_wrong_version_by_its_option(shards, tmp_path, newer_cluster):
    beam = [f"--flink_master={newer_cluster}", "--flink_version=1.19"]
    fails(
        shards, tmp_path / "out", beam, "is Flink 1.20.1, but the job server is made for 1.19", "--flink_version=1.20"
    )


def test_the_wrong_version_by_its_jar(shards, tmp_path, newer_cluster):
    with zipfile.ZipFile(tmp_path / "server.jar", "w") as jar:
        jar.writestr("META-INF/maven/org.apache.beam/beam-runners-flink-1.18/pom.properties", "")
    beam = [f"--flink_master={newer_cluster}", "--flink_version=1.20", f"--flink_job_server_jar={tmp_path}/server.jar"]
    fails(shards, tmp_path / "out", beam, "is Flink 1.20.1, but the job server is made for 1.18")


def test_workers_without_the_package(shards, tmp_path, flink, logs):
    # Beam's own pool, with an interpreter that doesn't find ours.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '') "
        "and '__editable__' not in getattr(f, '__name__', '')]\n"
        f"sys.path = [p for p in sys.path if p != {str(Path(__file__).parents[2])!r}]\n"
    )
    port = free_port()
    pool = Process(
        [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"],
        logs / "bare-pool.log",
        env={"PYTHONPATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
    )
    try:
        wait_until(lambda: listens(port), f"worker pool (log in {logs})")
        beam = [*flink.options(), f"--environment_config=localhost:{port}"]
        fails(shards, tmp_path / "out", beam, "featuremill isn't installed there")
    finally:
        pool.kill()
