"""Predictions against plain NumPy on plainly extracted features; and what may not be predicted, or not there."""

import json
import os
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items, write_folder, write_parquet, write_tar
from pipeline.extraction import run as extract
from pipeline.extraction.options import ExtractOptions
from pipeline.prediction.inputs import are_features
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.prediction.summary import summary_json, summary_text
from pipeline.training.report import metrics_text
from tests import ROOT
from tests.support.fakes import WEIGHTS, FakeEngine, load_fake
from tests.support.properties import examples
from tests.transforms.network.test_weights import random_weights, write_published
from transforms.errors import FeaturemillError, UsageError
from transforms.heads.model import Model, dense_arrays
from transforms.predictors import predictions
from transforms.predictors.head import Head, save_head
from transforms.predictors.predictions import rank
from transforms.predictors.weights import weights_source
from transforms.shards.fields import Fields
from transforms.store.features import open_features
from transforms.store.manifest import PredictionTotals
from transforms.store.predictions import Predictions

SIZE = 32
# Three of the four classes that the sample set has: one is unknown to the head.
CLASSES = ("checks", "rings", "waves")


def extract_options(inputs, output, **more) -> ExtractOptions:
    chosen = {"image_size": SIZE, "batch_size": 4, "weights": "random:0", **more}
    return ExtractOptions(inputs=(str(inputs),), output=str(output), **chosen)


SPEC = extract_options("x", "y").spec(WEIGHTS)


def draw_head(classes, *, dims=512, spec=SPEC, columns=("embedding",), **more) -> Head:
    random = np.random.default_rng(5)
    kernel = random.normal(size=(dims, len(classes))) / 500
    # The fake engine adds the image's sum to each number; this way it cancels out, and no class always wins.
    kernel -= kernel.mean(axis=0)
    model = Model("ridge", dense_arrays([(kernel, random.normal(size=len(classes)) / 10)]))
    return Head(model, tuple(classes), 1.5, tuple(columns), (dims,), spec, "random:0", **more)


def oracle(head: Head, vectors: np.ndarray) -> np.ndarray:
    """N×C, in the plainest way."""
    kernel, bias = head.model.arrays["kernel1"], head.model.arrays["bias1"]
    powers = np.exp((vectors.astype(np.float64) @ kernel + bias) / head.temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def items():
    return draw_items(per_class=6, size=40, seed=2)


@pytest.fixture(scope="module")
def classes(items):
    return sorted({item.label for item in items})[:3]


@pytest.fixture
def inputs(tmp_path, items) -> dict[str, Path]:
    """The same images as a folder, a tar and a Parquet, and their features."""
    paths = {"folder": tmp_path / "in/photos", "tar": tmp_path / "in/a.tar", "parquet": tmp_path / "in/a.parquet"}
    (tmp_path / "in").mkdir()
    write_folder(paths["folder"], items)
    write_tar(paths["tar"], items)
    write_parquet(paths["parquet"], items, row_group_size=5)
    paths["features"] = tmp_path / "OUT"
    extract.run(extract_options(paths["tar"], paths["features"]), load=load_fake, weights=WEIGHTS)
    return paths


@pytest.fixture
def head(tmp_path, classes) -> Head:
    made = draw_head(classes)
    save_head(made, str(tmp_path / "HEAD"))
    return made


@pytest.fixture
def run(tmp_path, head):
    """Predicts by the head into PRED, unless told otherwise."""

    def run(given, *, load=load_fake, weights=WEIGHTS, say=lambda line: None, **more):
        chosen = {"head": str(tmp_path / "HEAD"), "output": str(tmp_path / "PRED"), "batch_size": 4, **more}
        given = [given] if isinstance(given, (str, Path)) else given
        return predict(PredictOptions(inputs=tuple(map(str, given)), **chosen), load=load, weights=weights, say=say)

    return run


def rows(folder) -> list[dict]:
    return [row for path in sorted(Path(folder, "predictions").glob("*")) for row in pq.read_table(path).to_pylist()]


def by_name(folder) -> dict[str, tuple]:
    """{image name: what was predicted}."""
    return {
        row["key"].replace("#", "/").rsplit("/", 1)[1]: (row["label"], row["score"], row["true_label"], row["agrees"])
        for row in rows(folder)
    }


def files(folder) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()
    }


