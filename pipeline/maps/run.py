"""Map: the rows of OUT on a plane, as a page to walk about in and as coordinates for other viewers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.maps.page import map_html
from pipeline.maps.rows import MapRows, add_predictions, read_map_rows
from pipeline.maps.thumbnails import MapThumbnails, map_thumbnails
from pipeline.rendering.html import write_page
from pipeline.rendering.tables import write_rows
from pipeline.rendering.targets import check_targets
from transforms.committed import held
from transforms.declared import SEED, Bound, check, declared
from transforms.errors import UsageError
from transforms.similarity.all_pairs import all_nearest
from transforms.similarity.projection import METHODS, flatten
from transforms.store.features import Features, choose_feature, open_features
from transforms.store.predictions import Predictions, are_predictions, output_behind
from transforms.text import counted, did_you_mean, size_text

NEIGHBOURS = 10
# As base64 they take a third more.
THUMBNAIL_BYTES = 9 * 2**20
COLUMNS = ("label", "prediction", "agreement", "score", "source", "width", "height", "vector length")


@dataclass(frozen=True)
class MapOptions:
    """The options of `map`."""

    output: str
    page: str = declared(help="The page, one file", flags=("--html",), metavar="PAGE")
    feature: str | None = declared(
        None, help="Column of vectors that is placed and compared", metavar="NAME", unset="embedding"
    )
    method: str = declared("umap", help="How rows are placed (umap and tsne from 50 components)", choices=METHODS)
    seed: int = declared(0, help="Seed of umap and tsne", bounds=(SEED,))
    color: str | None = declared(
        None, help="Column that the points are coloured by at first", metavar="COLUMN", unset="label"
    )
    predictions: str | None = declared(
        None, help="What predict wrote on OUT: colours by prediction and agreement", metavar="PRED"
    )
    coordinates: str | None = declared(
        None, help="Write the places as Parquet, too: key, x, y, label …", flags=("--output", "-o"), metavar="FILE"
    )
    limit: int = declared(
        100_000,
        help="Show at most so many rows, evenly drawn",
        bounds=(Bound(lambda rows: rows >= 1, "{flag} {value}: at least one row is needed"),),
    )
    thumbnails: int = declared(
        8000,
        help="Show at most so many thumbnails, evenly drawn; 0 for none",
        bounds=(Bound(lambda images: images >= 0, "{flag} {value}: 0 is the least"),),
    )
    overwrite: bool = declared(False, help="Replace files that are there")

    def __post_init__(self) -> None:
        check(self)
        valid = COLUMNS if self.predicted else [name for name in COLUMNS if name not in COLUMNS[1:4]]
        if self.color is not None and self.color not in valid:
            more = "; pass --predictions PRED" if self.color in COLUMNS else did_you_mean(self.color, valid)
            raise UsageError(f"--color {self.color!r} is no column to colour by{more}")
        read = [self.output, *filter(None, [self.predictions])]
        check_targets(read, rows=self.coordinates, page=self.page, overwrite=self.overwrite)

    @property
    def predicted(self) -> str | None:
        """PRED: the one that is named, or OUT itself where it is one."""
        return self.predictions or (self.output if are_predictions(self.output) else None)


@dataclass(frozen=True)
class MapSummary:
    """The files that were written, and their rows.

    Attributes:
        page: The page's file.
        page_bytes: Its size.
        of_rows: Rows of OUT.
        complete: Whether OUT's run is finished.
        thumbnails: In the page.
        gone: Rows that should have had a thumbnail and whose source is gone or changed.
        problem: The first reason, empty if there is none.
        coordinates: Parquet file, None if not asked for.
    """

    page: str
    page_bytes: int
    rows: int
    of_rows: int
    complete: bool
    thumbnails: int
    gone: int
    problem: str
    coordinates: str | None


def make_map(options: MapOptions, *, say: Callable[[str], None] = lambda line: None) -> MapSummary:
    """Places the rows, finds each one's neighbours, and writes the page and the coordinates.

    A page that takes long is first written with its principal components, then anew.

    Raises:
        FeaturemillError: OUT or PRED can't be mapped, or a file not written.
    """
    with held(options.page, options.coordinates):
        features = open_features(output_behind(options.output))
        name = choose_feature(features, options.feature)
        clock = _Clock(say)
        rows = read_map_rows(features, name, limit=options.limit)
        predicted = ""
        if options.predicted:
            predicted = f", {add_predictions(rows, Predictions(options.predicted)):,} with a prediction"
        clock.lap(f"read {len(rows.numbers):,} of {features.rows:,} rows{predicted}")
        neighbours, cosines = all_nearest(rows.vectors, NEIGHBOURS)
        clock.lap(f"found the {neighbours.shape[1]} nearest of each")
        thumbnails = map_thumbnails(
            features, rows.numbers, rows.facts, most=options.thumbnails, most_bytes=THUMBNAIL_BYTES
        )
        clock.lap(f"read {len(thumbnails.images):,} thumbnails")
        # Principal components take seconds where the others take minutes: meanwhile there is something to look at.
        for method in dict.fromkeys(("pca", options.method)):
            if method == "umap":
                say("umap compiles its code before it begins: that takes seconds, and the first time a minute or more")
            places = flatten(rows.vectors, method, seed=options.seed)
            clock.lap(f"placed by {method}")
            if options.coordinates and method == options.method:
                write_coordinates(options.coordinates, rows, places)
            text = map_html(
                rows,
                places,
                neighbours=neighbours,
                cosines=cosines,
                thumbnails=thumbnails,
                color=options.color or "label",
                about=_about(options, features, rows, name, method),
            )
            write_page(options.page, text)
            clock.lap("wrote the page" + (f"; {options.method} is next" if method != options.method else ""))
        return _summary(options, len(text), features, rows, thumbnails)


class _Clock:
    """Says what was done, and how long it took."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._last = say, time.perf_counter()

    def lap(self, line: str) -> None:
        now = time.perf_counter()
        self._say(f"{line} ({now - self._last:.1f} s)")
        self._last = now


