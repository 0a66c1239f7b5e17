"""The result of a training for people: the page, the lines on the terminal, the ranking of several heads."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pipeline.rendering.html import render
from pipeline.rendering.tables import text_table
from pipeline.training.plots import MOST_CLASSES, confusion_plot, curve_plot, learning_plot, reliability_plot
from transforms.heads import kind_of
from transforms.text import counted

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
    "log_loss": "log loss",
    "expected_calibration_error": "calibration error",
}
# Chosen by, but not judged by.
_CHOICES = {**METRICS, "weighted_log_loss": "log loss with class weights"}
_RANKED = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
_JUDGED_ON = {
    "test": "{rows} test rows",
    "validation": "{rows} validation rows",
    "folds": "{rows} rows by folds",
    "inputs": "{rows} rows",
}
# The matrix of more classes than this doesn't fit beside another plot.
_WIDE = 16
LOWER_IS_BETTER = ("log_loss", "weighted_log_loss")
# What is to be known of a judgement by folds; it stands beside the figures wherever they are.
_STORED_HEAD = "the head that is stored is another than those that were judged: it was trained on all rows"
_NOT_REFITTED = f"{_STORED_HEAD} but those of the first fold, which only chose for it"
_OVERLAP = (
    "the intervals, but not the calibration error's, are wider than those of a single judged head would be, as their "
    "training rows overlap"
)
_ALSO_CHOSE = "also chose the settings, the temperature and, of several, the head: expect a little less on new rows"
_JUDGING_ROWS = {
    "test": "Judged on test rows, which neither trained nor chose anything.",
    "validation": f"Judged on the validation rows, which {_ALSO_CHOSE}.",
    "folds": "Each row was judged by a head that was trained without its fold.",
}
_EACH_FOLD = "each fold is judged by the kind of head that the next fold's rows chose for it"
# What a choice among several heads does to the figures at the top of the page.
_CHOSEN_HOW = {
    "folds": f" At the top, {_EACH_FOLD}: the kind that is best over all folds was chosen by the judged rows, too.",
    "validation": " They judge, too, so the best one's figures are a little too good.",
    "test": "",
}


def fold_notes(kind: str) -> list[str]:
    """Returns what is to be known of a judgement by folds where a head of this kind is stored, in sentences."""
    return [_STORED_HEAD if kind_of(kind).refits else _NOT_REFITTED, _OVERLAP]


class _Extra(TypedDict, total=False):
    cautions: list[str]
    choice: dict[str, Any]


class Run(_Extra):
    """One head, fitted and judged.

    Attributes:
        kind: Of head; what the report calls it.
        settings: What was chosen, as JSON values.
        curve: What it was chosen by; see `transforms.heads.model.Model.curve`. May be empty.
        learning: Points {"rows", "accuracy", "low", "high"}, the last two None and a "why" where unknown, and perhaps
            "train_accuracy". May be empty.
        judged: From `transforms.evaluation.metrics.judge`; by folds with `notes`, sentences beside the figures.
        seconds: What fitting and judging took.
        cautions: From `fit_cautions`. May be missing.
        choice: {"metric", "value"} of the validation rows, where one of several is chosen by it.
    """

    kind: str
    settings: dict[str, Any]
    curve: list[dict[str, float]]
    learning: list[dict[str, Any]]
    judged: dict[str, Any]
    seconds: float


def ranking(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs by what they were chosen by, the best first; where nothing was, by accuracy, then log loss."""

    def rank(run: Run) -> tuple[float, ...]:
        if "choice" in run:
            value = run["choice"]["value"]
            return (value if run["choice"]["metric"] in LOWER_IS_BETTER else -value,)
        metrics = run["judged"]["metrics"]
        return -metrics["accuracy"]["value"], metrics["log_loss"]["value"]

    return sorted(runs, key=rank)


