"""Splits: what belongs together stays together, additions move nothing, and nothing leaks."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from benchmarks.honesty import split_cases
from tests.support.factories import shared_data
from tests.support.heads_data import ArrayVectors
from tests.support.properties import examples
from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.split import Split, split
from transforms.rows.table import Table, open_table


def make_table(rows: int, *, seed: int = 0, labels=None, groups=None, hashes=None, sides=None, matrix=None) -> Table:
    """A table in memory; in two chunks, as files give them."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(rows, 8)).astype(np.float32) if matrix is None else matrix

    def column(values, kind):
        values = list(values)
        return pa.chunked_array([pa.array(values[: rows // 3], kind), pa.array(values[rows // 3 :], kind)])

    return Table(
        location="/features",
        columns=("embedding",),
        dims=(matrix.shape[1],),
        spec=None,
        fingerprint=None,
        weights="",
        weights_are_random=False,
        keys=column((f"image{i}" for i in range(rows)), pa.string()),
        labels=column(labels if labels is not None else (f"class{i % 2}" for i in range(rows)), pa.string()),
        groups=None if groups is None else column(groups, pa.string()),
        sides=None if sides is None else column(sides, pa.string()),
        sha256=None if hashes is None else column(hashes, pa.binary()),
        vectors=ArrayVectors(matrix),
    )


def take(table: Table, rows: np.ndarray) -> Table:
    texts = {name: getattr(table, name) for name in ("keys", "labels", "groups", "sides", "sha256")}
    taken = {name: None if column is None else column.take(pa.array(rows)) for name, column in texts.items()}
    return replace(table, **taken, vectors=ArrayVectors(table.vectors.matrix[rows]))


def run(table: Table, **options) -> Split:
    return split(table, **{"validation": 0.3, "test": 0.2, "folds": None, "seed": 0, "near": None, **options})


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("groups", [None, "own"])
def test_images_of_one_sample_stay_on_one_side(folds, groups):
    table = make_table(120, labels=[f"class{i // 2 % 2}" for i in range(120)], groups=groups and map(str, range(120)))
    keys = [f"/x/pairs.tar#{i:03}.{ending}" for i in range(60) for ending in ("jpg", "seg.png")]
    found = run(replace(table, keys=pa.chunked_array([keys])), folds=folds)
    for numbers in (found.components, found.sides, found.chunks, *([found.folds] if folds else [])):
        assert (numbers[::2] == numbers[1::2]).all()
    assert found.report["components"] == 60


def by_key(table: Table, found: Split) -> dict[str, tuple]:
    folds = found.folds if found.folds is not None else found.sides
    return dict(zip(table.keys.to_pylist(), zip(found.sides, folds, found.chunks, strict=True), strict=True))


NAMES = st.none() | st.integers(0, 40).map(str)
ROWS = 80
tables = st.builds(
    lambda groups, hashes, copies, by_group: make_table(
        ROWS,
        groups=groups if by_group else None,
        hashes=[None if value is None else value.encode() for value in hashes],
        matrix=np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)[copies],
    ),
    st.lists(NAMES, min_size=ROWS, max_size=ROWS),
    st.lists(st.none() | st.integers(0, 200).map(str), min_size=ROWS, max_size=ROWS),
    st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS),
    st.booleans(),
)
few = examples(60, suppress_health_check=[HealthCheck.filter_too_much])


def try_split(table: Table, **options) -> Split | None:
    """None where the draw leaves a class out, which is refused rightly."""
    try:
        return run(table, **options)
    except FeaturemillError:
        return None


def bound_together(table: Table, near: float | None) -> list[set[int]]:
    """Sets of rows of equal group, hash or vector, by plain loops."""
    sets: dict[tuple, set[int]] = {}
    for column in (table.groups, table.sha256):
        for row, value in enumerate(column.to_pylist() if column is not None else []):
            if value is not None:
                sets.setdefault((id(column), value), set()).add(row)
    if near is not None:
        for row, vector in enumerate(table.vectors.matrix):
            sets.setdefault((vector.tobytes(),), set()).add(row)
    return list(sets.values())


@few
@given(table=tables, seed=st.integers(0, 3), folds=st.sampled_from([None, 2, 3]), near=st.sampled_from([None, 0.9999]))
def test_nothing_that_belongs_together_is_divided(table, seed, folds, near):
    found = try_split(table, seed=seed, folds=folds, near=near)
    if found is None:
        return
    for rows in map(list, bound_together(table, near)):
        assert len(set(found.components[rows])) == 1
        assert len(set(found.sides[rows])) == 1
        assert len(set(found.chunks[rows])) == 1
        assert folds is None or len(set(found.folds[rows])) == 1
    assert set(found.sides) <= {0, 2} if folds else set(found.sides) <= {0, 1, 2}
    if folds:
        assert (found.folds[found.sides == 2] == -1).all()
        assert set(found.folds[found.sides == 0]) == set(range(folds))


@pytest.mark.parametrize("folds", [None, 4])
@pytest.mark.parametrize("size", [1, 3])
def test_added_rows_move_few_others(folds, size):
    """A row is on another side only if it was near a border."""
    table = make_table(1200, groups=[str(i // size) for i in range(1200)])
    kept = np.random.default_rng(1).permutation(1200 // size)[: 800 // size]
    fewer = take(table, np.flatnonzero(np.isin(np.arange(1200) // size, kept)))
    where, before = by_key(table, run(table, folds=folds)), by_key(fewer, run(fewer, folds=folds))
    moved = sum(where[key] != place for key, place in before.items())
    assert moved < 0.2 * len(before)


@pytest.mark.parametrize("name", sorted(split_cases(np.random.default_rng(0))))
def test_no_seed_is_refused_where_there_is_a_split(name):
    make = split_cases(np.random.default_rng(0))[name]
    for seed in range(3):
        table, options = make()
        found = split(table, seed=seed, near=None, **options)
        if name.startswith("one group"):
            assert (found.sides == 0).mean() == 0.9


def exists(members: list[set[int]], folds: int | None) -> bool:
    """Whether components of these classes can be dealt, by trying all ways."""
    everything = set.union(*members)
    for way in product(range(folds or 2), repeat=len(members)):
        places = {c: {place for place, has in zip(way, members, strict=True) if c in has} for c in everything}
        if len(set(way)) == (folds or 2) and all(len(some) > 1 for some in places.values()):
            return True
    return False


@few
@given(
    members=st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=3), min_size=3, max_size=7),
    folds=st.sampled_from([None, 3]),
    size=st.integers(1, 9),
)
def test_a_split_is_found_if_there_is_one(members, folds, size):
    rows = [(group, code) for group, has in enumerate(members) for code in sorted(has)]
    # The first group is larger than the others.
    rows += [(0, min(members[0]))] * size
    labels, groups = [f"class{code}" for _, code in rows], [str(group) for group, _ in rows]
    if len(set(labels)) < 2:
        return
    found = try_split(make_table(len(rows), labels=labels, groups=groups), folds=folds, validation=0.3, test=0.0)
    assert (found is not None) == exists(members, folds)


def test_shares_are_of_rows():
    """Groups of very unequal size; each side has its share of all rows, and of each class."""
    sizes = np.random.default_rng(2).lognormal(2.5, 1, 60).astype(int) + 1
    groups = np.repeat(np.arange(60), sizes)
    labels = np.random.default_rng(3).choice(["a", "b", "c"], len(groups), p=[0.7, 0.2, 0.1])
    for seed in range(5):
        found = run(make_table(len(groups), groups=map(str, groups), labels=labels), seed=seed)
        np.testing.assert_allclose(np.bincount(found.sides) / len(groups), [0.5, 0.3, 0.2], atol=0.03)
        for name in "abc":
            shares = np.bincount(found.sides[labels == name]) / (labels == name).sum()
            np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.06)


@pytest.mark.parametrize("dims", [7, 8])
def test_equal_vectors_are_equal_content_where_there_are_no_hashes(dims):
    random = np.random.default_rng(0)
    # Signs only: their bits differ in one place of 32.
    matrix = random.choice([-1.0, 1.0], (120, dims)).astype(np.float32) * (np.arange(120) + 1)[:, None]
    matrix[60:] = matrix[:60]
    matrix[:, 0] = np.where(np.arange(120) < 60, 0.0, -0.0)
    labels = [f"class{i % 60 % 2}" for i in range(120)]
    for folds in (None, 5):
        found = run(make_table(120, labels=labels, matrix=matrix), folds=folds)
        assert found.report["equal_rows"] == 120
        assert found.report["components"] == 60
        assert leaks(make_table(120, labels=labels, matrix=matrix), found, [(i, 60 + i) for i in range(60)]) == 0


def test_what_is_moved_is_reported():
    sides = ["train"] * 20 + ["validation"] * 20 + ["test"] * 20
    groups = [f"alone{i}" for i in range(60)]
    groups[0] = groups[40] = groups[41] = "both"
    report = run(make_table(60, groups=groups, sides=sides)).report
    assert (report["moved_rows"], report["moves"], report["moved_key"]) == (2, {"test to train": 2}, "image40")
    assert report["largest"] == 3


def test_same_seed_same_split():
    table = make_table(300)
    found = {seed: run(table, seed=seed).sides.tolist() for seed in range(4)}
    assert found == {seed: run(table, seed=seed).sides.tolist() for seed in range(4)}
    assert len(set(map(tuple, found.values()))) == 4


def test_shares():
    table = make_table(20_000)
    found = run(table)
    shares = np.bincount(found.sides) / 20_000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.02)
    np.testing.assert_allclose(np.bincount(found.chunks) / 20_000, [1 / 8, 1 / 8, 1 / 4, 1 / 2], atol=0.02)
    # Chunks are drawn apart from sides: each side has its share of them.
    np.testing.assert_allclose(
        np.bincount(found.chunks[found.sides == 2]) / 4000, [1 / 8, 1 / 8, 1 / 4, 1 / 2], atol=0.03
    )
    folded = run(table, folds=4, test=0)
    np.testing.assert_allclose(np.bincount(folded.folds) / 20_000, [0.25] * 4, atol=0.02)
    assert folded.sides.tolist() == [0] * 20_000


def leaks(table: Table, found: Split, copies: list[tuple[int, int]]) -> int:
    places = list(zip(found.sides.tolist(), [] if found.folds is None else found.folds.tolist(), strict=False))
    places = places or found.sides.tolist()
    return sum(places[one] != places[other] for one, other in copies)


@pytest.mark.parametrize("folds", [None, 5])
@pytest.mark.parametrize("column", [False, True])
def test_planted_duplicates_do_not_leak(folds, column):
    """The issue's guard: copies across classes and sides; by hash alone, and near copies by their vectors."""
    random = np.random.default_rng(5)
    matrix = random.normal(size=(300, 8)).astype(np.float32)
    hashes = [b"%d" % i for i in range(300)]
    equal = [(i, 299 - i) for i in range(40)]
    near = [(i, 299 - i) for i in range(40, 80)]
    for one, other in equal:
        hashes[other] = hashes[one]
    for one, other in near:
        matrix[other] = 3 * matrix[one] + 1e-4
    sides = random.choice(["train", "Val", "TEST"], 300).tolist() if column else None
    table = make_table(300, hashes=hashes, matrix=matrix, sides=sides)
    found = run(table, folds=folds, near=0.9999)
    assert leaks(table, found, equal + near) == 0
    assert found.report["equal_rows"] == 80
    # Equal hashes don't make vectors near here, so only the planted ones are.
    assert found.report["near_rows"] == 80
    # Opposite parity: all pairs are of two classes.
    assert found.report["label_conflicts"]["sets"] == 80
    assert found.report["label_conflicts"]["keys"][0] == ["image0", "image299"]
    assert (found.report["moved_rows"] > 0) == column
    # The copies would leak without the guards, so the test can fail.
    without = run(replace(table, sha256=None), folds=folds)
    assert leaks(table, without, equal) > 5
    assert leaks(table, without, near) > 5


def test_given_sides():
    sides = ["train", " Valid ", "validation", "DEV", "test", "val"] * 5
    table = make_table(30, labels=["a", "a", "b", "b"] * 7 + ["a", "b"], sides=sides)
    found = run(table)
    assert found.sides.tolist() == [0, 1, 1, 1, 2, 1] * 5
    assert found.report["moved_rows"] == 0


def test_a_component_on_several_given_sides_goes_to_training():
    sides = ["test", "train", "val", "test", "train", "test"] * 4
    groups = [str(i // 2) if i < 6 else f"alone{i}" for i in range(24)]
    found = run(make_table(24, labels=(["a"] * 6 + ["b"] * 6) * 2, groups=groups, sides=sides))
    assert found.sides[:6].tolist() == [0, 0, 1, 1, 0, 0]
    assert found.sides[6:].tolist() == [2, 0, 1, 2, 0, 2] * 3
    assert found.report["moved_rows"] == 3


def test_validation_is_drawn_where_none_is_given():
    found = run(make_table(200, labels=["a", "a", "b", "b"] * 50, sides=["train", "test"] * 100))
    assert set(found.sides[::2]) == {0, 1}
    assert set(found.sides[1::2]) == {2}


def test_rows_that_another_head_did_not_have_are_beside_those_that_they_belong_to():
    matrix = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    # The last six are new: near copies of a test row, of one that trained, of one that chose, and three others.
    matrix[54:57] = matrix[[2, 0, 1]] * 2
    labels = [f"class{i // 3 % 2}" for i in range(60)]
    sides = ["train", "validation", "test"] * 18 + [None] * 6
    # The fifth is of the group of a test row, which has no label any more.
    table = make_table(60, matrix=matrix, labels=[*labels[:5], None, *labels[6:]], sides=sides)
    table = replace(table, groups=pa.chunked_array([[*map(str, range(58)), "5", "59"]]))
    found = run(table, near=0.999, kept=True)
    assert found.sides[54:].tolist() == [2, 0, 1, 0, 2, 0]
    assert found.report["moved_rows"] == 0


def test_rows_without_a_label_are_unused_but_bind():
    labels = ["a", None, "b", "b", "a"] * 20
    groups = [f"group{i // 5}" for i in range(100)]
    found = run(make_table(100, labels=labels, groups=groups))
    assert (found.sides[1::5] == -1).all()
    assert (found.sides >= 0).sum() == 80
    assert found.report["unlabelled"] == 20
    folded = run(make_table(100, labels=labels, groups=groups), folds=3)
    assert (folded.folds[1::5] == -1).all()


def test_report_adds_up():
    table = make_table(120, labels=[f"class{i % 3}" for i in range(120)])
    found = run(table)
    for number, name in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(found.sides == number)
        expected = Counter(table.labels.take(pa.array(rows)).to_pylist())
        assert found.report["rows"][name] == expected
    folded = run(table, folds=3)
    assert sum(map(sum, (counts.values() for counts in folded.report["rows"].values()))) == 120
    assert list(folded.report["rows"]) == ["fold 0", "fold 1", "fold 2", "test"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": ["a"] * 60}, {}, "only the label 'a', and a head tells at least two"),
        ({"labels": [None] * 60}, {}, "no label at all"),
        ({}, {"validation": 0.0}, "no rows in validation: 'class0', 'class1'; train with another --seed or"),
        ({"labels": ["a", "b"] * 29 + ["c", "c"], "groups": ["g"] * 60}, {}, "no row fell on the test side"),
        ({"groups": ["g"] * 60}, {"folds": 3, "test": 0}, "fold . of 3 has no rows; choose fewer --folds"),
        (
            {"labels": ["a", "b"] * 29 + ["c", "c"], "groups": [str(i // 2) for i in range(60)]},
            {"folds": 3, "test": 0},
            "1 class has no rows in a second fold to train on: 'c'; choose fewer --folds",
        ),
        (
            {"labels": ["a", "b", "c"] * 20, "sides": ["val", "train", "train"] * 20},
            {},
            "'a'; train with another --split",
        ),
        ({"sides": ["train", "tset"] * 30}, {}, "the split column says 'tset'; did you mean test"),
        ({"sides": ["train", None] * 30}, {}, "the split column is empty in 30 rows"),
    ],
)
def test_what_is_refused(changes, options, message):
    with pytest.raises(FeaturemillError, match=message):
        run(make_table(60, **changes), **options)


@pytest.mark.parametrize(
    "options", [{"validation": 0.8}, {"test": -0.1}, {"folds": 1}, {"folds": 101}, {"near": 0.0}, {"near": 1.1}]
)
def test_options_that_can_not_be(options):
    with pytest.raises(UsageError):
        run(make_table(60), **options)


def test_real_groups_stay_whole():
    path = shared_data() / "vgg19_block5_pool_real.parquet"
    table = open_table(str(path), columns=("embedding",), group_column="group")
    found = run(table, folds=5, test=0, near=0.97)
    groups = np.array(table.groups.to_pylist())
    assert all(len(set(found.folds[groups == group])) == 1 for group in set(groups))
    assert found.report["near_rows"] > 0
    assert len(np.unique(found.components)) < len(set(groups))
