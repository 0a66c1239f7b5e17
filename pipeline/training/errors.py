"""A head's errors as pictures, on one page: what is taken for what, the surest mistakes, what abstaining brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.rendering.contact_sheet import Section, Tile, row_tile
from pipeline.rendering.html import render
from pipeline.training.plots import confused_classes, coverage_plot, reliability_plot
from pipeline.training.report import METRICS, interval, verdict
from transforms import storage
from transforms.evaluation.errors import Chosen, choose_rows, class_intervals, coverage_curve
from transforms.evaluation.metrics import RowScores
from transforms.rows.lookup import StoredRow, read_rows
from transforms.rows.table import Table
from transforms.rows.thumbnails import Thumbnail, thumbnails
from transforms.text import printable, short

# Of a cell, of the surest mistakes, of the least sure hits.
_EACH = 24
# Tiles of cells, all in all, and the bytes of all thumbnails: in base64 they take a third more.
_TILES = 800
_THUMBNAIL_BYTES = 9 * 2**20


@dataclass(frozen=True)
class JudgedRows:
    """The rows that a head was judged on.

    Attributes:
        tables: Features that they are rows of.
        numbers: N int64: which rows of all tables, one after the other.
        scores: Of the N rows.
        codes: N, the true classes.
        groups: N ids; rows of one aren't independent.
        heads: How many judged, each on its fold.
    """

    tables: Sequence[Table]
    numbers: np.ndarray
    scores: RowScores
    codes: np.ndarray
    groups: np.ndarray
    heads: int = 1

    def only(self, some: np.ndarray) -> "JudgedRows":
        """Returns the rows for which N booleans are true."""
        scores = RowScores(*(values[some] for values in self.scores))
        return JudgedRows(self.tables, self.numbers[some], scores, self.codes[some], self.groups[some], self.heads)


def errors_html(title: str, judged: Mapping[str, Any], rows: JudgedRows, facts: Mapping[str, str]) -> str:
    """Returns the page; of images, only those that lie on this machine are read.

    Args:
        title: Of the page.
        judged: From `transforms.evaluation.metrics.judge`, of these rows.
        rows: What was judged.
        facts: {name: sentence}.
    """
    labels = [row["label"] for row in judged["per_class"]]
    predicted, count = rows.scores.predicted, len(labels)
    drawn = _drawn(rows.codes, predicted, count)
    chosen = choose_rows(rows.scores, rows.codes, count, classes=drawn, most=_TILES, each=_EACH)
    tiles = _tiles(rows, chosen, labels)
    sizes = {pair: int(size) for pair, size in zip(*_cells(rows.codes, predicted, count), strict=True)}
    right = rows.codes == predicted
    captions = (
        (
            reliability_plot(judged, "reliability"),
            "Reliability: below the dotted line the head is surer than it is right.",
        ),
        (
            coverage_plot(coverage_curve(right, rows.scores.top), "coverage"),
            "What leaving out the least sure rows brings.",
        ),
    )
    sections = (
        _section(
            "Most confident mistakes", "The head was surest of these. Is the label wrong?", chosen.mistakes, tiles
        ),
        _section("Least confident hits", "Right, but only just.", chosen.hits, tiles),
    )
    return render(
        "errors.html",
        title=title,
        headline=verdict(judged),
        facts=facts,
        judged=judged,
        class_count=count,
        matrix=_matrix(labels, drawn, sizes, chosen),
        cells=[_cell_section(pair, some, sizes[pair], labels, tiles) for pair, some in chosen.cells.items()],
        sections=[section for section in sections if section.tiles],
        per_class=_per_class(judged, rows, count),
        plots=[{"svg": svg, "caption": caption} for svg, caption in captions],
        labels=[label for label in labels if printable(label) == label],
        metrics=METRICS,
        interval=lambda metric: interval(metric).replace("-", "–"),
    )


def _per_class(judged: Mapping[str, Any], rows: JudgedRows, count: int) -> list[dict[str, Any]]:
    """Returns label, rows and figures with intervals of each class, those with the most mistakes first."""
    codes, predicted = rows.codes, rows.scores.predicted
    intervals = class_intervals(codes, predicted, count, rows.groups, heads=rows.heads)
    found = [
        {"label": row["label"], "rows": row["rows"], **of_class}
        for row, of_class in zip(judged["per_class"], intervals, strict=True)
    ]
    wrong = np.bincount(codes[codes != predicted], minlength=count)
    return [found[at] for at in np.argsort(-wrong, kind="stable")]


def _cells(codes: np.ndarray, predicted: np.ndarray, count: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    names, sizes = np.unique(codes.astype(np.int64) * count + predicted, return_counts=True)
    return [divmod(int(name), count) for name in names], sizes


def _drawn(codes: np.ndarray, predicted: np.ndarray, count: int) -> list[int]:
    """Returns the classes of the matrix that is drawn: of many, those with the most errors."""
    wrong = codes != predicted
    errors = np.bincount(codes[wrong], minlength=count) + np.bincount(predicted[wrong], minlength=count)
    return confused_classes(errors)


def _tiles(rows: JudgedRows, chosen: Chosen, labels: Sequence[str]) -> dict[int, Tile]:
    """Returns {judged row: its tile}; pictures that would make the page too large are left out."""
    places, found, start = chosen.rows, {}, 0
    numbers = rows.numbers[places]
    # In the order of importance, so that what is left out matters least.
    order = {int(row): at for at, row in enumerate(np.concatenate([chosen.mistakes, chosen.hits]))}
    for table in rows.tables:
        here = places[(numbers >= start) & (numbers < start + table.vectors.rows)]
        stored = read_rows(table, rows.numbers[here] - start)
        pictures = _pictures(table, stored)
        for place, row in zip(here.tolist(), stored, strict=True):
            taken, true = rows.scores.predicted[place], rows.codes[place]
            text = f"{rows.scores.top[place]:.2f} {short(labels[taken], 40)}"
            # What was judged by, not what is stored: a file of labels may say otherwise.
            row = replace(row, label=labels[true])
            found[place] = row_tile(row, pictures, text, marked=bool(taken != true))
        start += table.vectors.rows
    room = _THUMBNAIL_BYTES
    for place in sorted(found, key=lambda place: order.get(place, len(order))):
        size = len(found[place].thumbnail.data)
        if size > room:
            found[place] = replace(found[place], thumbnail=Thumbnail(problem="left out: the page would be too large"))
        else:
            # A row may stand in its cell and above.
            room -= size * (1 + (place in order))
    return found


def _pictures(table: Table, rows: Sequence[StoredRow]) -> dict[int, Thumbnail]:
    here = [row for row in rows if row.source is None or storage.is_local(row.source)]
    elsewhere = Thumbnail(problem="its image isn't on this machine")
    return {**dict.fromkeys((row.row for row in rows), elsewhere), **thumbnails(table.output, here)}


def _section(title: str, note: str, places: np.ndarray, tiles: Mapping[int, Tile]) -> Section:
    return Section(title, note, tuple(tiles[int(place)] for place in places))


def _cell_section(
    pair: tuple[int, int], places: np.ndarray, size: int, labels: Sequence[str], tiles: Mapping[int, Tile]
) -> Section:
    true, taken = (short(labels[number]) for number in pair)
    title = f"{true!r} taken for {taken!r}" if pair[0] != pair[1] else f"{true!r} recognised"
    which = "the surest" if pair[0] != pair[1] else "the least sure"
    note = f"{size:,} rows" if size > 1 else "1 row"
    note += f", {which} {len(places)} of them." if size > len(places) else "."
    return replace(_section(title, note, places, tiles), anchor=_anchor(pair))


def _anchor(pair: tuple[int, int]) -> str:
    return f"cell-{pair[0]}-{pair[1]}"


def _matrix(
    labels: Sequence[str], drawn: Sequence[int], sizes: Mapping[tuple[int, int], int], chosen: Chosen
) -> dict[str, Any]:
    """Returns {"classes", "rows"} of the drawn classes, cells with the id of their photos if they have some."""
    totals: dict[int, int] = {}
    for (true, _), size in sizes.items():
        totals[true] = totals.get(true, 0) + size

    def cell(pair: tuple[int, int]) -> dict[str, Any]:
        size = sizes.get(pair, 0)
        anchor = _anchor(pair) if pair in chosen.cells else None
        return {"rows": size, "share": size / totals[pair[0]] if size else 0, "anchor": anchor}

    rows = [{"label": labels[true], "cells": [cell((true, taken)) for taken in drawn]} for true in drawn]
    return {"classes": [labels[at] for at in drawn], "rows": rows}
