"""`deal`: components to sides or folds, by shares of the rows, of each class as far as components allow."""

import numpy as np
from scipy.sparse import csr_array

# Changes whenever the same rows, options and seed are dealt otherwise: a HEAD names it.
DEALING = 2
# Components that are looked at one by one: the largest, and those of classes that lack a side.
_MOST_MOVED = 2_000
# A move that betters the balance by less isn't worth that rows change their side.
_LEAST_GAIN = 1e-6
_MOST_STEPS = 2_000
_TRIES = 50
# An empty side or a class without one outweighs any imbalance.
_LACK = 1e6
# Multiples of the golden ratio, modulo 1, are spread evenly however many they are.
_GOLDEN = (5**0.5 - 1) / 2


def deal(counts: csr_array, draws: np.ndarray, shares: np.ndarray, *, fitting: np.ndarray, seed: int) -> np.ndarray:
    """Deals C components to B bins.

    Each class's components lie in the order of their draws, and each bin takes its share of the rows in turn. So added
    rows move only what is near a border. Then components are moved while that brings the shares of rows nearer, over
    all and in each class, and until each class is in two bins that fits need, if that can be found.

    Args:
        counts: C×K: rows of each class, all in all at least one to a component.
        draws: C, in [0, 1): where a component lies among those of its class.
        shares: B, at least 0, together 1.
        fitting: B booleans: bins of which each class needs two (training and validation, or any two folds).
        seed: Of roundings, and of further tries where the first leaves a class out.

    Returns:
        C int64, each 0 … B-1.
    """
    random = np.random.default_rng(seed)
    counts, start = csr_array(counts, dtype=np.float64), float(random.random())
    bins = np.zeros(counts.shape[0], np.int64)
    # The larger first, as well as they can be; the single rows then fill what is free.
    large = np.asarray(counts.sum(axis=1)).ravel() > 1
    held = np.zeros((len(shares), counts.shape[1]))
    target = shares[:, None] * np.asarray(counts.sum(axis=0))
    needed = fitting & (shares > 0)
    for some in (large, ~large):
        if some.any():
            part = counts if some.all() else counts[np.flatnonzero(some)]
            bins[some] = _by_class(part, draws[some], np.maximum(0, target - held), held, needed, start)
        if some is large and some.any():
            hand = _Hand(part, bins[some], target, needed, lack=0.0)
            hand.settle()
            bins[some], held = hand.bins, hand.held
    best = _Hand(counts, bins, target, needed)
    lacks = best.settle()
    for _ in range(_TRIES if lacks else 0):
        other = _Hand(counts, bins, target, needed)
        other.shuffle(random)
        found = other.settle()
        if found < lacks:
            best, lacks = other, found
        if not lacks:
            break
    return best.bins


def _by_class(
    counts: csr_array, draws: np.ndarray, free: np.ndarray, held: np.ndarray, needed: np.ndarray, start: float
) -> np.ndarray:
    """Returns a bin for each component: the one that holds its place on the line of its class's rows.

    Where none of a class is in one of two needed bins, that gets the component that lies nearest to it.

    Args:
        counts: C×K rows.
        draws: C.
        free: B×K rows that the bins still lack of each class.
        held: B×K rows that are there already.
        needed: B booleans.
        start: In [0, 1), of the rounding.
    """
    of_class = _rarest_class(counts)
    order = np.lexsort((draws, of_class))
    kind = of_class[order]
    places = _places(np.asarray(counts.sum(axis=1)).ravel()[order], kind, start)
    borders = (np.cumsum(free, axis=0) / np.maximum(free.sum(axis=0), 1e-9)).T
    dealt = np.zeros(len(order), np.int64)
    for border in borders.T[:-1]:
        dealt += places >= border[kind]
    if needed.sum() == 2:
        for number in np.flatnonzero(needed):
            middle = borders[kind, number] - free[number, kind] / np.maximum(free.sum(axis=0), 1e-9)[kind] / 2
            _fill(dealt, kind, np.abs(places - middle), int(number), held.T, needed)
    bins = np.empty(len(order), np.int64)
    bins[order] = dealt
    return bins


def _rarest_class(counts: csr_array) -> np.ndarray:
    """Returns C int32: of each component's classes that with the fewest components, which is hardest to balance."""
    if (np.diff(counts.indptr) == 1).all():
        return counts.indices
    rare = np.bincount(counts.indices, minlength=counts.shape[1])
    entries = counts.tocoo()
    order = np.lexsort((entries.col, rare[entries.col], entries.row))
    return entries.col[order[np.unique(entries.row[order], return_index=True)[1]]]


def _places(size: np.ndarray, kind: np.ndarray, start: float) -> np.ndarray:
    """Returns where each component lies, in [0, 1), on the line of its class's rows; one class after the other."""
    ends = np.cumsum(size)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(kind)) + 1])
    lengths = np.diff(np.append(starts, len(kind)))
    places = ends - size - np.repeat(ends[starts] - size[starts], lengths)
    # Where in itself a component is pinned differs from class to class, else all would round the same way.
    places += (start + kind * _GOLDEN) % 1 * size
    places /= np.repeat(np.add.reduceat(size, starts), lengths)
    return places


