"""Heads: light models from stored features to labels. One module per kind, one face: `fitter` and `logits`."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from transforms.declared import ABOVE_ZERO, AT_LEAST_ONE, SEED, Bound, declared, parse_numbers
from transforms.errors import UsageError
from transforms.heads.cells import Rows
from transforms.heads.model import Model
from transforms.text import did_you_mean

# Kind of head → the module that fits it.
_MODULES = {
    "ridge": "ridge",
    "logistic": "logistic",
    "linear": "neural",
    "dense128": "neural",
    "dense256": "neural",
    "knn": "knn",
}
KINDS = tuple(_MODULES)
# Kinds that are fitted by gradient steps, with Keras.
NEURAL = ("linear", "dense128", "dense256")
# 20 values, a bit over two to a decade.
DEFAULT_PENALTIES = tuple(float(f"{value:.3g}") for value in np.logspace(-4, 4, 20))


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What decides a fit, beside the rows.

    Attributes:
        class_weights: Weigh a row by N / (C × rows of its class).
        penalties: Of ridge and logistic, relative to the number of rows and the features' mean variance, so that one
            grid serves any N, D and scale.
    """

    seed: int = declared(0, help="Seed of split, fit and intervals", bounds=(SEED,))
    standardize: bool = declared(False, help="Scale each number to mean 0 and variance 1 of the training rows")
    class_weights: bool = declared(False, help="Let rare classes count as much as frequent ones")
    penalties: tuple[float, ...] = declared(
        DEFAULT_PENALTIES,
        help="L2 penalties to choose from, with commas between them",
        bounds=(Bound(lambda value: 0 <= value < float("inf"), "penalties are numbers from 0 on, not {value}"),),
        metavar="NUMBERS",
        parse=parse_numbers,
        unset="20 from 1e-4 to 1e4",
    )
    neighbours: int = declared(10, help="Nearest rows that knn asks", bounds=(AT_LEAST_ONE,))
    learning_rate: float = declared(1e-3, help="Learning rate of Adam", bounds=(ABOVE_ZERO,))
    batch_size: int = declared(64, help="Rows per step of Adam", bounds=(AT_LEAST_ONE,))
    epochs: int = declared(100, help="Most passes over the rows", bounds=(AT_LEAST_ONE,))
    patience: int = declared(5, help="Epochs without a better validation loss before it stops", bounds=(AT_LEAST_ONE,))


class Fitter(Protocol):
    """Fits heads of one kind on parts of the same rows, sharing what can be shared among the fits."""

    def fit(self, train: Collection[int], validation: Collection[int]) -> Model:
        """Fits on the rows of some cells; chooses penalty or stopping epoch by those of others.

        Raises:
            FeaturemillError: A fit that can't be, with the cure.
        """
        ...

    def refit(self, model: Model, train: Collection[int]) -> Model:
        """Returns a head with `model`'s choices fitted on more cells; `model` itself where the kind can't."""
        ...


def fitter(kind: str, rows: Rows, settings: FitSettings) -> Fitter:
    """Returns what fits heads of a kind.

    Raises:
        UsageError: No such kind, or a setting that it can't follow.
    """
    return _module(kind).fitter(kind, rows, settings)


def logits(model: Model, vectors: np.ndarray) -> np.ndarray:
    """Returns N×C scores, whose softmax (after division by the head's temperature) are the probabilities.

    Args:
        model: A fitted one.
        vectors: N×D float32.
    """
    return _module(model.kind).logits(model, vectors)


def _module(kind: str) -> Any:
    if kind not in _MODULES:
        raise UsageError(f"no head {kind!r}{did_you_mean(kind, KINDS)}")
    return import_module(f"transforms.heads.{_MODULES[kind]}")
