"""Whether what is said about a head is true: simulations whose truth is known, printed and never asserted.

Run as `python -m benchmarks.honesty [--only PART] [--rounds 400]`; a part takes its share of the rounds (`PARTS`).
Small versions are in the tests. An interval of 95 % should hold the truth in 93 to 97 % of the rounds; where there is
none, "none" is printed. 400 rounds tell a coverage of 0.95 with a standard error of 0.011; of other figures it is
printed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photos import shared_data
from benchmarks.process import say
from transforms.errors import FeaturemillError
from transforms.evaluation.metrics import judge, metric_values, score_rows
from transforms.evaluation.split import split
from transforms.rows.table import Table

ROWS = (30, 100, 300, 1000)
TRUE_ACCURACIES = (0.69, 0.957, 0.997)
GROUPS = (3, 5, 10, 20, 50)


@dataclass(frozen=True)
class World:
    """A head and the rows that it meets; all of it is known.

    Attributes:
        classes: C.
        accuracy: Mean over the rows.
        likeness: Of the rows of a group (intraclass correlation of being right); 0 without groups.
        sharpness: The head's confidence is its true one to this power on the odds: 1 is calibrated.
    """

    classes: int
    accuracy: float
    likeness: float = 0.0
    sharpness: float = 1.0

    def meet(self, random: np.random.Generator, groups: np.ndarray | None, rows: int) -> tuple[np.ndarray, ...]:
        """Returns N each: true classes, predicted ones, and the probability that the head gives the latter."""
        # A row's own chance of being right; rows of one group are alike.
        spread = 4.0
        chance = random.beta(self.accuracy * spread, (1 - self.accuracy) * spread, rows)
        if groups is not None and self.likeness:
            alike = 1 / self.likeness - 1
            chance = random.beta(self.accuracy * alike, (1 - self.accuracy) * alike, groups.max() + 1)[groups]
        least = 1 / self.classes + 1e-3
        chance = np.clip(chance, least, 1 - 1e-6)
        codes = np.arange(rows) % self.classes if rows % self.classes == 0 else random.integers(0, self.classes, rows)
        taken = (codes + random.integers(1, self.classes, rows)) % self.classes
        taken = np.where(random.random(rows) < chance, codes, taken)
        odds = (chance / (1 - chance)) ** self.sharpness
        return codes.astype(np.int32), taken, np.clip(odds / (1 + odds), least, 1 - 1e-6)

    def draw(self, random: np.random.Generator, groups: np.ndarray | None, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (N×C probabilities, N true classes)."""
        codes, taken, stated = self.meet(random, groups, rows)
        probabilities = np.repeat(((1 - stated) / (self.classes - 1))[:, None], self.classes, axis=1)
        probabilities[np.arange(rows), taken] = stated
        return probabilities, codes