def fit_cautions(
    settings: Mapping[str, Any], curve: Sequence[Mapping[str, float]], *, epochs: int, patience: int, bounded: bool
) -> list[str]:
    """Returns what is to be known of how a head was fitted, in words.

    Args:
        settings: What was chosen.
        curve: What it was chosen by.
        epochs: The most that were asked for.
        patience: How many without a better loss end a training.
        bounded: Whether the temperature is as small or as large as it may be.
    """
    found = []
    penalties = [point["penalty"] for point in curve if "penalty" in point]
    if len(penalties) > 1 and settings.get("penalty") in (min(penalties), max(penalties)):
        found.append(f"the penalty {settings['penalty']:g} is at the edge of the sweep; give --penalties beyond it")
    if bounded:
        found.append("the temperature is at the bound of its search: the scores say nothing of these classes")
    done = max((point["epoch"] for point in curve if "epoch" in point), default=0)
    if done >= epochs and done - settings.get("epochs", 0) < patience:
        found.append(f"training was stopped by the limit of {counted(epochs, 'epoch')}; more --epochs may do better")
    return found


def judged_cautions(judged: Mapping[str, Any]) -> list[str]:
    """Returns what is to be known beside a verdict of any head, whatever it was made from."""
    worse = judged["metrics"]["accuracy"]["value"] < judged["majority"]["accuracy"]["value"]
    return ["worse than always naming the majority class"] if worse else []


def cautions(run: Run, judged: Mapping[str, Any]) -> list[str]:
    """Returns what is to be known beside the verdict on a run, which of folds and several heads isn't the run's own."""
    return [*judged_cautions(judged), *run.get("cautions", [])]


def judged_how(runs: Sequence[Run], judged: Mapping[str, Any]) -> list[str]:
    """Returns what the rows that judged did besides, in sentences for the terminal."""
    found, by_folds = [], judged["judged_on"] == "folds"
    if len(runs) > 1:
        chosen = f"{ranking(runs)[0]['kind']} was {_chosen_by(runs)} of the validation rows"
        found.append(f"{chosen}; {_EACH_FOLD}" if by_folds else chosen)
    if by_folds:
        found += judged.get("notes", ())
    if judged["judged_on"] == "validation":
        found.append(f"the validation rows {_ALSO_CHOSE}")
    return found


def verdict(judged: Mapping[str, Any]) -> str:
    """Returns one sentence, such as "accuracy 0.899 (0.872-0.921) on 705 rows by folds; majority class 0.746"."""
    rows = _JUDGED_ON[judged["judged_on"]].format(rows=f"{judged['rows']:,}")
    share = judged["majority"]["accuracy"]["value"]
    return f"accuracy {interval(judged['metrics']['accuracy'])} on {rows}; majority class {share:.3f}"


def abstaining_text(found: Mapping[str, Any]) -> str:
    """Returns what a threshold brings, such as "coverage 0.900 (0.851-0.934), risk 0.031 (0.013-0.072) where rows below
    0.620 stay without an answer"; from `transforms.evaluation.abstaining.selective`."""
    coverage, risk = interval(found["coverage"]), interval(found["risk"])
    return f"coverage {coverage}, risk {risk} where rows below {found['threshold']:.3f} stay without an answer"


def interval(metric: Mapping[str, Any] | None) -> str:
    """Returns a metric as "0.899 (0.872-0.921)" or "0.899 (no interval: one group)"; a dash where there is none."""
    if not metric:
        return "–"
    if metric["low"] is None:
        return f"{metric['value']:.3f} (no interval: {metric['why']})"
    return f"{metric['value']:.3f} ({metric['low']:.3f}-{metric['high']:.3f})"


def metrics_text(runs: Sequence[Run]) -> str:
    """Returns the metrics with their 95 % intervals as a table for the terminal: of one run, or several ranked."""
    if len(runs) == 1:
        return metric_table(runs[0]["judged"]["metrics"])
    rows = []
    for run in ranking(runs):
        metrics = run["judged"]["metrics"]
        choice = [f"{run['choice']['value']:.3f}"] if "choice" in run else []
        rows.append((run["kind"], *choice, *(interval(metrics[name]) for name in _RANKED), f"{run['seconds']:.1f}"))
    chosen = [_chosen_by(runs)] if _chosen_by(runs) else []
    return text_table(("head", *chosen, *(METRICS[name] for name in _RANKED), "seconds"), rows)


