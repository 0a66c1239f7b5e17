"""Outliers: the distances of plain NumPy, and the rows that were moved away on purpose."""

import json
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from tests.pipeline.exploration.test_query import write_rows
from transforms.errors import FeaturemillError, UsageError
from transforms.similarity import outlying as module
from transforms.similarity.outlying import find_outliers


def drawn(rows=90, dims=12, seed=0):
    """Three classes, one row of the first in the middle of the second, and a row without a label."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, dims)) * 3
    codes = np.arange(rows) % 3
    matrix = centres[codes] + random.normal(size=(rows, dims)) * 0.3
    matrix[6] = centres[1]
    labels = [f"class{code}" for code in codes]
    labels[7] = None
    return matrix.astype(np.float32), labels


def units_of(matrix):
    matrix = matrix.astype(np.float64)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_by_class_equals_plain_numpy(tmp_path):
    matrix, labels = drawn()
    units = units_of(matrix)
    expected = {}
    for row, label in enumerate(labels):
        others = [i for i, other in enumerate(labels) if other == label and i != row]
        if label is not None:
            mean = units[others].mean(axis=0)
            expected[row] = 1 - units[row] @ mean / np.linalg.norm(mean)
    found = find_outliers(write_rows(tmp_path / "x.parquet", matrix, labels=labels), top=1000)
    assert found.rows == len(expected) == 89
    assert [far.row.row for far in found.found] == sorted(expected, key=lambda row: -expected[row])
    np.testing.assert_allclose(
        [far.distance for far in found.found], sorted(expected.values(), reverse=True), atol=1e-12
    )
    assert (found.found[0].row.row, found.found[0].nearest_class) == (6, "class1")
    assert all(far.nearest_class == far.row.label for far in found.found[1:])


def test_a_row_is_not_counted_in_its_own_class(tmp_path):
    angles = np.radians([0, 60, 94, 95, 95, 96])
    matrix = np.column_stack([np.cos(angles), np.sin(angles)])
    found = find_outliers(write_rows(tmp_path / "x.parquet", matrix, labels=[*"xxyyyy"]))
    # The second row is nearer to all y than to the only other x; its own weight would draw the centre of x to it.
    assert {far.row.row: far.nearest_class for far in found.found} == dict(enumerate("xyyyyy"))


def test_nearest_class_among_many_equals_plain_numpy(tmp_path, monkeypatch):
    """Blocks of classes and batches of rows change nothing; classes of one row and of zeros are nobody's nearest."""
    random = np.random.default_rng(0)
    codes = random.permutation(300) % 40
    matrix = (random.normal(size=(40, 6))[codes] + random.normal(size=(300, 6))).astype(np.float32)
    matrix[[5, 6]] = 0
    # A class of one row, one of zeros, one with one row that isn't zero, one whose rows cancel out.
    codes[[4, 5, 6, 7, 8, 9]] = [40, 41, 42, 42, 43, 43]
    matrix[9] = -matrix[8]
    units = units_of(np.where(matrix.any(axis=1, keepdims=True), matrix, 1))
    expected = {}
    for row in range(300):
        cosines = {}
        for code in range(40):
            others = units[[i for i in np.flatnonzero(codes == code) if i != row and matrix[i].any()]].sum(axis=0)
            cosines[code] = units[row] @ others / np.linalg.norm(others)
        if matrix[row].any() and codes[row] not in (40, 42):
            expected[row] = f"c{max(cosines, key=cosines.get)}"
    monkeypatch.setattr(module, "_COSINES", 1000)
    monkeypatch.setattr("transforms.rows.vectors.BATCH_BYTES", 70 * 6 * 4)
    path = write_rows(tmp_path / "x.parquet", matrix, labels=[f"c{code}" for code in codes])
    found = {far.row.row: far.nearest_class for far in find_outliers(path, top=1000).found}
    # Each of two rows that cancel out is compared with the other.
    assert found == expected


