"""95 % intervals of a head's metrics: of rows that are independent, or of groups of rows that aren't.

Nothing is drawn from the rows themselves: resamples of rows without an error have none either, and those of three
groups know nothing of a fourth. `benchmarks/honesty.py` shows how often each interval holds the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# An interval is {"value", "low", "high"}; where there is none, low and high are None and "why" says so.
Interval = dict[str, float | str | None]

ONE_GROUP = "one group"
FEW_ROWS = "too few rows of a class"
FEW_ERRORS = "too few errors"
FEW_GROUPS = "too few groups"
_TAIL = 0.025
_DRAWS = 2_000
# Of fewer groups, no interval of a share, a loss, or a calibration error, that was tried holds the truth often enough.
_LEAST_GROUPS, _LEAST_GROUPS_OF_LOSSES, _LEAST_GROUPS_OF_BINS = 3, 6, 20
# Of the variance that independent rows would have: groups may be alike by chance, few of them above all.
_LEAST_OF_ROWS = 0.1
# An interval of a loss that reaches to more than ten times of it says nothing.
_FARTHEST = np.log(10)
# Multiples of the measured miscalibration that are tried, from none at all to twice of it.
_MULTIPLES = np.linspace(0, 2, 81)


def none(value: float, why: str) -> Interval:
    """Returns a metric whose interval isn't known."""
    return {"value": float(value), "low": None, "high": None, "why": why}


def _interval(value: float, low: float, high: float) -> Interval:
    return {"value": float(value), "low": min(float(low), float(value)), "high": max(float(high), float(value))}


@dataclass(frozen=True)
class Units:
    """Independent units among N rows.

    Attributes:
        of_row: N int64, each 0 … U-1: the row's unit.
        count: U.
        single: Whether each row is a unit by itself.
        effect: How many times as large as of such units the variance of a mean is; see `effect_of`.
    """

    of_row: np.ndarray
    count: int
    single: bool
    effect: float = 1.0

    @classmethod
    def of(cls, rows: int, groups: np.ndarray | None, effect: float = 1.0) -> "Units":
        """Returns the groups, or without them the rows."""
        if groups is None:
            return cls(np.arange(rows), rows, True, effect)
        names, of_row = np.unique(groups, return_inverse=True)
        return cls(of_row.reshape(rows), len(names), len(names) == rows, effect)

    def sums(self, values: np.ndarray | None = None) -> np.ndarray:
        """Returns U sums over the rows of each unit, or its number of rows."""
        return np.bincount(self.of_row, values, self.count).astype(np.float64)


def effect_of(heads: int) -> float:
    """Returns the `Units.effect` of judging by so many heads, each on its fold.

    Training rows overlap: a mean of K folds varies by 1 / K of what one does and by 1 / (K - 1), the judged rows over
    the training rows (Nadeau and Bengio 2003, Inference for the Generalization Error).
    """
    return 1.0 if heads == 1 else 1 + heads / (heads - 1)


def share(hits: np.ndarray, units: Units) -> Interval:
    """Returns a share of rows: Wilson's interval of independent rows, else as `_from_groups` has it.

    Of groups it reaches no further than if all rows of each group that has an error, or a hit, were one.
    """
    if units.single:
        return _interval(hits.mean(), *_wilson(float(hits.sum()), float(len(hits)), units.effect))
    mean = float(hits.mean())
    if few := too_few(units):
        return none(mean, few)
    found = _from_groups(hits, units, "logit", _least_of_share(mean, len(hits)))
    low, high = 1 - _most(~hits, units), _most(hits, units)
    return _interval(found["value"], max(found["low"], low), min(found["high"], high))


def _most(some: np.ndarray, units: Units) -> float:
    """Returns the upper end of the share of rows in units that have any of some rows (Clopper and Pearson 1934).

    Units of different sizes count as Σ(rows)² / Σ(rows²) of one size (Kish 1965, Survey Sampling).
    """
    from scipy.stats import beta

    rows = units.sums()
    count = rows.sum() ** 2 / np.square(rows).sum() / units.effect
    spoiled = count * rows[units.sums(some) > 0].sum() / rows.sum()
    return float(beta.ppf(1 - _TAIL, spoiled + 1, count - spoiled)) if spoiled < count else 1.0


