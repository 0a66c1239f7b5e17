"""The GPU's benchmark runs on any machine, tiny, and writes what it found and what it couldn't do."""

import json

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu import agreement


@pytest.mark.long
def test_tiny_on_this_machine(tmp_path, monkeypatch, capsys):
    few = ["--images", "3", "--image-size", "32", "--seconds", "0.01"]
    tiny = [*few, "--batch-sizes", "1", "2", "--precisions", "float32", "tf32"]
    monkeypatch.setattr("sys.argv", ["gpu", *tiny, "--out", str(tmp_path)])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    exact, rough = found["precisions"]["float32"], found["precisions"]["tf32"]
    assert [(each["batch_size"], each["compiled"]) for each in exact["rates"][:2]] == [(1, False), (2, False)]
    assert exact["rates"][2]["compiled"] is True
    assert exact["largest_relative_difference"] < 1e-5
    assert exact["least_cosine"] > 1 - 1e-9
    assert exact["whole"]["images"] == 3
    assert exact["whole"]["units_seconds"] < exact["whole"]["seconds"]
    assert "tf32 needs an NVIDIA GPU" in rough["error"] or rough["largest_relative_difference"] < 1e-2
    assert capsys.readouterr().out == (tmp_path / "gpu.md").read_text() + "\n"


def test_agreement():
    found = agreement(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[4.0, 3.0], [0.0, 1.0]]))
    assert found == {"largest_relative_difference": 0.25, "least_cosine": 0.96}
