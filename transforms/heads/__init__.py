"""Heads: light models from stored features to labels. One module per kind, or for several that are alike."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from transforms.declared import ABOVE_ZERO, AT_LEAST_ONE, SEED, Bound, declared, parse_numbers
from transforms.errors import UsageError
from transforms.text import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from transforms.heads.cells import Rows
    from transforms.heads.model import Model

# Each kind's module, which says in its own `KINDS` what the kind is.
KINDS = {
    "ridge": "transforms.heads.ridge",
    "logistic": "transforms.heads.logistic",
    "linear": "transforms.heads.neural",
    "dense128": "transforms.heads.neural",
    "dense256": "transforms.heads.neural",
    "knn": "transforms.heads.knn",
}
# What may be done to vectors before a head sees them (`transform.Transform`); of equally good ones the first is taken.
TRANSFORMS = ("none", "sqrt", "l2", "sqrt-l2")
# 20 values, a bit over two to a decade.
DEFAULT_PENALTIES = tuple(float(f"{10 ** (8 * i / 19 - 4):.3g}") for i in range(20))


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The settings that decide a fit, beside the rows.

    Attributes:
        class_weights: Weigh a row by N / (C × rows of its class), C being the classes that have rows.
        penalties: Of ridge and logistic, relative to the number of rows and the features' mean variance, so that one
            grid serves any N, D and scale.
    """

    seed: int = declared(0, help="Seed of split, fit and intervals", bounds=(SEED,))
    standardize: bool = declared(
        False,
        help="Scale each number to mean 0 and variance 1 of the training rows; one that hardly varies, by less",
    )
    transform: str | None = declared(
        None,
        help="What is done to vectors first, sqrt being each number's root, l2 a length of 1",
        choices=TRANSFORMS,
        unset="chosen by the validation rows",
    )
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

    def fit(self, train: Collection[int], validation: Collection[int]) -> "Model":
        """Fits on the rows of some cells; chooses penalty or stopping epoch by those of others.

        Raises:
            FeaturemillError: A fit that can't be, with the cure.
        """
        ...

    def refit(self, model: "Model", train: Collection[int]) -> "Model":
        """Returns a head with `model`'s choices fitted on more cells; `model` itself where the kind can't."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of head.

    Attributes:
        fitter: Returns what fits such heads. Raises UsageError for a setting that it can't follow.
        logits: See `logits`; of vectors that are transformed.
        keras_logits: Returns the same for N×D float32, a tensor of Keras, in layers and operations that Keras brings.
        is_dense: Whether `Model.arrays` are dense layers, which can be trained on together with the network.
        dropout: Share of what goes into its last layer that is dropped while it is trained.
        refits: Whether it is fitted again with the validation rows once these have chosen; else they only choose.
        transform_by: The kind that chooses the transform for it, where trying each would take long; else it does.
        problem: Returns what of a model's arrays, which may come from anybody, isn't that of such a head with D numbers
            and C classes; empty if nothing.
        cell_bytes: Returns what fitting on this many rows of D numbers holds for each cell that rows are divided into.
    """

    fitter: "Callable[[Rows, FitSettings], Fitter]"
    logits: "Callable[[Model, np.ndarray], np.ndarray]"
    keras_logits: "Callable[[Model, Any], Any]"
    is_dense: bool
    dropout: float = 0.0
    refits: bool = True
    transform_by: str = ""
    cell_bytes: Callable[[int, int], int] = lambda rows, dims: 0
    problem: "Callable[[Model, int, int], str]" = lambda model, dims, classes: ""


def kind_of(name: str) -> Kind:
    """Returns what a kind of head is.

    Raises:
        UsageError: No such kind.
    """
    if name not in KINDS:
        raise UsageError(f"no head {name!r}{did_you_mean(name, KINDS)}")
    kinds: Mapping[str, Kind] = import_module(KINDS[name]).KINDS
    return kinds[name]


def fitter(kind: str, rows: "Rows", settings: FitSettings) -> Fitter:
    """Returns what fits heads of a kind.

    Raises:
        UsageError: No such kind, or a setting that it can't follow.
    """
    return kind_of(kind).fitter(rows, settings)


def logits(model: "Model", vectors: "np.ndarray") -> "np.ndarray":
    """Returns N×C scores, whose softmax (after division by the head's temperature) are the probabilities.

    Args:
        model: A fitted one.
        vectors: N×D float32.
    """
    return kind_of(model.kind).logits(model, model.transform(vectors))


def keras_logits(model: "Model", vectors: Any) -> Any:
    """Returns the same scores for a tensor of Keras, n×D float32."""
    return kind_of(model.kind).keras_logits(model, model.transform.keras(vectors))
