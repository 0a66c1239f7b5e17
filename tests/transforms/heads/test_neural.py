"""Heads by gradient steps: what they come to, and that they follow their settings."""

import numpy as np
import pytest

from tests.support.factories import shared_data
from tests.support.heads_data import ArrayVectors, deviations, draw_rows
from transforms.errors import FeaturemillError
from transforms.heads import FitSettings, fitter, logits, neural
from transforms.heads.cells import Rows
from transforms.heads.model import dense_layers

TRAIN, VALIDATION = (0, 1), (2,)
# Few and small steps, where the test isn't about how good a head becomes.
SHORT = FitSettings(epochs=3, batch_size=32)


def accuracy(model, rows: Rows, cells: tuple[int, ...]) -> float:
    numbers, matrix = rows.matrix(cells)
    return float((logits(model, matrix).argmax(axis=1) == rows.codes[numbers]).mean())


def log_loss(model, rows: Rows, cells: tuple[int, ...]) -> float:
    numbers, matrix = rows.matrix(cells)
    scores = logits(model, matrix).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return float(-np.log(shares[np.arange(len(numbers)), rows.codes[numbers]]).mean())


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw_rows(rows=400, dims=12, classes=3, distance=4.0)


@pytest.mark.parametrize("kind", neural.KINDS)
def test_learns_and_stops_at_the_best_epoch(kind, rows):
    settings = FitSettings(batch_size=32, learning_rate=1e-2, epochs=60, patience=3)
    model = fitter(kind, rows, settings).fit(TRAIN, VALIDATION)
    # Centres 4 standard deviations apart: Bayes's own rule gets some 97 % right.
    assert accuracy(model, rows, (3,)) > 0.9
    losses = [point["validation_loss"] for point in model.curve]
    best = int(np.argmin(losses)) + 1
    assert model.settings["epochs"] == best
    assert len(losses) == min(best + settings.patience, settings.epochs)
    assert log_loss(model, rows, VALIDATION) == pytest.approx(min(losses), rel=1e-6)
    assert [point["epoch"] for point in model.curve] == list(range(1, len(losses) + 1))
    assert all(array.dtype == np.float32 for array in model.arrays.values())
    assert [k.shape[1] for k, _ in dense_layers(model)] == {"linear": [3], "dense128": [128, 3], "dense256": [256, 3]}[
        kind
    ]


@pytest.mark.parametrize("standardize", [False, True])
def test_numpy_says_what_keras_says(rows, standardize):
    """The arrays take stored numbers; the Keras network takes them scaled. One feature never changes."""
    matrix = rows.vectors.matrix * np.logspace(-1, 1, 12, dtype=np.float32) + 3
    matrix[:, 4] = 7
    scaled = Rows(ArrayVectors(matrix), rows.codes, rows.cells, rows.classes)
    fit = fitter("dense256", scaled, FitSettings(epochs=1, batch_size=32, standardize=standardize))
    # What is tried last is what the network holds.
    model = fit._fits(TRAIN, VALIDATION)[-1]
    _, train = scaled.matrix(TRAIN)
    train = train.astype(np.float64)
    centred = train - train.mean(axis=0)
    spread = deviations(train) if standardize else 1
    inputs = (matrix - train.mean(axis=0)) / spread * 10 / np.sqrt(((centred / spread) ** 2).sum(axis=1).mean())
    by_keras = fit._network._model.predict_on_batch(inputs.astype(np.float32))
    np.testing.assert_allclose(logits(model, matrix), by_keras, atol=1e-5)


def right(model, rows) -> float:
    numbers, matrix = rows.matrix(VALIDATION)
    return (logits(model, matrix).argmax(axis=1) == rows.codes[numbers]).mean()


@pytest.mark.parametrize("kind", ["linear", "dense256"])
def test_rows_far_from_the_origin_are_fitted_about_their_mean(kind):
    near = draw_rows(rows=600, dims=12, classes=3, distance=8.0)
    far = Rows(ArrayVectors(near.vectors.matrix + np.float32(100)), near.codes, near.cells, near.classes)
    settings = FitSettings(batch_size=32, epochs=15, learning_rate=1e-2)
    expected, found = (fitter(kind, rows, settings).fit(TRAIN, VALIDATION) for rows in (near, far))
    assert found.settings["centred"] is True
    assert right(expected, near) > 0.9
    assert right(found, far) > right(expected, near) - 0.02
    # Fitted about 0 it is worse, or it would prove nothing.
    about_zero, _ = fitter(kind, far, settings)._fits(TRAIN, VALIDATION)
    assert right(about_zero, far) < right(found, far)