def test_features_by_plain_numpy(inputs, run, head, tmp_path, classes):
    summary = run(inputs["features"], probabilities=True, top=2)
    features = open_features(str(inputs["features"]))
    expected = oracle(head, features.to_numpy())
    found = rows(tmp_path / "PRED")
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-3, atol=1e-6)
    assert len({row["label"] for row in found}) > 1
    parts = [row for batch in features.batches(["key", "source", "position", "label"]) for row in batch.to_pylist()]
    for row, part, chances in zip(found, parts, expected, strict=True):
        order = sorted(range(len(classes)), key=lambda i: -chances[i])[:2]
        assert (row["key"], row["source"], row["position"]) == (part["key"], part["source"], part["position"])
        assert row["top_labels"] == [classes[i] for i in order]
        assert row["top_scores"] == sorted(row["probabilities"], reverse=True)[:2]
        assert (row["label"], row["score"]) == (row["top_labels"][0], row["top_scores"][0])
        assert row["true_label"] == part["label"]
        assert row["agrees"] == (part["label"] == row["label"] if part["label"] in classes else None)
    known = [row for row in found if row["agrees"] is not None]
    truth = json.loads((tmp_path / "PRED/manifest.json").read_text())["true_labels"]
    agreed = sum(row["agrees"] for row in known)
    assert truth == {
        "known": len(known),
        "agreed": agreed,
        "accuracy": agreed / len(known),
        "no_class": len(found) - len(known),
    }
    assert summary.manifest.totals == PredictionTotals(read=len(found), predicted=len(found), failed=0)
    assert sorted(files(tmp_path / "PRED")) == ["manifest.json", "predictions/part-00000.parquet"]


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_images_give_what_their_features_give(inputs, run, tmp_path, kind):
    run(inputs["features"], output=str(tmp_path / "by_features"))
    summary = run(inputs[kind])
    assert by_name(tmp_path / "PRED") == by_name(tmp_path / "by_features")
    assert summary.manifest.totals.failed == sum(summary.manifest.failures.values()) == 4
    assert summary.manifest.totals.predicted + summary.manifest.totals.failed == 24
    columns = ("label", "stage", "error", "sha256")
    failures = [
        sorted(
            tuple(map(str, (row[name] for name in columns)))
            for path in Path(folder, "failures").glob("*")
            for row in pq.read_table(path).to_pylist()
        )
        for folder in (tmp_path / "PRED", inputs["features"])
    ]
    assert failures[0] == failures[1] != []
    assert open_features(str(tmp_path / "PRED/features")).rows == 20, "kept for another head"
    run(inputs[kind], output=str(tmp_path / "small"), keep_features=False)
    assert not (tmp_path / "small/features").exists()
    assert "agrees" in summary_text(summary)
    json.dumps(summary_json(summary))


def never(job):
    raise AssertionError("nothing is left to embed")


def test_the_same_again_does_nothing(inputs, run, tmp_path):
    first = run(inputs["tar"])
    before = files(tmp_path / "PRED")
    again = run(inputs["tar"], load=never)
    assert again.done_before
    assert again.manifest.totals == first.manifest.totals
    assert files(tmp_path / "PRED") == before
    # Unless somebody removed what was there.
    (tmp_path / "PRED/predictions/part-00000.parquet").unlink()
    assert not run(inputs["tar"]).done_before
    assert files(tmp_path / "PRED").keys() == before.keys()


def test_changed_inputs_are_predicted_anew(inputs, run, tmp_path):
    run(inputs["folder"], keep_features=True)
    before = by_name(tmp_path / "PRED")
    [gone, copied, *_] = [path for path in sorted(inputs["folder"].rglob("*.jpg")) if path.name in before]
    gone.unlink()
    shutil.copy(copied, copied.with_name("copied.jpg"))
    assert not run(inputs["folder"], keep_features=True).done_before
    after = by_name(tmp_path / "PRED")
    assert after.keys() == before.keys() - {gone.name} | {"copied.jpg"}
    assert after["copied.jpg"] == before[copied.name]
    # From kept features, nothing is embedded again.
    (tmp_path / "PRED/predictions/part-00000.parquet").unlink()
    run(inputs["folder"], keep_features=True, load=never)
    assert by_name(tmp_path / "PRED") == after


