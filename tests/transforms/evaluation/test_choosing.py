"""The transform is chosen by validation rows, is never forced, and belongs to the head."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.heads_data import ArrayVectors, draw_rows
from transforms import heads
from transforms.evaluation import choosing
from transforms.evaluation.choosing import Choosing
from transforms.heads import FitSettings
from transforms.heads.cells import HeldVectors, Rows

TRAIN, VALIDATION, TEST = (0, 1), (2,), (3,)


def of_lengths(rows: Rows, seed: int = 0) -> Rows:
    """The same directions at lengths over four decades, which say nothing of the class."""
    lengths = 10 ** np.random.default_rng(seed).uniform(-2, 2, (len(rows.codes), 1))
    return replace(rows, vectors=ArrayVectors((rows.vectors.matrix * lengths).astype(np.float32)))


def accuracy(model, rows: Rows) -> float:
    numbers, matrix = rows.matrix(TEST)
    return float((heads.logits(model, matrix).argmax(axis=1) == rows.codes[numbers]).mean())


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_what_helps_is_chosen(kind):
    rows = of_lengths(draw_rows(rows=400, dims=20, classes=3, distance=5.0))
    found = Choosing(kind, rows, FitSettings()).fit(TRAIN, VALIDATION)
    assert found.settings["transform"] == found.transform.name != "none"
    plain = Choosing(kind, rows, FitSettings(transform="none")).fit(TRAIN, VALIDATION)
    assert plain.transform.is_identity
    assert accuracy(found, rows) > accuracy(plain, rows) + 0.04


def test_what_hurts_is_not_forced():
    """Here only the length tells the classes apart."""
    drawn = draw_rows(rows=400, dims=20, classes=2, distance=0.0)
    rows = replace(drawn, vectors=ArrayVectors(drawn.vectors.matrix * (1 + 3 * drawn.codes[:, None])))
    rows = replace(rows, vectors=ArrayVectors(np.abs(rows.vectors.matrix).astype(np.float32)))
    assert "l2" not in Choosing("ridge", rows, FitSettings()).fit(TRAIN, VALIDATION).transform.name


def test_rows_that_judge_choose_nothing():
    """Whatever they are, the head is the same, bit for bit."""
    rows = of_lengths(draw_rows(rows=300, dims=20, classes=3, distance=5.0))
    other = rows.vectors.matrix.copy()
    other[np.isin(rows.cells, TEST)] = np.random.default_rng(3).normal(size=20)
    columns = [HeldVectors(matrix, (8, 12)) for matrix in (rows.vectors.matrix, other)]
    fits = [Choosing("logistic", replace(rows, vectors=held), FitSettings()).fit(TRAIN, VALIDATION) for held in columns]
    assert fits[0].transform == fits[1].transform
    assert len(fits[0].transform.scales) == 2
    assert fits[0].arrays["kernel1"].tobytes() == fits[1].arrays["kernel1"].tobytes()


def test_many_rows_are_tried_by_a_sample_and_read_once_more(monkeypatch):
    rows = of_lengths(draw_rows(rows=600, dims=20, classes=3, distance=5.0))
    whole = Choosing("ridge", rows, FitSettings()).fit(TRAIN, VALIDATION)
    monkeypatch.setattr(choosing, "_NUMBERS", 200 * 20)
    monkeypatch.setattr(choosing, "_LEAST_ROWS", 1)
    fitter = Choosing("ridge", rows, FitSettings())
    found = fitter.fit(TRAIN, VALIDATION)
    assert found.transform.name.endswith("l2")
    if found.transform == whole.transform:
        np.testing.assert_allclose(found.arrays["kernel1"], whole.arrays["kernel1"], rtol=1e-6, atol=1e-9)
    # What was chosen once serves all fits.
    assert fitter.fit((1, 2), (0,)).transform == found.transform
    assert list(fitter._fitters) == [found.transform.name]
    again = fitter.refit(found, (*TRAIN, *VALIDATION))
    assert again.transform == found.transform
    assert not np.array_equal(again.arrays["kernel1"], found.arrays["kernel1"])


def test_a_column_of_many_large_numbers_does_not_drown_another():
    drawn = draw_rows(rows=300, dims=10, classes=3, distance=6.0)
    noise = 1000 * np.random.default_rng(1).normal(size=(300, 60)).astype(np.float32)
    matrix = np.hstack([drawn.vectors.matrix, noise])
    asked = FitSettings(transform="none", penalties=(1e-2,))
    several, one = (
        Choosing("ridge", replace(drawn, vectors=HeldVectors(matrix, widths)), asked).fit(TRAIN, VALIDATION)
        for widths in ((10, 60), (70,))
    )
    rows = replace(drawn, vectors=HeldVectors(matrix, (10, 60)))
    assert accuracy(several, rows) > 0.9 > accuracy(one, rows)


def test_class_weights_and_neighbours_are_no_obstacle():
    rows = draw_rows(rows=120, dims=8, classes=2, distance=4.0)
    assert Choosing("logistic", rows, FitSettings(class_weights=True)).fit(TRAIN, VALIDATION).kind == "logistic"
    # More than train here, and no more than there are.
    assert Choosing("knn", rows, FitSettings(neighbours=100)).fit(TRAIN, VALIDATION).transform.name
