"""Labels that were spoiled on purpose are found, on drawn features and on real ones."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.training.options import TrainOptions
from pipeline.training.suspects import SuspectOptions, find_suspects
from pipeline.training.tables import split_table
from tests.support.factories import shared_data
from tests.support.pages_data import clusters, write_out
from transforms.errors import FeaturemillError


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Returns OUT of 400 rows, of which 20 have a wrong label and two more a copy, and the right labels by key."""
    vectors, right = clusters(400, classes=5, seed=4)
    vectors[398], vectors[399], right[399] = vectors[0], vectors[1], right[1]
    right[398] = right[0]
    labels, keys = list(right), [f"k{i:03}" for i in range(400)]
    for row in range(50, 150, 5):
        labels[row] = f"class {(int(right[row][-1]) + 1) % 5}"
    labels[398] = f"class {(int(right[0][-1]) + 2) % 5}"
    out = write_out(tmp_path_factory.mktemp("spoiled") / "OUT", vectors, keys=keys, labels=labels)
    wrong = {key for key, label, other in zip(keys, labels, right, strict=True) if label != other}
    return out, dict(zip(keys, right, strict=True)), wrong


def test_spoiled_labels_are_found_with_the_right_ones(spoiled):
    out, right, wrong = spoiled
    found = find_suspects(SuspectOptions(features=out, cosine=0.99999))
    keys = {one.row.key for one in found.found}
    assert keys <= wrong
    assert len(keys) > 0.8 * len(wrong)
    assert all(one.suggested == right[one.row.key] for one in found.found)
    assert [one.row.key for one in found.found if one.copies] == ["k398"]
    margins = [one.other - one.own for one in found.found]
    assert margins == sorted(margins, reverse=True)


@pytest.mark.parametrize("case", ["several features", "lengths"])
def test_vectors_are_prepared_as_for_train(tmp_path, case):
    """Of two features, one says nothing, in large numbers; or vectors are of any length, and only directions tell."""
    random = np.random.default_rng(0)
    vectors, right = clusters(400, classes=5, seed=4)
    noise = random.normal(size=vectors.shape) * 1e4
    if case == "lengths":
        vectors *= np.exp(3 * random.normal(size=(400, 1)))
    labels, keys = list(right), [f"k{i:03}" for i in range(400)]
    for row in range(50, 150, 5):
        labels[row] = f"class {(int(right[row][-1]) + 1) % 5}"
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), matrix.shape[1])
        for name, matrix in (("embedding", vectors), ("noise", noise))
    }
    pq.write_table(pa.table({"key": keys, "label": labels, **columns}), tmp_path / "f.parquet")
    asked = ("embedding", "noise") if case == "several features" else ("embedding",)
    found = find_suspects(SuspectOptions(features=str(tmp_path / "f.parquet"), columns=asked))
    wrong = {key for key, label, other in zip(keys, labels, right, strict=True) if label != other}
    assert len({one.row.key for one in found.found[:20]} & wrong) > 15


def test_what_is_written_corrects_the_labels(spoiled, tmp_path, capsys):
    out, right, wrong = spoiled
    csv, page = tmp_path / "suspects.csv", tmp_path / "suspects.html"
    assert run_cli(["suspects", out, "-o", str(csv), "--html", str(page), "--json", "-q"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = {row["key"] for row in printed["found"]}
    assert [row["rank"] for row in printed["found"]] == list(range(1, len(found) + 1))
    assert page.read_text().count('class="pick"') == len(found)
    asked = {"labels": str(csv), "label_column": "suggested", "labels_mode": "update"}
    table, joined, _ = split_table(TrainOptions(features=out, output=str(tmp_path / "head"), **asked), out)
    labels = dict(zip(table.keys.to_pylist(), table.labels.to_pylist(), strict=True))
    assert {key for key in right if labels[key] != right[key]} == wrong - found
    assert joined.matched == len(found)
    assert joined.stored == 400 - len(found)


def test_classes_that_are_too_small_to_judge_are_counted(tmp_path, capsys):
    vectors, labels = clusters(60, classes=2)
    labels[:2] = ["rare", "rare"]
    out = write_out(tmp_path / "OUT", vectors, labels=labels)
    assert run_cli(["suspects", out, "-q"]) == 0
    assert "2 rows of classes with fewer than 3 rows not judged" in capsys.readouterr().out
    with pytest.raises(FeaturemillError, match="no label at all"):
        find_suspects(SuspectOptions(features=write_out(tmp_path / "none", vectors)))


@pytest.mark.long
def test_real_features_with_planted_noise(tmp_path):
    """5 % of 705 labels of real VGG19 features are spoiled; of as many suspects, most are these."""
    table = pq.read_table(shared_data() / "vgg19_block5_pool_real.parquet", columns=["key", "label", "embedding"])
    random = np.random.default_rng(0)
    labels, keys = table["label"].to_pylist(), table["key"].to_pylist()
    spoiled = random.choice(len(labels), round(0.05 * len(labels)), replace=False)
    for row in spoiled:
        labels[row] = random.choice([label for label in ("bathroom", "kitchen", "room") if label != labels[row]])
    pq.write_table(table.set_column(1, "label", pa.array(labels)), tmp_path / "noisy.parquet")
    found = find_suspects(SuspectOptions(features=str(tmp_path / "noisy.parquet")))
    first = {one.row.key for one in found.found[: len(spoiled)]}
    assert len(first & {keys[row] for row in spoiled}) / len(spoiled) > 0.6