def test_another_head_takes_the_kept_features(inputs, run, tmp_path, classes):
    run(inputs["folder"])
    save_head(draw_head(classes[:2]), str(tmp_path / "OTHER"))
    with pytest.raises(FeaturemillError, match="--overwrite"):
        run(inputs["folder"], head=str(tmp_path / "OTHER"))
    run(inputs["folder"], head=str(tmp_path / "OTHER"), overwrite=True, load=never)
    assert {row["label"] for row in rows(tmp_path / "PRED")} <= set(classes[:2])
    # Or into a folder of their own.
    run(tmp_path / "PRED", output=str(tmp_path / "PRED2"), load=never)
    run(inputs["features"], output=str(tmp_path / "by_features"))
    assert by_name(tmp_path / "PRED2") == by_name(tmp_path / "by_features")


class Failing(FakeEngine):
    """Embeds so many batches, then nothing more; counts images. Beam copies what isn't the module's own."""

    batches_left = 0
    embedded = 0

    def embed(self, pixels):
        if not Failing.batches_left:
            raise FeaturemillError("the power failed")
        Failing.batches_left -= 1
        Failing.embedded += len(pixels)
        return super().embed(pixels)


def load_failing(job) -> Failing:
    return Failing(job.sizes, job.batch_size)


def test_goes_on_after_an_interruption(inputs, run, tmp_path):
    Failing.batches_left = 3
    with pytest.raises(FeaturemillError, match="the power failed"):
        run(inputs["tar"], unit_bytes=8000, load=load_failing)
    assert json.loads((tmp_path / "PRED/manifest.json").read_text())["status"] == "running"
    kept = open_features(str(tmp_path / "PRED/features")).rows
    assert kept > 0
    Failing.batches_left, Failing.embedded = 1000, 0
    run(inputs["tar"], unit_bytes=8000, load=load_failing)
    assert Failing.embedded == 20 - kept
    run(inputs["features"], output=str(tmp_path / "by_features"))
    assert by_name(tmp_path / "PRED") == by_name(tmp_path / "by_features")


def test_parts_are_bounded(inputs, run, tmp_path, monkeypatch):
    run(inputs["features"])
    whole = rows(tmp_path / "PRED")
    monkeypatch.setattr(predictions, "PART_ROWS", 3)
    monkeypatch.setattr("pipeline.prediction.labelling._BATCH_NUMBERS", 6)
    run(inputs["features"], overwrite=True)
    assert len(list((tmp_path / "PRED/predictions").iterdir())) == 5
    assert rows(tmp_path / "PRED") == whole


