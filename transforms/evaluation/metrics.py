"""Judging probabilities against the true labels: metrics with intervals, what is confused, calibration."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transforms.errors import FeaturemillError
from transforms.evaluation.intervals import (
    ClassSums,
    Interval,
    Units,
    balanced_accuracy,
    calibration_error,
    effect_of,
    macro_f1,
    mean_loss,
    share,
)
from transforms.heads.model import log_losses, score_slices
from transforms.rows.spooled import SpooledRows

if TYPE_CHECKING:
    import pyarrow as pa

BINS = 15
# The confusion matrix of more classes would be the bulk of metrics.json.
MOST_CONFUSION_CLASSES = 1_000
# Of the scores' spread.
_TEMPERATURES = (1e-4, 1e4)
_MOST_FITTED = 2**24
_TOP = 5
# Probabilities below are taken as this by the log loss, as scikit-learn does.
_SMALLEST = np.finfo(np.float64).eps
_PAIRS = 10
_KEYS_PER_PAIR = 5


def fit_temperature(logits: np.ndarray | SpooledRows, codes: np.ndarray) -> float:
    """Returns the T for which softmax(logits / T) has the smallest log loss (Guo et al. 2017, On Calibration of Modern
    Neural Networks, section 4.2), where each row's class counts for 1 - 1 / (N + 2) and the others share the rest.

    Without that, few rows that are all right make T as small as it can be, and the first row that is wrong costs any
    loss: N rows without an error say that the next one is right with (N + 1) / (N + 2), by Laplace's rule of
    succession. Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2, does so by class, which
    costs much with many classes.

    Of more than 16 million scores every so many rows are looked at: they tell the one number as well as all would. The
    log loss is convex in 1 / T, so the search over log T finds the one minimum. Scores may have any scale: the
    search is bounded by 1e-4 and 1e4 of their spread, which only scores that are worse than none reach.

    Args:
        logits: N×C.
        codes: N, the true classes.

    Raises:
        FeaturemillError: No rows, or logits that aren't finite.
    """
    from scipy.optimize import minimize_scalar

    _check_rows(codes)
    _check(logits, codes, "scores")
    logits, codes = _some(logits, codes)
    rows, classes = logits.shape
    spread, above = _spread(logits, codes)
    if not spread:
        return 1.0
    # The other classes' share of a row's loss, beyond what the row would have without: linear in the scores.
    shared = classes * above / (rows + 2) / (classes - 1)

    def loss(log_temperature: float) -> float:
        scale, parts = np.exp(-log_temperature) / spread, _slices(logits)
        losses = (log_losses(logits[part].astype(np.float64) * scale, codes[part]).sum() for part in parts)
        return (sum(losses) + shared * scale) / rows

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x) * spread)


def is_bounded(logits: np.ndarray | SpooledRows, codes: np.ndarray, temperature: float) -> bool:
    """Tells whether a temperature that `fit_temperature` found for these is as far from their spread as it may be."""
    spread, _ = _spread(*_some(logits, codes))
    near = np.abs(np.log(temperature / spread) - np.log(_TEMPERATURES)) if spread else np.inf
    return bool(np.min(near) < 1e-3)


def _spread(logits: np.ndarray | SpooledRows, codes: np.ndarray) -> tuple[float, float]:
    """Returns the scores' root mean square about each row's mean, and the sum of how far true classes' are above it."""
    squares = above = 0.0
    for part in _slices(logits):
        centred = logits[part] - logits[part].mean(axis=1, keepdims=True, dtype=np.float64)
        squares += float((centred**2).sum())
        above += float(centred[np.arange(len(centred)), codes[part]].sum())
    return float(np.sqrt(squares / logits.shape[0] / logits.shape[1])), above


