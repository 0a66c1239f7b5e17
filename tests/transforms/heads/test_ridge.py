"""Ridge: sums, both forms, the choice of the penalty; against direct solves in float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.heads_data import ArrayVectors, deviations, draw_rows
from tests.support.properties import examples
from transforms import heads
from transforms.errors import FeaturemillError, UsageError
from transforms.heads import FitSettings, ridge
from transforms.heads.cells import Rows
from transforms.heads.ridge_forms import KernelProblem, RowsInMemory, SumsProblem, feature_scale

TRAIN, VALIDATION = (0, 1), (2,)


def make_fitter(form: str, rows: Rows, options: FitSettings) -> ridge.Ridge:
    """Returns a fitter of the form asked for, whichever `fitter` would take."""
    if form == "sums":
        sums = ridge.collect(rows)
        return ridge.Ridge(lambda train: SumsProblem(sums, train, standardize=options.standardize), options)
    held = RowsInMemory(rows)
    return ridge.Ridge(lambda train: KernelProblem(held, train, standardize=options.standardize), options)


def one_hot(rows: Rows, cells) -> tuple[np.ndarray, np.ndarray]:
    chosen = rows.wanted(cells)
    return rows.vectors.matrix[chosen].astype(np.float64), np.eye(len(rows.classes))[rows.codes[chosen]]


def direct(rows: Rows, cells, penalty: float, *, standardize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Solves the normal equations with a column of ones; returns kernel and bias for vectors as stored."""
    x, y = one_hot(rows, cells)
    scale = np.ones(x.shape[1])
    if standardize:
        scale = deviations(x)
    x = x / scale
    weight = penalty * len(x) * x.var(axis=0).mean()
    # Far from the origin the ones make the equations ill-conditioned; moving all rows changes only the intercept.
    middle = x.mean(axis=0)
    with_ones = np.hstack([x - middle, np.ones((len(x), 1))])
    damping = np.diag([weight] * x.shape[1] + [0.0])
    solution = np.linalg.solve(with_ones.T @ with_ones + damping, with_ones.T @ y)
    kernel = solution[:-1] / scale[:, None]
    return kernel, solution[-1] - (middle * scale) @ kernel


def rounding(rows: Rows, cells, penalty: float, *, standardize: bool = False) -> float:
    """Returns what rounding alone can make of a kernel that is zero, as when all training rows are of one class.

    Each number of XᵀY about the means is a sum of n products up to max|x| that cancel: n · eps · max|x| remain. Solving
    divides it by the penalty's weight at least, and the layer for vectors as stored by the columns' scale.
    """
    x, _ = one_hot(rows, cells)
    scale = deviations(x) if standardize else np.ones(x.shape[1])
    weight = penalty * len(x) * (x / scale).var(axis=0).mean()
    return len(x) * np.finfo(np.float64).eps * np.abs(x / scale).max() / weight / scale.min()


def assert_close(model, kernel, bias, tolerance=1e-6, rounding=0.0):
    atol = tolerance * np.abs(kernel).max() + rounding
    np.testing.assert_allclose(model.arrays["kernel1"], kernel, rtol=0, atol=atol)
    np.testing.assert_allclose(model.arrays["bias1"], bias, rtol=0, atol=tolerance * (1 + np.abs(bias).max()))


