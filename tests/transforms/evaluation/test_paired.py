"""Paired differences: against all resamples of few units, and against the binomial by hand."""

from itertools import product

import numpy as np
import pytest

from benchmarks.honesty import losses_of_two
from transforms.evaluation.paired import mcnemar, paired_difference, share_difference


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
    assert paired_difference(same, ~same, np.arange(3) % 2, seed=0)["why"] == "too few groups"
    # Two rows are no groups.
    assert paired_difference(same[:2], same[:2], None, seed=0)["why"] == "no row tells them apart"


def test_mcnemar_by_hand():
    one = np.array([True] * 9 + [False] * 2 + [True] * 5)
    other = np.array([False] * 9 + [True] * 2 + [True] * 5)
    # 2 (C(11,0) + C(11,1) + C(11,2)) / 2¹¹
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar(one, one) == 1


@pytest.mark.parametrize(("only_one", "only_other"), [(0.005, 0.01), (0.01, 0.01), (0.012, 0.03), (0.1, 0.15)])
@pytest.mark.parametrize("rows", [100, 1000])
def test_a_difference_of_shares_holds_the_truth_and_is_no_wider_than_need_be(rows, only_one, only_other):
    drawn = np.random.default_rng(0).multinomial(rows, [only_one, only_other, 1 - only_one - only_other], 400)
    held, widths = [], []
    for first, second, _ in drawn:
        one, other = np.arange(rows) < first, (np.arange(rows) >= first) & (np.arange(rows) < first + second)
        found = share_difference(one, other, None, seed=0)
        if found["low"] is not None:
            held.append(found["low"] <= only_other - only_one <= found["high"])
            widths.append(found["high"] - found["low"])
    assert np.mean(held) >= 0.93 - 3 * (0.05 * 0.95 / len(held)) ** 0.5
    # By the normal theory, with the row that each head is given.
    assert np.mean(widths) <= 1.1 * 2 * 1.96 * np.sqrt((only_one + only_other + 2 / rows) / rows)


def test_groups_reach_at_least_as_far_as_rows_would():
    one, other = np.ones(200, bool), np.ones(200, bool)
    one[:2], other[-1:] = False, False
    alone = share_difference(one, other, None, seed=0)
    found = share_difference(one, other, np.arange(200) // 5, seed=0)
    assert found["low"] <= alone["low"] < 0 < alone["high"] <= found["high"]


def test_a_difference_of_shares_ends_at_one():
    rows = np.arange(60)
    found = share_difference(rows < 20, rows >= 25, rows // 20, seed=0)
    assert (found["low"], found["high"]) == (-1, 1)
    alone = share_difference(np.zeros(2, bool), np.ones(2, bool), None, seed=0)
    assert alone["value"] == alone["high"] == 1


def test_wrong_rows_of_one_group_count_once():
    random, groups = np.random.default_rng(0), np.arange(300) // 20
    one, other = random.random((2, 300))
    few = paired_difference(one, other, groups, seed=0, wrong=groups < 9)
    assert (few["low"], few["why"]) == (None, "fewer than 10 groups with a wrong row")
    assert paired_difference(one, other, groups, seed=0, wrong=groups < 10)["low"] is not None


def test_few_wrong_rows_say_nothing_of_a_difference_of_losses():
    """Where hardly a row is wrong, all gains are small, until one is."""
    random, truth = np.random.default_rng(0), losses_of_two(np.random.default_rng(1), 0.997, 1_000_000)
    truth, blind, shown = float((truth[1] - truth[0]).mean()), [], 0
    for seed in range(50):
        one, other, wrong = losses_of_two(random, 0.997, 100)
        found = paired_difference(one, other, None, seed=seed)
        blind.append(found["low"] <= truth <= found["high"])
        found = paired_difference(one, other, None, seed=seed, wrong=wrong)
        shown += found["low"] is not None
    assert np.mean(blind) < 0.5
    assert not shown
    assert found["why"] == "fewer than 10 wrong rows"


def test_a_difference_of_losses_holds_the_truth():
    random, truth = np.random.default_rng(0), losses_of_two(np.random.default_rng(1), 0.9, 1_000_000)
    truth, held, widths, errors = float((truth[1] - truth[0]).mean()), [], [], []
    for seed in range(60):
        one, other, wrong = losses_of_two(random, 0.9, 200)
        found = paired_difference(one, other, None, seed=seed, wrong=wrong)
        held.append(found["low"] <= truth <= found["high"])
        widths.append(found["high"] - found["low"])
        errors.append((other - one).std() / np.sqrt(200))
    assert np.mean(held) >= 0.93 - 3 * (0.05 * 0.95 / len(held)) ** 0.5
    assert np.mean(widths) <= 1.15 * 2 * 1.96 * np.mean(errors)