def mean_loss(losses: np.ndarray, top: np.ndarray, units: Units) -> Interval:
    """Returns a mean log loss with Student's interval of its logarithm: losses have a long tail.

    Few errors say little of what errors cost. So the variance is at least what the head's own confidence makes of it,
    and the lower end is at least as far as that of so many counted errors: of rows that are nearly all right, those
    with an error seem worse than they are. Where groups differ most below their mean, as they do where many rows are
    wrong, the lower end is at least as far as the upper one. There is no interval of fewer than six groups.

    Args:
        losses: N, at least 0.
        top: N, the largest probabilities.
        units: Of the rows.
    """
    rows, mean = len(losses), float(losses.mean())
    sure = np.clip(top, 0.5, 1 - 1e-12)
    least = float((sure * (1 - sure) * np.log(sure / (1 - sure)) ** 2).mean()) / rows
    if few := too_few(units, _LEAST_GROUPS_OF_LOSSES):
        return none(mean, few)
    if not units.single:
        found = _from_groups(losses, units, "log", least)
        # The sign of their skewness; a logarithm is for a tail above.
        if found["low"] is not None and (units.sums(losses - mean) ** 3).sum() < 0:
            found["low"] = max(0.0, min(found["low"], 2 * mean - found["high"]))
        return found
    return _student(mean, mean, max(least, float(losses.var(ddof=1)) / rows), rows - 1, "log", units)


def too_few(units: Units, least: int = _LEAST_GROUPS) -> str:
    """Returns why one row, or so few groups, have no interval; empty if they are enough."""
    if units.single:
        return "one row" if units.count < 2 else ""
    return ONE_GROUP if units.count < 2 else FEW_GROUPS if units.count < least else ""


def _least_of_share(value: float, rows: float) -> float:
    """Returns the least variance of a share of rows, in groups that may be alike by chance."""
    return _LEAST_OF_ROWS * value * (1 - value) / rows


def _from_groups(values: np.ndarray, units: Units, scale: str, least: float) -> Interval:
    """Returns the mean over rows with Student's interval, whose variance comes from leaving out each group in turn."""
    sums, rows = units.sums(values.astype(np.float64)), units.sums()
    mean = float(sums.sum() / rows.sum())
    left = (sums.sum() - sums) / (rows.sum() - rows)
    # Losses vary in all groups, and the head's confidence knows of errors that weren't met.
    freedom = units.count - 1 if scale == "log" else _freedom(left)
    return _student(mean, mean, max(least, _jackknife(left)), freedom, scale, units)


