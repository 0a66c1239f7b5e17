"""Every reader that docs/query.md names reads an OUT of float32 and one of float16, and finds what NumPy finds."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.elsewhere.conftest import ASKED, COUNTS
from tests.elsewhere.snippets import commands, run_python, shell, snippets
from transforms.store.features import open_features


class Rows:
    """The rows by our own reader: the oracle."""

    def __init__(self):
        features = open_features("features")
        self.keys, self.labels = np.array(features.keys), np.array(features.labels)
        self.matrix = features.to_numpy()
        self.widths = np.concatenate([batch.column("width").to_numpy() for batch in features.batches(["width"])])
        self.wide = self.matrix.astype(np.float64)
        self.unit = self.wide / np.linalg.norm(self.wide, axis=1, keepdims=True)
        assert len(features.parts) > 1
        assert Counter(features.labels) == dict(COUNTS)

    @property
    def asked(self) -> int:
        [row] = [row for row, key in enumerate(self.keys) if key.endswith(f"/ants/{ASKED}")]
        return row


@pytest.fixture
def rows(place) -> Rows:
    return Rows()


def assert_nearest(keys, scores, expected, rows, candidates):
    """Holds the scores against the best of these rows, and each key against its own score; order of ties is free."""
    best = np.sort(expected[candidates])[: len(scores)]
    scale = max(1, np.abs(expected).max())
    assert len(scores) == 5
    np.testing.assert_allclose(scores, best, atol=2e-6 * scale, rtol=0)
    own = [expected[np.flatnonzero(rows.keys == key)[0]] for key in keys]
    np.testing.assert_allclose(own, scores, atol=2e-6 * scale, rtol=0)
    assert len(set(keys)) == 5


def test_pyarrow(rows):
    found = run_python("pyarrow")
    ants = rows.labels == "ants"
    assert found["rows"]["key"].to_pylist() == rows.keys[ants].tolist()
    assert found["matrix"].dtype == rows.matrix.dtype
    np.testing.assert_array_equal(found["matrix"], rows.matrix[ants])


def test_duckdb(rows):
    import duckdb

    counts, near = (duckdb.sql(code).fetchall() for code in snippets("DuckDB", "sql"))
    means = [pytest.approx(rows.widths[rows.labels == name].mean()) for name, _ in COUNTS]
    assert counts == [(*count, mean) for count, mean in zip(COUNTS, means, strict=True)]
    keys, cosines = zip(*near, strict=True)
    assert_nearest(keys, -np.array(cosines), -rows.unit @ rows.unit[rows.asked], rows, rows.labels == "bees")
    [(kind,)] = duckdb.sql(
        "SELECT DISTINCT typeof(embedding::FLOAT[512]) FROM 'features/features/*.parquet'"
    ).fetchall()
    assert kind == "FLOAT[512]"


def test_polars(rows):
    found = run_python("Polars")
    assert found["counts"].rows() == COUNTS
    order = np.argsort(found["bees"]["key"].to_numpy())
    bees = rows.labels == "bees"
    np.testing.assert_array_equal(found["matrix"][order], rows.matrix[bees][np.argsort(rows.keys[bees])])
    assert found["matrix"].dtype == rows.matrix.dtype


def test_pandas(rows):
    found = run_python("pandas")
    wide = rows.widths >= 400
    assert 0 < wide.sum() < len(wide)
    assert found["frame"]["key"].tolist() == rows.keys[wide].tolist()
    assert found["matrix"].dtype == rows.matrix.dtype
    np.testing.assert_array_equal(found["matrix"], rows.matrix[wide])


def test_datasets(rows):
    found = run_python("Hugging Face datasets")
    assert found["rows"]["key"][:].tolist() == rows.keys.tolist()
    assert found["matrix"].dtype == np.float32
    np.testing.assert_array_equal(found["matrix"], rows.matrix)
    squares = ((rows.wide - rows.wide[0]) ** 2).sum(axis=1)
    assert_nearest(found["near"]["key"], found["distances"], squares, rows, slice(None))


def test_lancedb(rows):
    found = run_python("LanceDB")
    stored = found["table"].to_arrow()
    assert stored["key"].to_pylist() == rows.keys.tolist()
    np.testing.assert_array_equal(np.stack(stored["embedding"].to_numpy()), rows.matrix)
    keys = [row["key"] for row in found["near"]]
    distances = [row["_distance"] for row in found["near"]]
    assert_nearest(keys, distances, 1 - rows.unit @ rows.unit[rows.asked], rows, rows.labels == "bees")


def test_faiss(rows):
    found = run_python("FAISS")
    assert found["keys"] == rows.keys.tolist()
    assert found["index"].ntotal == len(rows.keys)
    keys = [found["keys"][row] for row in found["near"][0]]
    assert_nearest(keys, -found["cosines"][0], -rows.unit @ rows.unit[0], rows, slice(None))


def spark(code: str) -> subprocess.CompletedProcess:
    """Runs Spark's code, then shows what it read. In a process of its own: its JVM would keep this test's folder."""
    show = "import json\nprint(json.dumps([list(row) for row in rows.select('key', 'embedding').collect()]))\n"
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    return subprocess.run([sys.executable, "-c", code + show], env=environment, capture_output=True, text=True)


def test_pyspark(rows, place):
    """float16 is unreadable as it is, which is why convert is there; its copy gives the numbers of OUT."""
    if not shutil.which("java"):
        pytest.skip("no Java")
    [code] = snippets("PySpark", "python")
    outcome = spark(code)
    if place.name.startswith("float16"):
        assert outcome.returncode != 0
        assert "PARQUET_TYPE_ILLEGAL" in outcome.stderr
        [convert] = commands("PySpark")
        assert shell(convert).returncode == 0
        outcome = spark(code.replace("features/features", "features.parquet"))
    *_, dims, shown = outcome.stdout.splitlines()
    assert all(re.search(rf"\| +{label}\| +{images}\|", outcome.stdout) for label, images in COUNTS)
    assert dims == "512"
    kept = sorted(json.loads(shown))
    order = np.argsort(rows.keys)
    assert [key for key, _ in kept] == rows.keys[order].tolist()
    np.testing.assert_array_equal(np.array([vector for _, vector in kept]), rows.wide[order])


def test_convert_of_the_docs(rows):
    [line] = commands("convert")
    assert shell(line).returncode == 0
    table = pq.read_table("narrow.parquet")
    assert table["key"].to_pylist() == rows.keys.tolist()
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), rows.matrix.astype(np.float16))
