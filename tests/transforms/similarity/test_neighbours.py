"""Neighbours where a batch has to be taken apart, and where float32 overflows."""

import tracemalloc

import numpy as np
import pytest

from tests.pipeline.exploration.test_query import brute_force, write_rows
from transforms.rows.table import open_table
from transforms.similarity import neighbours as module
from transforms.similarity.neighbours import METRICS, nearest_stored


def search(path, queries, **options):
    table = open_table(path)
    return nearest_stored(table.vectors, table.keys, queries, **options)


@pytest.mark.parametrize("metric", METRICS)
def test_overflowing_estimates_push_nobody_out(tmp_path, metric):
    """NumPy sorts NaN as the largest: a row whose product overflows would count among the nearest."""
    matrix = np.random.default_rng(0).normal(size=(500, 4))
    matrix[7] = [-1e12, 0, 0, 0]
    queries = [[1e28, 1e27, 0, 0]]
    keys = [f"k{number:03}" for number in range(500)]
    path = write_rows(tmp_path / "x.parquet", matrix, keys=keys, groups=1)
    found = search(path, queries, top=3, metric=metric)
    expected = brute_force(matrix, keys, queries, metric)[0]
    assert found.rows[0].tolist() == [row for row, _ in expected[:3]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", [{"_ESTIMATES": 60}, {"_PAIRS": 7}, {"_ROWS_BYTES": 100}])
def test_blocks_change_nothing(tmp_path, monkeypatch, metric, sizes):
    random = np.random.default_rng(0)
    matrix = random.integers(-2, 3, size=(400, 3))
    queries = random.integers(1, 4, size=(20, 3))
    keys = [f"k{number:03}" for number in random.permutation(400)]
    path = write_rows(tmp_path / "x.parquet", matrix, keys=keys)
    monkeypatch.setattr(module, "_QUERIES", 6)
    whole = search(path, queries, top=9, metric=metric)
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)
    parts = search(path, queries, top=9, metric=metric)
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(parts.scores, whole.scores)


@pytest.mark.parametrize(("rows", "dims"), [(200_000, 2), (150, 12_000)])
def test_memory_follows_neither_short_nor_long_vectors(tmp_path, monkeypatch, rows, dims):
    """200,000 × 256 products would be 205 MB, and 4096 pairs of 12,000 numbers 390 MB."""
    matrix = np.random.default_rng(0).normal(size=(rows, dims)).astype(np.float32)
    path = write_rows(tmp_path / "x.parquet", matrix, groups=1)
    queries = matrix[:256]
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    tracemalloc.start()
    found = search(path, queries, top=10, metric="dot")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.scores[:, 0] >= found.scores[:, 9]).all()
    # Estimates and their errors in float32, what compares them, and rows and queries in float64.
    assert peak < 130e6
