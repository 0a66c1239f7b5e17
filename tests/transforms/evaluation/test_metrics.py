"""Metrics against scikit-learn; intervals against what they promise."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.properties import examples
from transforms.errors import FeaturemillError
from transforms.evaluation import metrics
from transforms.evaluation.metrics import fit_temperature, is_bounded, judge, score_rows
from transforms.heads import model


def softmax(scores):
    numbers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return numbers / numbers.sum(axis=1, keepdims=True)


def draw(*, rows, classes, seed=0, right=1.5, missing=()):
    """Draws probabilities and true classes; classes in `missing` have no rows."""
    random = np.random.default_rng(seed)
    codes = random.choice([c for c in range(classes) if c not in missing], rows).astype(np.int32)
    scores = random.normal(size=(rows, classes))
    scores[np.arange(rows), codes] += right
    return softmax(scores), codes


def judged(probabilities, codes, *, groups=None, seed=0, classes=None, keys=None):
    classes = classes or tuple(f"c{i}" for i in range(probabilities.shape[1]))
    keys = [f"key{i}" for i in range(len(codes))] if keys is None else keys
    scores = score_rows(probabilities, codes, keys=keys)
    return judge(scores, codes, classes, keys=keys, groups=groups, seed=seed, judged_on="test")


def values(found):
    return {name: metric and metric["value"] for name, metric in found["metrics"].items()}


@examples(25)
@given(st.integers(6, 9), st.integers(30, 120), st.integers(0, 2**16), st.booleans())
def test_metrics_are_those_of_scikit_learn(classes, rows, seed, gap):
    from sklearn import metrics

    probabilities, codes = draw(rows=rows, classes=classes, seed=seed, missing=(2,) if gap else ())
    predicted, everything, present = probabilities.argmax(axis=1), np.arange(classes), np.unique(codes)
    found = judged(probabilities, codes)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        codes, predicted, labels=everything, zero_division=0
    )
    assert values(found) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(codes, predicted),
            "balanced_accuracy": recall[present].mean(),
            "macro_f1": metrics.f1_score(codes, predicted, average="macro"),
            "top5_accuracy": metrics.top_k_accuracy_score(codes, probabilities, k=5, labels=everything),
            "log_loss": metrics.log_loss(codes, probabilities, labels=everything),
            "expected_calibration_error": calibration_error(probabilities, codes),
        }
    )
    assert found["confusion"] == metrics.confusion_matrix(codes, predicted, labels=everything).tolist()
    for i, row in enumerate(found["per_class"]):
        assert (row["label"], row["rows"]) == (f"c{i}", support[i])
        for name, expected in (("precision", precision[i]), ("recall", recall[i]), ("f1", f1[i])):
            assert (row[name] or 0) == pytest.approx(expected)
        assert (row["recall"] is None) == (support[i] == 0)


def calibration_error(probabilities, codes):
    """Guo et al. 2017, equation 3, bin by bin."""
    top, hits, error = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes, 0.0
    for i in range(15):
        members = (top > i / 15) & (top <= (i + 1) / 15)
        if members.any():
            error += members.mean() * abs(hits[members].mean() - top[members].mean())
    return error


def test_reliability_adds_up_to_the_calibration_error():
    found = judged(*draw(rows=500, classes=3))
    bins = found["reliability"]
    assert sum(part["rows"] for part in bins) == 500
    assert all(part["low"] < part["confidence"] <= part["high"] for part in bins)
    gaps = sum(part["rows"] / 500 * abs(part["accuracy"] - part["confidence"]) for part in bins)
    assert gaps == pytest.approx(found["metrics"]["expected_calibration_error"]["value"])


def test_a_bin_holds_its_upper_edge():
    found = judged(np.array([[0.6, 0.4], [1.0, 0.0]]), np.zeros(2, np.int32))
    assert [part["high"] for part in found["reliability"]] == [0.6, 1.0]


def test_top5_does_not_count_ties_as_right():
    # As knn has it: nearly all classes have no votes at all.
    probabilities = np.zeros((4, 20))
    probabilities[:, 3] = 1
    found = judged(probabilities, np.array([3, 0, 4, 15], np.int32))
    # After class 3 come 0, 1, 2 and 4.
    assert values(found)["top5_accuracy"] == 3 / 4
    assert np.isfinite(values(found)["log_loss"])


def test_top5_is_none_where_it_says_nothing():
    assert judged(*draw(rows=30, classes=5))["metrics"]["top5_accuracy"] is None
    assert judged(*draw(rows=30, classes=6))["metrics"]["top5_accuracy"] is not None


def test_most_confused_names_the_surest_errors():
    # Class 0 taken for 1 six times, 1 for 2 once.
    sure = [0.6, 0.9, 0.7, 0.8, 0.65, 0.95]
    probabilities = np.array([[1 - s, s, 0] for s in sure] + [[0, 0.1, 0.9], [0, 0, 1]])
    codes = np.array([0] * 6 + [1, 2], np.int32)
    found = judged(probabilities, codes, keys=pa.array([f"k{i}" for i in range(8)]))
    assert found["most_confused"] == [
        {"true": "c0", "predicted": "c1", "rows": 6, "keys": ["k5", "k1", "k3", "k2", "k4"]},
        {"true": "c1", "predicted": "c2", "rows": 1, "keys": ["k6"]},
    ]
    assert found["majority"]["label"] == "c0"
    assert found["majority"]["accuracy"]["value"] == 6 / 8


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (5, 1), (1, 2), (2, 7), (40, 1_001)])
def test_small_and_large_cases_are_json_without_nan(rows, classes):
    probabilities, codes = draw(rows=rows, classes=classes)
    found = judged(probabilities, codes)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["confusion"] is None) == (classes > 1_000)


def test_only_one_class_has_rows():
    probabilities, codes = draw(rows=50, classes=3, missing=(0, 2))
    found = judged(probabilities, codes)
    json.dumps(found, allow_nan=False)
    assert values(found)["balanced_accuracy"] == values(found)["accuracy"]
    assert found["majority"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.929, abs=1e-3), "high": 1.0}


def test_same_seed_same_intervals():
    case = draw(rows=200, classes=3)
    assert judged(*case, seed=4) == judged(*case, seed=4)


def test_groups_count_as_one():
    # 40 groups of 25 equal rows know no more than 40 rows.
    hits = np.random.default_rng(1).random(40) < 0.7
    rows = np.repeat(hits, 25)
    probabilities = np.where(rows[:, None], [0.9, 0.1], [0.1, 0.9])
    codes = np.zeros(1_000, np.int32)

    def width(groups):
        accuracy = judged(probabilities, codes, groups=groups)["metrics"]["accuracy"]
        return accuracy["high"] - accuracy["low"]

    expected = 2 * 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 40)
    assert width(np.repeat(np.arange(40) * 10**12, 25)) == pytest.approx(expected, rel=0.15)
    assert width(None) == pytest.approx(expected / 5, rel=0.15)
    assert judged(probabilities, codes, groups=np.arange(1_000))["groups"] is None
    assert judged(probabilities, codes, groups=np.arange(1_000) // 25)["groups"] == 40


def test_one_group_has_no_interval():
    found = judged(*draw(rows=100, classes=7), groups=np.zeros(100, int))
    for metric in found["metrics"].values():
        assert (metric["low"], metric["high"], metric["why"]) == (None, None, "one group")
    json.dumps(found, allow_nan=False)


def test_intervals_hold_their_value():
    for seed in range(10):
        # Well calibrated: chance alone makes the calibration error.
        probabilities, _ = draw(rows=300, classes=6, seed=seed)
        codes = np.array([np.random.default_rng((seed, i)).choice(6, p=p) for i, p in enumerate(probabilities)])
        for metric in judged(probabilities, codes.astype(np.int32))["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_temperature_is_the_one_that_was_used(truth):
    random = np.random.default_rng(3)
    calibrated = random.normal(size=(20_000, 4)) * 2
    codes = (calibrated + random.gumbel(size=calibrated.shape)).argmax(axis=1).astype(np.int32)
    assert fit_temperature((calibrated * truth).astype(np.float32), codes) == pytest.approx(truth, rel=0.05)


def test_temperature_of_many_scores_is_fitted_to_some_of_them(monkeypatch):
    """Rows come sorted by class, and those of the last half are worth less."""
    probabilities, codes = draw(rows=3000, classes=5)
    order = np.argsort(codes, kind="stable")
    scores, codes = np.log(probabilities)[order], codes[order]
    scores[1500:] *= 0.2
    whole = fit_temperature(scores, codes)
    monkeypatch.setattr(metrics, "_MOST_FITTED", 3000)
    monkeypatch.setattr(model, "_SCORES_AT_ONCE", 35)
    looked = []
    monkeypatch.setattr(metrics, "log_losses", lambda z, c: looked.append(len(c)) or model.log_losses(z, c))
    assert fit_temperature(scores, codes) == pytest.approx(whole, rel=0.15)
    assert sum(looked) % 600 == 0, "every fifth row"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [3, 20, 200])
def test_temperature_is_the_best_of_a_grid(count, scale):
    """By the log loss of rows whose class is right with (N + 1) / (N + 2), and else any other."""
    probabilities, codes = draw(rows=count, classes=5)
    scores = np.log(probabilities) * 3 * scale
    weights = np.full((count, 5), 1 / (count + 2) / 4)
    weights[np.arange(count), codes] = 1 - 1 / (count + 2)
    grid = np.geomspace(0.05, 2000, 4000) * scale
    best = min(grid, key=lambda t: -(weights * np.log(softmax(scores / t))).sum())
    found = fit_temperature(scores, codes)
    assert found == pytest.approx(best, rel=0.01)
    assert found == fit_temperature(scores, codes)


def test_temperature_of_many_classes_is_as_small_as_it_must_be():
    """Ridge's scores of 1,000 classes are all near 0: with a temperature of 0.05 all classes seem alike."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 1000, 2000).astype(np.int32)
    scores = random.normal(0, 0.002, (2000, 1000))
    scores[np.arange(2000), codes] += 0.008
    losses = {
        t: -np.log(softmax(scores / t)[np.arange(2000), codes]).mean() for t in (fit_temperature(scores, codes), 0.05)
    }
    best, old = losses.values()
    assert old > 6
    assert best < 3.5


