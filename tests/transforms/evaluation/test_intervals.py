"""Intervals hold the truth as often as they say; the whole simulation is `benchmarks/honesty.py`."""

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from benchmarks.honesty import World, covered, group_numbers, metrics_of, truths
from transforms.evaluation.intervals import (
    ClassSums,
    Units,
    balanced_accuracy,
    calibration_error,
    effect_of,
    macro_f1,
    mean_loss,
    share,
)
from transforms.evaluation.metrics import judge, score_rows


def exact_coverage(rows: int, truth: float) -> float:
    """How often the interval of so many independent rows holds the truth, by the binomial distribution."""
    found = [share(np.arange(rows) < right, Units.of(rows, None)) for right in range(rows + 1)]
    held = np.array([metric["low"] <= truth <= metric["high"] for metric in found])
    return float(held @ binom.pmf(np.arange(rows + 1), rows, truth))


@pytest.mark.parametrize("rows", [30, 100, 300, 1000])
@pytest.mark.parametrize("truth", [0.69, 0.957, 0.997])
def test_accuracy_of_independent_rows(rows, truth):
    # Of 30 rows with 0.1 errors on the average nothing between 0.914 and 0.997 can be had.
    assert 0.925 <= exact_coverage(rows, truth) <= (0.998 if (rows, truth) == (30, 0.997) else 0.97)


