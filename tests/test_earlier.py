"""OUT, HEAD and PRED as an earlier version wrote them: read, continued, predicted with and compacted by this one.

`tests/earlier/make.py` made them at commit 8057af2. Commands run as a user runs them, and pyarrow reads the Parquet, so
that no module is named here but the console script's. What is only read is compared bit for bit. What is computed anew
is not, because another CPU adds up in another order:

* A feature is a sum of at most 576 products, over two layers, by Winograd's transforms. float32 rounds each step by
  2**-24, and rounding errors grow like the root of their number: 1e-5 of a vector's largest value, as between engines.
* A logit is 64 products, without their signs at most 19 in all: off by 64 * 2**-24 * 19, and a probability by at most
  half of that, 4e-5. Where the vector is computed anew too, its numbers are off by 1e-5 of the largest, which times the
  sum of a class's weights is at most 107: a logit is off by 1e-5 * 107 more, a probability by 6e-4 in all.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from tests import ROOT

# Where it was made: keys are absolute paths, and ids of units hash them.
FOLDER = Path("/tmp/featuremill-earlier")
INPUTS = [FOLDER / "in" / name for name in ("photos", "photos.tar", "photos.tfrecord", "photos.parquet")]
NETWORK = [
    *("--weights", "random:12", "--image-size", "32"),
    *("--feature", "embedding=block1_pool:avg", "--feature", "texture=block1_conv2:max"),
]
VECTORS = ("embedding", "texture")
VECTOR_TOLERANCE = 1e-5
PROBABILITY_TOLERANCE = {"stored": 4e-5, "anew": 6e-4}


@pytest.fixture(scope="module", autouse=True)
def earlier():
    """Unpacks everything in its old place, which only one run of the tests has at a time."""
    with open(f"{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(FOLDER, ignore_errors=True)
        with tarfile.open(Path(__file__).parent / "earlier" / "earlier.tar.xz") as archive:
            archive.extractall(FOLDER, filter="data")
        yield
        shutil.rmtree(FOLDER)


def featuremill(*arguments: object) -> str:
    """Runs a command of this version and returns what it printed."""
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def rows(path: Path, order_by: str = "key") -> list[dict]:
    """Returns the rows of Parquet files in one order."""
    return ds.dataset(path, format="parquet").to_table().sort_by(order_by).to_pylist()


def files(folder: Path) -> dict[str, bytes]:
    """{path: content} of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def read_by_us(output: Path, folder: Path) -> list[dict]:
    """Returns OUT's rows as this version reads them, checked fingerprints and all."""
    featuremill("convert", output, "--output", folder / "converted.parquet")
    return rows(folder / "converted.parquet")


def assert_same_rows(found: list[dict], expected: list[dict]) -> None:
    """Compares rows some of which were computed anew."""
    assert [without(row, *VECTORS) for row in found] == [without(row, *VECTORS) for row in expected]
    for one, other in zip(found, expected, strict=True):
        for name in VECTORS:
            largest = np.abs(other[name]).max()
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=VECTOR_TOLERANCE * largest)


def assert_same_predictions(found: list[dict], expected: list[dict], vectors: str) -> None:
    # The lower places may be a hair apart; which class comes first is not.
    numbers = ("score", "top_labels", "top_scores", "probabilities")
    assert [without(row, *numbers) for row in found] == [without(row, *numbers) for row in expected]
    for one, other in zip(found, expected, strict=True):
        tolerance = PROBABILITY_TOLERANCE[vectors]
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(one["top_scores"], other["top_scores"], rtol=0, atol=tolerance)
        assert set(one["top_labels"]) == set(other["top_labels"])
        assert one["score"] == one["top_scores"][0]


@pytest.mark.parametrize("name", ["complete", "compacted"])
def test_out_is_read_and_nothing_is_left_to_do(name, tmp_path):
    output = FOLDER / name
    before = files(output)
    stored = rows(output / "features")
    assert len(stored) == 48
    assert read_by_us(output, tmp_path) == stored == rows(FOLDER / "complete" / "features")
    inspected = json.loads(featuremill("inspect", output, "--json"))
    assert inspected["problems"] == []
    done = json.loads(featuremill("extract", *INPUTS, "--output", output, *NETWORK, "--quiet", "--json"))
    assert done["totals"] == json.loads(before["manifest.json"])["totals"]
    assert (done["totals"]["rows_read"], done["totals"]["rows_failed"]) == (64, 16)
    assert files(output) == before


