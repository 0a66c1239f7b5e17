"""Ridge regression of one-hot targets, in closed form: one pass over the data, one decomposition per fit.

The least squares of Y - XW - b with the penalty λ‖W‖²; the intercept b isn't penalised. See Hastie, Tibshirani and
Friedman, The Elements of Statistical Learning, 3.4.1 (ridge) and 18.3.5 (more numbers than rows).
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from transforms.errors import FeaturemillError, UsageError
from transforms.heads import FitSettings, Kind
from transforms.heads.cells import Rows
from transforms.heads.model import Model, dense_arrays, dense_keras_logits, dense_logits, dense_problem
from transforms.heads.ridge_forms import KernelProblem, Problem, RowsInMemory, SumsProblem
from transforms.heads.ridge_sums import CellSums

# What sums, rows or their kernel may hold, each.
MEMORY_BYTES = 2 * 2**30


def fitter(rows: Rows, settings: FitSettings) -> "Ridge":
    """Reads the rows once and returns what fits any union of their cells.

    Raises:
        UsageError: Class weights are asked for.
        FeaturemillError: Neither sums nor rows fit in memory.
    """
    if settings.class_weights:
        raise UsageError("ridge counts all rows alike; class weights are for --head logistic or linear")
    if use_sums(rows):
        sums = collect(rows)
        return Ridge(lambda train: SumsProblem(sums, train, standardize=settings.standardize), settings)
    held = RowsInMemory(rows)
    return Ridge(lambda train: KernelProblem(held, train, standardize=settings.standardize), settings)


def use_sums(rows: Rows) -> bool:
    """Tells whether to fit by D×D sums (true) or by the N×N kernel of rows in memory.

    Raises:
        FeaturemillError: Neither fits in memory.
    """
    used, dims = rows.cells[rows.cells >= 0], rows.dims
    count, cells = len(used), len(np.unique(used))
    sums_bytes = cells * dims**2 * 8
    rows_bytes = max(count * dims * 4, count**2 * 8)
    if sums_bytes <= MEMORY_BYTES and (count >= dims or rows_bytes > MEMORY_BYTES):
        return True
    if rows_bytes <= MEMORY_BYTES:
        return False
    raise FeaturemillError(
        f"ridge on {count:,} rows of {dims:,} numbers would hold {min(sums_bytes, rows_bytes) / 2**30:.1f} GiB;"
        " take a feature with an average pool (NAME=TAP:avg), or --head linear, which streams"
    )


def collect(rows: Rows) -> CellSums:
    """Returns the sums of every cell, from one pass in the order of the rows."""
    sums = None
    for numbers, batch in rows.vectors.batches(rows.cells >= 0):
        sums = sums or CellSums(batch.mean(axis=0, dtype=np.float64), len(rows.classes))
        sums.add(rows.cells[numbers], batch, rows.codes[numbers])
    if sums is None:
        raise ValueError("no row is in a cell")
    return sums


class Ridge:
    """A `Fitter` on whatever makes a decomposed problem of some training cells.

    `Ridge(lambda train: SumsProblem(sums, train, standardize=False), settings)` fits on sums from a cluster.
    """

    def __init__(self, problem: Callable[[Collection[int]], Problem], settings: FitSettings):
        self._problem, self._settings = problem, settings

    def fit(self, train: Collection[int], validation: Collection[int]) -> Model:
        problem = self._problem(train)
        loss = problem.loss(validation)
        curve = tuple(
            {"penalty": penalty, "loss": loss(problem.spectrum.solve(penalty))} for penalty in self._settings.penalties
        )
        penalty = min(curve, key=lambda point: point["loss"])["penalty"]
        settings = {"penalty": penalty, "standardize": self._settings.standardize}
        return Model("ridge", self._arrays(problem, penalty), settings, curve)

    def refit(self, model: Model, train: Collection[int]) -> Model:
        return replace(model, arrays=self._arrays(self._problem(train), model.settings["penalty"]))

    def _arrays(self, problem: Problem, penalty: float) -> dict[str, np.ndarray]:
        return dense_arrays([problem.layer(problem.spectrum.solve(penalty))])


KINDS = {
    "ridge": Kind(
        fitter=fitter,
        logits=dense_logits,
        keras_logits=dense_keras_logits,
        problem=dense_problem,
        is_dense=True,
        # With fewer rows than numbers, it holds the kernel of all rows instead of sums.
        cell_bytes=lambda rows, dims: 0 if rows <= dims else dims**2 * 8,
    )
}
