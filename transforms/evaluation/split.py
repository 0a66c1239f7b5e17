"""`split`: which rows train, which choose, which judge; so that copies and groups never fall on two sides."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.dealing import deal
from transforms.labels.folders import SIDES as FOLDER_SIDES
from transforms.rows.labels import encode
from transforms.rows.samples import sample_numbers
from transforms.rows.table import Table
from transforms.similarity.near_copies import near_copies
from transforms.text import did_you_mean, short

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
MAX_FOLDS = 100
# What a split column may say, in any case.
_SIDE_NAMES = {name: SIDES.index(side) for name, side in FOLDER_SIDES.items()}
# Chunks of the learning curve end at these shares of the components.
_CHUNK_ENDS = (1 / 8, 1 / 4, 1 / 2)
# Names made Python strings at a time.
_NAMES_AT_ONCE = 65_536
_NAMED = 5


@dataclass(frozen=True)
class Split:
    """The side of each of N rows.

    Attributes:
        sides: N int8: 0 train, 1 validation, 2 test, -1 unused (no label). With folds there is no validation side.
        folds: N int8, 0 … K-1, and -1 for the test and unused rows; None without folds.
        components: N int64, from 0: rows of one number stay together (same group or key, one sample of a tar, same
            content, near copies).
        chunks: N int8, 0 … 3, the same for a component: chunk 0 is about 1/8 of the components, chunks 0 and 1 are 1/4,
            0 to 2 are 1/2.
        report: How it was done and what came out, as JSON values: the arguments; `by_column` and `by_group`, whether
            sides or groups were given; `components`; `largest`, the labelled rows of the largest component; `rows`
            {side or fold: {class: rows}}; `unlabelled` rows; `equal_rows` and `near_rows`, those with a copy by content
            or by cosine; `moved_rows`, on another side than given, with `moves` {"test to train": rows} and
            `moved_key`; `label_conflicts`, sets of copies with several labels, their labelled rows, the keys of the
            first.
    """

    sides: np.ndarray
    folds: np.ndarray | None
    components: np.ndarray
    chunks: np.ndarray
    report: dict[str, Any]


def split(
    table: Table,
    *,
    validation: float,
    test: float,
    folds: int | None,
    seed: int,
    near: float | None,
    kept: bool = False,
) -> Split:
    """Splits the labelled rows.

    Each class is split by itself as far as components allow (see `deal`), so that sides have their shares of the rows.
    The order in which its components are dealt is drawn from SHA-256 of the seed and their names, the smallest of their
    groups (or keys, where there are no groups): rows that are added move few others.

    Args:
        table: If it has `sides`, these are used; a component on several sides goes to that nearest to training. Where
            no row is given to validation, it is drawn from the training rows.
        validation, test: Shares of the rows.
        folds: K; all rows but those of the test side are dealt to K folds, and `validation` isn't used.
        seed: Of the drawing.
        near: Cosine from which rows count as copies; None: only equal content hashes do, or equal vectors where there
            are no hashes.
        kept: Whether `sides` are those of another head: rows without one are on the side of those that they belong to,
            that nearest to training, else they train.

    Raises:
        UsageError: A fraction, number of folds or cosine that can't be.
        FeaturemillError: Fewer than two classes; a class without rows to train on or to choose by; an empty fold or
            test side; a side that isn't known.
    """
    _check_options(validation, test, folds, near)
    labels, classes = _classes(table)
    pairs = np.empty((0, 2), np.int64) if near is None else near_copies(table.vectors, near)
    contents = _contents(table)
    copies = _connect(len(labels), [contents], pairs)
    components, draws = _components(table, copies, seed)
    given = None if table.sides is None else _given(table, labels, components if kept else None)
    dealing = _Dealing(components, labels, draws, seed)
    side = dealing.sides(given, validation=validation, test=test, folds=folds)
    sides = np.where(labels >= 0, side[components], UNUSED).astype(np.int8)
    dealt = None
    if folds:
        dealt = np.full(len(side), -1)
        dealt[side == TRAIN] = dealing.deal(side == TRAIN, [1 / folds] * folds, 1)
        dealt = np.where(sides == TRAIN, dealt[components], -1).astype(np.int8)
    wants_test = test > 0 if given is None else bool((given == TEST).any())
    cure = "--seed or --val-fraction" if given is None else "--split-column ('' splits by chance)"
    _check(sides, dealt, labels, classes, folds=folds, wants_test=wants_test, cure=cure)
    report = {
        "seed": seed,
        "validation": validation,
        "test": test,
        "folds": folds,
        "near_duplicates": near,
        "by_column": given is not None,
        "by_group": table.groups is not None,
        "components": int(components.max()) + 1,
        "largest": int(np.bincount(components[labels >= 0]).max()),
        "rows": _rows(sides, dealt, labels, classes),
        "unlabelled": int((labels < 0).sum()),
        "equal_rows": int((np.bincount(contents + 1)[1:][contents[contents >= 0]] > 1).sum()),
        "near_rows": len(np.unique(pairs)),
        **_moved(sides, given, labels, table.keys),
        "label_conflicts": _conflicts(copies, labels, table.keys),
    }
    return Split(sides, dealt, components, np.digitize(draws[:, 2], _CHUNK_ENDS).astype(np.int8)[components], report)


def tied(tables: Sequence[Table]) -> np.ndarray:
    """Returns N int64 numbers for the rows of all tables, one after the other: rows of one number aren't independent.

    They are of one group (or key, without one), or of one sample of a tar, or have the same content.
    """
    found, start = [], 0
    for table in tables:
        numbers = _components(table, _connect(table.vectors.rows, [_contents(table)]), 0)[0]
        found.append(numbers + start)
        start += int(numbers.max(initial=-1)) + 1
    numbers = np.concatenate(found)
    groups = [table.groups for table in tables if table.groups is not None]
    if len(groups) == len(tables) > 1:
        codes = encode(pa.chunked_array([chunk for column in groups for chunk in column.chunks], pa.string()))[0]
        numbers = _connect(len(numbers), [numbers, codes])
    return numbers


def _check_options(validation: float, test: float, folds: int | None, near: float | None) -> None:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UsageError(
            f"--val-fraction {validation:g} and --test-fraction {test:g} leave nothing to train on; "
            "both are at least 0, and less than 1 together"
        )
    if folds is not None and not 2 <= folds <= MAX_FOLDS:
        raise UsageError(f"--folds {folds} can't be; choose 2 to {MAX_FOLDS}")
    if near is not None and not 0 < near <= 1:
        raise UsageError(f"--near-duplicates {near:g} is no cosine of copies; choose one above 0 and up to 1")


def _classes(table: Table) -> tuple[np.ndarray, list[str]]:
    """Returns (N int64 class numbers, -1 for none; the classes, sorted)."""
    codes, values = encode(table.labels)
    values = values.to_pylist()
    classes = sorted(values)
    if len(classes) < 2:
        found = f"only the label {short(classes[0])!r}" if classes else "no label at all"
        raise FeaturemillError(
            f"the rows of {table.location} have {found}, and a head tells at least two classes apart; "
            "give them others by --label-column or --labels FILE"
        )
    ranks = np.argsort(np.argsort(np.array(values, dtype=object)))
    return np.where(codes >= 0, ranks[codes], -1), classes


def _contents(table: Table) -> np.ndarray:
    """Returns N int64: rows of one number have the same content, by hash or else by equal vectors; -1 is unknown."""
    if table.sha256 is not None:
        return encode(table.sha256)[0]
    # Rows whose bits have one weighted sum may be equal; only these are read again, to be distinguished by a hash.
    vectors = table.vectors
    factors = np.random.default_rng(0).integers(0, 2**63, (vectors.dims + 1) // 2, np.uint64) * 2 + 1
    sums = np.empty(vectors.rows, np.uint64)
    for numbers, batch in vectors.batches():
        sums[numbers] = np.einsum("nd,d->n", _bits(batch), factors)
    _, codes, times = np.unique(sums, return_inverse=True, return_counts=True)
    codes = codes.reshape(-1)
    alike = times[codes] > 1
    found: dict[tuple[int, bytes], int] = {}
    for numbers, batch in vectors.batches(alike) if alike.any() else ():
        for number, bits in zip(numbers.tolist(), _bits(batch), strict=True):
            content = int(codes[number]), hashlib.sha256(bits).digest()
            codes[number] = found.setdefault(content, len(times) + len(found))
    return np.unique(codes, return_inverse=True)[1].reshape(-1)


def _bits(batch: np.ndarray) -> np.ndarray:
    """Returns the bits of n×D float32 as n×(D+1)/2 uint64; zeros of both signs are one."""
    plain = np.ascontiguousarray(batch + np.float32(0), np.float32)
    return (np.pad(plain, ((0, 0), (0, 1))) if plain.shape[1] % 2 else plain).view(np.uint64)


def _components(table: Table, copies: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N int64 component numbers, C×3 draws).

    Copies are together, and rows of one group (or key, without one), and images of one sample of a tar.
    """
    names, texts = encode(table.keys if table.groups is None else pc.coalesce(table.groups, table.keys))
    components = _connect(len(names), [names, copies, sample_numbers(table.keys)])
    return components, _draw(_component_names(components, names, texts), seed)