def _jackknife(left: np.ndarray) -> float:
    """Returns the variance of a statistic from what it is without each of U units (Efron and Stein 1981)."""
    return float((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())


def _freedom(left: np.ndarray) -> float:
    """Returns how many degrees of freedom that variance has: twice its square over its own variance, which the units'
    kurtosis says (Satterthwaite 1946; Hansen, Hurwitz and Madow 1953, Sample Survey Methods and Theory, chapter 10).

    Normal ones have U - 1. Where few groups have errors, it is those few that say how much groups vary.
    """
    units, squares = len(left), np.square(left - left.mean())
    if not squares.any():
        return units - 1
    kurtosis = np.square(squares).mean() / squares.mean() ** 2
    return min(units - 1, float(2 * units / (kurtosis - (units - 3) / (units - 1))))


def _student(value: float, centre: float, variance: float, freedom: float, scale: str, units: Units) -> Interval:
    """Returns Student's interval on the scale of logits or logarithms, to the ends of which no share or loss gets."""
    from scipy.stats import t

    if scale == "logit" and not 0 < centre < 1:
        # So many units without any other outcome; that rows of one are alike may be.
        low = _TAIL ** (units.effect / units.count)
        return _interval(value, low, 1) if centre >= 1 else _interval(value, 0, 1 - low)
    variance *= units.effect
    reach = float(t.ppf(1 - _TAIL, freedom)) * np.sqrt(variance)
    if scale == "log":
        if reach > _FARTHEST * centre:
            return none(value, FEW_ERRORS)
        factor = np.exp(reach / max(centre, 1e-300))
        # More events than this are as good as any number.
        events = centre**2 / max(variance, 1e-12 * centre**2, 1e-300)
        return _interval(value, centre * min(1 / factor, _least_of_count(events)), centre * factor)
    middle, reach = np.log(centre / (1 - centre)), reach / (centre * (1 - centre))
    return _interval(value, *(1 / (1 + np.exp(-np.clip([middle - reach, middle + reach], -700, 700)))))


def _least_of_count(events: float) -> float:
    """Returns the lower end of the mean of a count, as a share of it; a sum that varies as much counts as so many
    events (Fay and Feuer 1997, Confidence Intervals for Directly Standardized Rates, equation 8).
    """
    from scipy.stats import gamma

    return float(gamma.ppf(_TAIL, events)) / events


def _wilson(right: float, rows: float, effect: float) -> tuple[float, float]:
    """Returns Wilson's interval of `right` of `rows` independent rows, which need not be whole numbers.

    By folds, `effect` rows count as one.

    With one error, its end is too near to hold what it should; there it is that of a Poisson count (Brown, Cai and
    DasGupta 2001, Interval Estimation for a Binomial Proportion, section 4.1.1).
    """
    z, mean, worth = 1.959964, right / rows, rows / effect
    middle = (mean * worth + z**2 / 2) / (worth + z**2)
    reach = z / (worth + z**2) * np.sqrt(max(0.0, mean * (1 - mean)) * worth + z**2 / 4)
    low, high = middle - reach, middle + reach
    edge = -np.log(1 - 2 * _TAIL) / rows
    if round(rows - right, 9) == 1:
        high = max(high, 1 - edge)
    if round(right, 9) == 1:
        low = min(low, edge)
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class ClassSums:
    """Rows of N predictions by class and by unit; of a unit only the classes that it has.

    Attributes:
        units: U of them.
        unit, kind: E each: which unit and class an entry is of.
        right, true, taken: E each: rows of the class in the unit that are right, are of the class, were taken for it.
        totals: 3×C: the sums of these three over all units.
    """

    units: Units
    unit: np.ndarray
    kind: np.ndarray
    right: np.ndarray
    true: np.ndarray
    taken: np.ndarray
    totals: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, predicted: np.ndarray, classes: int, units: Units) -> "ClassSums":
        """Returns the sums of N true classes and what they were taken for."""
        place = units.of_row.astype(np.int64) * classes
        names, entry = np.unique(np.concatenate([place + codes, place + predicted]), return_inverse=True)
        is_true, is_taken = np.split(entry.reshape(-1), 2)
        hits = codes == predicted
        counts = [np.bincount(at, minlength=len(names)) for at in (is_true[hits], is_true, is_taken)]
        totals = [np.bincount(of, minlength=classes) for of in (codes[hits], codes, predicted)]
        return cls(units, *np.divmod(names, classes), *counts, np.array(totals, np.float64))

    def left_out(self, of_class: Callable[..., np.ndarray], used: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns (the mean over classes, U means without each unit); a class that isn't left at all stays as it is.

        Args:
            of_class: The statistic of right, true and taken rows; NaN where there are none.
            used: C booleans: the classes to take the mean over.
        """
        full = of_class(*self.totals)
        entries = np.flatnonzero(used[self.kind])
        kind = self.kind[entries]
        right, true, taken = (part[entries] for part in (self.right, self.true, self.taken))
        rest = of_class(*(self.totals[:, kind] - np.array([right, true, taken])))
        change = np.where(np.isnan(rest), 0, rest - full[kind])
        changes = np.bincount(self.unit[entries], change, self.units.count)
        mean = float(full[used].mean())
        return mean, mean + changes / int(used.sum())


def _recall(right: np.ndarray, true: np.ndarray, taken: np.ndarray) -> np.ndarray:
    return np.where(true > 0, right / np.maximum(true, 1), np.nan)


def _f1(right: np.ndarray, true: np.ndarray, taken: np.ndarray) -> np.ndarray:
    return np.where(true + taken > 0, 2 * right / np.maximum(true + taken, 1), np.nan)


def balanced_accuracy(sums: ClassSums) -> Interval:
    """Returns the mean recall of the classes that have rows."""
    right, true, _ = sums.totals
    used = true > 0
    rows, recall = true[used], right[used] / true[used]
    value, classes = float(recall.mean()), len(rows)
    # So many rows would say as much, were classes alike.
    worth = classes**2 / (1 / rows).sum()
    if not sums.units.single:
        if few := too_few(sums.units):
            return none(value, few)
        _, left = sums.left_out(_recall, used)
        variance = max(_least_of_share(value, worth), _jackknife(left))
        return _student(value, value, variance, _freedom(left), "logit", sums.units)
    # Of a class with a single row nothing is known but what the others are like.
    spread = np.where(rows > 1, recall * (1 - recall) / np.maximum(rows - 1, 1), value * (1 - value))
    variance = float(spread.sum()) / classes**2
    if variance <= 0:
        return _interval(value, *_wilson(value * worth, worth, sums.units.effect))
    freedom = max(1, int((rows - 1).sum()))
    return _one_error(_student(value, value, variance, freedom, "logit", sums.units), sums)


def _one_error(interval: Interval, sums: ClassSums) -> Interval:
    """Returns an interval that reaches as far as an accuracy's, where independent rows have a single error."""
    right, true, _ = sums.totals
    rows = float(true.sum())
    if not sums.units.single or rows - right.sum() != 1:
        return interval
    return {**interval, "high": max(interval["high"], _wilson(rows - 1, rows, sums.units.effect)[1])}


def macro_f1(sums: ClassSums) -> Interval:
    """Returns the mean F1 of the classes that have rows or were predicted, as scikit-learn does.

    F1 of few rows is too small on the average. What leaving out each unit says of that is taken off the interval, and
    there is none where it is more than chance is.
    """
    used = sums.totals[1:].sum(axis=0) > 0
    value, left = sums.left_out(_f1, used)
    count = sums.units.count
    if few := too_few(sums.units):
        return none(value, FEW_ROWS if sums.units.single else few)
    bias, variance = (count - 1) * (left.mean() - value), _jackknife(left)
    # Of groups that are alike both are 0, but for rounding.
    if abs(bias) > np.sqrt(variance) + 1e-9:
        return none(value, FEW_ROWS)
    freedom = count - 1
    if not sums.units.single:
        variance, freedom = max(_least_of_share(value, sums.totals[1].sum()), variance), _freedom(left)
    return _one_error(_student(value, float(np.clip(value - bias, 0, 1)), variance, freedom, "logit", sums.units), sums)


def calibration_error(
    top: np.ndarray, hits: np.ndarray, bins: np.ndarray, number: int, units: Units, *, seed: int
) -> Interval:
    """Returns the sum over bins of |Σ gaps| / N, a gap being what a row's confidence is above 1 (a hit) or 0.

    Chance alone makes a calibrated head seem miscalibrated, so resamples would centre on too much. Here the interval
    holds those multiples of the measured gaps of which as much or as little as was measured comes in 95 % of draws. By
    folds more chance would shorten it, so the units' effect isn't in it. There is no interval of fewer than 20 groups.

    Args:
        top: N confidences.
        hits: N booleans.
        bins: N, each 0 … `number` - 1.
        number: Of bins.
        units: Of the rows.
        seed: Of the draws.
    """
    rows, count, gaps = len(top), units.count, top - hits
    means = np.bincount(bins, gaps, number) / rows
    value = float(np.abs(means).sum())
    if few := too_few(units, _LEAST_GROUPS_OF_BINS):
        return none(value, few)
    used = np.flatnonzero(np.bincount(bins, minlength=number))
    random = np.random.default_rng(seed)
    # Bins of independent rows don't know of each other. Where there was no error yet, confidence says how gaps vary.
    squares = np.maximum(np.bincount(bins, gaps**2, number), np.bincount(bins, top * (1 - top), number))[used]
    errors = random.standard_normal((_DRAWS, len(used)))
    if units.single:
        low, high = _multiples(means[used], errors * np.sqrt(squares) / rows, value)
        return _interval(value, low, high)
    by_unit = np.bincount(units.of_row * number + bins, gaps, count * number).reshape(count, number)[:, used]
    parts = (by_unit - units.sums()[:, None] * means[used]) / rows * np.sqrt(count / (count - 1))
    freedom = count - 1
    of_units = random.standard_normal((_DRAWS, count)) @ parts
    of_units *= np.sqrt(freedom / random.chisquare(freedom, _DRAWS))[:, None]
    # Groups without an error say too little, too. More chance makes less of a gap, so it may not replace the other.
    more = np.sqrt(np.maximum(0, squares / rows**2 - np.square(parts).sum(axis=0)))
    ends = [_multiples(means[used], some, value) for some in (of_units, of_units + errors * more)]
    return _interval(value, min(low for low, _ in ends), max(high for _, high in ends))


def _multiples(means: np.ndarray, errors: np.ndarray, value: float) -> tuple[float, float]:
    """Returns the least and the largest multiple of the measured B gaps of which chance may make what was measured.

    Args:
        means: B gaps.
        errors: R×B draws of chance.
        value: Σ |gaps|.

    Returns:
        The ends, times the value.
    """
    drawn = [np.abs(multiple * means + errors).sum(axis=1) for multiple in _MULTIPLES]
    more = [multiple for multiple, sums in zip(_MULTIPLES, drawn, strict=True) if (sums >= value).mean() >= _TAIL]
    fewer = [multiple for multiple, sums in zip(_MULTIPLES, drawn, strict=True) if (sums <= value).mean() >= _TAIL]
    return min(more, default=0) * value, max(fewer, default=0) * value
