"""Duplicates: all pairs that plain NumPy finds and no others; groups in order; labels that disagree first."""

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.cli.app import run_cli
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.pipeline.exploration.test_query import write_rows
from tests.support.fakes import WEIGHTS, load_fake
from tests.support.heads_data import ArrayVectors
from tests.support.properties import examples
from transforms.errors import FeaturemillError, UsageError
from transforms.similarity import near_copies as module
from transforms.similarity.copies import find_duplicates
from transforms.similarity.near_copies import near_copies


def sets_of(pairs, count):
    """Returns for each row the smallest row that it is connected to."""
    pairs = np.asarray(pairs).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, sets = connected_components(graph, directed=False)
    return np.unique(sets, return_index=True)[1][sets]


def close_pairs(matrix, threshold):
    """Returns all pairs of such a cosine, by plain NumPy in float64, and all cosines."""
    units = np.asarray(matrix, np.float32).astype(np.float64)
    lengths = np.linalg.norm(units, axis=1)
    units = units / np.where(lengths > 0, lengths, 1)[:, None]
    cosines = np.triu(units @ units.T, 1)
    # float64 rounds a little, too.
    return np.argwhere(cosines >= threshold - 1e-12), cosines


def are_inside(small, large):
    """Returns whether all rows that are connected in one division are so in another, each from `sets_of`."""
    return (large[small] == large).all()