def test_no_error_on_a_few_rows_is_no_certainty():
    metric = share(np.ones(16, bool), Units.of(16, None))
    assert metric["high"] == 1
    assert metric["low"] == pytest.approx(16 / (16 + 1.959964**2))
    with_groups = share(np.ones(16, bool), Units.of(16, np.arange(16) // 4))
    assert with_groups["low"] == pytest.approx(0.025 ** (1 / 4))


def normal_widths(world: World, rows: int, groups: int | None) -> dict[str, float]:
    """Returns how wide Student's intervals of accuracy and log loss are, with a variance that is known."""
    of_row = np.arange(400_000) // 20
    codes, taken, said = world.meet(np.random.default_rng(1), of_row if groups else None, len(of_row))
    losses = -np.log(np.where(codes == taken, said, (1 - said) / (world.classes - 1)))
    widths = {}
    for name, values in (("accuracy", codes == taken), ("log_loss", losses)):
        values = values.reshape(-1, 20).mean(axis=1) if groups else values
        widths[name] = 2 * t.ppf(0.975, (groups or rows) - 1) * values.std() / (groups or rows) ** 0.5
    return widths


def check_held(world: World, rows: int, *, groups: int | None = None, widest: float = 1.4) -> None:
    """Asserts that intervals hold the truth often enough, give or take three standard errors, and aren't wider for it
    than so many times the normal theory's; those of other metrics than the accuracy's."""
    held, normal = covered(world, rows, rounds=60, groups=groups), normal_widths(world, rows, groups)
    for name, found in held.items():
        if found:
            share, width, given = found
            assert share >= 0.93 - 3 * (0.05 * 0.95 / (60 * given)) ** 0.5, (name, held)
            assert width <= widest * normal.get(name, normal["accuracy"]), (name, held, normal)


@pytest.mark.parametrize(
    ("world", "rows", "widest"),
    [
        (World(3, 0.69), 30, 1.4),
        (World(3, 0.957), 100, 1.4),
        # A third of an error on the average, of which the normal theory knows nothing.
        (World(3, 0.997), 100, 3.5),
        (World(3, 0.8, sharpness=2.5), 100, 1.4),
        (World(20, 0.7), 100, 1.4),
    ],
)
def test_metrics_of_independent_rows(world, rows, widest):
    check_held(world, rows, widest=widest)


@pytest.mark.parametrize("groups", [3, 5, 20])
def test_metrics_of_groups(groups):
    check_held(World(3, 0.9, likeness=0.1), 20 * groups, groups=groups)


def test_log_losses_of_hardly_any_errors_hold_the_truth_or_have_no_interval():
    """Where a row in ten trials is wrong, those that are seem worse than they are."""
    world, random, units, held = World(3, 0.997), np.random.default_rng(0), Units.of(30, None), []
    truth = truths(world, random)["log_loss"]
    for _ in range(1000):
        codes, taken, said = world.meet(random, None, 30)
        found = mean_loss(-np.log(np.where(codes == taken, said, (1 - said) / 2)), said, units)
        if found["low"] is not None:
            held.append(found["low"] <= truth <= found["high"])
    assert 20 < len(held) < 200, "where no row is wrong there is none"
    assert np.mean(held) >= 0.93 - 3 * (0.05 * 0.95 / len(held)) ** 0.5


@pytest.mark.parametrize("groups", [6, 10])
def test_log_losses_of_few_groups_hold_the_truth(groups):
    """Those of groups that are often wrong have their tail below, where a logarithm's interval is too short."""
    world, random, rows, held = World(3, 0.69, 0.2), np.random.default_rng(0), 20 * groups, []
    truth = truths(world, random)["log_loss"]
    for _ in range(400):
        of_row = group_numbers(random, groups, rows)
        codes, taken, said = world.meet(random, of_row, rows)
        found = mean_loss(-np.log(np.where(codes == taken, said, (1 - said) / 2)), said, Units.of(rows, of_row))
        held.append(found["low"] <= truth <= found["high"])
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize(("accuracy", "groups"), [(0.957, 20), (0.99, 50)])
def test_shares_of_groups_hold_the_truth_where_errors_come_in_whole_groups(accuracy, groups):
    """Few groups have any error, and it is they that say how much groups vary."""
    world, random, rows, held = World(3, accuracy, 0.2), np.random.default_rng(0), 20 * groups, []
    truth = truths(world, random)["accuracy"]
    for _ in range(400):
        of_row = group_numbers(random, groups, rows)
        codes, taken, _ = world.meet(random, of_row, rows)
        units = Units.of(rows, of_row)
        sums = ClassSums.of(codes, taken, 3, units)
        found = share(codes == taken, units), balanced_accuracy(sums), macro_f1(sums)
        held.append([metric["low"] <= truth <= metric["high"] for metric in found])
    # Those of U - 1 degrees of freedom have 0.90 and 0.88.
    assert (np.mean(held, axis=0) >= 0.93).all(), np.mean(held, axis=0)


def test_a_share_of_groups_reaches_no_further_than_if_an_error_spoiled_its_group():
    groups, hits = np.arange(1000) // 20, np.arange(1000) >= 10
    found = share(hits, Units.of(1000, groups))
    # Of 50 units one is spoiled: Clopper and Pearson's end is 0.1065.
    assert found["low"] == pytest.approx(1 - 0.1065, abs=1e-4)
    opposite = share(~hits, Units.of(1000, groups))
    assert (opposite["low"], opposite["high"]) == pytest.approx((1 - found["high"], 1 - found["low"]))


@pytest.mark.parametrize(("groups", "why"), [(1, "one group"), (2, "too few groups"), (5, "too few groups"), (6, None)])
def test_a_log_loss_of_fewer_than_six_groups_has_no_interval(groups, why):
    losses = np.random.default_rng(0).uniform(0.5, 1, 120)
    found = mean_loss(losses, np.exp(-losses), Units.of(120, np.arange(120) % groups))
    assert found.get("why") == why
    assert (found["low"] is None) == bool(why)


@pytest.mark.parametrize(("groups", "why"), [(1, "one group"), (2, "too few groups"), (3, None)])
def test_a_share_of_fewer_than_three_groups_has_no_interval(groups, why):
    of_row, hits = np.arange(30) % groups, np.arange(30) % 7 > 0
    units = Units.of(30, of_row)
    sums = ClassSums.of(np.arange(30) % 2, np.where(hits, np.arange(30) % 2, 0), 2, units)
    for found in (share(hits, units), balanced_accuracy(sums), macro_f1(sums)):
        assert found.get("why") == why
        assert (found["low"] is None) == bool(why)


def test_groups_that_are_alike_by_chance_have_an_interval_with_some_width():
    """Each of three groups has four of five right."""
    hits, units = np.arange(15) % 5 > 0, Units.of(15, np.arange(15) // 5)
    sums = ClassSums.of(np.zeros(15, int), (~hits).astype(int), 2, units)
    for found in (share(hits, units), balanced_accuracy(sums)):
        assert found["low"] < 0.8 - 0.15
        assert found["high"] > 0.8 + 0.1
    assert macro_f1(sums)["high"] > macro_f1(sums)["low"] + 0.2


@pytest.mark.parametrize("right", [1, 2, 3, 4])
def test_groups_that_are_alike_have_a_macro_f1_whatever_rounding_makes_of_them(right):
    """Of each class, so many of five rows in each of three groups."""
    codes, hits = np.arange(30) // 5 % 2, np.arange(30) % 5 < right
    found = macro_f1(ClassSums.of(codes, np.where(hits, codes, 1 - codes), 2, Units.of(30, np.arange(30) // 10)))
    assert found["low"] < found["value"] - 0.05 < found["value"] + 0.05 < found["high"]


def test_a_balanced_accuracy_of_groups_that_are_alike_knows_that_a_class_is_rare():
    """In each of three groups one class has 18 of 18 rows right, the other one of two."""
    codes = np.arange(60) % 20 // 18
    predicted = np.where(np.arange(60) % 20 == 19, 0, codes)
    found = balanced_accuracy(ClassSums.of(codes, predicted, 2, Units.of(60, np.arange(60) // 20)))
    assert found["value"] == 0.75
    # As of 18 + 2 rows it would end at 0.67 and 0.82.
    assert found["low"] < 0.65
    assert found["high"] > 0.83


@pytest.mark.parametrize(("accuracy", "rows"), [(0.997, 300), (0.99, 300)])
def test_one_pair_of_equal_rows_costs_a_calibration_error_no_coverage(accuracy, rows):
    world, random, groups, held = World(3, accuracy), np.random.default_rng(0), np.arange(rows), []
    groups[1] = 0
    for seed in range(150):
        codes, taken, said = world.meet(random, None, rows)
        bins = np.minimum((said * 15).astype(int), 14)
        found = calibration_error(said, codes == taken, bins, 15, Units.of(rows, groups), seed=seed)
        held.append(found["low"] <= 1e-9)
    # Without what the confidence knows of errors that weren't met, 0.90.
    assert np.mean(held) >= 0.95


@pytest.mark.parametrize("sizes", [(200, *[10] * 7), (90, *[1] * 10)])
def test_a_share_of_groups_of_many_sizes_has_room_on_both_sides(sizes):
    """One large group without an error, and small ones of which some are wrong as a whole."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    found = share(groups < 4, Units.of(len(groups), groups))
    assert found["low"] < found["value"] - 0.05
    assert found["high"] > found["value"] + 0.02


def test_by_folds_an_error_more_is_no_higher_end():
    one = share(np.arange(100) >= 1, Units.of(100, None))
    for folds in (2, 5):
        units = Units.of(100, None, effect_of(folds))
        ends = [share(np.arange(100) >= errors, units)["high"] for errors in range(6)]
        assert ends == sorted(ends, reverse=True)
        assert ends[1] >= one["high"]


@pytest.mark.parametrize(("groups", "why"), [(1, "one group"), (19, "too few groups"), (20, None)])
def test_a_calibration_error_of_fewer_than_20_groups_has_no_interval(groups, why):
    """Of heads that are too sure, those of 6 and 15 groups held the truth in as few as 0.78 and 0.88 of the draws."""
    random = np.random.default_rng(0)
    top, hits = random.uniform(0.5, 1, 120), random.random(120) < 0.7
    units = Units.of(120, np.arange(120) % groups)
    found = calibration_error(top, hits, np.digitize(top, np.arange(1, 10) / 10), 10, units, seed=0)
    assert found.get("why") == why
    assert (found["low"] is None) == bool(why)


def least_squares(vectors: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
    centre = vectors.mean(axis=0)
    shifted = vectors - centre
    system = shifted.T @ shifted + len(codes) * np.eye(len(centre))
    weights = np.linalg.solve(system, shifted.T @ (codes - codes.mean()))
    return weights, codes.mean() - 0.5 - centre @ weights


def test_by_folds_what_a_head_of_all_rows_has_is_held():
    """Of 60 rows and 32 columns the head hangs on the rows that trained it, and each row trained four of five."""
    random, held = np.random.default_rng(0), []
    for _ in range(600):
        codes, fold = random.permutation(np.arange(60) % 2), np.arange(60) // 12
        vectors = random.normal(size=(60, 32))
        vectors[:, 0] += 2 * codes
        hits = np.empty(60, bool)
        for number in range(5):
            weights, offset = least_squares(vectors[fold != number], codes[fold != number])
            hits[fold == number] = (vectors[fold == number] @ weights + offset > 0) == codes[fold == number]
        weights, offset = least_squares(vectors, codes)
        far = np.array([offset + 2 * weights[0], -offset]) / np.linalg.norm(weights)
        for heads in (1, 5):
            found = share(hits, Units.of(60, None, effect_of(heads)))
            held.append(found["low"] <= norm.cdf(far).mean() <= found["high"])
    assert np.mean(held[::2]) < 0.92
    assert np.mean(held[1::2]) >= 0.95


@pytest.mark.parametrize("groups", [None, np.arange(300) // 10])
def test_intervals_by_folds_are_wider(groups):
    random = np.random.default_rng(0)
    probabilities, codes = World(3, 0.8).draw(random, groups, 300)
    codes, scores = codes.astype(np.int64), score_rows(probabilities, codes, keys=None)
    of = [
        judge(scores, codes, "abc", keys=list("x" * 300), groups=groups, seed=0, judged_on="folds", heads=heads)
        for heads in (1, 5)
    ]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        one, five = (judged["metrics"][name] for judged in of)
        assert one["value"] == five["value"]
        assert 1.3 < (five["high"] - five["low"]) / (one["high"] - one["low"]) < 1.7, name


def test_rows_that_are_alike_hold_too_seldom_without_their_groups():
    random, world, alone = np.random.default_rng(0), World(3, 0.9, likeness=0.3), []
    for _ in range(100):
        accuracy = metrics_of(*world.draw(random, np.arange(300) // 60, 300), None, 0)["accuracy"]
        alone.append(accuracy["low"] <= 0.9 <= accuracy["high"])
    assert np.mean(alone) < 0.7


def test_f1_of_hardly_any_rows_has_no_interval():
    random = np.random.default_rng(0)
    probabilities, codes = World(200, 0.7).draw(random, None, 400)
    found = metrics_of(probabilities, codes, None, 0)
    assert found["macro_f1"]["low"] is None
    assert found["macro_f1"]["why"] == "too few rows of a class"
    assert found["balanced_accuracy"]["low"] is not None


def test_leaving_out_is_what_it_would_be():
    from sklearn.metrics import f1_score, recall_score

    random = np.random.default_rng(3)
    codes, groups = np.arange(90) % 3, random.integers(0, 6, 90)
    predicted = np.where(random.random(90) < 0.6, codes, random.integers(0, 3, 90))
    left = [groups != group for group in range(6)]
    for made, score in ((macro_f1, f1_score), (balanced_accuracy, recall_score)):
        value = score(codes, predicted, average="macro")
        without = np.array([score(codes[rows], predicted[rows], average="macro") for rows in left])
        metric = made(ClassSums.of(codes, predicted, 3, Units.of(90, groups)))
        assert metric["value"] == pytest.approx(value)
        centre = value - 5 * (without.mean() - value) if made is macro_f1 else value
        reach = 2.570582 * np.sqrt(5 / 6 * np.square(without - without.mean()).sum()) / (centre * (1 - centre))
        expected = 1 / (1 + np.exp(-(np.log(centre / (1 - centre)) + np.array([-reach, reach]))))
        assert (metric["low"], metric["high"]) == pytest.approx(tuple(expected))


def test_few_errors_say_little_of_what_errors_cost():
    # None was met yet, and one row in a hundred costs 4.6: 0.046 on the average, beside the 0.01 of all others.
    found = [
        mean_loss(-np.log(top), top, Units.of(len(top), None)) for top in (np.full(100, 0.99), np.full(3000, 0.99))
    ]
    assert (found[0]["low"], found[0]["why"]) == (None, "too few errors")
    assert found[1]["high"] > 0.046


def test_the_lower_end_of_a_loss_is_that_of_a_count():
    # Two of 1,000 rows cost all that there is.
    losses, top = np.zeros(1000), np.full(1000, 1 - 1e-9)
    losses[:2] = 3
    found = mean_loss(losses, top, Units.of(1000, None))
    # Of two events, a Poisson's lower end is at 0.2422.
    assert found["low"] == pytest.approx(0.006 * 0.2422 / 2, rel=0.01)
    assert found["high"] < 0.06