def test_few_rows_without_an_error_are_no_proof():
    """18 rows that are all right say that about one of twenty is wrong."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 2, 4000).astype(np.int32)
    scores = np.eye(2)[codes] + random.normal(0, 0.5, (4000, 2))
    right = np.flatnonzero(scores.argmax(axis=1) == codes)[:18]
    temperature = fit_temperature(scores[right], codes[right])
    sure = softmax(scores[right] / temperature)[np.arange(18), codes[right]]
    assert 0.85 < sure.mean() < 0.96
    # On new rows that is near the best temperature, and the smallest one that 18 rows allow would be far from it.
    log_loss = {
        t: -np.log(softmax(scores / t)[np.arange(4000), codes]).mean()
        for t in (temperature, fit_temperature(scores, codes), 0.05)
    }
    ours, best, smallest = log_loss.values()
    assert ours < 1.15 * best < 0.5 * smallest


def test_temperature_of_any_scores():
    separated, codes = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0], np.int32)
    found = fit_temperature(separated, codes)
    assert fit_temperature(separated * 1e30, codes) == pytest.approx(1e30 * found)
    # Worse than none: all classes are given nearly the same.
    assert np.ptp(softmax(-separated / fit_temperature(-separated, codes))) < 1e-3
    # Only scores that are worse than none reach a bound, and that is told.
    assert is_bounded(-separated, codes, fit_temperature(-separated, codes))
    assert not is_bounded(separated, codes, found)
    assert fit_temperature(np.ones((3, 1)), np.zeros(3, np.int32)) == 1
    assert fit_temperature(np.ones((3, 2)), np.zeros(3, np.int32)) == 1


def test_scores_of_batches_are_those_of_the_whole():
    probabilities, codes = draw(rows=50, classes=7)
    keys = [f"key{i}" for i in range(50)]
    batches = [slice(0, 20), slice(20, 20), slice(20, 50)]
    scores = [score_rows(probabilities[some], codes[some], keys=keys[some]) for some in batches]
    for together, whole in zip(zip(*scores, strict=True), score_rows(probabilities, codes, keys=keys), strict=True):
        np.testing.assert_array_equal(np.concatenate(together), whole)


def test_what_cannot_be_judged_is_an_error():
    probabilities, codes = draw(rows=10, classes=3)
    with pytest.raises(FeaturemillError, match="no rows to judge by"):
        judged(probabilities[:0], codes[:0])
    with pytest.raises(FeaturemillError, match="no rows to judge by"):
        fit_temperature(probabilities[:0], codes[:0])
    broken = probabilities.copy()
    broken[4, 1] = np.nan
    with pytest.raises(FeaturemillError, match=r"probabilities aren't all finite .first: key4"):
        judged(broken, codes)
    with pytest.raises(FeaturemillError, match="scores aren't all finite"):
        fit_temperature(broken, codes)
    codes[6] = -1
    with pytest.raises(FeaturemillError, match=r"a label that the head doesn't know: 1 .first: key6"):
        judged(probabilities, codes)
