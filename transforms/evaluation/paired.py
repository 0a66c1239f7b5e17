"""Two heads on the same rows: how much better one is, and how sure that is."""

import numpy as np

from transforms.evaluation.intervals import ONE_GROUP, Interval, Units, none

_DRAWS = 2_000
# Units drawn at a time: a draw of 100,000 takes 800 kB.
_NUMBERS = 2**22
_TAIL = 0.025
_NORMAL = 1.959964


def paired_difference(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None, *, seed: int) -> Interval:
    """Returns the mean of `other` - `one` with its 95 % interval, by the paired bootstrap.

    Whole units are drawn with replacement, with what both heads said of their rows, so that what is hard for both takes
    nothing from the difference (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13). The
    percentiles are moved outward by √(U / (U - 1)) and by Student's t instead of the normal distribution, without which
    few units give too short an interval; of groups it reaches at least as far as Student's with the variance of leaving
    out each, since they may differ much in size.

    Args:
        one, other: N numbers of the same rows, such as hits or losses.
        groups: N ids; rows of one aren't independent. None: each row is.
        seed: Of the drawing.
    """
    from scipy.stats import t

    units = Units.of(len(one), groups)
    gains = other.astype(np.float64) - one
    value = float(gains.mean())
    if units.count < 2:
        return none(value, ONE_GROUP)
    if not gains.any():
        return none(value, "no row tells them apart")
    # Units that are alike are drawn together: of hits there are three kinds, however many rows.
    kinds, counts = np.unique(np.column_stack([units.sums(gains), units.sums()]), axis=0, return_counts=True)
    sums, rows = kinds.T
    random, drawn = np.random.default_rng(seed), []
    at_once = max(1, _NUMBERS // len(kinds))
    for start in range(0, _DRAWS, at_once):
        times = random.multinomial(units.count, counts / units.count, min(at_once, _DRAWS - start))
        drawn.append((times @ sums) / (times @ rows))
    low, high = np.quantile(np.concatenate(drawn), [_TAIL, 1 - _TAIL])
    factor = float(t.ppf(1 - _TAIL, units.count - 1))
    wider = factor / _NORMAL * np.sqrt(units.count / (units.count - 1))
    least = 0.0
    if not units.single:
        totals, sizes = units.sums(gains), units.sums()
        left = (totals.sum() - totals) / (sizes.sum() - sizes)
        least = factor * np.sqrt((units.count - 1) / units.count * np.square(left - left.mean()).sum())
    low, high = value - max(least, wider * (value - low)), value + max(least, wider * (high - value))
    return {"value": value, "low": float(min(low, value)), "high": float(max(high, value))}


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Returns how likely hits that differ so much, or more, are where neither head is better: the exact test of McNemar
    1947, for N independent rows.

    Args:
        one, other: N booleans: whether each head was right.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0