def test_units_have_the_ids_that_they_had(tmp_path):
    # The plan keeps them, so only without it do they show.
    output = tmp_path / "copy"
    shutil.copytree(FOLDER / "complete", output)
    plan = rows(output / "plan.parquet", "unit_id")
    os.remove(output / "plan.parquet")
    featuremill("extract", *INPUTS, "--output", output, *NETWORK, "--unit-bytes", "16000", "--quiet")
    assert rows(output / "plan.parquet", "unit_id") == plan
    # Reports have notes and hashes now, and these units none.
    none = {"notes": "{}", "failures_sha256": "", "part_sha256": "", "part_bytes": 0}
    units = [{**row, **none} for row in rows(FOLDER / "complete" / "units.parquet", "unit_id")]
    assert rows(output / "units.parquet", "unit_id") == units
    parts = {name: content for name, content in files(output).items() if "/" in name}
    assert parts == {name: content for name, content in files(FOLDER / "complete").items() if "/" in name}


def test_unfinished_out_is_resumed():
    output, complete = FOLDER / "unfinished", FOLDER / "complete"
    before = files(output)
    committed = {name: content for name, content in before.items() if name.startswith(("features/", "failures/"))}
    assert json.loads(before["manifest.json"])["status"] == "running"
    assert 0 < len(rows(output / "features")) < 48
    plan = rows(output / "plan.parquet", "unit_id")
    featuremill("extract", *INPUTS, "--output", output, *NETWORK, "--quiet")
    after = files(output)
    assert committed.items() <= after.items()
    # What is written anew carries checksums.
    assert rows(output / "plan.parquet", "unit_id") == plan
    assert os.listdir(output / "_tmp") == []
    assert sorted(os.listdir(output / "features")) == sorted(os.listdir(complete / "features"))
    assert_same_rows(rows(output / "features"), rows(complete / "features"))
    # Pillow's own words change.
    failed = [[without(row, "message") for row in rows(folder / "failures")] for folder in (output, complete)]
    assert failed[0] == failed[1]
    assert json.loads(featuremill("inspect", output, "--json"))["problems"] == []


def test_copy_is_compacted(tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(FOLDER / "complete", output)
    featuremill("compact", output)
    assert len(os.listdir(output / "features")) == 1
    assert rows(output / "features") == rows(FOLDER / "complete" / "features")
    kept = {name: content for name, content in files(output).items() if not name.startswith("features/")}
    assert kept.items() <= files(FOLDER / "complete").items()


@pytest.mark.parametrize("kind", ["ridge", "logistic", "knn", "linear"])
def test_head_predicts_from_stored_features(kind, tmp_path):
    featuremill("predict", FOLDER / "heads" / kind, FOLDER / "complete", "-o", tmp_path / "pred", "--probabilities")
    expected = rows(FOLDER / "predictions" / kind / "predictions")
    assert len(expected) == 48
    assert_same_predictions(rows(tmp_path / "pred" / "predictions"), expected, "stored")


def test_fine_tuned_head_predicts_from_images(tmp_path):
    featuremill("predict", FOLDER / "heads" / "tuned", INPUTS[1], "-o", tmp_path / "pred", "--probabilities")
    expected = rows(FOLDER / "predictions" / "tuned" / "predictions")
    assert len(expected) == 12
    assert_same_predictions(rows(tmp_path / "pred" / "predictions"), expected, "anew")


def test_complete_pred_is_kept():
    output = FOLDER / "predictions" / "ridge"
    before = files(output)
    arguments = (FOLDER / "heads" / "ridge", FOLDER / "complete", "--output", output, "--probabilities", "--evaluate")
    summary = json.loads(featuremill("predict", *arguments, "--json"))
    assert files(output) == before
    assert summary["totals"] == json.loads(before["manifest.json"])["totals"]


def test_unfinished_pred_is_continued():
    output = FOLDER / "predictions" / "unfinished"
    committed = len(rows(output / "features" / "features"))
    assert 0 < committed < 36
    arguments = (FOLDER / "heads" / "ridge", *INPUTS[1:], "--output", output, "--probabilities", "--quiet")
    summary = json.loads(featuremill("predict", *arguments, "--json"))
    assert summary["totals"] == {"read": 48, "predicted": 36, "failed": 12}
    found = rows(output / "predictions")
    keys = {row["key"] for row in found}
    expected = [row for row in rows(FOLDER / "predictions" / "ridge" / "predictions") if row["key"] in keys]
    assert len(expected) == 36
    assert_same_predictions(found, expected, "anew")