def test_images_none_of_which_can_be_read(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.jpg").write_bytes(b"no image")
    summary = run(tmp_path / "in")
    assert summary.manifest.totals == PredictionTotals(read=1, predicted=0, failed=1)
    assert summary.failure_rate == 1
    assert rows(tmp_path / "PRED") == []


# Judging


def test_evaluate(inputs, run, tmp_path, items):
    save_head(draw_head(sorted({item.label for item in items})), str(tmp_path / "HEAD"), overwrite=True)
    run(inputs["features"])
    # What is there lacks the metrics, so this is not "nothing to do".
    summary = run(inputs["features"], evaluate=True)
    metrics = json.loads((tmp_path / "PRED/metrics.json").read_text())
    agreed = [row["agrees"] for row in rows(tmp_path / "PRED")]
    assert metrics["rows"] == len(agreed)
    assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(agreed))
    # In the form in which train says it.
    assert metrics_text([{"judged": metrics}]) in summary_text(summary)
    for accuracy, printed in ((0.0, True), (1.0, False)):
        judged = {**metrics, "metrics": {**metrics["metrics"], "accuracy": {"value": accuracy, "low": 0, "high": 1}}}
        text = summary_text(replace(summary, metrics=judged))
        assert ("CAUTION  worse than always naming the majority class" in text) == printed
    again = run(inputs["features"], evaluate=True)
    assert again.done_before
    assert again.metrics == metrics


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_one_group_are_no_evidence_of_others(inputs, run, tmp_path, items, groups):
    save_head(draw_head(sorted({item.label for item in items})), str(tmp_path / "HEAD"), overwrite=True)
    features = open_features(str(inputs["features"]))
    pairs = zip(features.keys, features.labels, strict=True)
    lines = [f"{key},{label},{i % groups}" for i, (key, label) in enumerate(pairs)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label,flat", *lines]))
    summary = run(inputs["features"], evaluate=True, labels=str(tmp_path / "labels.csv"), group_column="flat")
    assert ("no interval: one group" in summary_text(summary)) == (groups == 1)
    assert summary.metrics["groups"] == groups


def test_groups_of_the_head_count_where_nobody_names_others(inputs, run, tmp_path, items):
    classes = sorted({item.label for item in items})
    made = draw_head(classes, split={"options": {"group_column": "flat"}})
    save_head(made, str(tmp_path / "HEAD"), overwrite=True)
    features = open_features(str(inputs["features"]))
    pairs = list(zip(features.keys, features.labels, strict=True))
    lines = [f"{key},{label},{i % 2}" for i, (key, label) in enumerate(pairs)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label,flat", *lines]))
    asked = {"evaluate": True, "labels": str(tmp_path / "labels.csv")}
    note = f"{tmp_path / 'HEAD'} was trained by group 'flat', which these rows don't have: each row counts by itself"
    # Nothing but intervals knows groups.
    assert note not in run(inputs["features"]).manifest.notes
    summary = run(inputs["features"], evaluate=True)
    assert summary.metrics["groups"] is None
    assert summary.manifest.notes == [note]
    assert summary.manifest.settings.group_column is None, "PRED of before goes on"
    for name in ("features", "tar"):
        summary = run(inputs[name], output=str(tmp_path / name), **asked)
        assert summary.metrics["groups"] == 2
        assert note not in summary.manifest.notes
    with pytest.raises(FeaturemillError, match=r"\(there \| now\): group_column None \| \."):
        run(inputs["tar"], output=str(tmp_path / "tar"), group_column="", **asked)
    summary = run(inputs["tar"], output=str(tmp_path / "tar"), group_column="", overwrite=True, **asked)
    assert summary.metrics["groups"] is None
    assert note not in summary.manifest.notes


def test_a_strange_label_is_only_wrong_when_judged(inputs, run, tmp_path, items, classes):
    strange = sorted({item.label for item in items})[3]
    with pytest.raises(FeaturemillError, match=rf"no class of .*HEAD, the first is '{strange}' of .*; fix"):
        run(inputs["features"], evaluate=True)
    assert not (tmp_path / "PRED").exists()
    summary = run(inputs["features"])
    assert "true labels are no class of the head" in summary_text(summary)
    truth = {**summary.manifest.true_labels, "no_class": 1}
    one = replace(summary, manifest=replace(summary.manifest, true_labels=truth))
    assert "note     1 true label is no class of the head" in summary_text(one)


def test_labels_from_a_file(inputs, run, tmp_path, classes):
    keys = open_features(str(inputs["features"])).keys
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class\n" + "".join(f"{key},{classes[0]}\n" for key in keys[:5]))
    run(inputs["tar"], labels=str(labels), key_column="file", label_column="class", evaluate=True)
    found = {row["key"]: row["true_label"] for row in rows(tmp_path / "PRED")}
    assert found == {key: classes[0] if key in keys[:5] else None for key in keys}
    assert json.loads((tmp_path / "PRED/metrics.json").read_text())["rows"] == 5
    stored = str(tmp_path / "stored")
    run(inputs["features"], labels=str(labels), key_column="file", label_column="class", output=stored)
    assert {row["key"]: row["true_label"] for row in rows(stored)} == found
    labels.write_text(f"key,label\n{keys[0]},\n")
    with pytest.raises(FeaturemillError, match="no row has a true label to evaluate by"):
        run(inputs["features"], labels=str(labels), evaluate=True, output=str(tmp_path / "other"))


# Two at once, and Ctrl-C


@pytest.mark.parametrize("kind", ["features", "tar"])
def test_two_on_one_place(inputs, run, tmp_path, kind):
    run(inputs[kind], top=1)
    before = files(tmp_path / "PRED")
    with (
        Predictions(str(tmp_path / "PRED")).locked(),
        pytest.raises(FeaturemillError, match="in use by another command"),
    ):
        run(inputs[kind], overwrite=True)
    assert files(tmp_path / "PRED") == before
    run(inputs[kind], overwrite=True)


@pytest.mark.parametrize("output", [None, "PRED"])
def test_interrupted(tmp_path, monkeypatch, capsys, output):
    """Without PRED nothing was kept, so nothing is said of going on."""

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.prediction.run.predict", interrupt)
    place = ["--output", str(tmp_path / output)] if output else []
    assert run_cli(["predict", "HEAD", "photos", "-q", *place]) == 130
    printed = capsys.readouterr().err.strip()
    assert printed == "featuremill: interrupted" if output is None else "run the same command again to go on" in printed


@pytest.mark.parametrize(("given", "code"), [(["--help"], 0), ([], 2), (["a", "b", "c"], 2)])
def test_the_example_says_how_it_is_called(monkeypatch, capsys, given, code):
    example = ROOT / "examples" / "embed_in_a_pipeline.py"
    monkeypatch.setattr("sys.argv", [str(example), *given])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(example), run_name="__main__")
    assert caught.value.code == code
    printed = capsys.readouterr()
    assert (printed.err if code else printed.out).startswith("usage: embed_in_a_pipeline.py [-h] pattern features")


# What doesn't fit


def test_plain_parquet_is_taken_and_reported_to_have_no_fingerprint(inputs, run, head, tmp_path):
    vectors = open_features(str(inputs["features"])).to_numpy()
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 512)}), plain)
    summary = run(plain, feature_columns=("vector",))
    assert "without a fingerprint" in summary_text(summary)
    found = rows(tmp_path / "PRED")
    assert [row["label"] for row in found] == [head.classes[i] for i in oracle(head, vectors).argmax(axis=1)]
    assert found[0]["key"] == f"{plain}#0"
    assert found[0]["source"] is found[0]["true_label"] is found[0]["agrees"] is None


