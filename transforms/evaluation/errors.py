"""Judged rows that a person should look at, intervals of each class's figures, and the gain of abstaining."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transforms.evaluation.intervals import Interval, Units, effect_of, share
from transforms.evaluation.metrics import RowScores

# Points of the curve of coverage against accuracy.
_POINTS = 200


@dataclass(frozen=True)
class Chosen:
    """Numbers of judged rows to be looked at.

    Attributes:
        mistakes: The most confident mistakes, the surest first.
        hits: The least confident hits, the least sure first.
        cells: {(true class, predicted class): rows}, the surest mistakes or the least sure hits first.
    """

    mistakes: np.ndarray
    hits: np.ndarray
    cells: dict[tuple[int, int], np.ndarray]

    @property
    def rows(self) -> np.ndarray:
        """All of them, each once, ascending."""
        return np.unique(np.concatenate([self.mistakes, self.hits, *self.cells.values()])).astype(np.int64)


def choose_rows(
    scores: RowScores, codes: np.ndarray, count: int, *, classes: Sequence[int], most: int, each: int
) -> Chosen:
    """Chooses rows to look at.

    Cells share what there is: each gets its first row before one gets its second, those of mistakes before those of
    hits, and the larger before the smaller.

    Args:
        scores: Of N rows.
        codes: N, the true classes.
        count: C, how many classes there are.
        classes: Those of which cells are filled.
        most: Rows in cells, all in all.
        each: Most rows of a cell, and most mistakes and hits.
    """
    codes, predicted = codes.astype(np.int64), scores.predicted
    right = codes == predicted
    surprise = np.where(right, -scores.top, scores.top)
    order = np.lexsort((-surprise, codes * count + predicted))
    cell = (codes * count + predicted)[order]
    first = np.concatenate([[True], cell[1:] != cell[:-1]]) if len(cell) else np.empty(0, bool)
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(cell)))
    rank = np.arange(len(cell)) - np.repeat(starts, sizes)
    wanted = (rank < each) & np.isin(codes[order], classes) & np.isin(predicted[order], classes)
    places = np.flatnonzero(wanted)
    places = places[np.lexsort((-np.repeat(sizes, sizes)[places], right[order[places]], rank[places]))][:most]
    places = np.sort(places)
    kept, starts = np.unique(cell[places], return_index=True)
    cells = {
        (int(name) // count, int(name) % count): order[some]
        for name, some in zip(kept, np.split(places, starts[1:]), strict=False)
    }
    by_surprise = np.argsort(-surprise, kind="stable")
    wrong = by_surprise[~right[by_surprise]][:each]
    return Chosen(wrong, by_surprise[right[by_surprise]][:each], cells)


def class_intervals(
    codes: np.ndarray, predicted: np.ndarray, count: int, groups: np.ndarray, *, heads: int = 1
) -> list[dict[str, Interval | None]]:
    """Returns {"precision", "recall"} of each of C classes with their 95 % intervals, None for what is 0 / 0.

    Args:
        codes, predicted: N, the true and the predicted classes.
        count: C.
        groups: N ids; rows of one aren't independent.
        heads: How many judged, each on its fold.
    """

    def by_class(of: np.ndarray) -> list[Interval | None]:
        order = np.argsort(of, kind="stable")
        rows = np.split(order, np.cumsum(np.bincount(of, minlength=count))[:-1])
        units = [Units.of(len(some), groups[some], effect_of(heads)) for some in rows]
        return [
            share(codes[some] == predicted[some], of_some) if len(some) else None
            for some, of_some in zip(rows, units, strict=True)
        ]

    pairs = zip(by_class(predicted), by_class(codes), strict=True)
    return [{"precision": precision, "recall": recall} for precision, recall in pairs]


def coverage_curve(right: np.ndarray, top: np.ndarray) -> list[dict[str, float]]:
    """Returns what abstaining brings: points {"coverage", "accuracy", "threshold"}, from few rows to all.

    A row is answered if its confidence is at least the threshold; coverage is the share of rows that are, and accuracy
    that of the answers (El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification).

    Args:
        right: N booleans.
        top: N confidences.
    """
    order = np.argsort(-top, kind="stable")
    rows = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / rows
    # Rows of one confidence are answered together or not at all.
    ends = np.flatnonzero(np.append(np.diff(top[order]) != 0, True))
    if len(ends) > _POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).astype(int))]
    return [
        {"coverage": float(rows[at] / len(order)), "accuracy": float(accuracy[at]), "threshold": float(top[order[at]])}
        for at in ends
    ]
