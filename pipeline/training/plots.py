"""The report's plots as inline SVG, coloured by the page's own style sheet so that they follow light and dark."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.rendering.plots import COLOURS, add_legend, new_figure, own_style, svg_text
from transforms.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 40
# Cells of more classes are too small to write in.
_MOST_WRITTEN = 12
_LABEL_LENGTH = 18
# Longer ones would touch each other below the matrix.
_LEVEL_LENGTH = 12
_SERIES = (("first", "o", "-"), ("second", "s", "--"))


@own_style()
def confusion_plot(judged: Mapping[str, Any], name: str) -> str:
    """Draws the confusion matrix; of more than 40 classes those that are confused most.

    Args:
        judged: From `evaluation.metrics.judge`; its `confusion` mustn't be None.
        name: Starts the ids inside the SVG, so it has to be unique on the page.
    """
    matrix = np.array(judged["confusion"])
    chosen = confused_classes(matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix))
    labels = [short(judged["per_class"][i]["label"], _LABEL_LENGTH) for i in chosen]
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(chosen, chosen)]
    counts = matrix[np.ix_(chosen, chosen)]
    side = max(2.9, 0.24 * len(chosen))
    figure, axes = new_figure(side + 1.6, side + 1.3)
    for true, taken in zip(*np.nonzero(counts), strict=True):
        _cell(axes, int(true), int(taken), float(shares[true, taken]), int(counts[true, taken]), len(chosen))
    places = range(len(chosen))
    upright = len(chosen) > 3 or max(map(len, labels)) > _LEVEL_LENGTH
    axes.set_xticks(places, labels, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(places, labels, parse_math=False)
    first, last = -0.5, len(chosen) - 0.5
    axes.set(xlim=(first, last), ylim=(last, first), aspect="equal", xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    return svg_text(figure, name, f"Confusion matrix of {len(chosen)} classes, true by predicted")


def confused_classes(errors: np.ndarray) -> list[int]:
    """Returns which of C classes a confusion matrix shows, by their errors: all, or the 40 with the most, in order."""
    return sorted(np.argsort(-errors, kind="stable")[:MOST_CLASSES].tolist())


def _cell(axes: "Axes", true: int, taken: int, share: float, count: int, classes: int) -> None:
    from matplotlib.patches import Rectangle

    written = classes <= _MOST_WRITTEN
    # The rarest error is still to be seen, and numbers can be read on any cell, in light and in dark.
    opacity = 0.1 + (0.4 if written else 0.9) * share
    corner = (taken - 0.5, true - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=COLOURS["first"], edgecolor="none", alpha=opacity))
    if written:
        axes.text(
            taken, true, f"{count:,}", ha="center", va="center", color=COLOURS["ink"], fontsize=9 if classes > 5 else 11
        )


@own_style()
def reliability_plot(judged: Mapping[str, Any], name: str) -> str:
    """Draws accuracy against confidence for each bin of the top probability; on the diagonal they agree."""
    bins = judged["reliability"]
    figure, axes = new_figure(4.5, 4.2)
    for part in bins:
        axes.bar(
            (part["low"] + part["high"]) / 2,
            part["rows"] / judged["rows"],
            width=(part["high"] - part["low"]) * 0.9,
            color=COLOURS["grid"],
        )
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=":", label="as sure as right")
    confidence, accuracy = [part["confidence"] for part in bins], [part["accuracy"] for part in bins]
    axes.plot(confidence, accuracy, color=COLOURS["first"], marker="o", markersize=4, label="accuracy")
    axes.bar([0], [0], color=COLOURS["grid"], label="share of rows")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (top probability)")
    add_legend(axes)
    return svg_text(figure, name, "Reliability: accuracy against confidence")


@own_style()
def coverage_plot(curve: Sequence[Mapping[str, float]], name: str) -> str:
    """Draws the accuracy of the most confident rows against their share.

    Args:
        curve: From `transforms.evaluation.errors.coverage_curve`.
        name: Starts the ids inside the SVG.
    """
    figure, axes = new_figure(4.5, 4.2, "share of rows that are answered", "accuracy of the answers")
    axes.plot([point["coverage"] for point in curve], [point["accuracy"] for point in curve], color=COLOURS["first"])
    axes.set(xlim=(0, 1.01), ylim=(None, 1.01))
    return svg_text(figure, name, "Coverage against accuracy")


@own_style()
def curve_plot(curve: Sequence[Mapping[str, float]], name: str) -> str:
    """Draws what a penalty or an epoch was chosen by.

    Args:
        curve: Points; the first name is the horizontal axis, logarithmic for a penalty; the others are lines.
        name: Starts the ids inside the SVG.
    """
    axis, *lines = curve[0]
    figure, axes = new_figure(4.5, 3.4)
    if axis == "penalty":
        _log_axis(axes, [point[axis] for point in curve])
    _lines(axes, curve, axis, lines)
    # The last line is the loss on the validation rows.
    points = [point for point in curve if np.isfinite(point[lines[-1]])]
    if points:
        lowest = min(points, key=lambda point: point[lines[-1]])
        axes.axvline(
            lowest[axis], color=COLOURS["muted"], linewidth=1, linestyle=":", label=f"lowest: {lowest[axis]:g}"
        )
    axes.set(xlabel=_words(axis), ylabel="loss")
    add_legend(axes)
    return svg_text(figure, name, f"Loss against {_words(axis)}")


@own_style()
def learning_plot(learning: Sequence[Mapping[str, float]], name: str) -> str:
    """Draws accuracy against training rows, on a logarithmic axis since each point has twice the rows of the last."""
    figure, axes = new_figure(4.5, 3.4)
    rows = [point["rows"] for point in learning]
    _log_axis(axes, rows)
    axes.set_xticks(rows, [f"{count:,}" for count in rows])
    _lines(axes, learning, "rows", [line for line in ("accuracy", "train_accuracy") if line in learning[0]])
    known = [point for point in learning if point.get("low") is not None]
    axes.vlines(
        [point["rows"] for point in known],
        [point["low"] for point in known],
        [point["high"] for point in known],
        color=COLOURS["first"],
        linewidth=1,
    )
    axes.set(xlabel="training rows", ylabel="accuracy")
    add_legend(axes)
    return svg_text(figure, name, "Learning curve: accuracy against training rows")


def _lines(axes: "Axes", points: Sequence[Mapping[str, float]], axis: str, lines: Sequence[str]) -> None:
    for line, (colour, marker, dashes) in zip(lines, _SERIES, strict=False):
        known = [(point[axis], point[line]) for point in points if np.isfinite(point[line])]
        style = {"marker": marker, "linestyle": dashes, "markersize": 4}
        axes.plot([x for x, _ in known], [y for _, y in known], color=COLOURS[colour], label=_words(line), **style)


def _log_axis(axes: "Axes", values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    positive = [value for value in values if value > 0]
    if not positive:
        return
    if min(values) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _words(name: str) -> str:
    return name.replace("_", " ")
