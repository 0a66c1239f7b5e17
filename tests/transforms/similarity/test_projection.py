"""Places on a plane, and neighbours, against computations that share nothing with them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from tests.support.pages_data import clusters
from tests.support.properties import examples
from transforms.errors import FeaturemillError, UsageError
from transforms.similarity import all_pairs, projection
from transforms.similarity.all_pairs import all_nearest
from transforms.similarity.projection import flatten, principal_components

# Compiled at its first call, for a minute.
UMAP = pytest.param("umap", marks=pytest.mark.long)


def _cosines(vectors):
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    normed = vectors / np.where(lengths > 0, lengths, 1)
    return normed @ normed.T


def brute_force(vectors, count):
    """All cosines in float64, each row's sorted by cosine and number."""
    cosines = _cosines(vectors)
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    vectors, _ = clusters(300, 20)
    ours = principal_components(vectors + 1e3, 5)
    theirs = PCA(5, svd_solver="full").fit_transform(vectors.astype(np.float64))
    assert ours.dtype == np.float32
    for mine, other in zip(ours.T, theirs.T, strict=True):
        # The direction's sign is a matter of taste.
        np.testing.assert_allclose(mine * np.sign(mine @ other), other, atol=2e-3)


def test_components_of_many_dimensions_come_from_a_sample(monkeypatch):
    vectors, _ = clusters(200, 64)
    whole = principal_components(vectors, 3)
    monkeypatch.setattr(projection, "_MOST_SUMMED", 50)
    sampled = principal_components(vectors, 3)
    for mine, other in zip(sampled.T, whole.T, strict=True):
        assert abs(np.corrcoef(mine, other)[0, 1]) > 0.97
    monkeypatch.setattr(projection, "_MOST_SUMMED", 10_000)
    monkeypatch.setattr(projection, "_by_sums", projection._by_sample)
    np.testing.assert_allclose(principal_components(vectors, 3), whole, atol=1e-3)


@pytest.mark.parametrize("method", ["pca", UMAP, "tsne"])
def test_clouds_stay_apart_and_the_seed_decides(method):
    vectors, labels = clusters(120, 16, classes=3)
    places = flatten(vectors, method, seed=3)
    assert places.shape == (120, 2)
    assert np.isfinite(places).all()
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    same = np.array(labels)[distances.argmin(axis=1)] == np.array(labels)
    assert same.mean() > 0.97
    np.testing.assert_array_equal(places, flatten(vectors, method, seed=3))


def test_unknown_method():
    with pytest.raises(UsageError, match="choose from pca, umap, tsne"):
        flatten(np.zeros((3, 2), np.float32), "som", seed=0)


@pytest.mark.parametrize("method", ["pca", UMAP, "tsne"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1), (15, 4), (17, 1)])
def test_few_rows_and_few_dimensions(method, shape):
    places = flatten(np.random.default_rng(0).normal(size=shape).astype(np.float32), method, seed=0)
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


@pytest.mark.parametrize("method", ["pca", UMAP, "tsne"])
def test_equal_rows(method):
    assert np.isfinite(flatten(np.ones((40, 8), np.float32), method, seed=0)).all()


# Squares of such numbers overflow or vanish.
EXPONENTS = (-100, 70, 100)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.long
def test_scale_changes_nothing_for_umap(exponent):
    vectors, _ = clusters(60, 8)
    places = flatten(np.ldexp(vectors, exponent), "umap", seed=0)
    np.testing.assert_array_equal(places, flatten(vectors, "umap", seed=0))


def test_scale_changes_nothing_for_tsne():
    """In a child process, because this is what scikit-learn's dies of."""
    code = (
        "import numpy as np; from tests.support.pages_data import clusters\n"
        "from transforms.similarity.projection import flatten\n"
        "vectors, _ = clusters(60, 8)\n"
        "expected = flatten(vectors, 'tsne', seed=0)\n"
        f"for exponent in {EXPONENTS}:\n"
        "    np.testing.assert_array_equal(flatten(np.ldexp(vectors, exponent), 'tsne', seed=0), expected)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_umap_finds_no_tensorflow(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with projection._without_tensorflow(), pytest.raises(ImportError):
        import tensorflow  # noqa: F401
    assert "tensorflow" not in sys.modules, "it can be imported afterwards"


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 12), st.integers(0, 2**32 - 1), st.sampled_from([2, 1000]))
@examples(60)
def test_nearest_equal_a_brute_force(rows, dims, count, seed, levels):
    # Few levels make many equal cosines, which go by number.
    vectors = np.random.default_rng(seed).integers(-levels, levels, (rows, dims)).astype(np.float32)
    found, cosines = all_nearest(vectors, count)
    _, values = brute_force(vectors, min(count, rows - 1))
    assert found.shape == cosines.shape == (rows, max(0, min(count, rows - 1)))
    np.testing.assert_allclose(cosines, values, atol=1e-5)
    truth = np.take_along_axis(_cosines(vectors), found.astype(int), axis=1)
    np.testing.assert_allclose(truth, values, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_nearest_across_tiles(monkeypatch):
    monkeypatch.setattr(all_pairs, "_TILE_ROWS", 7)
    monkeypatch.setattr(all_pairs, "_STORED", 50)
    vectors, _ = clusters(211, 12)
    found, cosines = all_nearest(vectors, 10)
    expected, values = brute_force(vectors, 10)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(cosines, values, atol=1e-6)


def test_equal_cosines_go_by_number(monkeypatch):
    monkeypatch.setattr(all_pairs, "_STORED", 8)
    found, _ = all_nearest(np.ones((30, 4), np.float32), 3)
    assert found[0].tolist() == [1, 2, 3]
    assert found[20].tolist() == [0, 1, 2]


def test_huge_and_tiny_numbers():
    vectors = np.array([[1e38, 1e38], [1e-38, 1e-38], [1e38, -1e38], [0, 0]], np.float32)
    found, cosines = all_nearest(vectors, 1)
    assert found[0, 0] == 1
    assert cosines[0, 0] == pytest.approx(1)
    assert np.isfinite(cosines).all()


def test_umap_that_finds_no_cache_folder_is_an_error_with_a_cure(tmp_path, monkeypatch):
    (tmp_path / "umap.py").write_text("raise RuntimeError('cannot cache function: no locator available')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    with pytest.raises(FeaturemillError, match="no locator available; set NUMBA_CACHE_DIR"):
        flatten(np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32), "umap", seed=0)
