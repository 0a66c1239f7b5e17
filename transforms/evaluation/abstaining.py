"""Abstaining: rows of which a head is too little sure stay without an answer, and what that brings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transforms.evaluation.intervals import Units, effect_of, share

# Of the validation rows' confidences so many are kept, at even ranks: a rate is met to half a percent.
_KEPT = 201


def kept_confidences(top: np.ndarray) -> list[float]:
    """Returns at most 201 of N confidences in ascending order, at even ranks: what a threshold is found by later."""
    return np.quantile(top, np.linspace(0, 1, _KEPT), method="lower").tolist()


def threshold_of(confidences: Sequence[float], rate: float) -> float:
    """Returns the confidence from which on rows are answered, so that at most this share of them isn't.

    Args:
        confidences: From `kept_confidences`, of rows that didn't train.
        rate: From 0 to below 1.
    """
    return float(np.quantile(np.asarray(confidences), rate, method="lower"))


def is_answered(top: np.ndarray, threshold: float) -> np.ndarray:
    """Returns N booleans: whether a confidence is at least the threshold, in float32, as scores are stored."""
    return np.asarray(top, np.float32) >= np.float32(threshold)


def selective(
    top: np.ndarray, right: np.ndarray, groups: np.ndarray | None, threshold: float, heads: int = 1
) -> dict[str, Any]:
    """Returns {"threshold", "coverage", "risk"}: the share of rows that are answered, and of these the share of errors.

    Both are intervals of 95 % (El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification);
    that the threshold was itself drawn isn't in them. The risk is None where no row is answered.

    Args:
        top: N confidences.
        right: N booleans.
        groups: N ids; rows of one aren't independent.
        threshold: From which confidence on rows are answered.
        heads: How many judged, each on its fold.
    """
    effect = effect_of(heads)
    answered = is_answered(top, threshold)
    of_answered = None if groups is None else groups[answered]
    risk = share(~right[answered], Units.of(int(answered.sum()), of_answered, effect)) if answered.any() else None
    return {"threshold": threshold, "coverage": share(answered, Units.of(len(top), groups, effect)), "risk": risk}
