"""Puts a split's rows into cells, and plans the fits on them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from transforms.evaluation.split import Split

# The learning curve's steps: the chunks of `Split`, 1/8, 1/4, 1/2 and all of the training rows.
CHUNKS = 4


@dataclass(frozen=True)
class Fit:
    """The cells that a fit is trained on, chosen by, and judged on (empty: it is judged on the validation rows)."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] = ()

    @property
    def judged(self) -> tuple[int, ...]:
        return self.test or self.validation


@dataclass(frozen=True)
class FitPlan:
    """The fits of a training, and the cells that they use.

    Attributes:
        cells: N int32, as in `Rows`.
        fits: What is judged: a single one, or one per fold, which together judge every row once.
        final: What the head comes from, if it isn't the single fit.
        learning: Growing sets of training cells of the first fit, whose validation rows judge them: a learning curve.
        judged_on: `validation`, `test` or `folds`.
    """

    cells: np.ndarray
    fits: tuple[Fit, ...]
    final: Fit | None
    learning: tuple[tuple[int, ...], ...]
    judged_on: str


def plan_fits(parts: Split, *, learning: bool) -> FitPlan:
    """Turns a split into cells and the fits on them.

    With K folds, each fold is judged once by a fit that the next fold chooses for and the others train; the head itself
    is trained on all folds but the first, which chooses for it.

    Args:
        parts: A split.
        learning: Whether the first fit's training rows are tried by growing shares, for a learning curve.
    """
    chunks = CHUNKS if learning else 1
    chunk = parts.chunks.astype(np.int32) if learning else 0
    block = np.asarray(parts.sides if parts.folds is None else parts.folds, np.int32)
    cells = np.where(block >= 0, block * chunks + chunk, -1).astype(np.int32)

    def cells_of(*blocks: int, upto: int = chunks) -> tuple[int, ...]:
        return tuple(b * chunks + c for b in blocks for c in range(upto))

    if parts.folds is None:
        test = cells_of(2) if (block == 2).any() else ()
        trained: tuple[int, ...] = (0,)
        fits: tuple[Fit, ...] = (Fit(cells_of(0), cells_of(1), test),)
        final, judged_on = None, "test" if test else "validation"
    else:
        count = int(block.max()) + 1
        blocks = [(fold, (fold + 1) % count) for fold in range(count)]
        others = [tuple(f for f in range(count) if f not in pair) for pair in blocks]
        fits = tuple(
            Fit(cells_of(*rest), cells_of(following), cells_of(fold))
            for (fold, following), rest in zip(blocks, others, strict=True)
        )
        trained = others[0]
        final, judged_on = Fit(cells_of(*range(1, count)), cells_of(0)), "folds"
    growing = tuple(cells_of(*trained, upto=n) for n in range(1, chunks + 1)) if learning else ()
    # Of a few rows 1/8 may be none, and of a few groups as much as 1/4.
    sizes = pairwise(np.count_nonzero(np.isin(cells, share)) for share in growing)
    fewer = [share for share, (size, more) in zip(growing, sizes, strict=False) if 0 < size < more]
    growing = (*fewer, *growing[-1:])
    return FitPlan(cells, fits, final, growing, judged_on)