def _fill(
    dealt: np.ndarray, kind: np.ndarray, distance: np.ndarray, number: int, held: np.ndarray, needed: np.ndarray
) -> None:
    """Gives a bin the nearest component of each class that has none there, unless another needed bin would lose its
    last."""
    there = held + np.bincount(kind * len(needed) + dealt, minlength=held.size).reshape(held.shape)
    free = (there[kind, number] == 0) & (~needed[dealt] | (there[kind, dealt] > 1))
    nearest = np.flatnonzero(free)[np.argsort(distance[free], kind="stable")]
    dealt[nearest[np.unique(kind[nearest], return_index=True)[1]]] = number


class _Hand:
    """Components in bins, and what moving one would better.

    Attributes:
        bins: C int64.
        held: B×K rows of each class in each bin.
    """

    def __init__(
        self, counts: csr_array, bins: np.ndarray, target: np.ndarray, needed: np.ndarray, *, lack: float = _LACK
    ):
        self.bins = bins.copy()
        self._counts, self._target, self._needed, self._lack = counts, target, needed, lack
        self._sizes = np.asarray(counts.sum(axis=1)).ravel()
        places = np.repeat(self.bins * target.shape[1], np.diff(counts.indptr)) + counts.indices
        self.held = np.bincount(places, counts.data, minlength=target.size).reshape(target.shape)
        whole = target.sum(axis=1)
        self._used, rows = whole > 0, float(whole.sum())
        # A class of one component can only be in one bin.
        components = np.bincount(counts.indices, minlength=target.shape[1])
        self._needs = np.minimum(components, min(2, int(needed.sum())))
        # What a row off the target costs, by bin; a class counts as much as any other, and all together as the whole.
        weight = rows / np.where(self._used, whole, np.inf)
        self._whole = weight / rows**2
        self._each = weight[:, None] / np.maximum(target.sum(axis=0), 1) ** 2 / target.shape[1]

    def lacks(self) -> int:
        """Returns how many bins have no row, and bins are missing to classes."""
        empty = int((self.held.sum(axis=1)[self._used] == 0).sum())
        return empty + int(np.maximum(0, self._needs - self._present()).sum())

    def _present(self) -> np.ndarray:
        return (self.held[self._needed] > 0).sum(axis=0)

    def shuffle(self, random: np.random.Generator) -> None:
        """Puts the components that can be moved where chance will."""
        shares = self._target.sum(axis=1) / self._target.sum()
        for component in self._movable():
            self._move(int(component), int(random.choice(len(shares), p=shares)))

    def settle(self) -> int:
        """Moves components while that betters anything; returns what is lacking in the end."""
        some = self._movable()
        if not len(some):
            return self.lacks()
        rows = self._counts[some]
        for _ in range(_MOST_STEPS):
            gains = self._gains(rows, some)
            at, to = np.unravel_index(int(gains.argmax()), gains.shape)
            if gains[at, to] < _LEAST_GAIN:
                break
            self._move(int(some[at]), int(to))
        return self.lacks()

    def _movable(self) -> np.ndarray:
        """Returns the components to be moved, the largest first, of equal ones those of classes that lack a bin."""
        lacking = np.flatnonzero(self._present() < self._needs)
        needed = np.asarray((self._counts[:, lacking] > 0).sum(axis=1)).ravel() > 0
        empty = bool((self.held.sum(axis=1)[self._used] == 0).any())
        some = np.flatnonzero((self._sizes > 1) | needed | empty)
        return some[np.lexsort((-self._sizes[some], ~needed[some]))][:_MOST_MOVED]

    def _gains(self, rows: csr_array, some: np.ndarray) -> np.ndarray:
        """Returns M×B: how much better it is with a component in another bin."""
        here, each = self.bins[some], np.arange(len(some))
        sizes = self._sizes[some]
        off = (self.held - self._target).sum(axis=1)
        # (x + s)² - x² = s (2x + s), and the same with -s where it is taken away.
        added = self._whole * sizes[:, None] * (2 * off + sizes[:, None])
        taken = (self._whole * sizes[:, None] * (sizes[:, None] - 2 * off))[each, here]
        off = self.held - self._target
        squares = rows.multiply(rows) @ self._each.T
        along = 2 * (rows @ (self._each * off).T)
        added = added + squares + along
        taken = taken + (squares - along)[each, here]
        gains = -(added + taken[:, None]) - self._lack * self._lacked(rows, some)
        gains[:, ~self._used] = -np.inf
        gains[each, here] = 0
        return gains

    def _lacked(self, rows: csr_array, some: np.ndarray) -> np.ndarray:
        """Returns M×B: by how much more would be lacking."""
        here, each = self.bins[some], np.repeat(np.arange(len(some)), np.diff(rows.indptr))
        kinds, data = rows.indices, rows.data
        present = self._present()[kinds]
        leaves = (self.held[here[each], kinds] == data) & self._needed[here[each]]
        enters = (self.held[:, kinds] == 0).T & self._needed
        then = present[:, None] - leaves[:, None] + enters
        needs = self._needs[kinds]
        more = np.maximum(0, needs[:, None] - then) - np.maximum(0, needs - present)[:, None]
        total = np.zeros((len(some), len(self._target)))
        np.add.at(total, each, more)
        held = self.held.sum(axis=1)
        return total + (held[here] == self._sizes[some])[:, None] - (held == 0)

    def _move(self, component: int, to: int) -> None:
        part = slice(self._counts.indptr[component], self._counts.indptr[component + 1])
        kinds, data = self._counts.indices[part], self._counts.data[part]
        self.held[self.bins[component], kinds] -= data
        self.held[to, kinds] += data
        self.bins[component] = to
