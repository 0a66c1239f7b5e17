"""Heads compared on one test set, which stays what it is when rows are added and labels corrected."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.prediction.compare import CompareOptions, compare
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.prediction.summary import summary_text
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests.support.pages_data import clusters, write_out
from transforms.errors import FeaturemillError, UsageError
from transforms.heads import FitSettings
from transforms.predictors.head import load_head
from transforms.rows.labels import encode_as
from transforms.rows.lookup import read_vectors
from transforms.rows.table import open_table

KEYS = [f"k{i:03}" for i in range(300)]


def fit(out, head, **more):
    quick = {"learning_curve": False, "errors": False, "kinds": ("ridge",)}
    train(TrainOptions(features=str(out), output=str(head), **{**quick, **more}))
    return str(head)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """OUT, a head on it with test rows, another by these test rows, and OUT with 60 more rows."""
    folder = tmp_path_factory.mktemp("made")
    vectors, labels = clusters(360, classes=3, seed=1)
    vectors += np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) * 6
    write_out(folder / "OUT", vectors[:300], keys=KEYS, labels=labels[:300])
    write_out(folder / "MORE", vectors, keys=[*KEYS, *(f"new{i}" for i in range(60))], labels=labels)
    first = fit(folder / "OUT", folder / "first", test=0.3)
    weak = FitSettings(penalties=(1e4,), seed=5)
    return folder, first, fit(folder / "MORE", folder / "second", test_of=first, settings=weak)


def rows_of(head):
    table = pq.read_table(f"{head}/rows.parquet").to_pydict()
    return dict(zip(table["key"], table["side"], strict=True))


def test_a_head_keeps_its_test_rows(made):
    _, first, second = made
    sides = rows_of(first)
    assert set(sides) == set(KEYS)
    kept = {key for key, side in sides.items() if side == "test"}
    assert 80 < len(kept) < 100
    again = rows_of(second)
    assert {key for key, side in again.items() if side == "test"} == kept
    assert len(again) == 360
    assert load_head(second).metrics["judged_on"] == "test"


def test_heads_are_compared_on_rows_that_none_has_seen(made, capsys):
    folder, first, second = made
    found = compare(CompareOptions(heads=(first, second), features=str(folder / "OUT")))
    table, hits = open_table(str(folder / "OUT")), []
    test = np.array([rows_of(first)[key] == "test" for key in table.keys.to_pylist()])
    for name in (first, second):
        head = load_head(name)
        vectors = read_vectors(table, np.flatnonzero(test))
        codes = encode_as(table.labels, head.classes)[test]
        hits.append(head.probabilities(vectors).argmax(axis=1) == codes)
    assert found.rows == test.sum()
    assert [one["value"] for one in found.accuracies] == [right.mean() for right in hits]
    [pair] = found.differences
    assert pair.accuracy["value"] == pytest.approx(hits[1].mean() - hits[0].mean())
    assert pair.only_one == (hits[0] & ~hits[1]).sum()
    assert 0 < pair.p <= 1
    assert run_cli(["compare", first, second, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["differences"][0]["accuracy"] == pair.accuracy
    assert run_cli(["compare", first, second, str(folder / "OUT")]) == 0
    assert f"{300 - test.sum()} rows left out: they trained or chose one of the heads" in capsys.readouterr().out


def test_heads_are_compared_by_the_groups_that_one_was_trained_by(made, tmp_path):
    folder, first, second = made
    labels = open_table(str(folder / "OUT")).labels.to_pylist()
    lines = [
        f"{key},{label},{number // 3},{number // 6}"
        for number, (key, label) in enumerate(zip(KEYS, labels, strict=True))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label,patient,clinic", *lines]))
    more = {"labels": str(tmp_path / "labels.csv"), "group_column": "patient"}
    third = fit(folder / "OUT", tmp_path / "third", test=0.3, **more)
    fourth = fit(folder / "OUT", tmp_path / "fourth", test_of=third, settings=FitSettings(penalties=(1e4,)))
    note = f"{third} was trained by group 'patient', which these rows don't have: each row counts by itself"
    heads = (fourth, third)
    alone = compare(CompareOptions(heads=heads))
    assert (alone.groups, note in alone.notes) == (None, True)
    by_group = compare(CompareOptions(heads=heads, labels=more["labels"]))
    assert (by_group.groups, note in by_group.notes) == (by_group.rows // 3, False)
    assert by_group == compare(CompareOptions(heads=heads, **more))
    fifth = fit(folder / "OUT", tmp_path / "fifth", test_of=third, **{**more, "group_column": "clinic"})
    heads_of_two, said = (third, fifth), r"third was trained by group 'patient', .*fifth by 'clinic'; say which rows"
    with pytest.raises(UsageError, match=said):
        compare(CompareOptions(heads=heads_of_two, labels=more["labels"]))
    stated = compare(CompareOptions(heads=heads_of_two, **more))
    assert stated.groups == stated.rows // 3
    for asked in ({"heads": heads, "group_column": ""}, {"heads": (first, second)}):
        plain = compare(CompareOptions(labels=more["labels"], **asked))
        assert (plain.groups, any("by group" in one for one in plain.notes)) == (None, False)


def test_rows_that_trained_are_judged_apart(made, tmp_path, capsys):
    folder, first, _ = made
    options = {"head": first, "output": str(tmp_path / "PRED"), "evaluate": True}
    summary = predict(PredictOptions(inputs=(str(folder / "MORE"),), **options))
    seen = sum(side != "test" for side in rows_of(first).values())
    assert summary.metrics["seen"]["rows"] == seen
    assert summary.metrics["rows"] == 360 - seen
    assert f"CAUTION  {seen} rows trained the head or chose its settings, and are left out above" in summary_text(
        summary
    )
    assert f"{seen} rows trained the head" in (tmp_path / "PRED/errors.html").read_text()
    fit(folder / "OUT", tmp_path / "all")
    options |= {"head": str(tmp_path / "all"), "overwrite": True}
    summary = predict(PredictOptions(inputs=(str(folder / "OUT"),), **options))
    assert "CAUTION  all 300 rows trained the head" in summary_text(summary)


def test_a_row_is_known_by_its_content(made, tmp_path):
    """Under other keys nothing is found by name; the pretended hashes of the first 300 rows are the same."""
    _, first, _ = made
    vectors, labels = clusters(300, classes=3)
    out = write_out(tmp_path / "OUT", vectors, keys=[f"moved{i}" for i in range(300)], labels=labels)
    summary = predict(PredictOptions(head=first, inputs=(out,), output=str(tmp_path / "PRED"), evaluate=True))
    assert summary.metrics["seen"]["rows"] == sum(side != "test" for side in rows_of(first).values())
    other = write_out(
        tmp_path / "NEW", vectors, keys=KEYS, labels=labels, sha256=[f"{i:032}".encode() for i in range(300)]
    )
    summary = predict(PredictOptions(head=first, inputs=(other,), output=str(tmp_path / "PRED2"), evaluate=True))
    assert "seen" not in summary.metrics, "other images under the same names"


def test_what_cannot_be_compared_is_reported(made, tmp_path):
    folder, first, _ = made
    whole = fit(folder / "OUT", tmp_path / "whole")
    with pytest.raises(FeaturemillError, match=r"no row is left to compare by.*--test-of"):
        compare(CompareOptions(heads=(first, whole)))
    with pytest.raises(FeaturemillError, match=r"no row of .* is a test row of"):
        fit(folder / "OUT", tmp_path / "new", test_of=whole)
    with pytest.raises(UsageError, match="name two heads"):
        CompareOptions(heads=(first,))
    with pytest.raises(UsageError, match="named twice"):
        CompareOptions(heads=(first, first))
    with pytest.raises(UsageError, match="--test-of says which rows judge"):
        fit(folder / "OUT", tmp_path / "new", test_of=first, test=0.2)
