"""Thresholds below which rows stay without an answer."""

import numpy as np
import pytest

from transforms.evaluation.abstaining import is_answered, kept_confidences, selective, threshold_of


@pytest.mark.parametrize("rows", [1, 7, 200, 5000])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.29, 0.995])
def test_at_most_the_rate_stays_without_an_answer(rows, rate):
    top = np.random.default_rng(rows).uniform(0.2, 1, rows)
    answered = is_answered(top, threshold_of(kept_confidences(top), rate))
    assert answered.any()
    assert rate - 2 / rows - 0.006 <= (~answered).mean() <= rate
    assert answered.all() or top[answered].min() > top[~answered].max()


def test_rows_of_one_confidence_are_answered_together():
    top = np.array([0.5, 0.5, 0.5, 1.0])
    assert is_answered(top, threshold_of(kept_confidences(top), 0.5)).all()


def test_coverage_and_risk():
    top, right = np.array([0.9, 0.8, 0.3, 0.7]), np.array([True, False, False, True])
    found = selective(top, right, None, 0.7)
    assert (found["coverage"]["value"], found["risk"]["value"]) == (0.75, pytest.approx(1 / 3))
    assert found["risk"]["low"] < 1 / 3 < found["risk"]["high"]
    assert selective(top, right, np.zeros(4, int), 0.7)["risk"]["why"]
    assert selective(top, right, None, 0.95)["risk"] is None
