"""Near copies against all pairs in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tests.heads_data import ArrayVectors
from transforms.heads import near
from transforms.heads.near import near_duplicates


def cosines(matrix: np.ndarray) -> np.ndarray:
    normed = matrix.astype(np.float64) / np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    return normed @ normed.T


def sets(pairs: np.ndarray, rows: int) -> list[int]:
    graph = coo_array((np.ones(len(pairs)), pairs.T), (rows, rows))
    return connected_components(graph, directed=False)[1].tolist()


def draw_copies(rows: int, distinct: int, *, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(distinct, 8))[random.integers(0, distinct, rows)]
    return (matrix + random.choice([0, 0.01, 0.1], (rows, 1)) * random.normal(size=(rows, 8))).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    distinct=st.integers(1, 60),
    seed=st.integers(0, 100),
    threshold=st.sampled_from([0.5, 0.99, 0.999]),
    tile=st.integers(1, 20),
    block=st.integers(1, 40),
    pending=st.integers(1, 20),
)
def test_pairs_connect_what_all_pairs_connect(rows, distinct, seed, threshold, tile, block, pending):
    matrix = draw_copies(rows, distinct, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "TILE_ROWS", tile)
        patch.setattr(near, "BLOCK_BYTES", block * 8 * 4)
        patch.setattr(near, "PENDING_PAIRS", pending)
        pairs = near_duplicates(ArrayVectors(matrix), threshold)
    assert pairs.dtype == np.int64
    assert len(pairs) < rows
    found = cosines(matrix)
    assert (found[pairs[:, 0], pairs[:, 1]] >= threshold - 1e-5).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    expected = np.argwhere(np.triu(found >= threshold, 1))
    # Pairs within rounding of the threshold may go either way; the draw makes them rare, not impossible.
    if not (np.abs(found - threshold) < 1e-5).any():
        assert sets(pairs, rows) == sets(expected, rows)


def test_equal_vectors_of_any_scale_are_copies_at_a_cosine_of_one():
    matrix = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    scaled = matrix * np.logspace(-36, 35, 50, dtype=np.float32)[:, None]
    pairs = near_duplicates(ArrayVectors(np.vstack([matrix, scaled])), 1.0)
    assert pairs.tolist() == [[i, i + 50] for i in range(50)]


def test_nothing_near():
    assert near_duplicates(ArrayVectors(np.eye(20, dtype=np.float32)), 0.5).shape == (0, 2)
