"""The worker pool's door: who is let in, from where, and that its token stays a secret."""

import ipaddress
import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from apache_beam.transforms.environments import ExternalEnvironment

from pipeline.runners.options import TOKEN, TOKEN_FILE, TOKEN_PARAM, beam_options, pool_token
from pipeline.runners.worker_pool import check_address
from tests.distributed.clusters import WorkerPool
from transforms.errors import FeaturemillError

SECRET = "correct horse battery staple"


@pytest.fixture
def pool(tmp_path):
    pools = []

    def started(**more) -> WorkerPool:
        pools.append(WorkerPool(tmp_path / "pool", **more))
        pools[-1].wait()
        return pools[-1]

    yield started
    for each in pools:
        each.stop()


def ask(port: int, params: dict[str, str]) -> str:
    """Asks for a worker as Flink's TaskManager does; returns the error."""
    # Nobody listens there: a worker that is started ends by itself.
    control = endpoints_pb2.ApiServiceDescriptor(url="127.0.0.1:1")
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1", control_endpoint=control, params=params)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel).StartWorker(request, timeout=30).error


def addresses(port: int) -> set[str]:
    """The addresses on which somebody listens on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/net/{table}")
        rows = [line.split() for line in path.read_text().splitlines()[1:]] if path.exists() else []
        found |= {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    # Linux writes words of 32 bits in the machine's order; gRPC takes IPv4's addresses within IPv6.
    raw = [b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)) for text in found]
    return {str(getattr(each, "ipv4_mapped", None) or each) for each in map(ipaddress.ip_address, raw)}


def test_it_listens_on_loopback_alone(pool):
    started = pool()
    assert {"127.0.0.1"} <= addresses(started.port) <= {"127.0.0.1", "::1"}
    assert ask(started.port, {}) == ""


@pytest.mark.parametrize("how", ["variable", "file"])
def test_who_doesnt_know_the_token_gets_no_worker(pool, tmp_path, how):
    (tmp_path / "token").write_text(f"{SECRET}\n")
    env = {TOKEN: SECRET} if how == "variable" else {TOKEN_FILE: str(tmp_path / "token")}
    started = pool(env=env, address="0.0.0.0")
    for params, what in (({}, "no token"), ({TOKEN_PARAM: "guess"}, "a wrong token"), ({TOKEN_PARAM: "é"}, "a wrong")):
        assert f"was asked with {what}" in ask(started.port, params)
    assert started.workers() == []
    assert ask(started.port, {TOKEN_PARAM: SECRET}) == ""
    [worker] = started.workers()
    assert not {TOKEN, TOKEN_FILE} & worker.environ().keys()
    log = (tmp_path / "pool/pool.log").read_text()
    assert [line.split(", ")[1] for line in log.splitlines() if line.startswith("refused ipv4:127.0.0.1:")] == [
        "which has no token",
        "which has a wrong token",
        "which has a wrong token",
    ]
    assert SECRET not in log
    assert "guess" not in log


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "fe80::1", "my.host"])
def test_another_address_needs_a_token(address):
    with pytest.raises(FeaturemillError, match=f"--address {address} can be reached from other machines"):
        check_address(address, "")
    check_address(address, SECRET)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.0.7", "::1"])
def test_loopback_needs_none(address):
    check_address(address, "")


def test_a_pool_without_its_token_doesnt_start():
    command = [sys.executable, "-m", "featuremill.own", "pipeline.runners.worker_pool", "--port=0", "--address=0.0.0.0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "set FEATUREMILL_POOL_TOKEN" in ended.stderr


@pytest.mark.parametrize("config", ["localhost:50000", '{"url": "localhost:50000", "params": {"more": "x"}}'])
def test_a_job_carries_the_token_to_the_pool(monkeypatch, config):
    args = ["--environment_type=EXTERNAL", f"--environment_config={config}"]
    asked = {"runner": "FlinkRunner", "workers": 1, "places": []}
    monkeypatch.delenv(TOKEN, raising=False)
    assert beam_options(args, **asked).view_as(PortableOptions).environment_config == config
    monkeypatch.setenv(TOKEN, f" {SECRET}\n")
    environment = ExternalEnvironment.from_options(beam_options(args, **asked).view_as(PortableOptions))
    assert environment.url == "localhost:50000"
    assert environment.params == {**(json.loads(config)["params"] if "{" in config else {}), TOKEN_PARAM: SECRET}
    docker = beam_options(["--environment_type=DOCKER", "--environment_config=image"], **asked)
    assert docker.view_as(PortableOptions).environment_config == "image"


def test_a_file_without_a_token_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "empty").write_text("\n")
    for name, problem in (("empty", "is empty"), ("gone", "can't be read: .*No such file")):
        monkeypatch.setenv(TOKEN_FILE, str(tmp_path / name))
        with pytest.raises(FeaturemillError, match=problem):
            pool_token()
