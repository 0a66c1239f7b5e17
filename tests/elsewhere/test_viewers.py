"""The commands of docs/query.md: ours print what it shows, and the viewers' servers hand out OUT's points."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.elsewhere.snippets import commands, in_shell, shell, snippets
from transforms.store.features import open_features

_TIMEOUT_SECONDS = 240


@pytest.mark.parametrize("number", range(len(commands("Without any other tool"))))
def test_our_commands_print_what_is_shown(place, number):
    line = commands("Without any other tool")[number]
    outcome = shell(line)
    assert outcome.returncode == 0, outcome.stderr
    shown = [text.splitlines() for text in snippets("Without any other tool", "text")]
    printed = outcome.stdout.splitlines()
    if line.split()[1] in ("map", "report"):
        page = line.split("--html ")[1].split()[0]
        assert printed[0].startswith(f"{page}: ")
        return
    # Numbers and names are of other photos; what stands above them is the same, and it is of one command only.
    [block] = [lines for lines in shown if _begins_like(lines, printed)]
    assert len(block) > 2
    heads = [text for text in block if text.split()[:1] in (["cosine"], ["distance"], ["label"])]
    assert heads
    assert all(any(head.split() == text.split() for text in printed) for head in heads)


def _begins_like(shown: list[str], printed: list[str]) -> bool:
    return shown[0].split(":")[0].split() == printed[0].split(":")[0].split()


@contextmanager
def serving(line: str, ready: str) -> Iterator[str]:
    """Runs a server of the docs on a free port, and yields its address as soon as it answers there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = in_shell(f"{line} --host 127.0.0.1 --port {port}")
    with open("server.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for(address + ready, server)
            yield address
        finally:
            server.terminate()


def wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended: see server.log"
        try:
            get(address)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"{address} doesn't answer")


def get(address: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def eventually(ask: Callable[[], object]) -> object:
    """Returns the first answer that isn't empty."""
    end = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.2)
    return pytest.fail("the server has nothing to show")


def test_projector(place):
    convert, serve = commands("TensorBoard's projector")
    assert shell(convert).returncode == 0
    features = open_features("features")
    with serving(serve, "/") as address:
        assert b"<html" in get(f"{address}/").lower()
        # Logs are read after the page is up.
        [run] = eventually(lambda: json.loads(get(f"{address}/data/plugin/projector/runs")))
        asked = urllib.parse.urlencode({"run": run, "name": "embedding"})
        [tensor] = json.loads(get(f"{address}/data/plugin/projector/info?{asked}"))["embeddings"]
        assert (tensor["tensorName"], tensor["tensorShape"]) == ("embedding", [features.rows, 512])
        numbers = np.frombuffer(get(f"{address}/data/plugin/projector/tensor?{asked}"), np.float32)
        np.testing.assert_array_equal(numbers.reshape(-1, 512), features.to_numpy())
        lines = get(f"{address}/data/plugin/projector/metadata?{asked}").decode().splitlines()
    assert lines[0].split("\t")[:2] == ["key", "label"]
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        [key, label] for key, label in zip(features.keys, features.labels, strict=True)
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_embedding_atlas(place, number):
    line = commands("Embedding Atlas")[number]
    # Another test of the same place may have made the map; no command writes over it.
    if "places" in line and not (place / "places.parquet").exists():
        [make_map] = [text for text in commands("Without any other tool") if "places.parquet" in text]
        assert shell(make_map).returncode == 0
    with serving(line, "/data/metadata.json") as address:
        assert b"<html" in get(f"{address}/").lower()
        names = json.loads(get(f"{address}/data/metadata.json"))["props"]["data"]
        x, y = names["projection"]["x"], names["projection"]["y"]
        query = {"type": "json", "sql": f'SELECT key, label, "{x}" AS x, "{y}" AS y FROM dataset ORDER BY key'}
        points = json.loads(get(f"{address}/data/query", json.dumps(query).encode()))
    features = open_features("features")
    assert [(p["key"], p["label"]) for p in points] == sorted(zip(features.keys, features.labels, strict=True))
    places = np.array([(p["x"], p["y"]) for p in points], float)
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) > len(places) / 2
    if number:
        table = pq.read_table("places.parquet").sort_by("key")
        np.testing.assert_allclose(places, np.stack([table["x"], table["y"]], axis=1), rtol=1e-6)