def test_class_weights_stop_by_weighted_loss(rows):
    """The validation rows weigh what the training rows do."""
    settings = FitSettings(batch_size=32, epochs=4, class_weights=True)
    few = Rows(rows.vectors, np.where(rows.codes == 2, 0, rows.codes), rows.cells, ("a", "b"))
    model, _ = fitter("linear", few, settings)._fits(TRAIN, VALIDATION)
    counts = few.counts(TRAIN)
    numbers, matrix = few.matrix(VALIDATION)
    codes = few.codes[numbers]
    scores = logits(model, matrix).astype(np.float64)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(codes)), codes]
    expected = np.average(losses, weights=(counts.sum() / 2 / counts)[codes])
    assert min(point["validation_loss"] for point in model.curve) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(losses.mean(), rel=1e-3)


@pytest.mark.parametrize("kind", ["linear", "dense256"])
def test_same_seed_same_bits_whatever_was_fitted_before(kind, rows):
    import keras

    keras.utils.set_random_seed(5)
    first = fitter(kind, rows, SHORT).fit(TRAIN, VALIDATION)
    drawn = float(keras.random.uniform(()))
    again = fitter(kind, rows, SHORT)
    again.fit((1, 2), (3,))
    second = again.fit(TRAIN, VALIDATION)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(second.arrays[name], array)
    assert second.curve == first.curve
    other = fitter(kind, rows, FitSettings(epochs=3, batch_size=32, seed=1)).fit(TRAIN, VALIDATION)
    assert not np.array_equal(other.arrays["kernel1"], first.arrays["kernel1"])
    keras.utils.set_random_seed(5)
    assert float(keras.random.uniform(())) == drawn, "fits draw nothing from Keras's own state"


def test_streaming_trains_like_memory(rows, monkeypatch):
    settings = FitSettings(batch_size=32, learning_rate=1e-2, epochs=30, patience=3)
    in_memory = fitter("linear", rows, settings).fit(TRAIN, VALIDATION)
    monkeypatch.setattr(neural, "_MEMORY_BYTES", 0)
    monkeypatch.setattr(neural, "_BUFFER_BYTES", 50 * 4 * 12)
    streamed = fitter("linear", rows, settings).fit(TRAIN, VALIDATION)
    assert min(p["validation_loss"] for p in streamed.curve) == pytest.approx(
        min(p["validation_loss"] for p in in_memory.curve), abs=0.03
    )
    again = fitter("linear", rows, settings).fit(TRAIN, VALIDATION)
    np.testing.assert_array_equal(again.arrays["kernel1"], streamed.arrays["kernel1"])