def _chosen_by(runs: Sequence[Run]) -> str:
    """Returns "chosen by log loss", or nothing where nothing was chosen."""
    return f"chosen by {choice_metric(runs[0])}" if "choice" in runs[0] else ""


def choice_metric(run: Run) -> str:
    """Returns what a run was chosen by, in words."""
    return _CHOICES[run["choice"]["metric"]]


def metric_table(metrics: Mapping[str, Mapping[str, float] | None]) -> str:
    """Returns one judgement's metrics with their 95 % intervals as a table for the terminal."""
    known = [(words, interval(metrics[name])) for name, words in METRICS.items() if metrics[name]]
    return text_table(("", "95 % interval"), known)


def report_html(
    title: str,
    runs: Sequence[Run],
    facts: Mapping[str, str],
    *,
    judged: Mapping[str, Any] | None = None,
    errors: str = "",
) -> str:
    """Returns one HTML page that needs nothing else: no scripts, fonts, images or style sheets from elsewhere.

    Args:
        title: Of the page.
        runs: At least one; several are ranked first.
        facts: What is to be known of the data and the split: {name: sentence}.
        judged: What the headline says; by default how the best run was judged.
        errors: File beside the page that shows the errors as pictures; empty for none.
    """
    ranked = ranking(runs)
    judged = judged or ranked[0]["judged"]
    chosen_by = _chosen_by(runs)
    if chosen_by:
        chosen_by = f"Ranking: {chosen_by} of the validation rows.{_CHOSEN_HOW[judged['judged_on']]}"
    return render(
        "report.html",
        title=title,
        headline="; ".join([f"{ranked[0]['kind']}: {verdict(judged)}", *cautions(ranked[0], judged)]),
        chosen_by=chosen_by,
        errors=errors,
        facts=facts,
        runs=[
            {
                **run,
                "cautions": cautions(run, run["judged"]),
                "settings": _settings(run["settings"]),
                "plots": _plots(run, f"run{number}"),
            }
            for number, run in enumerate(ranked, 1)
        ],
        metrics=METRICS,
        ranked_metrics=_RANKED,
        judged_how=_JUDGING_ROWS,
        interval=lambda metric: interval(metric).replace("-", "–"),
    )


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns {words: value}; settings in a setting stand beside the others, records of what came out are left out."""
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        inner = {f"{name}: {key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        rows |= {words: item for words, item in inner.items() if not isinstance(item, Mapping)}
    return {
        words.replace("_", " "): (", ".join(map(str, item)) or "none") if isinstance(item, list) else str(item)
        for words, item in rows.items()
    }


def _plots(run: Run, name: str) -> list[dict[str, Any]]:
    """Returns the run's plots with their captions; a wide one has a line of the page to itself."""
    judged = run["judged"]
    classes = len(judged["per_class"])
    plots = []
    if judged["confusion"] is not None:
        caption = (
            "Confusion matrix: which class (across) rows of each class (down) were taken for; colour is their share."
        )
        if classes > MOST_CLASSES:
            caption += f" Only the {MOST_CLASSES} classes with the most errors of {classes:,}."
        plots.append({"svg": confusion_plot(judged, f"{name}-confusion"), "caption": caption, "wide": classes > _WIDE})
    caption = "Reliability: below the dotted line the head is surer than it is right."
    plots.append({"svg": reliability_plot(judged, f"{name}-reliability"), "caption": caption, "wide": False})
    if run["curve"]:
        axis = next(iter(run["curve"][0]))
        caption = f"What the {axis} was chosen by: the lowest loss on rows that weren't trained on."
        plots.append({"svg": curve_plot(run["curve"], f"{name}-curve"), "caption": caption, "wide": False})
    if run["learning"]:
        unknown = " or ".join(sorted({point["why"] for point in run["learning"] if "why" in point}))
        caption = "Learning curve of the first fit, on its validation rows, "
        caption += f"without intervals ({unknown})" if unknown else "with 95 % intervals"
        caption += ": if it still rises at its end, more training rows would help."
        plots.append({"svg": learning_plot(run["learning"], f"{name}-learning"), "caption": caption, "wide": False})
    return plots