@pytest.mark.parametrize("form", ["sums", "kernel"])
@given(
    count=st.integers(12, 90),
    dims=st.integers(2, 60),
    classes=st.integers(2, 5),
    penalty=st.sampled_from([1e-3, 0.03, 1.0, 50.0]),
    standardize=st.booleans(),
    shift=st.sampled_from([0.0, 300.0]),
    seed=st.integers(0, 1000),
)
# All training rows are of one class.
@example(count=17, dims=5, classes=2, penalty=0.03, standardize=True, shift=300.0, seed=796)
@example(count=12, dims=14, classes=2, penalty=1e-3, standardize=True, shift=0.0, seed=649)
@examples(40)
def test_equals_a_direct_solve(form, count, dims, classes, penalty, standardize, shift, seed):
    rows = draw_rows(rows=count, dims=dims, classes=classes, cells=3, seed=seed)
    rows.vectors.matrix[:] += shift
    # One column on another scale, one constant.
    rows.vectors.matrix[:, 0] *= 100
    rows.vectors.matrix[:, dims // 2] = 7.7
    rows.cells[:9] = np.arange(9) % 3
    options = FitSettings(penalties=(penalty,), standardize=standardize)
    model = make_fitter(form, rows, options).fit(TRAIN, VALIDATION)
    kernel, bias = direct(rows, TRAIN, penalty, standardize=standardize)
    assert_close(model, kernel, bias, rounding=rounding(rows, TRAIN, penalty, standardize=standardize))
    x, y = one_hot(rows, VALIDATION)
    loss = np.sum((y - x @ kernel - bias) ** 2) / len(x)
    np.testing.assert_allclose(model.curve[0]["loss"], loss, rtol=1e-6)


@pytest.mark.parametrize(("count", "form"), [(150, "kernel"), (600, "sums")])
def test_standardising_does_not_blow_up_noise_of_nearly_constant_columns(count, form):
    """As in flattened taps: most columns hold noise of a thousandth of the others' size."""
    few = draw_rows(rows=count, dims=20, classes=3, distance=4.0)
    noise = np.random.default_rng(5).normal(0, 1e-3, (count, 380)).astype(np.float32)
    rows = replace(few, vectors=ArrayVectors(np.hstack([few.vectors.matrix, noise])))
    numbers, matrix = rows.matrix(VALIDATION)

    def loss(standardize: bool) -> float:
        model = make_fitter(form, rows, FitSettings(standardize=standardize)).fit(TRAIN, VALIDATION)
        scores = heads.logits(model, matrix)
        return float(((np.eye(3)[rows.codes[numbers]] - scores) ** 2).mean())

    assert loss(True) < 1.1 * loss(False)


@pytest.mark.parametrize("form", ["sums", "kernel"])
def test_rows_far_from_the_origin_keep_their_digits(form):
    rows = draw_rows(rows=400, dims=20, classes=3)
    rows.vectors.matrix[:] += 1e5
    model = make_fitter(form, rows, FitSettings(penalties=(1e-4,))).fit(TRAIN, VALIDATION)
    kernel, bias = direct(rows, TRAIN, 1e-4)
    np.testing.assert_allclose(model.arrays["kernel1"], kernel, rtol=0, atol=1e-10 * np.abs(kernel).max())
    x, y = one_hot(rows, VALIDATION)
    np.testing.assert_allclose(model.curve[0]["loss"], np.sum((y - x @ kernel - bias) ** 2) / len(x), rtol=1e-8)


@pytest.mark.parametrize(("count", "dims", "form"), [(200, 20, SumsProblem), (30, 80, KernelProblem)])
def test_the_form_follows_the_shape(count, dims, form):
    rows = draw_rows(rows=count, dims=dims, classes=3)
    assert type(ridge.fitter(rows, FitSettings())._problem(TRAIN)) is form


@pytest.mark.parametrize("standardize", [False, True])
def test_both_forms_agree_over_the_whole_sweep(standardize):
    rows = draw_rows(rows=60, dims=60, classes=4)
    options = FitSettings(standardize=standardize)
    one, other = (make_fitter(form, rows, options).fit(TRAIN, VALIDATION) for form in ("sums", "kernel"))
    assert one.settings == other.settings
    losses = [[point["loss"] for point in model.curve] for model in (one, other)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert_close(one, other.arrays["kernel1"], other.arrays["bias1"])


def test_the_penalty_with_the_least_validation_error_is_chosen_and_kept_by_refit():
    rows = draw_rows(rows=120, dims=60, classes=3, distance=1.5)
    fitter = heads.fitter("ridge", rows, FitSettings())
    model = fitter.fit(TRAIN, VALIDATION)
    x, y = one_hot(rows, VALIDATION)
    errors = {}
    for penalty in FitSettings().penalties:
        kernel, bias = direct(rows, TRAIN, penalty)
        errors[penalty] = np.sum((y - x @ kernel - bias) ** 2)
    penalty = min(errors, key=errors.get)
    assert min(errors) < penalty < max(errors), "the rows are made so that the best penalty is inside the grid"
    assert model.settings["penalty"] == penalty
    again = fitter.refit(model, (*TRAIN, *VALIDATION))
    assert (again.settings, again.curve) == (model.settings, model.curve)
    assert_close(again, *direct(rows, (*TRAIN, *VALIDATION), penalty))


def test_logits_are_the_regression_of_one_hot_targets():
    rows = draw_rows(rows=300, dims=10, classes=3, distance=8)
    model = heads.fitter("ridge", rows, FitSettings()).fit(TRAIN, VALIDATION)
    x, y = one_hot(rows, (3,))
    scores = heads.logits(model, x.astype(np.float32))
    assert scores.dtype == np.float64
    assert np.mean(scores.argmax(axis=1) == y.argmax(axis=1)) > 0.95
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-9)


def test_unused_rows_are_never_looked_at():
    rows = draw_rows(rows=100, dims=5, classes=3)
    rows.cells[50:] = -1
    rows.codes[50:] = -1
    rows.vectors.matrix[50:] = np.nan
    rows.cells[:4] = [0, 1, 2, 3]
    for form in ("sums", "kernel"):
        model = make_fitter(form, rows, FitSettings()).fit(TRAIN, VALIDATION)
        assert all(np.isfinite(array).all() for array in model.arrays.values())


@pytest.mark.parametrize("form", ["sums", "kernel"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1e-4])
def test_degenerate_rows_fit(form, standardize, penalty):
    """Copies of columns, constant ones, one row per class, a class without training rows."""
    random = np.random.default_rng(0)
    matrix = np.repeat(random.normal(size=(7, 2)), 3, axis=1).astype(np.float32)
    # Constant, but only where the fit looks.
    matrix[:, 1] = [0.1, 0.1, 0.1, 5, 6, 7, 8]
    cells = np.array([0, 0, 0, 2, 2, 2, 2], np.int32)
    rows = Rows(ArrayVectors(matrix), np.array([0, 1, 2, 0, 1, 2, 3], np.int32), cells, ("a", "b", "c", "d"))
    options = FitSettings(penalties=(penalty,), standardize=standardize)
    model = make_fitter(form, rows, options).fit((0,), VALIDATION)
    scores = heads.logits(model, matrix)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() < 1e3
    assert np.abs(scores[:, 3]).max() < 1e-9
    assert np.abs(model.arrays["kernel1"][1]).max() < 1e-6
    if not penalty:
        # Three rows about their mean have rank 2, as have the columns: the fit goes through them.
        np.testing.assert_allclose(scores[:3], np.eye(4)[:3], atol=1e-6)


@pytest.mark.parametrize("form", ["sums", "kernel"])
def test_rows_that_are_all_equal_get_the_classes_shares(form):
    rows = draw_rows(rows=40, dims=4, classes=2)
    rows.vectors.matrix[:] = 0.3
    model = make_fitter(form, rows, FitSettings()).fit(TRAIN, VALIDATION)
    shares = rows.counts(TRAIN) / rows.counts(TRAIN).sum()
    np.testing.assert_allclose(heads.logits(model, rows.vectors.matrix[:1])[0], shares, atol=1e-9)


@pytest.mark.parametrize("form", ["sums", "kernel"])
def test_the_same_rows_give_the_same_bits(form):
    rows = draw_rows(rows=500, dims=40, classes=4)
    one, other = (make_fitter(form, rows, FitSettings()).fit(TRAIN, VALIDATION) for _ in range(2))
    assert all(one.arrays[name].tobytes() == other.arrays[name].tobytes() for name in one.arrays)


@pytest.mark.parametrize("form", ["sums", "kernel"])
def test_no_rows_is_a_mistake_of_the_caller(form):
    fitter = make_fitter(form, draw_rows(rows=40, dims=4, classes=2), FitSettings())
    with pytest.raises(ValueError, match=r"no rows in the cells \[7\]"):
        fitter.fit(TRAIN, (7,))
    with pytest.raises(ValueError, match=r"no rows in the cells \[8\]"):
        fitter.fit((8,), VALIDATION)


@pytest.mark.parametrize("form", ["sums", "kernel"])
@pytest.mark.parametrize(("count", "dims"), [(60, 150), (150, 60)])
@pytest.mark.parametrize("scales", ["small", "half", "few"])
@pytest.mark.parametrize("small", [1e-6, 1e-8])
def test_small_columns_are_exact_or_refused(form, count, dims, scales, small):
    """Against singular values, which lose no digits to squares; at the least penalty, far below it, and at none."""
    factors = np.full(dims, small)
    factors[slice(None, None, 2) if scales == "half" else slice(0, 3 if scales == "few" else 0)] = 1
    matrix = (np.random.default_rng(0).normal(size=(count, dims)) * factors).astype(np.float32)
    cells = (np.arange(count) % 4 == 0).astype(np.int32)
    rows = Rows(ArrayVectors(matrix), (np.arange(count) % 3).astype(np.int32), cells, ("a", "b", "c"))
    x, y = one_hot(rows, (0,))
    mean, shares = x.mean(axis=0), y.mean(axis=0)
    left, values, right = np.linalg.svd(x - mean, full_matrices=False)
    refused = []
    # Without a penalty, a variance of 1e-16 of the largest is none, here as for numpy's lstsq of a Gram matrix.
    for penalty in (1e-4, 1e-8, 1e-12, 1e-14, 1e-16, 1e-20, *([] if small < 1e-6 else [0.0])):
        weight = penalty * len(x) * x.var(axis=0).mean()
        used = values > 1e-15 * values[0]
        inverse = np.where(used, values, 0) / np.where(used, values**2 + weight, 1)
        kernel = right.T @ (inverse[:, None] * (left.T @ (y - shares)))
        try:
            model = make_fitter(form, rows, FitSettings(penalties=(penalty,))).fit((0,), (1,))
        except FeaturemillError:
            refused.append(penalty)
            continue
        expected = matrix.astype(np.float64) @ kernel + shares - mean @ kernel
        np.testing.assert_allclose(heads.logits(model, matrix), expected, rtol=0, atol=1e-5)
    assert 1e-4 not in refused, "what is tried without being asked for is exact"


def test_what_rounding_would_decide_is_refused_in_a_line():
    rows = draw_rows(rows=40, dims=90, classes=2)
    with pytest.raises(FeaturemillError, match=r"can't be exact at the penalty 1e-13.*leave it out of --penalties"):
        heads.fitter("ridge", rows, FitSettings(penalties=(1.0, 1e-13))).fit(TRAIN, VALIDATION)


def test_class_weights_are_refused():
    with pytest.raises(UsageError, match="--head logistic or linear"):
        heads.fitter("ridge", draw_rows(rows=40, dims=4, classes=2), FitSettings(class_weights=True))


def test_what_fits_no_memory_is_refused_with_the_cure(monkeypatch):
    rows = draw_rows(rows=60, dims=50, classes=2)
    monkeypatch.setattr(ridge, "MEMORY_BYTES", 10_000)
    with pytest.raises(FeaturemillError, match=r"60 rows of 50 numbers.*:avg.*--head linear"):
        heads.fitter("ridge", rows, FitSettings())
    # Cells make the sums large, not the rows: few enough of these are held instead.
    monkeypatch.setattr(ridge, "MEMORY_BYTES", 60 * 60 * 8)
    assert not ridge.use_sums(rows)
    assert ridge.use_sums(replace(rows, cells=np.zeros(60, np.int32)))


def test_what_rounding_leaves_of_a_constant_is_no_variance():
    x = np.random.default_rng(0).normal(size=50) + np.zeros((1000, 1))
    np.testing.assert_array_equal(feature_scale(np.sum(x**2, axis=0), x.mean(axis=0), 1000), 1)
    # Beside others, it is divided by what nearly constant ones are.
    x[:, 0] = np.random.default_rng(1).normal(size=1000)
    found = feature_scale(np.sum(x**2, axis=0), x.mean(axis=0), 1000)
    np.testing.assert_allclose(found, [x[:, 0].std(), *[0.1 * x[:, 0].std() / np.sqrt(50)] * 49], rtol=1e-6)
    x = np.random.default_rng(0).normal(size=50) + np.zeros((1000, 1))
    x = x + np.random.default_rng(1).normal(size=(1000, 50)) * 1e-4
    np.testing.assert_allclose(feature_scale(np.sum(x**2, axis=0), x.mean(axis=0), 1000), x.std(axis=0), rtol=1e-4)
