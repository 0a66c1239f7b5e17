"""Inspect: unlabelled rows are no class, an unfinished run is no contradiction, predictions are called so."""

import json
import shutil

import numpy as np
import pytest

from pipeline.cli.app import run_cli
from tests.support.pages_data import clusters, write_out
from transforms.store.manifest import PREDICTIONS, PREDICTIONS_SCHEMA_VERSION


def test_a_class_that_is_called_null_is_not_the_unlabelled_rows(tmp_path, capsys):
    out = write_out(tmp_path / "out", clusters(13)[0], labels=["null"] * 6 + [None] * 5 + ["none"] * 2)
    assert run_cli(["inspect", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["labels"], found["unlabelled"]) == ({"null": 6, "none": 2}, 5)
    assert run_cli(["inspect", out]) == 0
    assert "null 6, (none) 5, none 2" in capsys.readouterr().out


def test_json_without_unlabelled_rows_counts_none(tmp_path, capsys):
    assert run_cli(["inspect", write_out(tmp_path / "out", clusters(2)[0], labels=["a", "b"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unlabelled"], found["problems"], found["disagreements"]) == (0, [], [])


@pytest.mark.parametrize("rows", [0, 10])
def test_an_unfinished_run_does_not_disagree(tmp_path, capsys, rows):
    out = write_out(tmp_path / "out", clusters(10)[0], complete=False)
    if not rows:
        shutil.rmtree(tmp_path / "out/features")
    assert run_cli(["inspect", out]) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("the last run did not finish (status running): run the same extract command again\n")
    assert "PROBLEM" not in printed
    assert "agree" not in printed
    assert ("embedding    10 × 16" in printed) == bool(rows)
    assert "0 × 0" not in printed
    assert run_cli(["inspect", out, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (len(found["problems"]), found["disagreements"]) == (1, [])


def test_an_unfinished_run_may_disagree_as_well(tmp_path, capsys):
    out = write_out(tmp_path / "out", clusters(10)[0], complete=False)
    part = sorted((tmp_path / "out/features").iterdir())[0]
    part.rename(part.with_name("other.parquet"))
    assert run_cli(["inspect", out]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM      other.parquet: its footer calls it" in printed
    assert "did not finish" in printed
    assert printed.endswith("parts, footers and manifest disagree\n")


def test_a_finished_run_without_rows_has_no_statistics(tmp_path, capsys):
    assert run_cli(["inspect", write_out(tmp_path / "out", np.empty((0, 4), np.float32), units=1)]) == 0
    printed = capsys.readouterr().out
    assert "norm" not in printed
    assert "labels       none\n" in printed


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("inspect", []),
        ("verify", []),
        ("compact", []),
        ("query", ["--key", "a"]),
        ("train", ["--output", "head"]),
    ],
)
def test_predictions_are_called_so(tmp_path, capsys, monkeypatch, command, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pred/predictions").mkdir(parents=True)
    manifest = {"kind": PREDICTIONS, "schema_version": PREDICTIONS_SCHEMA_VERSION, "settings": {}}
    (tmp_path / "pred/manifest.json").write_text(json.dumps(manifest))
    assert run_cli([command, str(tmp_path / "pred"), *more]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "pred holds no features of featuremill extract: it holds predictions of featuremill predict, which are" in line
    )
