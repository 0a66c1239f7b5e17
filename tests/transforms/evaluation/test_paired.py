"""Paired differences: against all resamples of few units, and against the binomial by hand."""

from itertools import product

import numpy as np
import pytest

from transforms.evaluation.paired import mcnemar, paired_difference


def test_the_interval_is_that_of_all_resamples():
    gains = np.array([1.0, -1, 1, 0, 1, 0, -1, 1])
    found = paired_difference(np.zeros(8), gains, None, seed=0)
    resampled = np.array([gains[list(rows)].mean() for rows in product(range(8), repeat=5)])
    # Five rows drawn instead of eight are more spread by √(8/5).
    spread = resampled.std() * np.sqrt(5 / 8)
    assert found["value"] == gains.mean()
    assert (found["high"] - found["low"]) / 2 == pytest.approx(2.365 * spread * np.sqrt(8 / 7), rel=0.12)
    assert found["low"] < found["value"] < found["high"]


def test_rows_of_a_group_count_as_one():
    random = np.random.default_rng(0)
    gains = random.normal(size=30)
    single = paired_difference(np.zeros(30), gains, None, seed=1)
    copied = paired_difference(np.zeros(300), np.repeat(gains, 10), np.repeat(np.arange(30), 10), seed=1)
    assert copied == pytest.approx(single)


def test_where_nothing_differs_there_is_no_interval():
    same = np.array([True, False, True])
    assert paired_difference(same, same, None, seed=0)["low"] is None
    assert paired_difference(same, ~same, np.zeros(3), seed=0)["why"] == "one group"


def test_mcnemar_by_hand():
    one = np.array([True] * 9 + [False] * 2 + [True] * 5)
    other = np.array([False] * 9 + [True] * 2 + [True] * 5)
    # 2 (C(11,0) + C(11,1) + C(11,2)) / 2¹¹
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar(one, one) == 1
