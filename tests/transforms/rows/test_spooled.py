"""Rows in a file are those that were added, a temperature is the same by either, and vectors are decoded once."""

import resource
import tempfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.errors import FeaturemillError
from transforms.evaluation.metrics import fit_temperature
from transforms.rows import spooled
from transforms.rows.spooled import CopiedVectors, SpooledRows
from transforms.rows.table import open_table


@pytest.mark.parametrize("limit", [1, 2**30])
def test_slices_are_what_was_added(monkeypatch, limit):
    monkeypatch.setattr(spooled, "_MEMORY_BYTES", limit)
    random = np.random.default_rng(0)
    matrix, codes = random.normal(size=(100, 7)).astype(np.float32), random.integers(0, 7, 100)
    gathered = SpooledRows(7)
    for start in range(0, 100, 30):
        assert len(gathered[0:0]) == 0
        gathered.add(matrix[start : start + 30].astype(np.float64))
    assert gathered.shape == matrix.shape
    for part in (slice(None), slice(3, 50), slice(90, 200), slice(5, 5)):
        np.testing.assert_array_equal(gathered[part], matrix[part])
    assert fit_temperature(gathered, codes) == fit_temperature(matrix, codes)


def test_they_are_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(spooled, "_MEMORY_BYTES", 2**20)
    tracemalloc.start()
    try:
        gathered = SpooledRows(1000)
        for _ in range(100):
            gathered.add(np.ones((100, 1000), np.float32))
        assert gathered.shape == (10_000, 1000)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 < 4 * 10_000 * 1000
    finally:
        tracemalloc.stop()


@pytest.fixture
def stored(tmp_path):
    """Vectors in three files of several row groups."""
    paths = []
    for number, rows in enumerate((7, 30, 12)):
        matrix = np.random.default_rng(number).normal(size=(rows, 5)).astype(np.float32)
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"embedding": list(matrix)}), paths[-1], row_group_size=8)
    return open_table(str(tmp_path)).vectors, paths


def read(vectors, *args, **options) -> list[tuple[list[int], bytes]]:
    return [(numbers.tolist(), matrix.tobytes()) for numbers, matrix in vectors.batches(*args, **options)]


def some_rows(rows: int, share: float) -> np.ndarray:
    return np.random.default_rng(rows).random(rows) < share


@pytest.mark.parametrize("first", [None, 0.8])
def test_a_second_pass_is_the_same_without_the_files(stored, first):
    vectors, paths = stored
    kept = None if first is None else some_rows(vectors.rows, first)
    among = np.ones(vectors.rows, bool) if kept is None else kept
    asked = [
        (wanted, options)
        for wanted in (kept, among & some_rows(vectors.rows, 0.4), among & (np.arange(vectors.rows) > 20))
        for options in ({}, {"batch_rows": 3}, {"seed": 7}, {"seed": 8, "batch_rows": 5})
    ]
    expected = [read(vectors, wanted, **options) for wanted, options in asked]
    copied = CopiedVectors(vectors)
    assert (copied.rows, copied.dims, copied.widths) == (49, 5, (5,))
    assert read(copied, kept) == read(vectors, kept)
    for path in paths:
        path.unlink()
    assert [read(copied, wanted, **options) for wanted, options in asked] == expected
    if kept is not None:
        with pytest.raises(FeaturemillError):
            read(copied)


def test_what_is_not_a_whole_pass_in_order_keeps_nothing(stored):
    vectors, paths = stored
    copied = CopiedVectors(vectors)
    next(copied.batches())
    read(copied, seed=3)
    read(copied, some_rows(vectors.rows, 0.3))
    paths[0].unlink()
    with pytest.raises(FeaturemillError):
        read(copied)


def test_nothing_is_kept_where_there_is_no_room(stored, monkeypatch):
    vectors, paths = stored
    monkeypatch.setattr(spooled, "_MEMORY_BYTES", 100)
    monkeypatch.setattr(spooled, "available_memory", lambda: 49 * 5 * 4 * 2 - 1)
    copied = CopiedVectors(vectors)
    read(copied)
    paths[0].unlink()
    with pytest.raises(FeaturemillError):
        read(copied)


def test_a_disk_that_is_full_ends_no_pass(stored, monkeypatch, tmp_path):
    vectors, _ = stored
    monkeypatch.setattr(spooled, "_MEMORY_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    copied = CopiedVectors(vectors)
    expected = read(vectors)
    # Python ignores the signal of a file that is too large: writing fails, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        assert read(copied) == expected
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read(copied) == expected