def test_features_that_turn_out_bad_leave_nothing(inputs, run, tmp_path, monkeypatch):
    vectors = open_features(str(inputs["features"])).to_numpy().copy()
    vectors[-1, 5] = np.nan
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 512)}), plain)
    with pytest.raises(FeaturemillError, match="NaN or infinity"):
        run(plain, feature_columns=("vector",))
    assert not (tmp_path / "PRED").exists()
    (tmp_path / "PRED").mkdir()
    (tmp_path / "PRED" / "notes.txt").write_text("mine")
    with pytest.raises(FeaturemillError, match="NaN or infinity"):
        run(plain, feature_columns=("vector",))
    assert [path.name for path in (tmp_path / "PRED").iterdir()] == ["notes.txt"]


def test_what_is_taken_for_features(inputs, tmp_path):
    vectors = pa.array([[1.0, 2.0]])
    for name, columns in {
        "vectors": {"image": pa.array(["a.jpg"]), "v": vectors},
        "both": {"image": pa.array([b"jpeg"]), "v": vectors},
        "struct": {"photo": pa.array([{"bytes": b"jpeg", "path": "a"}]), "v": vectors},
        "neither": {"n": pa.array([1])},
    }.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "a.parquet")

    def are(*given, **more):
        return are_features(PredictOptions(head="HEAD", inputs=tuple(map(str, given)), **more))

    for form in ("", "a.parquet", "*.parquet"):
        assert are(tmp_path / "vectors" / form)
        assert not any(are(tmp_path / name / form) for name in ("both", "struct", "neither"))
    assert are(tmp_path / "both", feature_columns=("v",))
    assert are(inputs["features"], inputs["features"] / "features", tmp_path / "vectors")
    assert not are(inputs["tar"], inputs["folder"], inputs["parquet"], tmp_path / "nothing", "@list.txt")


def test_features_of_other_settings(inputs, run, tmp_path):
    extract.run(extract_options(inputs["tar"], tmp_path / "OUT2", resize="pad"), load=load_fake, weights=WEIGHTS)
    with pytest.raises(FeaturemillError, match=r"resize squash \| pad"):
        run(tmp_path / "OUT2")
    assert not (tmp_path / "PRED").exists()


