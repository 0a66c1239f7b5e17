"""Confident learning against its formulas written out row by row."""

import numpy as np

from transforms.evaluation.confident import doubts


def plainly(probabilities, codes):
    """Returns {row: class} off the diagonal of the confident joint."""
    count = probabilities.shape[1]
    thresholds = [
        np.mean([p[j] for p, code in zip(probabilities, codes, strict=True) if code == j]) for j in range(count)
    ]
    found = {}
    for row, (p, code) in enumerate(zip(probabilities, codes, strict=True)):
        reached = [j for j in range(count) if p[j] >= thresholds[j]]
        if reached:
            best = max(reached, key=lambda j: p[j])
            if best != code:
                found[row] = best
    return found


def test_doubts_are_those_of_the_formula():
    random = np.random.default_rng(1)
    codes = random.integers(0, 5, 300)
    probabilities = random.dirichlet(np.ones(5), 300) + 0.7 * np.eye(5)[codes]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    codes[::17] = (codes[::17] + 1) % 5

    def blocks():
        for some in np.array_split(random.permutation(300), 4):
            yield some, probabilities[some]

    found = doubts(blocks, codes, 5)
    assert {int(row): int(found.rival[row]) for row in np.flatnonzero(found.confident)} == plainly(probabilities, codes)
    assert found.own.tolist() == probabilities[np.arange(300), codes].tolist()
    others = np.where(np.eye(5, dtype=bool)[codes], -1, probabilities)
    calm = ~found.confident
    assert found.rival[calm].tolist() == others.argmax(axis=1)[calm].tolist()
    assert (found.margins == found.other - found.own).all()


def test_rows_that_nobody_judged_are_in_no_doubt():
    found = doubts(lambda: iter([(np.array([1]), np.array([[0.2, 0.8]]))]), np.array([-1, 1]), 2)
    assert not found.confident.any()
    assert np.isnan(found.margins[0])