def test_classes_take_no_more_room_than_their_sums(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(6000, 256)).astype(np.float32)
    path = write_rows(tmp_path / "x.parquet", matrix, labels=[f"id{i // 2}" for i in range(6000)], groups=1)
    tracemalloc.start()
    find_outliers(path, top=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 6 MB of sums, 32 MiB of cosines, for a moment twice, and the batch; all cosines at once would be 144 MB.
    assert peak < 130e6


def test_by_neighbours_equals_plain_numpy(tmp_path):
    matrix, labels = drawn()
    matrix[50] = -matrix.mean(axis=0)
    cosines = units_of(matrix) @ units_of(matrix).T
    np.fill_diagonal(cosines, -np.inf)
    expected = 1 - np.sort(cosines, axis=1)[:, -4:].mean(axis=1)
    path = write_rows(tmp_path / "x.parquet", matrix, labels=labels)
    found = find_outliers(path, by="neighbours", neighbours=4, top=5)
    assert found.found[0].row.row == 50
    assert [far.row.row for far in found.found] == np.argsort(-expected)[:5].tolist()
    np.testing.assert_allclose([far.distance for far in found.found], np.sort(expected)[::-1][:5], atol=1e-6)
    # More neighbours than rows: all of them.
    assert len(find_outliers(path, by="neighbours", neighbours=1000).found) == 50


def test_equally_far_ones_go_by_key(tmp_path):
    keys = [f"k{9 - i}" for i in range(10)]
    path = write_rows(tmp_path / "x.parquet", np.ones((10, 4)), keys=keys, labels=["a"] * 10)
    assert [far.row.key for far in find_outliers(path, top=3).found] == ["k0", "k1", "k2"]


@pytest.mark.parametrize("by", ["class", "neighbours"])
def test_many_equally_far_ones_go_by_key(tmp_path, by):
    matrix = np.tile([3.0, 4.0], (3000, 1))
    matrix[70] = [4, 3]
    keys = [f"k{3000 - i:04}" for i in range(3000)]
    path = write_rows(tmp_path / "x.parquet", matrix, keys=keys, labels=["a"] * 3000)
    assert [far.row.key for far in find_outliers(path, by=by, top=3).found] == [keys[70], "k0001", "k0002"]


def test_what_cannot_be_compared_is_left_out(tmp_path):
    matrix = np.array([[1, 0], [0.9, 0.1], [0, 0], [0, 1], [0, 1]], np.float32)
    labels = ["a", "a", "a", "alone", None]
    path = write_rows(tmp_path / "x.parquet", matrix, labels=labels)
    assert {far.row.row for far in find_outliers(path).found} == {0, 1}
    assert {far.row.row for far in find_outliers(path, by="neighbours").found} == {0, 1, 3, 4}
    with pytest.raises(FeaturemillError, match="no labels; pass --by neighbours"):
        find_outliers(write_rows(tmp_path / "y.parquet", matrix))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"by": "clas"}, "no 'clas' for --by; did you mean class"),
        ({"top": 0}, "--top must be at least 1, not 0"),
        ({"neighbours": 0}, "--neighbours must be at least 1, not 0"),
    ],
)
def test_wrong_options(tmp_path, given, error):
    with pytest.raises(UsageError, match=error):
        find_outliers(write_rows(tmp_path / "x.parquet", np.eye(4)), **given)


def test_command(tmp_path, capsys):
    matrix, labels = drawn()
    path = write_rows(tmp_path / "x.parquet", matrix, labels=labels)
    files = ["-o", str(tmp_path / "far.parquet"), "--html", str(tmp_path / "page.html")]
    assert run_cli(["outliers", path, "--top", "4", "--json", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in found["found"]] == pq.read_table(tmp_path / "far.parquet")["key"].to_pylist()
    assert found["found"][0]["key"] == "k00006"
    page = (tmp_path / "page.html").read_text()
    assert "nearest class1" in page
    assert page.count("where its image lies isn&#39;t known") >= 4
    assert run_cli(["outliers", path, "--top", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:] == ["class0", "class1", "k00006"]