def test_other_weights_than_the_heads(inputs, run, tmp_path):
    with pytest.raises(FeaturemillError, match=r"aren't those that .*HEAD was trained on: random:0 \(000000000000\)"):
        run(inputs["tar"], weights=replace(WEIGHTS, sha256="1" * 64))
    assert not (tmp_path / "PRED").exists()


def test_a_head_of_unknown_features_takes_no_images(inputs, run, tmp_path, classes):
    save_head(draw_head(classes, spec=None), str(tmp_path / "HEAD"), overwrite=True)
    with pytest.raises(FeaturemillError, match=r"can't take images; pass features"):
        run(inputs["tar"])


def test_images_and_features_at_once(inputs, run):
    with pytest.raises(UsageError, match=r"OUT holds features and .*tar images"):
        run([inputs["tar"], inputs["features"]])


def test_tampered_heads(inputs, run, tmp_path):
    path = tmp_path / "HEAD/head.json"
    path.write_text(path.read_text().replace('"temperature": 1.5', '"temperature": 1.6'))
    with pytest.raises(FeaturemillError, match="changed or damaged"):
        run(inputs["features"])
    with pytest.raises(FeaturemillError, match="is no head"):
        run(inputs["features"], head=str(tmp_path / "in"))


def test_places_that_hold_something_else(inputs, run, tmp_path):
    for folder in ("OUT", "HEAD"):
        before = files(tmp_path / folder)
        for overwrite in (False, True):
            with pytest.raises(FeaturemillError, match="holds something else than predictions"):
                run(inputs["tar"], output=str(tmp_path / folder), overwrite=overwrite)
        assert files(tmp_path / folder) == before


def test_other_predictions_are_kept_unless_overwritten(inputs, run, tmp_path, classes):
    run(inputs["features"])
    (tmp_path / "PRED/mine.txt").write_text("mine")
    before = files(tmp_path / "PRED")
    with pytest.raises(FeaturemillError, match=r"holds other predictions .*: top 3 \| 1. Choose another"):
        run(inputs["features"], top=1)
    save_head(draw_head(classes[::-1]), str(tmp_path / "HEAD"), overwrite=True)
    with pytest.raises(FeaturemillError, match="head_sha256"):
        run(inputs["features"])
    with pytest.raises(FeaturemillError, match="no column 'nothing'"):
        run(inputs["features"], feature_columns=("nothing",), overwrite=True)
    assert files(tmp_path / "PRED") == before
    run(inputs["features"], top=1, overwrite=True)
    assert len(rows(tmp_path / "PRED")[0]["top_labels"]) == 1
    assert (tmp_path / "PRED/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"inputs": ()}, "an input is empty"),
        ({"head": " "}, "the head is empty"),
        ({"output": ""}, "the output is empty"),
        ({"top": 0}, "--top must be at least 1"),
        ({"engine": "nccn"}, "did you mean ncnn"),
        ({"max_failure_rate": 2}, "share between 0 and 1"),
        ({"backbone": "vgg16"}, "for ImageNet's head"),
        ({"output": None, "evaluate": True}, "name one with --output"),
        ({"output": "in/pred"}, "lies inside the input"),
        ({"output": ".", "inputs": ("./in",)}, "lies inside the output"),
    ],
)
def test_wrong_options(wrong, says):
    with pytest.raises(UsageError, match=says):
        PredictOptions(**{"head": "HEAD", "inputs": ("in",), "output": "PRED", **wrong})


# Without PRED, and the weights


def test_without_an_output_the_first_are_shown(inputs, run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.prediction.run.SHOWN_ROWS", 3)
    for kind in ("features", "tar"):
        summary = run(inputs[kind], output=None)
        assert len(summary.shown) == 3
        assert "only the first 3 are shown" in summary_text(summary)
    [photo] = inputs["folder"].rglob(f"{by_name_of(summary.shown[0])}")
    summary = run(photo, output=None)
    text = summary_text(summary)
    assert text.startswith(os.path.relpath(photo)) or text.startswith(str(photo))
    assert all(label in text for label in summary.shown[0]["top_labels"])
    assert "only the first" not in text
    assert not (tmp_path / "PRED").exists()


def by_name_of(row) -> str:
    return row["key"].replace("#", "/").rsplit("/", 1)[1]


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ("imagenet (vgg19_weights.h5)", None, "imagenet"),
        ("random:3", None, "random:3"),
        ("/data/w.h5", None, "/data/w.h5"),
        ("gs://bucket/w.h5", None, "gs://bucket/w.h5"),
        ("backbone.weights.h5", None, "/HEAD/backbone.weights.h5"),
        ("", "mine.h5", "mine.h5"),
        ("random:3", "mine.h5", "mine.h5"),
    ],
)
def test_where_the_weights_are(stored, given, expected):
    head = replace(draw_head(("a", "b")), weights=stored)
    assert weights_source(head, "/HEAD", given) == expected


