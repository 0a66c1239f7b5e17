"""The GPU's benchmark runs on any machine, tiny, and writes what it found and what it couldn't do."""

import json
import os

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu import agreement


@pytest.mark.long
def test_tiny_on_this_machine(tmp_path, monkeypatch, capsys):
    few = ["--images", "3", "--image-size", "32", "--seconds", "0.01"]
    tiny = [*few, "--batch-sizes", "1", "2", "--precisions", "float32", "tf32", "--workers", "1", "2"]
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["gpu", *tiny, "--engine-per", "machine", "--out", str(tmp_path)])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    exact, rough = found["precisions"]["float32"], found["precisions"]["tf32"]
    chosen = (exact["chosen"]["batch_size"], exact["chosen"]["compiled"])
    ways = [chosen, (1, False), (2, False), (1, True), (2, True)]
    assert [(each["batch_size"], each["compiled"]) for each in exact["rates"]] == ways
    assert exact["largest_relative_difference"] < 1e-5
    assert exact["least_cosine"] > 1 - 1e-9
    assert [(each["workers"], each["images"]) for each in exact["whole"]] == [(1, 3), (2, 3)]
    assert all(0 < each["working_seconds"] < each["seconds"] for each in exact["whole"])
    assert "tf32 needs an NVIDIA GPU" in rough["error"] or rough["largest_relative_difference"] < 1e-2
    # The processes that measured had another.
    assert os.environ["FEATUREMILL_CACHE"] != str(tmp_path)
    table = (tmp_path / "gpu.md").read_text()
    for row in ("float32, not compiled", "float32, compiled", "float32, 1 worker", "float32, 2 workers"):
        [line] = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
        assert "–" not in line
    assert capsys.readouterr().out == (tmp_path / "gpu.md").read_text() + "\n"


@pytest.mark.long
def test_what_time_was_too_short_for_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path))
    few = ["--images", "3", "--image-size", "32", "--seconds", "0.01", "--precisions", "float32", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["gpu", *few, "--minutes", "0", "--out", str(tmp_path)])
    gpu.main()
    assert "| float32, 1 worker | not tried: 0 minutes were over |" in capsys.readouterr().out


def test_the_bare_rate_is_that_of_what_was_chosen():
    rates = [
        {"batch_size": size, "compiled": compiled, "images_per_second": rate}
        for size, compiled, rate in ((64, False, 100.0), (64, True, 90.0), (128, True, 120.0))
    ]
    assert gpu._bare({"rates": rates, "chosen": {"compiled": True, "batch_size": 64}}) == 90.0
    assert gpu._bare({"rates": rates, "chosen": {"compiled": False, "batch_size": 128}}) is None


def test_agreement():
    found = agreement(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[4.0, 3.0], [0.0, 1.0]]))
    assert found == {"largest_relative_difference": 0.25, "least_cosine": 0.96}
