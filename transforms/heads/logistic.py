"""Multinomial logistic regression by scikit-learn, with an L2 sweep from strong to weak, each warm from the last.

Minimises Σ log loss + λ/2 ‖W‖² over the rows, λ = penalty × n × mean variance of the features, so the penalty means the
same as ridge's.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from transforms.errors import FeaturemillError
from transforms.heads import FitSettings, Kind
from transforms.heads.cells import Rows
from transforms.heads.model import (
    Model,
    class_weights,
    dense_arrays,
    dense_keras_logits,
    dense_logits,
    dense_problem,
    fold_standardisation,
    log_losses,
    score_slices,
)
from transforms.heads.ridge_forms import feature_scale

# What the rows may hold: all as they are read, a fit's as they are read and as float64; and while their axes are
# computed, these and what is decomposed.
MEMORY_BYTES = 4 * 2**30
_BYTES_PER_NUMBER, _BYTES_OF_AXES = 4 + 4 + 8, 8 + 8
# The sweep ends when the validation loss has been above its best for so many penalties.
_RISES = 3
_MAX_STEPS = 2000
# Of the mean loss's largest slope. Ten times coarser, accuracy is the same but weak penalties look like stronger ones.
_TOLERANCE = 1e-5


def fitter(rows: Rows, settings: FitSettings) -> "Logistic":
    """Reads the rows into memory and returns what fits any union of their cells.

    Raises:
        FeaturemillError: They are too many.
    """
    used = int((rows.cells >= 0).sum())
    needed = used * rows.dims * (_BYTES_PER_NUMBER + (_BYTES_OF_AXES if rows.dims > used else 0))
    if needed > MEMORY_BYTES:
        raise FeaturemillError(
            f"logistic on {used:,} rows of {rows.dims:,} numbers would hold {needed / 2**30:.1f} GiB;"
            " take --head linear, which streams, or ridge"
        )
    return Logistic(rows, settings)


class Logistic:
    """A `Fitter` on rows in memory."""

    def __init__(self, rows: Rows, settings: FitSettings):
        self._settings, self._classes = settings, len(rows.classes)
        numbers, self._matrix = rows.matrix(set(rows.cells[rows.cells >= 0].tolist()))
        self._cells, self._codes = rows.cells[numbers], rows.codes[numbers]

    def fit(self, train: Collection[int], validation: Collection[int]) -> Model:
        problem = self._problem(train)
        chosen = self._chosen(validation)
        vectors, codes = problem.coordinates(self._matrix[chosen]), self._codes[chosen]
        weights = problem.class_weights[codes]
        estimator, curve, best = problem.estimator(), [], None
        for penalty in sorted(self._settings.penalties, reverse=True):
            layer, converged = problem.fit(estimator, penalty)
            losses = [
                log_losses(vectors[part] @ layer[0] + layer[1], codes[part])
                for part in score_slices(len(codes), self._classes)
            ]
            loss = float(np.average(np.concatenate(losses), weights=weights))
            curve.append({"penalty": penalty, "loss": loss})
            if best is None or loss < best[0]["loss"]:
                best = curve[-1], layer, converged
            elif all(point["loss"] > best[0]["loss"] for point in curve[-_RISES:]):
                break
        point, layer, converged = best
        settings = {"penalty": point["penalty"], "standardize": self._settings.standardize, "converged": converged}
        return Model("logistic", dense_arrays([problem.as_stored(*layer)]), settings, tuple(curve[::-1]))

    def refit(self, model: Model, train: Collection[int]) -> Model:
        problem = self._problem(train)
        layer, converged = problem.fit(problem.estimator(), model.settings["penalty"])
        settings = {**model.settings, "converged": converged}
        return replace(model, arrays=dense_arrays([problem.as_stored(*layer)]), settings=settings)

    def _chosen(self, cells: Collection[int]) -> np.ndarray:
        chosen = np.flatnonzero(np.isin(self._cells, list(cells)))
        if len(chosen) == 0:
            raise ValueError(f"no rows in the cells {sorted(cells)}")
        return chosen

    def _problem(self, train: Collection[int]) -> "_Problem":
        chosen = self._chosen(train)
        return _Problem.of(self._matrix[chosen], self._codes[chosen], self._classes, self._settings)


@dataclass(frozen=True)
class _Problem:
    """Training rows in coordinates that suit the solver.

    Attributes:
        rows: n×M float64: centred, divided by `scale`, and where D > n turned by `axes` into their own n dimensions.
            The best W has no part outside of these: it would cost penalty and change no score.
        axes: D×n, orthonormal; None where D ≤ n.
        mean, scale: D each, of the rows as stored.
        codes: n, the classes.
        class_weights: C, what a row of each class counts.
        scaled_unit: Mean variance of the scaled features, 1 unless some are constant: what λ is relative to.
    """

    rows: np.ndarray
    axes: np.ndarray | None
    mean: np.ndarray
    scale: np.ndarray
    codes: np.ndarray
    class_weights: np.ndarray
    scaled_unit: float

    @classmethod
    def of(cls, matrix: np.ndarray, codes: np.ndarray, classes: int, settings: FitSettings) -> "_Problem":
        count, dims = matrix.shape
        mean = matrix.mean(axis=0, dtype=np.float64)
        rows = matrix - mean
        squares = np.einsum("nd,nd->d", rows, rows)
        if settings.standardize:
            scale = feature_scale(squares, np.zeros(dims), count)
        else:
            # The solver's steps and tolerance suit numbers near 1; a common factor leaves the solution as it is.
            scale = np.full(dims, np.sqrt(squares.sum() / count / dims) or 1.0)
        rows /= scale
        unit = float((squares / scale**2).sum() / count / dims)
        axes = None
        if dims > count:
            axes, triangle = np.linalg.qr(rows.T)
            rows = np.ascontiguousarray(triangle.T)
        weights = class_weights(np.bincount(codes, minlength=classes)) if settings.class_weights else np.ones(classes)
        return cls(rows, axes, mean, scale, codes, weights, unit)

    def coordinates(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors as stored (n×D) in this problem's coordinates."""
        scaled = (vectors - self.mean) / self.scale
        return scaled if self.axes is None else scaled @ self.axes

    def as_stored(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the dense layer that takes vectors as stored for one that takes `coordinates`."""
        if self.axes is not None:
            kernel = self.axes @ kernel
        return fold_standardisation(kernel, bias, self.mean, self.scale)

    def estimator(self):
        """Returns a scikit-learn estimator whose fits start from the last one."""
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(warm_start=True, max_iter=_MAX_STEPS, tol=_TOLERANCE)

    def fit(self, estimator, penalty: float) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
        """Returns the dense layer (M×C, C) in this problem's coordinates, and whether the solver got to the end."""
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        classes = len(self.class_weights)
        present = np.unique(self.codes)
        kernel, bias = np.zeros((self.rows.shape[1], classes)), np.zeros(classes)
        converged = True
        if len(present) > 1:
            strength = penalty * len(self.rows) * self.scaled_unit
            if len(present) == 2:
                # scikit-learn has one vector w for two classes, which here are ±w/2: half the squares.
                strength /= 2
            estimator.set_params(C=1 / strength if strength else np.inf)
            # The solver's products are thin: on two cores two threads took twice as long as one.
            with warnings.catch_warnings(record=True) as caught, threadpool_limits(1, user_api="blas"):
                warnings.simplefilter("always")
                estimator.fit(self.rows, self.codes, sample_weight=self.class_weights[self.codes])
            converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
            weights, intercept = estimator.coef_.T, estimator.intercept_
            if len(present) == 2:
                weights, intercept = np.hstack([-weights, weights]) / 2, np.append(-intercept, intercept) / 2
            kernel[:, present], bias[present] = weights, intercept
        # A class that no training row has gets the share of one row in all, where the vectors' mean is.
        missing = np.setdiff1d(np.arange(classes), present)
        bias[missing] = np.logaddexp.reduce(bias[present]) - np.log(len(self.rows) + 1)
        return (kernel, bias), converged


KINDS = {
    "logistic": Kind(
        fitter=fitter, logits=dense_logits, keras_logits=dense_keras_logits, problem=dense_problem, is_dense=True
    )
}
