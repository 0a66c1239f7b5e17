"""Predictions as people use them: in one file, and as what the other commands take."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from tests.support.pages_data import clusters, write_out
from transforms.predictors.head import load_head, save_head


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """OUT of 90 rows, a head on it, and PRED."""
    folder = tmp_path_factory.mktemp("used")
    vectors, labels = clusters(90, classes=3)
    write_out(folder / "OUT", vectors, keys=[f"k{i:02}" for i in range(90)], labels=labels)
    head = ["train", str(folder / "OUT"), "-o", str(folder / "HEAD"), "-q", "--no-errors", "--no-learning-curve"]
    assert run_cli(head) == 0
    assert run_cli(["predict", str(folder / "HEAD"), str(folder / "OUT"), "-o", str(folder / "PRED"), "-q"]) == 0
    return folder


def stored(folder):
    return pq.read_table(folder / "PRED/predictions").to_pylist()


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else list(csv.DictReader(lines))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predictions_in_one_file(made, tmp_path, ending, capsys):
    path = tmp_path / f"found.{ending}"
    command = ["predict", str(made / "HEAD"), str(made / "OUT"), "-o", str(path), "-q"]
    assert run_cli(command) == 0
    assert str(path) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    rows = read(path)
    assert [(row["key"], row["label"]) for row in rows] == [(row["key"], row["label"]) for row in stored(made)]
    assert [float(row["score"]) for row in rows] == pytest.approx([row["score"] for row in stored(made)])
    tops = [json.loads(row["top_labels"]) if ending == "csv" else row["top_labels"] for row in rows]
    assert tops == [row["top_labels"] for row in stored(made)]
    assert run_cli(command) == 1
    assert "is there already; choose another place, or pass --overwrite" in capsys.readouterr().err
    assert run_cli([*command, "--overwrite"]) == 0
    copied = tmp_path / f"copy.{ending}"
    assert run_cli(["convert", str(made / "PRED"), "-o", str(copied)]) == 0
    assert read(copied) == rows


def test_rows_without_an_answer(made, tmp_path, capsys):
    """The threshold is the head's own, or chosen for this call by what the head keeps of its validation rows."""
    head, out = tmp_path / "HEAD", str(made / "OUT")
    train = ["train", out, "-o", str(head), "-q", "--no-errors", "--no-learning-curve", "--abstain", "0.2"]
    assert run_cli(train) == 0
    assert "stay without an answer" in capsys.readouterr().out
    written = json.loads((head / "head.json").read_text())
    threshold = written["metrics"]["abstaining"]["threshold"]
    assert written["schema_version"] == 3, "what knows no threshold would answer without a word"
    assert json.loads((made / "HEAD/head.json").read_text())["schema_version"] < 3
    assert 0 < threshold < 1
    assert "coverage" in (head / "report.html").read_text()
    for name, folder, more in (
        ("own", head, []),
        ("rate", made / "HEAD", ["--abstain", "0.2"]),
        ("given", made / "HEAD", ["--threshold", str(threshold)]),
    ):
        pred = tmp_path / name
        assert run_cli(["predict", str(folder), out, "-o", str(pred), "-q", "--evaluate", *more]) == 0
        printed = capsys.readouterr().out
        rows = pq.read_table(pred / "predictions").to_pylist()
        known = [row for row in rows if row["label"] is not None]
        assert 0 < len(known) < len(rows)
        assert min(row["score"] for row in known) >= np.float32(threshold)
        assert all(row["score"] < np.float32(threshold) and row["agrees"] is None for row in rows if row not in known)
        assert all(row["top_labels"][0] for row in rows), "the best guess stays"
        assert f"unknown  {len(rows) - len(known)} of {len(rows)} rows" in printed
        manifest = json.loads((pred / "manifest.json").read_text())
        assert manifest["true_labels"]["known"] == sum(manifest["predicted_labels"].values()) == len(known)
        assert "coverage" in printed
        assert "coverage" in (pred / "errors.html").read_text()
    answered = ["predict", str(head), out, "-o", str(tmp_path / "all"), "-q", "--threshold", "0"]
    assert run_cli(answered) == 0
    assert "unknown" not in capsys.readouterr().out
    assert pq.read_table(tmp_path / "all/predictions")["label"].null_count == 0