@pytest.mark.parametrize("capacity", [1, 7, 50, 300, 1000])
@pytest.mark.parametrize("keep", [False, True])
def test_an_epoch_has_every_row_once_and_is_shuffled(rows, capacity, keep, monkeypatch):
    monkeypatch.setattr(neural, "_BUFFER_BYTES", capacity * 4 * rows.dims)
    source = neural._Source.of(rows, TRAIN, keep=keep)
    _, matrix = rows.matrix(TRAIN)
    orders = []
    for epoch in (1, 2):
        batches = list(source.shuffled((0, epoch), 32))
        assert [len(codes) for _, codes in batches] == [32] * (len(matrix) // 32) + [len(matrix) % 32]
        vectors = np.concatenate([vectors for vectors, _ in batches])
        order = np.array([np.flatnonzero((matrix == vector).all(axis=1))[0] for vector in vectors])
        np.testing.assert_array_equal(np.sort(order), np.arange(len(matrix)))
        np.testing.assert_array_equal(np.concatenate([codes for _, codes in batches]), source_codes(rows)[order])
        orders.append(order)
    assert not np.array_equal(*orders)
    if capacity > 1:
        assert (np.diff(orders[0]) == 1).mean() < 0.3


def source_codes(rows: Rows) -> np.ndarray:
    return rows.codes[rows.wanted(TRAIN)]


def test_the_training_loss_is_of_all_batches(rows):
    """Steps so short that the head stays what it is: the mean of its losses is known."""
    settings = FitSettings(epochs=1, batch_size=32, learning_rate=1e-9)
    model = fitter("linear", rows, settings).fit(TRAIN, VALIDATION)
    assert rows.counts(TRAIN).sum() > 3 * 32
    assert model.curve[0]["loss"] == pytest.approx(log_loss(model, rows, TRAIN), rel=1e-4)


def test_a_short_last_batch_counts_by_its_rows(rows):
    """A batch larger than the data: one step by the mean gradient, to be followed by hand, and the mean loss."""
    settings = FitSettings(epochs=1, batch_size=1000, learning_rate=1e-3)
    fit = fitter("linear", rows, settings)
    # About 0, and about the mean, which the network holds then.
    _, model = fit._fits(TRAIN, VALIDATION)
    numbers, matrix = rows.matrix(TRAIN)
    centred = matrix - matrix.mean(axis=0, dtype=np.float64)
    inputs = centred * 10 / np.sqrt((centred**2).sum(axis=1).mean())
    kernel, bias = fit._network._first[:2]
    scores = inputs @ kernel + bias
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    truth = np.eye(3)[rows.codes[numbers]]
    assert model.curve[0]["loss"] == pytest.approx(-np.log((shares * truth).sum(axis=1)).mean(), rel=1e-5)
    # Adam's first step is the learning rate against the gradient's sign.
    step = -1e-3 * np.sign(inputs.T @ (shares - truth))
    np.testing.assert_allclose(fit._network._model.get_weights()[0], kernel + step, atol=2e-5)


def test_class_weights_help_the_rare_class():
    random = np.random.default_rng(0)
    codes = (np.arange(600) % 20 == 0).astype(np.int32)
    matrix = (random.normal(size=(600, 4)) + 1.2 * codes[:, None]).astype(np.float32)
    rows = Rows(ArrayVectors(matrix), codes, random.integers(0, 4, 600).astype(np.int32), ("often", "rare"))
    found = []
    for class_weights in (False, True):
        settings = FitSettings(batch_size=64, learning_rate=1e-2, epochs=10, class_weights=class_weights)
        model = fitter("linear", rows, settings).fit(TRAIN, VALIDATION)
        chosen = logits(model, matrix).argmax(axis=1)
        found.append((chosen[codes == 1] == 1).mean())
    assert found[1] > found[0] + 0.2


def test_standardisation_makes_scales_equal(rows):
    """Without it, a number of large scale and no meaning drowns the others."""
    noise = np.random.default_rng(1).normal(size=(400, 1)) * 1e4
    matrix = np.hstack([rows.vectors.matrix, noise]).astype(np.float32)
    scaled = Rows(ArrayVectors(matrix), rows.codes, rows.cells, rows.classes)
    best = []
    for standardize in (False, True):
        settings = FitSettings(batch_size=32, learning_rate=1e-2, epochs=20, standardize=standardize)
        best.append(accuracy(fitter("linear", scaled, settings).fit(TRAIN, VALIDATION), scaled, (3,)))
    assert best[1] > 0.9 > best[0]


def test_refit_keeps_the_model(rows):
    fit = fitter("linear", rows, SHORT)
    model = fit.fit(TRAIN, VALIDATION)
    assert fit.refit(model, (0, 1, 2)) is model


def test_a_loss_that_is_no_number_is_reported(rows):
    with pytest.raises(FeaturemillError, match="lower the learning rate"):
        fitter("dense128", rows, FitSettings(epochs=30, learning_rate=1e30, batch_size=32)).fit(TRAIN, VALIDATION)


def test_no_rows_is_the_callers_mistake(rows):
    for train, validation in ((TRAIN, ()), ((), VALIDATION), (TRAIN, (99,))):
        with pytest.raises(ValueError, match="rows"):
            fitter("linear", rows, SHORT).fit(train, validation)


def test_ctrl_c_passes(rows, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(neural, "_log_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fitter("linear", rows, SHORT).fit(TRAIN, VALIDATION)


@pytest.mark.long
def test_dense256_on_real_feature_maps():
    """One of five folds. All of them come to 0.92 on average; the majority class has 0.75."""
    import hashlib

    import pyarrow.parquet as pq

    table = pq.read_table(shared_data() / "vgg19_block5_pool_real.parquet", columns=["label", "group", "block5_pool"])
    matrix = table["block5_pool"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    labels = table["label"].to_pylist()
    classes = tuple(sorted(set(labels)))
    codes = np.array([classes.index(label) for label in labels], np.int32)
    folds = [int(hashlib.sha256(group.encode()).hexdigest(), 16) % 5 for group in table["group"].to_pylist()]
    rows = Rows(ArrayVectors(matrix), codes, np.array(folds, np.int32), classes)
    settings = FitSettings(batch_size=64, epochs=4)
    model = fitter("dense256", rows, settings).fit((2, 3, 4), (1,))
    assert accuracy(model, rows, (0,)) > 0.85
