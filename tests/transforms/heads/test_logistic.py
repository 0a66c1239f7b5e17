"""Logistic regression: against a plain minimiser in float64, and where scikit-learn has to be helped."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from tests.support.heads_data import ArrayVectors, deviations, draw_rows
from transforms import heads
from transforms.errors import FeaturemillError
from transforms.heads import FitSettings, logistic
from transforms.heads.cells import Rows
from transforms.heads.model import Model, class_weights

TRAIN, VALIDATION = (0, 1), (2,)


def direct(rows: Rows, penalty: float, *, standardize: bool = False, balanced: bool = False) -> np.ndarray:
    """Minimises the definition, symmetric in all classes; returns the log probabilities of all rows."""
    chosen = rows.wanted(TRAIN)
    matrix = rows.vectors.matrix.astype(np.float64)
    x, codes, classes = matrix[chosen], rows.codes[chosen], len(rows.classes)
    mean, scale = x.mean(axis=0), deviations(x) if standardize else np.ones(x.shape[1])
    x, targets = (x - mean) / scale, np.eye(classes)[codes]
    strength = penalty * len(x) * x.var(axis=0).mean()
    weights = (len(x) / (classes * np.bincount(codes)))[codes] if balanced else np.ones(len(x))

    def objective(flat):
        kernel, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        scores = log_softmax(x @ kernel + bias, axis=1)
        slope = (np.exp(scores) - targets) * weights[:, None]
        loss = -np.sum(weights * scores[np.arange(len(x)), codes]) + strength / 2 * np.sum(kernel**2)
        return loss, np.append((x.T @ slope + strength * kernel).ravel(), slope.sum(axis=0))

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-8}
    found = minimize(objective, np.zeros((x.shape[1] + 1) * classes), jac=True, method="L-BFGS-B", options=options).x
    kernel, bias = found[:-classes].reshape(-1, classes), found[-classes:]
    return log_softmax((matrix - mean) / scale @ kernel + bias, axis=1)


def log_probabilities(model: Model, rows: Rows) -> np.ndarray:
    return log_softmax(heads.logits(model, rows.vectors.matrix), axis=1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dims", [6, 90], ids=["many rows", "many numbers"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_equals_a_plain_minimiser(classes, dims, standardize, balanced, penalty):
    rows = draw_rows(rows=100, dims=dims, classes=classes, distance=1.5, seed=1)
    rows.vectors.matrix[:] = rows.vectors.matrix * np.linspace(0.5, 2, dims) * 30 + 100
    options = FitSettings(penalties=(penalty,), standardize=standardize, class_weights=balanced)
    model = heads.fitter("logistic", rows, options).fit(TRAIN, VALIDATION)
    expected = direct(rows, penalty, standardize=standardize, balanced=balanced)
    np.testing.assert_allclose(np.exp(log_probabilities(model, rows)), np.exp(expected), atol=2e-3)
    assert model.settings["converged"]
    assert model.arrays["kernel1"].dtype == np.float64


def test_the_penalty_with_the_least_validation_loss_is_chosen_and_kept_by_refit():
    rows = draw_rows(rows=300, dims=30, classes=3, distance=1.5)
    penalties = (1e-3, 0.01, 0.1, 1.0, 10.0)
    fitter = heads.fitter("logistic", rows, FitSettings(penalties=penalties))
    model = fitter.fit(TRAIN, VALIDATION)
    chosen = rows.wanted(VALIDATION)
    losses = [-direct(rows, penalty)[chosen, rows.codes[chosen]].mean() for penalty in penalties]
    assert 0 < np.argmin(losses) < len(penalties) - 1, "the best penalty is inside the grid"
    assert model.settings["penalty"] == penalties[np.argmin(losses)]
    tried = {point["penalty"]: point["loss"] for point in model.curve}
    assert list(tried) == sorted(tried)
    for penalty, loss in zip(penalties, losses, strict=True):
        np.testing.assert_allclose(tried.get(penalty, loss), loss, rtol=1e-3)
    again = fitter.refit(model, TRAIN)
    assert again.settings["penalty"] == model.settings["penalty"]
    np.testing.assert_allclose(log_probabilities(again, rows), log_probabilities(model, rows), atol=5e-3)


def test_the_sweep_ends_where_the_loss_keeps_rising():
    rows = draw_rows(rows=200, dims=40, classes=3, distance=0.5)
    model = heads.fitter("logistic", rows, FitSettings()).fit(TRAIN, VALIDATION)
    best = [point["penalty"] for point in model.curve].index(model.settings["penalty"])
    assert best == 3
    assert model.curve[-1]["penalty"] == max(FitSettings().penalties)


def test_a_class_without_training_rows_is_unlikely_but_finite():
    rows = draw_rows(rows=200, dims=5, classes=3, distance=6)
    rows.cells[rows.codes == 1] = 2
    fitter = heads.fitter("logistic", rows, FitSettings())
    model = fitter.fit(TRAIN, VALIDATION)
    assert np.isfinite(log_probabilities(model, rows)).all()
    assert np.exp(log_probabilities(model, rows))[rows.codes != 1, 1].mean() < 0.05
    seen = fitter.refit(model, (0, 2))
    assert np.exp(log_probabilities(seen, rows))[rows.codes == 1, 1].mean() > 0.5


def test_one_class_and_constant_columns_fit():
    rows = Rows(
        ArrayVectors(np.full((6, 3), 0.3, np.float32)),
        np.array([0, 0, 0, 0, 0, 1], np.int32),
        np.array([0, 0, 0, 1, 1, 2], np.int32),
        ("a", "b"),
    )
    model = heads.fitter("logistic", rows, FitSettings()).fit(TRAIN, VALIDATION)
    np.testing.assert_allclose(np.exp(log_probabilities(model, rows))[0], [6 / 7, 1 / 7])
    rows.codes[1] = 1
    model = heads.fitter("logistic", rows, FitSettings(penalties=(0.1,))).fit(TRAIN, VALIDATION)
    np.testing.assert_allclose(np.exp(log_probabilities(model, rows))[0], [0.8, 0.2], atol=1e-3)


def test_what_did_not_converge_is_recorded_and_nothing_is_printed(monkeypatch, capfd):
    monkeypatch.setattr(logistic, "_MAX_STEPS", 2)
    rows = draw_rows(rows=100, dims=20, classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitter = heads.fitter("logistic", rows, FitSettings(penalties=(1e-3,)))
        model = fitter.fit(TRAIN, VALIDATION)
        assert not model.settings["converged"]
        assert not fitter.refit(model, (0,)).settings["converged"]
    assert capfd.readouterr() == ("", "")


def test_class_weights_help_the_rare_class():
    rows = draw_rows(rows=600, dims=4, classes=2, distance=1.5)
    rows.cells[(rows.codes == 1) & (np.arange(600) % 10 > 0)] = -1
    shares = []
    for balanced in (False, True):
        options = FitSettings(class_weights=balanced)
        model = heads.fitter("logistic", rows, options).fit(TRAIN, VALIDATION)
        shares.append(softmax(heads.logits(model, rows.vectors.matrix), axis=1)[rows.codes == 1, 1].mean())
    assert shares[1] > shares[0] + 0.2


def test_a_class_without_training_rows_counts_as_in_every_kind_of_head():
    """Its rows only judge; those that train count 1 on average, so that a penalty means what it does elsewhere."""
    rows = draw_rows(rows=60, dims=4, classes=3)
    codes = np.minimum(rows.codes, 1)
    problem = logistic._Problem.of(rows.vectors.matrix, codes, 3, FitSettings(class_weights=True))
    counts = np.bincount(codes, minlength=3)
    np.testing.assert_array_equal(problem.class_weights, class_weights(counts))
    np.testing.assert_array_equal(problem.class_weights, 60 / (2 * np.array([*counts[:2], 1])))
    assert np.average(problem.class_weights, weights=counts) == pytest.approx(1)


def test_the_same_rows_give_the_same_bits():
    rows = draw_rows(rows=300, dims=20, classes=4)
    one, other = (heads.fitter("logistic", rows, FitSettings()).fit(TRAIN, VALIDATION) for _ in range(2))
    assert all(one.arrays[name].tobytes() == other.arrays[name].tobytes() for name in one.arrays)


def test_no_rows_is_a_mistake_of_the_caller():
    fitter = heads.fitter("logistic", draw_rows(rows=40, dims=4, classes=2), FitSettings())
    for train, validation in ((TRAIN, (7,)), ((7,), VALIDATION)):
        with pytest.raises(ValueError, match=r"no rows in the cells \[7\]"):
            fitter.fit(train, validation)


def test_too_many_rows_are_refused_with_the_cure(monkeypatch):
    rows = draw_rows(rows=100, dims=10, classes=2)
    monkeypatch.setattr(logistic, "MEMORY_BYTES", 100 * 10 * 16 - 1)
    with pytest.raises(FeaturemillError, match=r"100 rows of 10 numbers.*--head linear"):
        heads.fitter("logistic", rows, FitSettings())
    cells = rows.cells.copy()
    cells[0] = -1
    heads.fitter("logistic", replace(rows, cells=cells), FitSettings())
