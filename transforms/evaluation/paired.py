"""Two heads on the same rows: how much better one is, and how sure that is."""

import numpy as np

from transforms.evaluation.intervals import Interval, Units, none, too_few

# A difference of losses hangs on the units that are wrong; resamples of fewer know too little of the next one.
_LEAST_WRONG = 10
_DRAWS = 2_000
# Units drawn at a time: a draw of 100,000 takes 800 kB.
_NUMBERS = 2**22
_TAIL = 0.025
_NORMAL = 1.959964


def share_difference(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None, *, seed: int) -> Interval:
    """Returns the share of hits of `other` minus that of `one`, with its 95 % interval.

    Of independent rows it is that of Bonett and Price 2012, Adjusted Wald Confidence Interval for a Difference of
    Binomial Proportions Based on Paired Data: as if each head had been right alone on one row more. Resamples of two
    rows that tell the heads apart know nothing of a third. Of groups it is the bootstrap's, or that where it is wider.
    It ends at -1 and 1.

    Args:
        one, other: N booleans of the same rows.
        groups: N ids; rows of one aren't independent. None: each row is.
        seed: Of the drawing.
    """
    only_one, only_other, rows = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    value, middle = (only_other - only_one) / rows, (only_other - only_one) / (rows + 2)
    reach = _NORMAL * np.sqrt(((only_one + only_other + 2) / (rows + 2) - middle**2) / (rows + 2))
    ends = [value, middle - reach, middle + reach]
    if not Units.of(rows, groups).single or not only_one + only_other:
        found = paired_difference(one, other, groups, seed=seed)
        if found["low"] is None:
            return found
        ends += [found["low"], found["high"]]
    return {"value": value, "low": float(max(-1, min(ends))), "high": float(min(1, max(ends)))}


def paired_difference(
    one: np.ndarray, other: np.ndarray, groups: np.ndarray | None, *, seed: int, wrong: np.ndarray | None = None
) -> Interval:
    """Returns the mean of `other` - `one` with its 95 % interval, by the paired bootstrap.

    Whole units are drawn with replacement, with what both heads said of their rows, so that what is hard for both takes
    nothing from the difference (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13). The
    percentiles are moved outward by √(U / (U - 1)) and by Student's t instead of the normal distribution, without which
    few units give too short an interval; and it reaches at least as far as Student's with the variance of leaving out
    each, since groups may differ much in size, and losses have a long tail.

    Args:
        one, other: N numbers of the same rows, such as hits or losses.
        groups: N ids; rows of one aren't independent. None: each row is.
        seed: Of the drawing.
        wrong: Of losses, N booleans: the rows that one of the heads got wrong. There is no interval where few
            units have any.
    """
    from scipy.stats import t

    units = Units.of(len(one), groups)
    gains = other.astype(np.float64) - one
    value = float(gains.mean())
    if few := too_few(units):
        return none(value, few)
    if not gains.any():
        return none(value, "no row tells them apart")
    if wrong is not None and np.count_nonzero(units.sums(wrong)) < _LEAST_WRONG:
        return none(value, f"fewer than {_LEAST_WRONG} {'wrong rows' if units.single else 'groups with a wrong row'}")
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