def _connect(rows: int, codes: Sequence[np.ndarray], pairs: np.ndarray | None = None) -> np.ndarray:
    """Returns N int64 set numbers: rows of an equal code (not -1) are in one set, pairs are, and what these connect."""
    edges = [np.empty((0, 2), np.int64)] if pairs is None else [pairs]
    for code in codes:
        known = np.flatnonzero(code >= 0)
        first = np.empty(int(code.max(initial=-1)) + 1, np.int64)
        first[code[known[::-1]]] = known[::-1]
        # Most rows are the first of their code, and need no edge to themselves.
        starts = first[code[known]]
        others = starts != known
        edges.append(np.column_stack([known[others], starts[others]]))
    start, end = np.concatenate(edges).T
    graph = coo_array((np.ones(len(start), bool), (start, end)), (rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _component_names(components: np.ndarray, names: np.ndarray, texts: pa.Array) -> pa.Array:
    """Returns the smallest name of each component."""
    # All rows of one name are in one component.
    owners = np.empty(len(texts), np.int64)
    owners[names] = components
    order = pc.sort_indices(texts).to_numpy()[::-1]
    smallest = np.empty(int(components.max()) + 1, np.int64)
    smallest[owners[order]] = order
    return texts.take(smallest)


def _draw(names: pa.Array, seed: int) -> np.ndarray:
    """Returns C×3 float64 in [0, 1), each row a function of the seed and the name alone."""
    draws = np.empty((len(names), 3))
    for at in range(0, len(names), _NAMES_AT_ONCE):
        texts = names.slice(at, _NAMES_AT_ONCE).to_pylist()
        digests = b"".join(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:24] for text in texts)
        # 53 bits, what a float64 holds: with 64 the largest would round to 1.
        draws[at : at + len(texts)] = (np.frombuffer(digests, ">u8").reshape(-1, 3) >> np.uint64(11)) * 2.0**-53
    return draws


def _given(table: Table, labels: np.ndarray, components: np.ndarray | None) -> np.ndarray:
    """Returns N sides, `UNUSED` where a row has neither a side nor a label; of components, a side for all."""
    codes, values = encode(table.sides)
    where = table.sides_from or table.location
    known = {value: _SIDE_NAMES.get(value.strip().casefold()) for value in values.to_pylist()}
    for value, side in known.items():
        if side is None:
            raise FeaturemillError(
                f"{where}: the split column says {value!r}{did_you_mean(value.casefold(), _SIDE_NAMES)}"
            )
    # The last stands for rows without a side: -1 takes it.
    given = np.array([*known.values(), UNUSED])[codes]
    if components is not None:
        has_side = given >= 0
        nearest = np.full(int(components.max()) + 1, len(SIDES))
        np.minimum.at(nearest, components[has_side], given[has_side])
        return np.where(has_side, given, nearest[components] % len(SIDES))
    empty = int(((codes < 0) & (labels >= 0)).sum())
    if empty:
        raise FeaturemillError(
            f"{where}: the split column is empty in {empty:,} row{'s' * (empty != 1)} with a label; "
            "fill them in or leave them out"
        )
    return given


class _Dealing:
    """Components with labelled rows, to be dealt to sides or folds."""

    def __init__(self, components: np.ndarray, labels: np.ndarray, draws: np.ndarray, seed: int):
        known = labels >= 0
        self._components, self._labels, self._draws, self._seed = components[known], labels[known], draws, seed
        self._known = known
        ones = np.ones(len(self._labels))
        shape = (len(draws), int(labels.max()) + 1)
        self._counts = csr_array((ones, (self._components, self._labels)), shape)

    def sides(self, given: np.ndarray | None, *, validation: float, test: float, folds: int | None) -> np.ndarray:
        """Returns the side of each component."""
        shares = [1 - validation - test, validation, test]
        if folds:
            shares = [1 - test, 0.0, test]
        if given is None:
            return self.deal(np.ones(len(self._draws), bool), shares, 0)
        side = np.full(len(self._draws), TEST)
        np.minimum.at(side, self._components, given[self._known])
        if folds:
            side[side == VALIDATION] = TRAIN
        elif not (given == VALIDATION).any():
            side[side == TRAIN] = self.deal(side == TRAIN, [1 - validation, validation], 0)
        return side

    def deal(self, some: np.ndarray, shares: Sequence[float], draw: int) -> np.ndarray:
        """Returns the bins of some components by one of their draws; those without labelled rows are in the first."""
        numbers = np.flatnonzero(some & (np.diff(self._counts.indptr) > 0))
        bins = np.zeros(len(some), np.int64)
        if len(numbers):
            fitting = np.arange(len(shares)) < (2 if draw == 0 else len(shares))
            shares = np.array(shares)
            counts = self._counts if len(numbers) == len(some) else self._counts[numbers]
            bins[numbers] = deal(counts, self._draws[numbers, draw], shares, fitting=fitting, seed=self._seed)
        return bins[some]


def _moved(sides: np.ndarray, given: np.ndarray | None, labels: np.ndarray, keys: pa.ChunkedArray) -> dict[str, Any]:
    """Returns how many labelled rows are on another side than given: all, by sides, and the first one's key."""
    if given is None:
        return {"moved_rows": 0}
    # Validation that was drawn from training rows isn't moved.
    rows = np.flatnonzero((labels >= 0) & (sides < given))
    names = np.array(SIDES)
    pairs, counts = np.unique(np.stack([given[rows], sides[rows]]), axis=1, return_counts=True)
    moves = {f"{names[a]} to {names[b]}": int(n) for a, b, n in zip(*pairs, counts, strict=True)}
    found = {"moved_rows": len(rows), "moves": moves}
    return found | ({"moved_key": keys[int(rows[0])].as_py()} if len(rows) else {})


def _check(
    sides: np.ndarray,
    dealt: np.ndarray | None,
    labels: np.ndarray,
    classes: list[str],
    *,
    folds: int | None,
    wants_test: bool,
    cure: str,
) -> None:
    def counts(rows: np.ndarray) -> np.ndarray:
        return np.bincount(labels[rows], minlength=len(classes))

    if wants_test and not (sides == TEST).any():
        raise FeaturemillError("no row fell on the test side; choose a larger --test-fraction or another --seed")
    if dealt is None:
        # `finetune` has the split of the head that `train` made.
        cure = f"train with another {cure}, give them more rows, or leave these classes out"
        _refuse(classes, counts(sides == TRAIN) == 0, "to train on", cure)
        _refuse(classes, counts(sides == VALIDATION) == 0, "in validation", cure)
        return
    cure = "choose fewer --folds or another --seed, give them more rows, or leave these classes out"
    per_fold = np.array([counts(dealt == fold) for fold in range(folds)])
    if not per_fold.any(axis=1).all():
        empty = int(np.flatnonzero(~per_fold.any(axis=1))[0])
        raise FeaturemillError(
            f"fold {empty} of {folds} has no rows; choose fewer --folds, another --seed, or finer groups"
        )
    _refuse(classes, (per_fold > 0).sum(axis=0) < 2, "in a second fold to train on", cure)


def _refuse(classes: list[str], bad: np.ndarray, where: str, cure: str) -> None:
    names = [repr(short(classes[i])) for i in np.flatnonzero(bad)]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        verb = "class has" if len(names) == 1 else "classes have"
        raise FeaturemillError(f"{len(names)} {verb} no rows {where}: {', '.join(names[:_NAMED])}{more}; {cure}")


def _rows(
    sides: np.ndarray, dealt: np.ndarray | None, labels: np.ndarray, classes: list[str]
) -> dict[str, dict[str, int]]:
    """Returns {side or fold: {class: rows}}."""
    parts = {name: sides == side for side, name in enumerate(SIDES)}
    if dealt is not None:
        parts = {f"fold {fold}": dealt == fold for fold in range(int(dealt.max()) + 1)} | {"test": sides == TEST}
    counted = {name: np.bincount(labels[rows], minlength=len(classes)).tolist() for name, rows in parts.items()}
    return {name: dict(zip(classes, counts, strict=True)) for name, counts in counted.items()}


def _conflicts(copies: np.ndarray, labels: np.ndarray, keys: pa.ChunkedArray) -> dict[str, Any]:
    """Returns how many sets of copies have several labels, and the keys of the first."""
    # Most rows have no copy, and a conflict needs two.
    known = np.flatnonzero((labels >= 0) & (np.bincount(copies) > 1)[copies])
    classes = int(labels.max()) + 1
    sets, count = np.unique(np.unique(copies[known] * classes + labels[known]) // classes, return_counts=True)
    bad = sets[count > 1]
    named = [keys.take(known[copies[known] == number][:_NAMED]).to_pylist() for number in bad[:_NAMED]]
    return {"sets": len(bad), "rows": int(np.isin(copies[known], bad).sum()), "keys": named}
