"""Labels that are probably wrong, by confident learning.

Northcutt, Jiang and Chuang 2021, Confident Learning: Estimating Uncertainty in Dataset Labels, Journal of Artificial
Intelligence Research 70. A class's threshold is the mean probability that its own rows are given for it (equation 2
there). A row is confidently of the likeliest class among those whose thresholds its probabilities reach (equation 1);
where that isn't the class it is labelled with, it is off the diagonal of the confident joint, and its label is in
doubt. Doubts are ranked by how much likelier that class is than the label's (section 3.2 there, pruning by noise rate).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Row numbers, int64 n, with their probabilities, n×C.
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Doubts:
    """Probabilities against N labels; -1 and NaN for rows that no block holds, or without a label.

    Attributes:
        confident: N booleans: whether a row is confidently of another class than its label's.
        rival: N int64: that class, or where there is none, the likeliest of the others.
        own: N float64: the probability of the label's class.
        other: N float64: that of the rival.
    """

    confident: np.ndarray
    rival: np.ndarray
    own: np.ndarray
    other: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """N float64: how much likelier the rival is than the label's; the larger, the more in doubt."""
        return self.other - self.own


def doubts(blocks: Callable[[], Blocks], codes: np.ndarray, count: int) -> Doubts:
    """Returns what out-of-fold probabilities say of labels, in two passes over them.

    Args:
        blocks: Yields the rows with a label, each once. The probabilities may be written to.
        codes: N, the labels' classes; -1 for none.
        count: C.
    """
    sums, rows = np.zeros(count), np.zeros(count)
    for numbers, probabilities in blocks():
        given = codes[numbers]
        own = probabilities[np.arange(len(given)), given]
        sums += np.bincount(given, own, count)
        rows += np.bincount(given, minlength=count)
    thresholds = np.divide(sums, rows, out=np.full(count, np.inf), where=rows > 0)
    size = len(codes)
    confident, rival = np.zeros(size, bool), np.full(size, -1)
    own, other = np.full(size, np.nan), np.full(size, np.nan)
    for numbers, probabilities in blocks():
        given, places = codes[numbers], np.arange(len(numbers))
        own[numbers] = probabilities[places, given]
        # Rounding mustn't put a class of one row below its own mean.
        reached = np.where(probabilities >= thresholds - 1e-12, probabilities, -1)
        confidently = reached.argmax(axis=1)
        confident[numbers] = (reached[places, confidently] >= 0) & (confidently != given)
        probabilities[places, given] = -1
        rival[numbers] = np.where(confident[numbers], confidently, probabilities.argmax(axis=1))
        other[numbers] = probabilities[places, rival[numbers]]
    return Doubts(confident, rival, own, other)
