"""Scores in a file are the scores that were added, and a temperature is the same by either."""

import tracemalloc

import numpy as np
import pytest

from transforms.evaluation import scores
from transforms.evaluation.metrics import fit_temperature
from transforms.evaluation.scores import Scores


@pytest.mark.parametrize("limit", [1, 2**30])
def test_slices_are_what_was_added(monkeypatch, limit):
    monkeypatch.setattr(scores, "_MEMORY_BYTES", limit)
    random = np.random.default_rng(0)
    matrix, codes = random.normal(size=(100, 7)).astype(np.float32), random.integers(0, 7, 100)
    gathered = Scores(7)
    for start in range(0, 100, 30):
        assert len(gathered[0:0]) == 0
        gathered.add(matrix[start : start + 30].astype(np.float64))
    assert gathered.shape == matrix.shape
    for part in (slice(None), slice(3, 50), slice(90, 200), slice(5, 5)):
        np.testing.assert_array_equal(gathered[part], matrix[part])
    assert fit_temperature(gathered, codes) == fit_temperature(matrix, codes)


def test_they_are_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(scores, "_MEMORY_BYTES", 2**20)
    tracemalloc.start()
    try:
        gathered = Scores(1000)
        for _ in range(100):
            gathered.add(np.ones((100, 1000), np.float32))
        assert gathered.shape == (10_000, 1000)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 < 4 * 10_000 * 1000
    finally:
        tracemalloc.stop()
