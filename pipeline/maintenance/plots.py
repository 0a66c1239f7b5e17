"""The plots of the report on a run, as inline SVG in the page's colours."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.rendering.plots import COLOURS, add_legend, new_figure, own_style, svg_text
from transforms.records import UnitReport
from transforms.text import printable

# More units are drawn as means of neighbours.
_MOST_STEPS = 200
# Not by colour alone.
_MARKERS = "os^DvPX*"
_LABEL_LETTERS = 24


@own_style()
def rate_plot(reports: Sequence[UnitReport], name: str) -> str:
    """Draws images per second along the units; of more than 200 units means of neighbours."""
    groups = np.array_split(np.arange(len(reports)), min(len(reports), _MOST_STEPS))
    rates = []
    for group in groups:
        seconds = sum(reports[i].wall_seconds for i in group)
        rates.append(sum(reports[i].rows_read for i in group) / seconds if seconds else np.nan)
    figure, axes = new_figure(5.2, 2.6, "units", "images per second")
    edges = [group[0] for group in groups] + [len(reports)]
    axes.stairs(rates, edges, color=COLOURS["first"], fill=True, alpha=0.35)
    axes.stairs(rates, edges, color=COLOURS["first"], baseline=None)
    axes.set(xlim=(0, len(reports)), ylim=(0, None))
    return svg_text(figure, name, "Images per second, unit by unit")


@own_style()
def size_plot(sizes: Mapping[tuple[int, int], int], name: str) -> str:
    """Draws {(width, height): rows} as discs whose area is the rows."""
    widths, heights = np.array(list(sizes)).T
    counts = np.array(list(sizes.values()))
    figure, axes = new_figure(4.5, 3.6, "width in pixels", "height in pixels")
    areas = 8 + 250 * counts / counts.max()
    axes.scatter(widths, heights, s=areas, color=COLOURS["first"], alpha=0.45, linewidths=0)
    axes.set(xlim=(0, 1.1 * widths.max()), ylim=(0, 1.1 * heights.max()))
    return svg_text(figure, name, "Image widths and heights")


@own_style()
def norm_plot(norms: np.ndarray, name: str, feature: str) -> str:
    """Draws how long a feature's N vectors are, as a histogram of 40 bins; at least one length is finite."""
    norms = norms[np.isfinite(norms)].astype(np.float64)
    least, most = norms.min(), norms.max()
    if least == most:
        # Equal ones need some width, and beside 1e15 half a unit is none.
        margin = max(0.5, most / 1000)
        least, most = least - margin, most + margin
    counts, edges = np.histogram(norms, bins=40, range=(least, most))
    figure, axes = new_figure(4.5, 3.2, "length (L2 norm)", "rows")
    axes.stairs(counts, edges, color=COLOURS["first"], fill=True)
    return svg_text(figure, name, f"Lengths of the vectors of {feature}")


@own_style()
def map_plot(places: np.ndarray, labels: Sequence[str | None], name: str) -> str:
    """Draws N×2 places, the eight commonest labels by colour and shape, all others grey."""
    common = [label for label, _ in Counter(label for label in labels if label is not None).most_common(len(_MARKERS))]
    figure, axes = new_figure(5, 4.4)
    found = np.array([common.index(label) if label in common else -1 for label in labels])
    size = 14 if len(places) < 500 else 7
    shown = [(-1, "muted", "o", "others" if common else "no label")]
    shown += [(i, f"c{i + 1}", _MARKERS[i], printable(label, _LABEL_LETTERS)) for i, label in enumerate(common)]
    for number, colour, marker, words in shown:
        here = places[found == number]
        if len(here):
            axes.scatter(
                here[:, 0], here[:, 1], s=size, color=COLOURS[colour], marker=marker, alpha=0.7, linewidths=0, label="."
            ).set_label(words.lstrip("_") or ".")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    add_legend(axes)
    for handle in axes.get_legend().legend_handles:
        handle.set_sizes([30])
    for text in axes.get_legend().get_texts():
        text.set_parse_math(False)
    return svg_text(figure, name, f"{len(places):,} rows by their first two principal components")