def test_rows_far_from_the_training_rows_are_flagged(made, tmp_path, capsys):
    head, out = tmp_path / "HEAD", str(made / "OUT")
    train = ["train", out, "-o", str(head), "-q", "--no-errors", "--no-learning-curve", "--flag-far", "0.05"]
    assert run_cli(train) == 0
    loaded = load_head(str(head))
    assert json.loads((head / "head.json").read_text())["schema_version"] == 3
    # The same by plain NumPy: 1 less the cosine with the tenth nearest of the training rows.
    table, kept = pq.read_table(made / "OUT/features"), pq.read_table(head / "rows.parquet").to_pylist()
    side = {row["key"]: row["side"] for row in kept}
    sides = np.array([side[key] for key in table["key"].to_pylist()])
    vectors = loaded.model.transform(np.stack(table["embedding"].to_numpy()).astype(np.float32))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = 1 - np.sort(vectors @ vectors[sides == "train"].T, axis=1)[:, -10]
    assert (distances[sides == "validation"] > loaded.far.distance + 1e-3).mean() <= 0.05
    strange = -np.stack(table["embedding"].to_numpy())[:5].astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(strange.ravel()), strange.shape[1])
    pq.write_table(pa.table({"key": list("abcde"), "embedding": flat}), tmp_path / "strange.parquet")
    assert run_cli(["predict", str(head), out, "-o", str(tmp_path / "PRED"), "-q"]) == 0
    found = {row["key"]: row for row in pq.read_table(tmp_path / "PRED/predictions").to_pylist()}
    measured = [found[key]["distance"] for key in table["key"].to_pylist()]
    np.testing.assert_allclose(measured, distances, atol=2e-3)
    assert all(row["far"] == (row["distance"] > loaded.far.distance) for row in found.values())
    capsys.readouterr()
    strange = ["predict", str(head), str(tmp_path / "strange.parquet"), "-o", str(tmp_path / "far.parquet"), "-q"]
    assert run_cli(strange) == 0
    assert pq.read_table(tmp_path / "far.parquet")["far"].to_pylist() == [True] * 5
    assert "far      5 of 5 rows" in capsys.readouterr().out


def test_a_head_from_before_knows_no_rate(made, tmp_path, capsys):
    earlier = load_head(str(made / "HEAD"))
    metrics = {name: value for name, value in earlier.metrics.items() if name != "confidences"}
    save_head(replace(earlier, metrics=metrics), str(tmp_path / "HEAD"))
    assert run_cli(["predict", str(tmp_path / "HEAD"), str(made / "OUT"), "--abstain", "0.1"]) == 1
    assert "train it again, or pass --threshold P" in capsys.readouterr().err
    both = ["predict", str(made / "HEAD"), str(made / "OUT"), "--abstain", "0.1", "--threshold", "0.5"]
    assert run_cli(both) == 2
    assert "give one of them" in capsys.readouterr().err


def test_sql_has_predictions_beside_the_features(made, capsys):
    text = "SELECT count(*) AS n, sum((f.label = p.label)::int) AS agree FROM features f JOIN predictions p USING (key)"
    assert run_cli(["sql", str(made / "PRED"), text, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row == {"n": 90, "agree": sum(row["agrees"] for row in stored(made))}
    assert run_cli(["sql", str(made / "PRED"), "SELECT count(*) AS n FROM failures", "--csv"]) == 0
    assert capsys.readouterr().out.split() == ["n", "0"]


def test_other_commands_take_predictions_for_their_features(made, tmp_path, capsys):
    answers = []
    for place in ("OUT", "PRED"):
        assert run_cli(["query", str(made / place), "--key", "k03", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["queries"])
    assert answers[0] == answers[1]
    page, places = tmp_path / "map.html", tmp_path / "places.csv"
    command = ["map", str(made / "PRED"), "--html", str(page), "-o", str(places), "--method", "pca", "-q"]
    assert run_cli([*command, "--color", "agreement"]) == 0
    assert {row["key"]: row["prediction"] for row in read(places)} == {row["key"]: row["label"] for row in stored(made)}
    assert run_cli(["report", str(made / "PRED"), "--html", str(tmp_path / "run.html")]) == 0
    assert run_cli(["predict", str(made / "HEAD"), str(made / "PRED"), "-o", str(tmp_path / "AGAIN"), "-q"]) == 0
    again = pq.read_table(tmp_path / "AGAIN/predictions").to_pylist()
    assert again == stored(made)


def test_predictions_without_their_features_say_so(made, tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.ones(16, np.float32))
    vectors, labels = clusters(30, classes=3)
    plain = write_out(tmp_path / "OUT", vectors, labels=labels)
    assert run_cli(["predict", str(made / "HEAD"), plain, "-o", str(tmp_path / "PRED"), "-q"]) == 0
    (tmp_path / "OUT").rename(tmp_path / "moved")
    assert run_cli(["query", str(tmp_path / "PRED"), "--vector", str(tmp_path / "v.npy")]) == 1
    assert "it holds predictions of featuremill predict" in capsys.readouterr().err
    assert run_cli(["sql", str(tmp_path / "PRED"), "SELECT count(*) AS n FROM predictions", "--csv"]) == 0
    assert "30" in capsys.readouterr().out
