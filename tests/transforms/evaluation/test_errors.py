"""Which rows are shown, what is said of each class, and what abstaining brings: against the plainest way to count."""

import numpy as np
import pytest

from transforms.evaluation.errors import choose_rows, class_intervals, coverage_curve
from transforms.evaluation.metrics import score_rows


@pytest.fixture(scope="module")
def judged():
    random = np.random.default_rng(3)
    codes = random.integers(0, 6, 400)
    scores = random.normal(size=(400, 6))
    scores[np.arange(400), codes] += 1.5
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return score_rows(probabilities, codes, keys=[str(row) for row in range(400)]), codes


def test_the_surest_mistakes_and_the_least_sure_hits_are_chosen(judged):
    scores, codes = judged
    chosen = choose_rows(scores, codes, 6, classes=range(6), most=1000, each=5)
    wrong = sorted(np.flatnonzero(scores.predicted != codes), key=lambda row: -scores.top[row])
    right = sorted(np.flatnonzero(scores.predicted == codes), key=lambda row: scores.top[row])
    assert chosen.mistakes.tolist() == wrong[:5]
    assert chosen.hits.tolist() == right[:5]
    for true in range(6):
        for taken in range(6):
            rows = [
                row
                for row in (right if true == taken else wrong)
                if (codes[row], scores.predicted[row]) == (true, taken)
            ]
            assert chosen.cells.get((true, taken), np.empty(0)).tolist() == rows[:5]


def test_cells_share_what_there_is(judged):
    scores, codes = judged
    chosen = choose_rows(scores, codes, 6, classes=(0, 1, 4), most=12, each=5)
    assert sum(map(len, chosen.cells.values())) == 12
    assert {number for pair in chosen.cells for number in pair} <= {0, 1, 4}
    assert max(map(len, chosen.cells.values())) - min(map(len, chosen.cells.values())) <= 1
    few = choose_rows(scores, codes, 6, classes=(0, 1, 4), most=3, each=5)
    assert all(true != taken for true, taken in few.cells), "mistakes come first"


def test_where_nothing_is_wrong_there_are_no_mistakes():
    codes = np.array([0, 1, 1])
    scores = score_rows(np.eye(2)[codes] * 0.8 + 0.1, codes, keys="abc")
    chosen = choose_rows(scores, codes, 2, classes=(0, 1), most=10, each=2)
    assert len(chosen.mistakes) == 0
    assert {pair: len(rows) for pair, rows in chosen.cells.items()} == {(0, 0): 1, (1, 1): 2}


def test_each_class_has_its_intervals(judged):
    scores, codes = judged
    found = class_intervals(codes, scores.predicted, 7, np.arange(400))
    for number in range(6):
        hits = (codes == number) & (scores.predicted == number)
        for name, of in (("precision", scores.predicted), ("recall", codes)):
            interval = found[number][name]
            assert interval["value"] == pytest.approx(hits.sum() / (of == number).sum())
            assert interval["low"] < interval["value"] < interval["high"]
    assert found[6] == {"precision": None, "recall": None}


def test_a_curve_of_coverage_by_hand():
    curve = coverage_curve(np.array([True, False, True, True]), np.array([0.9, 0.5, 0.5, 0.7]))
    assert [(point["coverage"], point["threshold"]) for point in curve] == [(0.25, 0.9), (0.5, 0.7), (1, 0.5)]
    assert [point["accuracy"] for point in curve] == [1, 1, 0.75]