def clustered(random, rows, dims, spread):
    """Rows around a few centres, at distances from none to wide, with exact copies and scaled ones."""
    centres = random.normal(size=(max(1, rows // 8), dims)) + random.normal(size=dims) * 2
    spreads = random.choice([0, spread / 10, spread, 1], size=(rows, 1))
    matrix = centres[random.integers(0, len(centres), rows)] + random.normal(size=(rows, dims)) * spreads
    return (matrix * random.uniform(0.1, 10, (rows, 1))).astype(np.float32)


@examples(60)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 300),
    dims=st.sampled_from([1, 2, 7, 64, 130]),
    threshold=st.sampled_from([0.3, 0.9, 0.98, 0.999, 1.0]),
    tile=st.sampled_from([3, 32, 1024]),
    dense=st.sampled_from([0, 1 / 200, 1]),
    pending=st.sampled_from([1, 20, 2**20]),
)
def test_connects_what_brute_force_connects(seed, rows, dims, threshold, tile, dense, pending):
    random = np.random.default_rng(seed)
    matrix = clustered(random, rows, dims, spread=(1 - threshold) ** 0.5)
    wanted, cosines = close_pairs(matrix, threshold)
    allowed, _ = close_pairs(matrix, threshold - 3e-7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_ROWS", tile)
        patch.setattr(module, "DENSE", dense)
        patch.setattr(module, "PENDING_PAIRS", pending)
        pairs = near_copies(ArrayVectors(matrix), threshold)
    found = sets_of(pairs, rows)
    assert are_inside(sets_of(wanted, rows), found)
    assert are_inside(found, sets_of(allowed, rows))
    assert len(pairs) < rows
    for one, other in pairs:
        assert one < other
        assert cosines[one, other] >= threshold - 3e-7


def test_a_cosine_exactly_at_the_threshold_counts():
    """Of whole numbers whose length is one, too: their cosines are fractions, while float32 rounds their units."""
    squares = {number**2 for number in range(1, 90)}
    for long in range(2, 60):
        for short in range(1, long):
            if long**2 + short**2 in squares:
                matrix = np.array([[long, short], [short, long]], np.float32)
                threshold = 2 * long * short / (long**2 + short**2)
                assert len(near_copies(ArrayVectors(matrix), threshold)) == 1, (long, short)
                # Beyond what rounding explains, the threshold is the threshold.
                assert len(near_copies(ArrayVectors(matrix), threshold + 4e-7)) == 0, (long, short)


@pytest.mark.parametrize("dense", [0, 1])
def test_long_vectors_take_no_more_room(monkeypatch, dense):
    """Compared by stretches and few pairs at a time, all the same; two tiles of these rows would be 26 MB."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(400, 8000)).astype(np.float32)
    matrix[20:] = matrix[random.integers(0, 20, 380)] + random.normal(size=(380, 8000)) * 0.1
    expected, _ = close_pairs(matrix, 0.97)
    monkeypatch.setattr(module, "DENSE", dense)
    monkeypatch.setattr(module, "_ROWS_BYTES", 2**20)
    monkeypatch.setattr(module, "_STRETCH", 1000)
    monkeypatch.setattr(module, "_SAMPLE_ROWS", 10)
    monkeypatch.setattr(module, "DIRECTIONS", 10)
    vectors = ArrayVectors(matrix)
    tracemalloc.start()
    pairs = near_copies(vectors, 0.97)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sets_of(pairs, 400).tolist() == sets_of(expected, 400).tolist()
    # A batch of 64 rows takes 14 MB at length 1.
    assert peak < 24e6


def test_planted_groups_among_many(monkeypatch):
    """All that were planted, none invented; and nearly all pairs were ruled out without being computed."""
    random = np.random.default_rng(0)
    centres = np.abs(random.normal(size=(20, 128)))
    matrix = np.maximum(centres[random.integers(0, 20, 6000)] * 0.5 + random.normal(size=(6000, 128)), 0)
    planted = random.permutation(6000)[:60].reshape(20, 3)
    for first, *others in planted:
        for other in others:
            noise = random.normal(size=128)
            matrix[other] = matrix[first] * 3 + noise * np.linalg.norm(matrix[first]) * 3 * 0.02 / np.linalg.norm(noise)
    decided = []
    decide = module._Search._decide

    def counted(self, left, right):
        decided.append(len(left))
        decide(self, left, right)

    monkeypatch.setattr(module._Search, "_decide", counted)
    pairs = near_copies(ArrayVectors(matrix), 0.999)
    sets = sets_of(pairs, 6000)
    groups = {tuple(np.flatnonzero(sets == first)) for first in np.flatnonzero(np.bincount(sets, minlength=6000) > 1)}
    assert groups == {tuple(sorted(group)) for group in planted.tolist()}
    assert sum(decided) < 1000


def test_zeros_and_unwanted_rows_are_never_near():
    matrix = np.array([[0, 0], [1, 2], [0, 0], [1, 2], [2, 4]], np.float32)
    assert near_copies(ArrayVectors(matrix), 1.0).tolist() in ([[1, 3], [1, 4]], [[1, 3], [3, 4]], [[1, 4], [3, 4]])
    wanted = np.array([True, True, True, False, True])
    assert near_copies(ArrayVectors(matrix), 1.0, wanted=wanted).tolist() == [[1, 4]]
    assert near_copies(ArrayVectors(matrix[:1]), 0.5).tolist() == []
    assert near_copies(ArrayVectors(matrix[[0, 2]]), 0.5).tolist() == []


def test_equal_vectors_of_any_scale_are_copies_at_a_cosine_of_one():
    matrix = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    scaled = matrix * np.logspace(-36, 35, 50, dtype=np.float32)[:, None]
    pairs = near_copies(ArrayVectors(np.vstack([matrix, scaled])), 1.0)
    assert pairs[np.argsort(pairs[:, 0])].tolist() == [[i, i + 50] for i in range(50)]


@pytest.mark.parametrize("seed", range(10))
def test_copies_fall_in_no_gap_between_sure_and_to_be_decided(seed, monkeypatch):
    # In float32, 1 - 0.9999 is more than 1e-4, and 0.9999 + 1e-4 is 1.
    monkeypatch.setattr(module, "DENSE", 0)
    matrix = np.tile(np.random.default_rng(seed).normal(size=8).astype(np.float32), (80, 1))
    assert len(near_copies(ArrayVectors(matrix), 0.9999)) == 79


def hashes(names):
    import pyarrow as pa

    return pa.array([None if name is None else name.ljust(32).encode() for name in names], pa.binary())


def test_groups_and_their_order(tmp_path):
    eye = np.eye(16)
    matrix = [*eye[:4], *eye[:4], *eye[0:1], *eye[4:8], eye[8] + 1e-3, eye[8]]
    labels = ["a", "b", "c", None, "a", "x", "c", "c", None, "d", "d", "d", "d", "e", "e"]
    contents = ["0", "1", "2", "3", "0", "1b", "2", "3", "0", "same", "same", None, None, "8", "8b"]
    keys = [f"k{14 - i:02}" for i in range(15)]
    path = write_rows(tmp_path / "x.parquet", matrix, keys=keys, labels=labels, sha256=hashes(contents))
    found = find_duplicates(path, cosine=0.999)
    assert [(group.rows, group.exact, group.labels) for group in found.groups] == [
        ((1, 5), False, 2),
        ((0, 4, 8), True, 1),
        ((13, 14), False, 1),
        # Different vectors, but the same bytes.
        ((9, 10), True, 1),
        ((3, 7), True, 1),
        ((2, 6), True, 1),
    ]
    assert (found.rows, found.disagreeing) == (13, 1)


def test_of_labels_that_disagree_each_is_shown(tmp_path, capsys):
    labels = ["a"] * 30 + ["b"] * 30 + ["c"] * 31 + [None]
    path = write_rows(tmp_path / "x.parquet", np.ones((92, 4)), labels=labels)
    assert run_cli(["duplicates", path, "--html", str(tmp_path / "page.html")]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[2:8]]
    firsts = [("a", 0), ("b", 30), ("c", 60), ("a", 1), ("b", 31), ("c", 61)]
    assert shown == [[label, f"k{row:05}"] for label, row in firsts]
    page = (tmp_path / "page.html").read_text()
    assert "24 of them, one of each label in turn, the rarest label first" in page
    assert all(f"k{row:05}" in page for row in (7, 37, 67))
    assert "k00008" not in page


def test_without_hashes_and_without_any(tmp_path):
    path = write_rows(tmp_path / "x.parquet", np.eye(4)[[0, 1, 0, 2]])
    [group] = find_duplicates(path).groups
    assert (group.rows, group.exact) == ((0, 2), False)
    none = write_rows(tmp_path / "y.parquet", np.eye(4))
    assert find_duplicates(none).groups == ()
    assert (
        run_cli(["duplicates", none, "--html", str(tmp_path / "page.html"), "-o", str(tmp_path / "none.parquet")]) == 0
    )
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_one_photo_with_several_vectors(tmp_path):
    """Crops have their photo's hash in other people's Parquet: the second one is compared, too."""
    matrix, contents = [[1, 0], [0, 1], [0, 1]], hashes(["photo", "photo", "other"])
    path = write_rows(tmp_path / "x.parquet", matrix, keys=["left", "right", "other"], sha256=contents)
    assert [(group.rows, group.exact) for group in find_duplicates(path).groups] == [((0, 1, 2), False)]


@pytest.mark.parametrize("command", ["duplicates", "outliers --by neighbours"])
def test_a_full_temporary_folder_is_an_error_with_a_cure(tmp_path, command):
    path = write_rows(tmp_path / "x.parquet", np.random.default_rng(0).normal(size=(500, 64)))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from pipeline.cli.app import run_cli; sys.exit(run_cli(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command.split()[0], path, *command.split()[1:]],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"128,000 bytes of vectors can't be put into {tmp_path} ([Errno 27] File too large)" in done.stderr
    assert "free some space there, or set TMPDIR" in done.stderr
    assert os.listdir(tmp_path) == ["x.parquet"]


@pytest.mark.parametrize("cosine", [0, -1, 1.01, float("nan")])
def test_wrong_cosine(tmp_path, cosine):
    with pytest.raises(UsageError, match="--cosine"):
        find_duplicates(write_rows(tmp_path / "x.parquet", np.eye(4)), cosine=cosine)


def test_nan_is_named(tmp_path):
    matrix = np.eye(4)
    matrix[2, 1] = np.nan
    with pytest.raises(FeaturemillError, match=r"NaN.*k00002"):
        find_duplicates(write_rows(tmp_path / "x.parquet", matrix))


def test_command_on_images(tmp_path, capsys):
    for number, name in enumerate(("ants", "bees")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for shade in range(3):
            image = Image.linear_gradient("L").resize((40, 50 + shade)).rotate(90 * number)
            image.save(tmp_path / "photos" / name / f"{shade}.png")
    one, other = tmp_path / "photos/ants/0.png", tmp_path / "photos/bees"
    (other / "copy<b>.png").write_bytes(one.read_bytes())
    options = ExtractOptions(inputs=(str(tmp_path / "photos"),), output=str(tmp_path / "out"), image_size=32)
    run(options, load=load_fake, weights=WEIGHTS)
    files = ["--html", str(tmp_path / "page.html"), "-o", str(tmp_path / "found.parquet")]
    assert run_cli(["duplicates", str(tmp_path / "out"), "--cosine", "1", "--json", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    first = found["found"][0]
    assert {row["key"] for row in first["rows"]} >= {str(one), str(other / "copy<b>.png")}
    assert first["labels_disagree"]
    rows = pq.read_table(tmp_path / "found.parquet").to_pylist()
    assert len(rows) == found["rows_in_groups"]
    assert [row["key"] for row in rows if row["group"] == 1] == [row["key"] for row in first["rows"]]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp") >= 2
    assert "copy&lt;b&gt;.png" in page
    assert run_cli(["duplicates", str(tmp_path / "out"), "--cosine", "1"]) == 0
    assert "labels that disagree" in capsys.readouterr().out
