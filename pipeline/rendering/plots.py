"""Figures as inline SVG, coloured by the page's own style sheet so that they follow light and dark."""

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib knows no CSS variables: it draws with these, and `svg_text` puts the variables in their place.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "surface": "#040404",
    "first": "#050505",
    "second": "#060606",
    **{f"c{number}": f"#0707{number:02}" for number in range(1, 9)},
}


@contextmanager
def own_style() -> Iterator[None]:
    """Keeps a user's matplotlibrc out of the report; text stays text, in the page's font."""
    from matplotlib import style

    settings = {"svg.hashsalt": "featuremill", "svg.fonttype": "none"}
    with style.context(["default", settings]), warnings.catch_warnings():
        # The reader's browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float, x: str = "", y: str = "") -> "tuple[Figure, Axes]":
    """Returns a figure of this size in inches, in the page's colours; with a grid if its axes are named."""
    # Not pyplot: a figure of its own needs no display and leaves no state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOURS["muted"], labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(COLOURS["grid"])
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=COLOURS["ink"], fontsize=10)
    if x:
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color=COLOURS["grid"], linewidth=0.6)
    return figure, axes


def add_legend(axes: "Axes") -> None:
    """Adds a grid, and a legend wherever the least is behind it."""
    axes.grid(color=COLOURS["grid"], linewidth=0.6)
    legend = axes.legend(frameon=False, fontsize=9, labelcolor=COLOURS["ink"], loc="best")
    legend.set_zorder(10)


def svg_text(figure: "Figure", name: str, title: str) -> str:
    """Returns a figure as an SVG element: the same bytes each time, ids that start with `name`, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    # With the date.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Only inside of tags: labels stay as they are.
    text = re.sub(r"<[^>]*>", lambda tag: _own_tag(tag.group(), name), text)
    width, height = (72 * length for length in figure.get_size_inches())
    opening = (
        f'<svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {1.5 * width:.0f}px; min-width: {min(330, width) if width < 500 else 0.9 * width:.0f}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def _own_tag(tag: str, name: str) -> str:
    for variable, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