def metrics_of(probabilities: np.ndarray, codes: np.ndarray, groups: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Returns {metric: {value, low, high}} as the product has them."""
    keys = [str(row) for row in range(len(codes))]
    classes = [str(number) for number in range(probabilities.shape[1])]
    scores = score_rows(probabilities, codes, keys=keys)
    return judge(scores, codes, classes, keys=keys, groups=groups, seed=seed, judged_on="test")["metrics"]


def truths(world: World, random: np.random.Generator) -> dict[str, float]:
    """Returns each metric of so many rows that chance has no part in it."""
    rows = 2_000_000
    codes, taken, stated = world.meet(random, np.arange(rows) if world.likeness else None, rows)
    hits = codes == taken
    losses = -np.log(np.where(hits, stated, (1 - stated) / (world.classes - 1)))
    bins = np.clip(np.ceil(stated * 15).astype(int) - 1, 0, 14)
    gaps = np.bincount(bins, stated - hits, 15) / rows
    # Classes are alike, so the mean recall and the mean F1 are the accuracy.
    found = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), float(hits.mean()))
    found["log_loss"] = float(losses.mean())
    found["expected_calibration_error"] = 0.0 if world.sharpness == 1 else float(np.abs(gaps).sum())
    return found


def group_numbers(random: np.random.Generator, groups: int, rows: int) -> np.ndarray:
    """Returns N group numbers; groups are of several sizes."""
    shares = random.lognormal(0, 0.5, groups)
    return np.sort(np.concatenate([np.arange(groups), random.choice(groups, rows - groups, p=shares / shares.sum())]))


def covered(
    world: World, rows: int, *, rounds: int, groups: int | None = None, seed: int = 0
) -> dict[str, tuple[float, ...] | None]:
    """Returns {metric: (share of its intervals that hold the truth, their mean width, share of rounds that had one)}.

    None stands for a metric that had none.
    """
    random = np.random.default_rng((seed, rows, world.classes, groups or 0))
    truth = truths(world, random)
    held: dict[str, list[tuple[bool, float]]] = {name: [] for name in truth}
    for number in range(rounds):
        of_row = group_numbers(random, groups, rows) if groups else None
        found = metrics_of(*world.draw(random, of_row, rows), of_row, number)
        for name, value in truth.items():
            metric = found[name]
            if metric and metric["low"] is not None:
                low, high = metric["low"] - 1e-9, metric["high"] + 1e-9
                held[name].append((low <= value <= high, high - low))
    return {name: _coverage(some, rounds) for name, some in held.items()}


def _coverage(held: Sequence[tuple[bool, float]], rounds: int) -> tuple[float, ...] | None:
    return (*np.mean(held, axis=0).tolist(), len(held) / rounds) if held else None


def coverage(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the coverage of each case."""
    cases: list[tuple[World, int, int | None]] = [
        (World(3, accuracy), rows, None) for accuracy in TRUE_ACCURACIES for rows in ROWS
    ]
    cases += [(World(3, 0.8, sharpness=2.5), rows, None) for rows in ROWS]
    cases += [(World(100, 0.7), 400, None), (World(100, 0.957), 400, None), (World(100, 0.7), 1000, None)]
    cases += [(World(1000, 0.7), 2000, None)]
    cases += [
        (World(3, accuracy, likeness=likeness), 20 * groups, groups)
        for accuracy in (0.69, 0.9, 0.957, 0.99)
        for likeness in (0.05, 0.2)
        for groups in GROUPS
    ]
    cases += [(World(3, 0.69, likeness=0.05), size * groups, groups) for size in (2, 5) for groups in (3, 5, 10)]
    cases += [(World(3, 0.9, likeness=0.1), 20 * groups, groups) for groups in (1, 2)]
    cases += [(World(3, 0.8, likeness=0.3, sharpness=2.5), 20 * groups, groups) for groups in GROUPS]
    for world, rows, groups in cases:
        # A thousand classes take a second a round.
        some = rounds if world.classes < 1000 else max(20, rounds // 4)
        found = covered(world, rows, rounds=some, groups=groups)
        text = "  ".join(f"{name} {_shown(pair)}" for name, pair in found.items())
        likeness = f" groups {groups:3} alike {world.likeness:.2f}" if groups else ""
        sharp = " too sure" if world.sharpness != 1 else ""
        say(f"true accuracy {world.accuracy:.3f} classes {world.classes:4} rows {rows:5}{likeness}{sharp}: {text}")
        yield {"case": [world.accuracy, world.classes, rows, groups, world.likeness, world.sharpness], **found}


def _shown(found: tuple[float, ...] | None) -> str:
    if not found:
        return "none"
    held, width, given = found
    return f"{held:.3f} (width {width:.3f}{f', none in {1 - given:.2f}' if given < 1 else ''})"


def made_table(labels: Sequence[str], groups: Sequence[str] | None) -> Table:
    """Returns a table without vectors that matter."""
    import pyarrow as pa

    return Table(
        location="/features",
        columns=("embedding",),
        dims=(2,),
        spec=None,
        fingerprint=None,
        weights="",
        weights_are_random=False,
        keys=pa.chunked_array([[f"image{row}" for row in range(len(labels))]]),
        labels=pa.chunked_array([list(labels)]),
        groups=None if groups is None else pa.chunked_array([list(groups)]),
        sides=None,
        # No two rows have the same content.
        sha256=pa.chunked_array([[str(row).encode() for row in range(len(labels))]]),
        vectors=None,
    )


def split_cases(random: np.random.Generator) -> dict[str, Callable[[], tuple[Table, dict[str, Any]]]]:
    """Returns {name: what draws a table and the options to split it by}; all of them can be split."""
    drawn = {"validation": 0.2, "test": 0.0, "folds": None}

    def even(classes: int, rows: int, **options: Any) -> tuple[Table, dict[str, Any]]:
        return made_table([f"class{row % classes}" for row in range(classes * rows)], None), {**drawn, **options}

    def grouped(groups: int, rows: int, **options: Any) -> tuple[Table, dict[str, Any]]:
        labels = [f"class{code}" for code in random.integers(0, 2, groups * rows)]
        return made_table(labels, [str(row // rows) for row in range(groups * rows)]), {**drawn, **options}

    def skewed() -> tuple[Table, dict[str, Any]]:
        labels = [f"class{code}" for code in random.integers(0, 2, 500)]
        return made_table(labels, ["large" if row < 450 else str(row) for row in range(500)]), drawn

    def pure() -> tuple[Table, dict[str, Any]]:
        # Each group is of one class, as patients are; two to five groups a class.
        labels, groups = [], []
        for code in range(6):
            for number in range(int(random.integers(2, 6))):
                size = int(random.integers(2, 30))
                labels += [f"class{code}"] * size
                groups += [f"{code}-{number}"] * size
        return made_table(labels, groups), drawn

    return {
        "20 classes of 10 rows": lambda: even(20, 10),
        "100 classes of 4 rows, with a test side": lambda: even(100, 4, test=0.2),
        "1,000 classes of 2 rows": lambda: even(1000, 2),
        "10 groups of 20 rows in 5 folds": lambda: grouped(10, 20, folds=5, validation=0.0),
        "5 groups of 20 rows in 5 folds": lambda: grouped(5, 20, folds=5, validation=0.0),
        "groups of one class, 2 to 5 for each of 6": pure,
        "one group of 90 % of 500 rows": skewed,
        "42 groups of 17 rows": lambda: grouped(42, 17),
    }


def splits(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the share of seeds that are refused, and how far the sides' shares of rows are from what was asked."""
    random = np.random.default_rng(0)
    for name, make in split_cases(random).items():
        refused, shares = 0, []
        for seed in range(rounds):
            table, options = make()
            try:
                found = split(table, seed=seed, near=None, **options)
            except FeaturemillError:
                refused += 1
                continue
            sides = found.sides if found.folds is None else found.folds
            shares.append(np.bincount(sides[sides >= 0], minlength=2) / len(sides))
        first = [share[0] for share in shares]
        shown = f"{np.min(first):.2f} to {np.max(first):.2f}" if first else "none"
        what = "first fold's" if options["folds"] else "training"
        say(f"{name}: {refused / rounds:.3f} of the seeds refused; {what} share of rows {shown}")
        yield {
            "case": name,
            "refused": refused / rounds,
            "least": min(first, default=None),
            "most": max(first, default=None),
        }


def write_noise(path: Path, random: np.random.Generator, rows: int) -> None:
    """Writes vectors whose labels, of two classes, are drawn by lot."""
    write_rows(path, random.normal(size=(rows, 16)).astype(np.float32), halves(random, rows))


def halves(random: np.random.Generator, rows: int) -> np.ndarray:
    """Returns N labels, half of them 0 and half 1: of others, naming the larger class would be right in over a half."""
    return random.permutation(np.arange(rows) % 2)


def above_chance(judged: dict[str, Any]) -> list[float]:
    """Returns by how much an accuracy, and a balanced one, of labels drawn by lot are above the truth."""
    return [judged["metrics"][name]["value"] - 0.5 for name in ("accuracy", "balanced_accuracy")]


def optimism(what: str, judged: str, gaps: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns, and prints, the mean of R rounds of `above_chance`, with its error."""
    means, errors = np.mean(gaps, axis=0), np.std(gaps, axis=0, ddof=1) / np.sqrt(len(gaps))
    accuracy, balanced = (f"{mean:+.4f} ± {error:.4f}" for mean, error in zip(means, errors, strict=True))
    say(f"{what} {judged}: accuracy {accuracy} above chance, balanced accuracy {balanced}")
    return {"case": judged, "optimism": means.tolist(), "error": errors.tolist(), "rounds": len(gaps)}


def write_rows(path: Path, vectors: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    keys, labels = [f"image{row}" for row in range(len(codes))], [f"class{code:04}" for code in codes]
    more = {} if groups is None else {"group": [f"group{number}" for number in groups]}
    pq.write_table(pa.table({"key": keys, "label": labels, "embedding": column, **more}), path)


def trained(path: Path, head: Path, **options: Any) -> Any:
    from pipeline.training.options import TrainOptions
    from pipeline.training.run import train

    asked = TrainOptions(
        features=str(path), output=str(head), overwrite=True, learning_curve=False, errors=False, **options
    )
    return train(asked).head


def choice(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields what `--compare` says of heads that learned noise: 0.5 is the truth."""
    from transforms.heads import FitSettings

    settings = [FitSettings(neighbours=neighbours) for neighbours in (1, 5)]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        path, head = Path(folder) / "noise.parquet", Path(folder) / "head"
        for judged, options in (("test", {"test": 0.3}), ("folds", {"folds": 4}), ("validation", {"validation": 0.3})):
            gaps = []
            for seed in range(rounds):
                write_noise(path, random, 200)
                setting = FitSettings(**{**settings[seed % 2].__dict__, "seed": seed})
                found = trained(path, head, kinds=("ridge", "logistic", "knn"), settings=setting, **options)
                gaps.append(above_chance(found.metrics))
            yield optimism("--compare on noise, judged on", judged, gaps)


def calibration(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields how sure a ridge is of new rows, and their log loss beside the least that any temperature would give."""
    dims, fresh = 64, 4_000
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        path, head = Path(folder) / "clouds.parquet", Path(folder) / "head"
        # Of 60 rows 18 find the temperature.
        for classes, rows in ((2, 60), (2, 1_000), (30, 600), (100, 2_000), (1_000, 20_000)):
            measured = []
            # Heads of few rows differ most, and take no time.
            for seed in range(rounds if rows > 100 else max(60, rounds)):
                random = np.random.default_rng((classes, rows, seed))
                centres = random.normal(size=(classes, dims)) * (0.15 if classes == 2 else 0.5)
                codes = np.concatenate([np.arange(rows) % classes, random.integers(0, classes, fresh)])
                vectors = (random.normal(size=(len(codes), dims)) + centres[codes]).astype(np.float32)
                write_rows(path, vectors[:rows], codes[:rows])
                found = trained(path, head, validation=0.3, test=0.0)
                probabilities = found.probabilities(vectors[rows:]).astype(np.float64)
                logs = np.log(np.maximum(probabilities, 1e-30))
                sharper = [_log_loss(logs * power, codes[rows:]) for power in np.geomspace(0.1, 10, 81)]
                sure = probabilities.max(axis=1)
                right = probabilities.argmax(axis=1) == codes[rows:]
                measured.append([right.mean(), sure.mean(), _log_loss(logs, codes[rows:]), min(sharper)])
            names = ("accuracy", "confidence", "log_loss", "least_log_loss")
            deviations = np.std(measured, axis=0, ddof=1) / np.sqrt(len(measured))
            means, errors = (
                dict(zip(names, some.tolist(), strict=True)) for some in (np.mean(measured, axis=0), deviations)
            )
            text = "  ".join(f"{name} {means[name]:.3f} ± {errors[name]:.3f}" for name in names)
            say(f"{classes} classes, {rows} rows, {len(measured)} draws: {text}")
            yield {"case": [classes, rows], **means, "errors": errors, "rounds": len(measured)}


def _log_loss(scores: np.ndarray, codes: np.ndarray) -> float:
    from transforms.heads.model import log_losses

    return float(log_losses(scores, codes).mean())


def folds(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the coverage of what folds say of a ridge, and test rows beside them, of what it has on new rows.

    Each class is a normal cloud; rows of a group lie about a place of their own, and new rows are of other groups.
    """
    from transforms.heads import FitSettings

    cases = [(rows, None, judged) for rows in (60, 200) for judged in ({"folds": 5}, {"test": 0.3})]
    cases += [(20 * groups, groups, {"folds": 5}) for groups in (5, 20, 50)] + [(1000, 50, {"test": 0.3})]
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        path, head = Path(folder) / "clouds.parquet", Path(folder) / "head"
        for rows, groups, judged in cases:
            random, held = np.random.default_rng((rows, groups or 0)), {name: [] for name in names}
            for seed in range(rounds):
                of_row = group_numbers(random, groups, rows) if groups else np.arange(rows)
                # The new rows' groups have a row each.
                of_row = np.concatenate([of_row, of_row.max() + 1 + np.arange(20_000)])
                codes = random.integers(0, 2, len(of_row))
                vectors = random.normal(size=(len(of_row), 16)) + 2 * np.eye(16)[0] * codes[:, None]
                vectors += 0.5 * random.normal(size=(of_row[-1] + 1, 16))[of_row]
                vectors = vectors.astype(np.float32)
                write_rows(path, vectors[:rows], codes[:rows], of_row[:rows] if groups else None)
                column = {"group_column": "group"} if groups else {}
                found = trained(path, head, settings=FitSettings(seed=seed), **judged, **column)
                fresh = score_rows(found.probabilities(vectors[rows:]), codes[rows:], keys=of_row)
                truth = metric_values(fresh, codes[rows:], 2)
                for name, some in held.items():
                    metric = found.metrics["metrics"][name]
                    if metric["low"] is not None:
                        some.append((metric["low"] <= truth[name] <= metric["high"], metric["high"] - metric["low"]))
            shares = {name: _coverage(some, rounds) for name, some in held.items()}
            of, on = f" in {groups} groups" if groups else "", next(iter(judged))
            say(
                f"{rows} rows{of} judged on {on}: " + "  ".join(f"{name} {_shown(one)}" for name, one in shares.items())
            )
            yield {"case": [rows, groups, on], **shares}


def losses_of_two(random: np.random.Generator, accuracy: float, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns N each: two heads' log losses, and whether one of them is wrong; of two classes.

    A row's chance of being right is as in `World`. Each head says it with some noise, the one on the squared odds.
    """
    chance = np.clip(random.beta(accuracy * 4, (1 - accuracy) * 4, rows), 1e-6, 1 - 1e-6)
    right, odds = random.random(rows) < chance, np.log(chance / (1 - chance))
    # The logarithm of the odds that each head gives the true class.
    said = np.where(right, 1, -1) * (np.array([[2], [1]]) * odds + 0.3 * random.normal(size=(2, rows)))
    one, other = np.logaddexp(0, -said)
    return one, other, (said < 0).any(axis=0)


def compared(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields how often the interval of `compare` holds the true difference of two heads' accuracies, or log losses.

    A head is right on a row where a normal number that all heads share (how hard the row is, and its group) and one of
    its own (of the row, and of its group) are together below the head's threshold.
    """
    from scipy.special import ndtr, ndtri

    from transforms.evaluation.paired import paired_difference, share_difference

    cases = [(pair, rows, None) for pair in ((0.7, 0.7), (0.8, 0.85), (0.93, 0.96), (0.98, 0.99)) for rows in ROWS]
    cases += [((0.8, 0.85), 20 * groups, groups) for groups in (5, 10, 20, 50)]
    for (first, second), rows, groups in cases:
        random, held = np.random.default_rng((rows, groups or 0)), []
        thresholds = [ndtri(accuracy) for accuracy in (first, second)]
        for seed in range(rounds):
            of_row = np.arange(rows) if groups is None else group_numbers(random, groups, rows)
            shared, *own = random.normal(size=(3, rows)) * [[0.7], [0.5], [0.5]]
            of_group, *own_of_group = random.normal(size=(3, of_row.max() + 1)) * [[0.4], [0.3], [0.3]]
            spread = np.sqrt(0.7**2 + 0.5**2 + 0.4**2 + 0.3**2)
            right = [
                shared + mine + of_group[of_row] + mine_of_group[of_row] < threshold * spread
                for mine, mine_of_group, threshold in zip(own, own_of_group, thresholds, strict=True)
            ]
            found = share_difference(*right, None if groups is None else of_row, seed=seed)
            truth = float(ndtr(thresholds[1]) - ndtr(thresholds[0]))
            if found["low"] is not None:
                held.append((found["low"] <= truth <= found["high"], found["high"] - found["low"]))
        shares = _coverage(held, rounds)
        of = f" in {groups} groups" if groups else ""
        say(f"{rows} rows{of}, accuracies {first} and {second}: difference {_shown(shares)}")
        yield {"case": [first, second, rows, groups], "held": shares}
    for accuracy in (*TRUE_ACCURACIES, 0.9):
        for rows in ROWS:
            random, held = np.random.default_rng((rows, 1)), []
            one, other, _ = losses_of_two(random, accuracy, 2_000_000)
            truth = float((other - one).mean())
            for seed in range(rounds // 4):
                one, other, wrong = losses_of_two(random, accuracy, rows)
                found = paired_difference(one, other, None, seed=seed, wrong=wrong)
                if found["low"] is not None:
                    held.append((found["low"] <= truth <= found["high"], found["high"] - found["low"]))
            shares = _coverage(held, rounds // 4)
            say(f"{rows} rows, true accuracy {accuracy}: difference of log losses {_shown(shares)}")
            yield {"case": ["log_loss", accuracy, rows], "held": shares}


def tuning(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields what `finetune` says of small photos whose labels were drawn by lot: 0.5 is the truth."""
    from pipeline.demo.samples import draw_items, write_folder
    from pipeline.end_to_end.finetune import finetune
    from pipeline.end_to_end.options import FinetuneOptions
    from pipeline.extraction.options import ExtractOptions
    from pipeline.extraction.run import run
    from transforms.heads import FitSettings

    features = ("embedding=block5_pool:avg", "tap=block4_pool:flatten")
    network = {"backbone": "vgg16", "weights": "random:0", "image_size": 32, "features": features}
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as root:
        folder = Path(root)
        items = [item for item in draw_items(per_class=30, size=40, seed=2) if item.name.endswith("jpg")]
        write_folder(folder / "photos", items)
        run(ExtractOptions(inputs=(str(folder / "photos"),), output=str(folder / "out"), **network))
        # As labels are joined by the end of a path.
        names = [path.relative_to(folder).as_posix() for path in sorted((folder / "photos").rglob("*.jpg"))]
        for judged, options in (("folds", {"folds": 4}), ("validation", {"validation": 0.3}), ("test", {"test": 0.3})):
            gaps = []
            for seed in range(rounds):
                codes = halves(np.random.default_rng(seed), len(names))
                lines = [f"{name},class{code}" for name, code in zip(names, codes, strict=True)]
                (folder / "labels.csv").write_text("\n".join(["key,label", *lines]))
                settings, labels = FitSettings(seed=seed), str(folder / "labels.csv")
                trained(folder / "out", folder / "head", settings=settings, labels=labels, **options)
                asked = {"head": str(folder / "head"), "features": str(folder / "out"), "output": str(folder / "new")}
                tuned = finetune(FinetuneOptions(**asked, overwrite=True, epochs=2))
                gaps.append(above_chance(tuned.runs[-1]["judged"]))
            yield optimism("finetune of a head trained with", judged, gaps)


def inputs(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields what folds by group say of heads on real features, whose inputs are changed in one way each.

    Of dense256 on the flattened tap test rows say it: a fit takes a minute or two.
    """
    from transforms.heads import FitSettings

    path = shared_data("vgg19_block5_pool_real.parquet")
    if not path.is_file():
        say("no shared data")
        return
    mean, flat = ("embedding",), ("block5_pool",)
    transforms = (None, "none", "sqrt", "l2", "sqrt-l2")
    cases = [("ridge", mean, 0, {"transform": transform}) for transform in transforms]
    cases += [("ridge", columns, 0, {"standardize": True}) for columns in (mean, flat)]
    cases += [("ridge", flat, 0, {}), ("ridge", (*mean, *flat), 0, {})]
    cases += [(kind, mean, offset, {}) for kind in ("linear", "dense256") for offset in (0, 100)]
    cases += [("dense256", flat, 0, {"standardize": standardize}) for standardize in (False, True)]
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        moved = Path(folder) / "moved.parquet"
        write_moved(path, moved, 100)
        for kind, columns, offset, settings in cases:
            measured = []
            for seed in range(rounds):
                judged = {"test": 0.3} if (kind, columns) == ("dense256", flat) else {"folds": 5}
                more = {"kinds": (kind,), "columns": columns, "group_column": "group", **judged}
                asked = FitSettings(seed=seed, **settings)
                found = trained(moved if offset else path, Path(folder) / "head", settings=asked, **more)
                measured.append([found.metrics["metrics"][name]["value"] for name in ("accuracy", "log_loss")])
            accuracy, loss = np.mean(measured, axis=0).tolist()
            said = f"{kind} of {' and '.join(columns)}, {settings or 'as by default'}"
            said += f", {offset} standard deviations off" if offset else ""
            said += f", judged by {next(iter(judged))}"
            say(f"{said}: accuracy {accuracy:.3f}, log loss {loss:.3f}")
            yield {"case": said, "accuracy": accuracy, "log_loss": loss, "rounds": rounds}


def write_moved(path: Path, moved: Path, deviations: float) -> None:
    """Writes features whose `embedding` has so many of its standard deviations added to each number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "label", "group", "embedding"])
    vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    vectors += deviations * vectors.std()
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(table.drop_columns("embedding").append_column("embedding", column), moved)


def drawn(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields what folds say of heads on the drawn flowers of `tests/test_loop.py`, by taps of random weights.

    5 % of the labels are wrong, so 0.95 is about the most that can be reached.
    """
    from pipeline.extraction.options import ExtractOptions
    from pipeline.extraction.run import run
    from tests.test_loop import draw_flowers
    from transforms.heads import FitSettings

    taps = ("block2_pool", "block3_pool", "block4_pool", "block5_pool")
    cases = [(kind, taps[:1]) for kind in ("linear", "dense256")]
    cases += [("ridge", (tap,)) for tap in taps] + [("ridge", taps[1:]), ("ridge", taps)]
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as root:
        folder = Path(root)
        draw_flowers(folder / "flowers")
        network = {"weights": "random:1", "image_size": 32, "features": tuple(f"{tap}={tap}:avg" for tap in taps)}
        run(ExtractOptions(inputs=(str(folder / "flowers"),), output=str(folder / "out"), **network))
        for kind, columns in cases:
            measured = []
            for seed in range(rounds):
                more = {"kinds": (kind,), "columns": columns, "folds": 5, "settings": FitSettings(seed=seed)}
                found = trained(folder / "out", folder / "head", **more)
                measured.append(found.metrics["metrics"]["accuracy"]["value"])
            said = f"{kind} of {' and '.join(columns)}"
            say(f"{said}: accuracy {np.mean(measured):.3f}")
            yield {"case": said, "accuracy": float(np.mean(measured)), "rounds": rounds}


def unbalanced(rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the balanced accuracy on new rows of heads with class weights and without, of 95 and 5 % of 600 rows."""
    from transforms.heads import FitSettings

    every = ("logistic", "linear", "dense128")
    # The last are several, of which one is chosen.
    cases = [((kind,), weighted) for kind in every for weighted in (False, True)] + [(every, True)]
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        path, head = Path(folder) / "clouds.parquet", Path(folder) / "head"
        for (dims, apart), (kinds, weighted) in product(((16, 2), (512, 3)), cases):
            measured = []
            for seed in range(rounds):
                random = np.random.default_rng((2, seed))
                codes = random.choice(2, 20_600, p=[0.95, 0.05])
                vectors = (apart * np.eye(dims)[codes] + random.normal(size=(len(codes), dims))).astype(np.float32)
                write_rows(path, vectors[:600], codes[:600])
                settings = FitSettings(seed=seed, class_weights=weighted)
                found = trained(path, head, kinds=kinds, settings=settings, validation=0.2)
                fresh = score_rows(found.probabilities(vectors[600:]), codes[600:], keys=range(20_000))
                measured.append(metric_values(fresh, codes[600:], 2)["balanced_accuracy"])
            mean, error = np.mean(measured), np.std(measured, ddof=1) / np.sqrt(rounds)
            said = f"{', '.join(kinds)}{', --class-weights' if weighted else ''}, {dims} numbers"
            say(f"{said}: balanced accuracy {mean:.3f} ± {error:.3f}")
            yield {"case": said, "balanced_accuracy": float(mean), "error": float(error), "rounds": rounds}


# What each is, and its share of the rounds.
PARTS = {
    "splits": (splits, 1),
    "coverage": (coverage, 1),
    "folds": (folds, 0.5),
    "choice": (choice, 0.5),
    "compared": (compared, 1),
    "calibration": (calibration, 0.02),
    "tuning": (tuning, 0.05),
    "inputs": (inputs, 0.01),
    "drawn": (drawn, 0.01),
    "unbalanced": (unbalanced, 0.025),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="One part instead of all.")
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    figures = {}
    for name in [given.only] if given.only else PARTS:
        part, share = PARTS[name]
        say(f"{name}:")
        figures[name] = list(part(max(4, int(given.rounds * share))))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