def _about(options: MapOptions, features: Features, rows: MapRows, name: str, method: str) -> dict[str, str]:
    of_rows = features.rows
    count = len(rows.numbers)
    so_far = "" if features.complete else " so far: the run is not finished"
    return {
        "output": options.output,
        "rows": (counted(count, "row") if count == of_rows else f"{count:,} of {of_rows:,} rows, evenly drawn")
        + so_far,
        "feature": f"{name}, {rows.vectors.shape[1]:,} numbers",
        "method": {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}[method],
    }


def _summary(
    options: MapOptions, page_bytes: int, features: Features, rows: MapRows, thumbnails: MapThumbnails
) -> MapSummary:
    return MapSummary(
        page=options.page,
        page_bytes=page_bytes,
        rows=len(rows.numbers),
        of_rows=features.rows,
        complete=features.complete,
        thumbnails=len(thumbnails.images),
        gone=len(thumbnails.gone),
        problem=thumbnails.problem,
        coordinates=options.coordinates,
    )


def write_coordinates(path: str, rows: MapRows, places: np.ndarray) -> None:
    """Writes key, x, y and the columns of the map as Parquet, whole or not at all.

    Raises:
        FeaturemillError: It can't be written there.
    """
    columns = {name.replace(" ", "_"): column for name, column in rows.columns.items() if name != "source"}
    table = {"key": rows.facts["key"], "x": pa.array(places[:, 0]), "y": pa.array(places[:, 1]), **columns}
    table["source"] = rows.facts["source"]
    places = pa.table(table)
    write_rows(path, [places], places.schema)


def map_text(summary: MapSummary) -> str:
    """Returns what was written, for people."""
    shown = counted(summary.rows, "point") + (
        "" if summary.rows == summary.of_rows else f" of {summary.of_rows:,} rows"
    )
    lines = [f"{summary.page}: {shown}, {counted(summary.thumbnails, 'thumbnail')}, {size_text(summary.page_bytes)}"]
    if not summary.complete:
        lines.append("note     the run is not finished: these are its rows so far")
    if summary.gone:
        lines.append(f"note     {counted(summary.gone, 'image')} can't be shown, such as {summary.problem}")
    if summary.coordinates:
        lines.append(f"{summary.coordinates}: key, x, y and the columns")
    return "\n".join(lines)
