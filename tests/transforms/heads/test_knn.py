"""k nearest neighbours: against a loop in float64, and its memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from tests.support.heads_data import ArrayVectors, deviations, draw_rows
from tests.support.properties import examples
from transforms import heads
from transforms.errors import FeaturemillError, UsageError
from transforms.heads import FitSettings, knn
from transforms.heads.cells import Rows
from transforms.similarity import all_pairs
from transforms.similarity.all_pairs import nearest_in_memory

TRAIN = (0, 1)


def directions(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float64)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def direct(rows: Rows, queries: np.ndarray, count: int, *, standardize: bool = False) -> np.ndarray:
    """Sorts all similarities; returns the shares of the votes, NaN where float32 can't tell who is the last."""
    chosen = rows.wanted(TRAIN)
    stored = rows.vectors.matrix[chosen].astype(np.float64)
    if standardize:
        queries = (queries - stored.mean(axis=0)) / deviations(stored)
        stored = (stored - stored.mean(axis=0)) / deviations(stored)
    shares = []
    for cosines in directions(queries) @ directions(stored).T:
        votes = np.full(len(rows.classes), 1 / len(rows.classes))
        order = np.argsort(-cosines, kind="stable")
        for row in order[:count]:
            votes[rows.codes[chosen][row]] += max(cosines[row], 0)
        close = count < len(order) and cosines[order[count - 1]] - cosines[order[count]] < 1e-6
        shares.append(np.full(len(votes), np.nan) if close else votes / votes.sum())
    return np.array(shares)


@given(
    count=st.integers(40, 150),
    dims=st.integers(3, 20),
    neighbours=st.integers(1, 15),
    blocks=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    standardize=st.booleans(),
    seed=st.integers(0, 1000),
)
@examples(40)
def test_equals_a_loop_whatever_the_blocks(count, dims, neighbours, blocks, standardize, seed):
    rows = draw_rows(rows=count, dims=dims, classes=3, cells=2, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "_QUERIES", blocks[0])
        patch.setattr(all_pairs, "_STORED", blocks[1])
        options = FitSettings(neighbours=neighbours, standardize=standardize)
        model = heads.fitter("knn", rows, options).fit(TRAIN, ())
        found = heads.logits(model, rows.vectors.matrix)
    expected = direct(rows, rows.vectors.matrix, neighbours, standardize=standardize)
    clear = np.isfinite(expected).all(axis=1)
    assert clear.mean() > 0.9
    np.testing.assert_allclose(softmax(found, axis=1)[clear], expected[clear], atol=1e-5)
    assert np.isfinite(found).all()


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=60), count=st.integers(1, 20), block=st.integers(1, 70))
def test_ties_go_by_row_number(values, count, block):
    """Rows along one axis each: similarities are exactly 1 or 0, ties everywhere."""
    count = min(count, len(values))
    stored = np.eye(4, dtype=np.float32)[values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_pairs, "_STORED", block)
        rows, cosines = nearest_in_memory(stored, np.eye(4, dtype=np.float32), count)
    expected = np.argsort(-(np.eye(4) @ stored.T), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(cosines, np.take_along_axis(np.eye(4) @ stored.T, expected, axis=1))


def test_stored_vectors_have_length_one_and_what_predicts_is_in_the_arrays():
    rows = draw_rows(rows=100, dims=8, classes=3)
    model = heads.fitter("knn", rows, FitSettings(neighbours=5)).fit(TRAIN, ())
    assert model.arrays["vectors"].dtype == np.float32
    np.testing.assert_allclose(model.arrays["vectors"], directions(rows.vectors.matrix[rows.wanted(TRAIN)]), atol=1e-6)
    assert set(model.arrays) == {"vectors", "codes", "neighbours", "classes"}
    assert model.settings["neighbours"] == 5
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in model.arrays.values())
    more = heads.fitter("knn", rows, FitSettings(neighbours=5)).refit(model, (0, 1, 2))
    assert len(more.arrays["codes"]) == rows.counts((0, 1, 2)).sum()


def test_opposite_and_undirected_vectors_leave_the_classes_alike():
    vectors = np.array([[1, 1], [1, 2], [2, 1], [3, 3]], np.float32)
    rows = Rows(ArrayVectors(vectors), np.array([0, 1, 1, 1], np.int32), np.zeros(4, np.int32), ("a", "b", "c"))
    model = heads.fitter("knn", rows, FitSettings(neighbours=2)).fit((0,), ())
    queries = np.array([[-1, -1], [0, 0]], np.float32)
    np.testing.assert_allclose(heads.logits(model, queries), np.log(1 / 3), atol=1e-7)


def test_rows_that_memory_cannot_hold_are_refused(monkeypatch):
    rows = draw_rows(rows=40, dims=4, classes=2)
    monkeypatch.setattr(knn, "available_memory", lambda: 3 * 40 * 4 * 4)
    heads.fitter("knn", rows, FitSettings())
    monkeypatch.setattr(knn, "available_memory", lambda: 3 * 40 * 4 * 4 - 1)
    with pytest.raises(FeaturemillError, match=r"knn holds its 40 rows of 4 numbers in memory.* train another head"):
        heads.fitter("knn", rows, FitSettings())


def test_more_neighbours_than_rows_are_refused_than_a_fits_rows_recorded():
    rows = draw_rows(rows=40, dims=4, classes=2)
    with pytest.raises(UsageError, match="--neighbours 41 is more than the 40 rows"):
        heads.fitter("knn", rows, FitSettings(neighbours=41))
    fitter = heads.fitter("knn", rows, FitSettings(neighbours=40))
    model = fitter.fit((0,), (1,))
    assert model.settings["neighbours"] == rows.counts((0,)).sum() < 40
    assert np.isfinite(heads.logits(model, rows.vectors.matrix)).all()
    with pytest.raises(ValueError, match=r"no rows in the cells \[7\]"):
        fitter.fit((7,), (1,))


def test_class_weights_are_refused():
    with pytest.raises(UsageError, match="--head logistic or linear"):
        heads.fitter("knn", draw_rows(rows=40, dims=4, classes=2), FitSettings(class_weights=True))


@pytest.mark.parametrize(("count", "dims"), [(60_000, 64), (1500, 25088)])
def test_memory_beside_the_stored_vectors_is_bounded(count, dims):
    random = np.random.default_rng(0)
    matrix = random.normal(size=(count, dims)).astype(np.float32)
    rows = Rows(ArrayVectors(matrix), np.arange(count, dtype=np.int32) % 3, np.zeros(count, np.int32), ("a", "b", "c"))
    model = heads.fitter("knn", rows, FitSettings()).fit((0,), ())
    tracemalloc.start()
    heads.logits(model, matrix[:6000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All queries at once would be 200 MB of similarities in a block, or 150 MB of queries.
    assert peak < 120e6