def test_weights_in_the_heads_folder_and_the_real_engine(inputs, tmp_path, classes):
    """As fine-tuning leaves them; of two features of one tap only the head's is computed."""
    two = ("embedding=block1_pool:avg", "other=block1_pool:max")
    network = {"backbone": "vgg16", "features": two, "engine": "ncnn"}
    file = tmp_path / "block1.h5"
    write_published(file, random_weights("vgg16", tap="block1_pool").arrays)
    extract.run(extract_options(inputs["tar"], tmp_path / "OUT1", **{**network, "weights": str(file)}))
    features = open_features(str(tmp_path / "OUT1"))
    head = replace(draw_head(classes, dims=64, spec=features.spec), weights="backbone.weights.h5")
    save_head(head, str(tmp_path / "HEAD"), files={"backbone.weights.h5": file.read_bytes()})
    file.unlink()
    printed = []
    chosen = {"head": str(tmp_path / "HEAD"), "output": str(tmp_path / "PRED"), "engine": "ncnn"}
    predict(PredictOptions(inputs=(str(inputs["tar"]),), probabilities=True, **chosen), say=printed.append)
    found = [row["probabilities"] for row in rows(tmp_path / "PRED")]
    np.testing.assert_allclose(found, oracle(head, features.to_numpy()), rtol=1e-4)
    assert "other" not in "".join(printed)


def test_random_weights_are_called_so(inputs, run, tmp_path):
    summary = run(inputs["tar"], weights=replace(WEIGHTS, is_random=True))
    assert "CAUTION  weights fake were never trained" in summary_text(summary)


@examples(50)
@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_rank(data, count, classes):
    top = data.draw(st.integers(1, classes))
    numbers = data.draw(
        st.lists(
            st.lists(st.sampled_from([0, 0.1, 0.5, 0.9]), min_size=classes, max_size=classes),
            min_size=count,
            max_size=count,
        )
    )
    order, scores = rank(np.array(numbers), top)
    for row, chosen, found in zip(numbers, order, scores, strict=True):
        expected = sorted(range(classes), key=lambda i: (-row[i], i))[:top]
        assert chosen.tolist() == expected
        np.testing.assert_array_equal(found, np.float32([row[i] for i in expected]))


def test_the_folder_of_named_photos_is_no_truth_about_them(inputs, run, tmp_path, items):
    photos = sorted(inputs["folder"].rglob("*.jpg"))
    run(photos[0])
    assert [row["true_label"] for row in rows(tmp_path / "PRED")] == [None]
    with pytest.raises(FeaturemillError, match="no row has a true label to evaluate by; pass --labels"):
        run(photos[0], evaluate=True, overwrite=True)
    run(photos[0], fields=Fields(label_from="parent"), overwrite=True)
    assert [row["true_label"] for row in rows(tmp_path / "PRED")] == [photos[0].parent.name]
    # Of a folder that was given, it is.
    run(photos[0].parent.parent, overwrite=True)
    assert {row["true_label"] for row in rows(tmp_path / "PRED")} == {item.label for item in items}


def test_true_labels_by_file_name(inputs, run, tmp_path):
    photos = sorted(inputs["folder"].rglob("*.jpg"))
    (tmp_path / "labels.csv").write_text(f"image;class\n{photos[0].name};{photos[0].parent.name}\n")
    summary = run(photos[0], labels=str(tmp_path / "labels.csv"))
    assert [row["true_label"] for row in rows(tmp_path / "PRED")] == [photos[0].parent.name]
    [note] = summary.manifest.notes
    assert re.fullmatch(
        r"true labels from column 'class' of .*, by file name in column 'image': 1 row found in .*", note
    )
