"""N vectors of D numbers on a plane, and the neighbours that each has before it is flattened. No files here."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from transforms.errors import FeaturemillError, UsageError

METHODS = ("pca", "umap", "tsne")
# What UMAP and t-SNE start from: enough for classes, and few enough for speed.
COMPONENTS = 50
# UMAP and t-SNE look at some dozen neighbours; fewer rows than that have no shape.
FEWEST_ROWS = 16
# Beyond this many dimensions the D×D sums cost more than what a sample of rows loses.
_MOST_SUMMED = 4096
_BLOCK_ROWS = 4096


def principal_components(vectors: np.ndarray, count: int) -> np.ndarray:
    """Returns the rows in the directions in which they vary most: a principal component analysis.

    The directions are eigenvectors of the covariance (Jolliffe, Principal Component Analysis, 2002, chapter 1), summed
    in float64 around the mean. Beyond 4,096 dimensions they come from 4,096 rows, evenly drawn, whose N×N products
    have the same ones. Each is turned so that its largest number is positive: the same rows give the same picture.

    Args:
        vectors: N×D, finite.
        count: At most so many components; never more than N or D.

    Returns:
        N×count float32, the widest direction first.
    """
    rows, dims = vectors.shape
    count = min(count, rows, dims)
    mean = np.zeros(dims)
    for block in _blocks(vectors):
        mean += block.sum(axis=0)
    mean /= max(1, rows)
    directions = _by_sums(vectors, mean) if dims <= _MOST_SUMMED else _by_sample(vectors, mean)
    directions = directions[:, :count]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(directions.shape[1])] < 0, -1.0, 1.0)
    parts = [((block - mean) @ directions).astype(np.float32) for block in _blocks(vectors)]
    return np.concatenate(parts) if parts else np.empty((0, count), np.float32)


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield vectors[start : start + _BLOCK_ROWS].astype(np.float64)


def _by_sums(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(mean), len(mean)))
    for block in _blocks(vectors):
        block -= mean
        sums += block.T @ block
    return np.linalg.eigh(sums)[1][:, ::-1]


def _by_sample(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    numbers = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), _MOST_SUMMED)).astype(int))
    sample = vectors[numbers] - mean
    values, left = np.linalg.eigh(sample @ sample.T)
    # Directions in which nothing varies have no length to divide by.
    lengths = np.sqrt(np.maximum(values, values[-1] * 1e-12 + np.finfo(float).tiny))
    return (sample.T @ (left / lengths))[:, ::-1]


def flatten(vectors: np.ndarray, method: str, *, seed: int) -> np.ndarray:
    """Returns a place on the plane for each row.

    UMAP (McInnes and others, 2018) and t-SNE (van der Maaten and Hinton, 2008) start from 50 principal components, and
    run on one thread, because several would make the places depend on chance. Fewer than 16 rows get principal
    components whatever the method.

    Args:
        vectors: N×D, finite.
        method: `pca`, `umap` or `tsne`.
        seed: Of UMAP and t-SNE.

    Returns:
        N×2 float32.

    Raises:
        UsageError: No such method.
        FeaturemillError: UMAP can't be started here.
    """
    if method not in METHODS:
        raise UsageError(f"no method {method!r}; choose from {', '.join(METHODS)}")
    reduced = principal_components(vectors, 2 if method == "pca" else COMPONENTS)
    if method == "pca" or len(vectors) < FEWEST_ROWS or not np.ptp(reduced, axis=0).any():
        # Where all rows are equal there is nothing to spread, and scikit-learn's t-SNE crashes.
        places = reduced[:, :2]
    else:
        places = (_umap if method == "umap" else _tsne)(_near_one(reduced), seed)
    # One dimension, or one row, has no second direction.
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1]))).astype(np.float32)


def _near_one(reduced: np.ndarray) -> np.ndarray:
    """Returns the rows so scaled that their largest number is about 1: of others, squares may overflow or vanish.

    The scale is a power of two, so no digit changes.
    """
    _, exponent = np.frexp(np.abs(reduced).max())
    return np.ldexp(reduced, -exponent)


def _umap(reduced: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings(), _without_tensorflow():
        # That it takes one thread is our wish; the rest is about libraries it could also use.
        warnings.simplefilter("ignore")
        try:
            import umap
        except RuntimeError as error:
            # Numba finds no folder for what it compiles.
            raise FeaturemillError(
                f"UMAP can't start: {' '.join(str(error).split())}; set NUMBA_CACHE_DIR to a folder that can be "
                "written, or pass --method pca"
            ) from error
        neighbours = min(15, len(reduced) - 1)
        return umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(reduced)


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Keeps umap from importing TensorFlow, five seconds for a network that isn't used."""
    absent = "tensorflow" not in sys.modules
    if absent:
        # What Python takes as: not to be found.
        sys.modules["tensorflow"] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules["tensorflow"]


def _tsne(reduced: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(reduced) - 1) / 3)
    init = "pca" if reduced.shape[1] >= 2 else "random"
    return TSNE(perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(reduced)