def _some(logits: np.ndarray | SpooledRows, codes: np.ndarray) -> tuple[np.ndarray | SpooledRows, np.ndarray]:
    """Returns the rows that a temperature is fitted to, and their classes."""
    step = -(-logits.shape[0] * logits.shape[1] // _MOST_FITTED)
    if step == 1:
        return logits, codes
    # Counted over all rows, not anew in each slice.
    parts = [logits[part][-part.start % step :: step] for part in _slices(logits)]
    return np.concatenate(parts), codes[::step]


class RowScores(NamedTuple):
    """All that judging takes of N rows' probabilities.

    Attributes:
        predicted: N int64, the class of the largest probability; the first of equal ones.
        top: N float64, that probability.
        in_top: N booleans: whether the true class is among the top 5.
        losses: N float64, the log losses.
    """

    predicted: np.ndarray
    top: np.ndarray
    in_top: np.ndarray
    losses: np.ndarray


def score_rows(
    probabilities: np.ndarray, codes: np.ndarray, *, keys: "Sequence[str] | pa.Array | pa.ChunkedArray"
) -> RowScores:
    """Returns what `judge` takes; of a batch, too, so that N×C numbers need never be held.

    Classes of equal probability rank in their order, as for argmax; else a row of zeros would be right with any label.

    Args:
        probabilities: N×C.
        codes: N, the true classes.
        keys: N, to name rows by.

    Raises:
        FeaturemillError: Probabilities that aren't finite, or a row whose label is none of the classes.
    """
    _check(probabilities, codes, "probabilities", keys)
    predicted, in_top, losses = probabilities.argmax(axis=1), np.empty(len(codes), bool), np.empty(len(codes))
    columns = np.arange(probabilities.shape[1])
    for part in _slices(probabilities):
        numbers, true = probabilities[part], codes[part]
        of_true = numbers[np.arange(len(true)), true][:, None]
        before = (numbers > of_true) | ((numbers == of_true) & (columns < true[:, None]))
        in_top[part] = before.sum(axis=1) < _TOP
        losses[part] = -np.log(np.clip(of_true[:, 0].astype(np.float64), _SMALLEST, 1))
    top = probabilities[np.arange(len(codes)), predicted].astype(np.float64)
    return RowScores(predicted, top, in_top, losses)


def judge(
    scores: RowScores,
    codes: np.ndarray,
    classes: Sequence[str],
    *,
    keys: "Sequence[str] | pa.Array | pa.ChunkedArray",
    groups: np.ndarray | None,
    seed: int,
    judged_on: str,
    heads: int = 1,
) -> dict[str, Any]:
    """Returns all metrics of a head's predictions, as JSON values without NaN.

    Balanced accuracy is the mean recall over the classes with judged rows; macro F1 the mean F1 over those that have
    judged rows or were predicted: both as in scikit-learn. Of equal probabilities the first class is the likelier here,
    for the top 5 as for the predicted one; scikit-learn's top_k_accuracy_score takes the last, so that its top 1 isn't
    what argmax predicts. The expected calibration error is that of 15 bins of equal width of the top probability (Guo
    et al. 2017, equation 3). The majority class is that of the judged rows.

    Args:
        scores: Of N rows, from `score_rows`.
        codes: N, the true classes.
        classes: The C labels.
        keys: N; only those of some confused rows are looked at.
        groups: N ids; rows of one aren't independent, which intervals know.
        seed: Of what the calibration error's interval draws.
        judged_on: `test`, `validation` or `folds`: what rows these are.
        heads: How many judged, each on its fold.

    Returns:
        `judged_on`, `rows`, `groups` (how many there are, None where each row is one), `metrics` ({name: an interval of
        `transforms.evaluation.intervals`}; `top5_accuracy` is None for 5 classes or fewer),
        `majority`, `per_class` (what is 0 / 0 is None), `confusion` (C×C, true by predicted; None for more than 1,000
        classes), `most_confused` (10 pairs of classes at most) and `reliability` (bins without rows are left out).

    Raises:
        FeaturemillError: No rows.
    """
    _check_rows(codes)
    count = len(classes)
    predicted, top = scores.predicted, scores.top
    rows = np.bincount(codes, minlength=count)
    majority = int(rows.argmax())
    units = Units.of(len(codes), groups, effect_of(heads))
    found = _intervals(scores, codes, count, units=units, majority=majority, seed=seed)
    majority_accuracy = found.pop("majority")
    confusion = None
    if count <= MOST_CONFUSION_CLASSES:
        pairs = codes.astype(np.int64) * count + predicted
        confusion = np.bincount(pairs, minlength=count**2).reshape(count, count).tolist()
    return {
        "judged_on": judged_on,
        "rows": len(codes),
        "groups": None if units.single else units.count,
        "metrics": {name: None if name == "top5_accuracy" and count <= _TOP else found[name] for name in found},
        "majority": {"label": classes[majority], "accuracy": majority_accuracy},
        "per_class": _per_class(codes, predicted, classes),
        "confusion": confusion,
        "most_confused": _most_confused(codes, predicted, top, classes, keys),
        "reliability": _reliability(codes == predicted, top),
    }


def metric_values(scores: RowScores, codes: np.ndarray, count: int) -> dict[str, float]:
    """Returns {metric: value} of N rows, as `judge` has them, without intervals."""
    units = Units.of(len(codes), None)
    found = _intervals(scores, codes, count, units=units, majority=0, seed=0)
    return {name: interval["value"] for name, interval in found.items() if name != "majority"}


def _check_rows(codes: np.ndarray) -> None:
    if not len(codes):
        raise FeaturemillError("there are no rows to judge by; give validation or test a larger share")


def _check(numbers: np.ndarray | SpooledRows, codes: np.ndarray, name: str, keys: Any = None) -> None:
    for part in _slices(numbers):
        finite = np.isfinite(numbers[part]).all(axis=1)
        if not finite.all():
            row = part.start + int(finite.argmin())
            raise FeaturemillError(
                f"the head's {name} aren't all finite (first: {_row_name(keys, row)}); "
                "train again with --standardize, a larger penalty or a smaller learning rate"
            )
    unknown = (codes < 0) | (codes >= numbers.shape[1])
    if unknown.any():
        raise FeaturemillError(
            f"rows with a label that the head doesn't know: {int(unknown.sum()):,} (first: "
            f"{_row_name(keys, int(unknown.argmax()))}); "
            "leave them out, or train with them"
        )


def _row_name(keys: Any, row: int) -> str:
    return f"row {row:,}" if keys is None else _key(keys, row)


def _slices(numbers: np.ndarray | SpooledRows) -> Iterator[slice]:
    return score_slices(*numbers.shape)


def _intervals(
    scores: RowScores, codes: np.ndarray, count: int, *, units: Units, majority: int, seed: int
) -> dict[str, Interval]:
    """Returns all metrics, and the majority class's share as `majority`, with their intervals."""
    predicted, top, in_top, losses = scores
    hits = codes == predicted
    sums = ClassSums.of(codes, predicted, count, units)
    return {
        "accuracy": share(hits, units),
        "balanced_accuracy": balanced_accuracy(sums),
        "macro_f1": macro_f1(sums),
        "top5_accuracy": share(in_top, units),
        "log_loss": mean_loss(losses, top, units),
        "expected_calibration_error": calibration_error(top, hits, _bins(top), BINS, units, seed=seed),
        "majority": share(codes == majority, units),
    }


def _bins(top: np.ndarray) -> np.ndarray:
    """Returns each row's bin, 0 to 14; a bin holds its upper edge."""
    return np.clip(np.ceil(top * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _per_class(codes: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    count = len(classes)
    rows, taken = np.bincount(codes, minlength=count), np.bincount(predicted, minlength=count)
    right = np.bincount(codes[codes == predicted], minlength=count)

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    return [
        {
            "label": label,
            "rows": int(rows[i]),
            "precision": share(right[i], taken[i]),
            "recall": share(right[i], rows[i]),
            "f1": share(2 * right[i], rows[i] + taken[i]),
        }
        for i, label in enumerate(classes)
    ]


def _most_confused(
    codes: np.ndarray, predicted: np.ndarray, top: np.ndarray, classes: Sequence[str], keys: Any
) -> list[dict[str, Any]]:
    wrong = np.flatnonzero(codes != predicted)
    pairs = codes[wrong].astype(np.int64) * len(classes) + predicted[wrong]
    names, counts = np.unique(pairs, return_counts=True)
    found = []
    for at in np.argsort(-counts, kind="stable")[:_PAIRS]:
        members = wrong[pairs == names[at]]
        shown = members[np.argsort(-top[members], kind="stable")[:_KEYS_PER_PAIR]]
        true, taken = divmod(int(names[at]), len(classes))
        found.append(
            {
                "true": classes[true],
                "predicted": classes[taken],
                "rows": int(counts[at]),
                "keys": [_key(keys, int(row)) for row in shown],
            }
        )
    return found


def _key(keys: Any, row: int) -> str:
    key = keys[row]
    return str(key.as_py() if hasattr(key, "as_py") else key)


def _reliability(hits: np.ndarray, top: np.ndarray) -> list[dict[str, Any]]:
    bins = _bins(top)
    rows, confidence, right = (np.bincount(bins, weights, BINS) for weights in (None, top, hits.astype(np.float64)))
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "rows": int(rows[i]),
            "confidence": float(confidence[i] / rows[i]),
            "accuracy": float(right[i] / rows[i]),
        }
        for i in np.flatnonzero(rows).tolist()
    ]
