"""Chooses the rows of a map that get a thumbnail, as many as fit into its page."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transforms.rows.lookup import StoredRow
from transforms.rows.thumbnails import thumbnails
from transforms.spec import ROW_COLUMNS
from transforms.store.features import Features
from transforms.store.listing import read_footers

if TYPE_CHECKING:
    import pyarrow as pa

SIDE = 64
QUALITY = 55


@dataclass(frozen=True)
class MapThumbnails:
    """Small pictures of some rows.

    Attributes:
        images: {place among the map's rows: bytes of a WebP image}.
        gone: Places whose source is gone or changed.
        problem: Why, of the first; empty if there is none.
    """

    images: dict[int, bytes]
    gone: list[int]
    problem: str


def map_thumbnails(
    features: Features, numbers: np.ndarray, facts: "pa.Table", *, most: int, most_bytes: int
) -> MapThumbnails:
    """Reads thumbnails of at most `most` rows, evenly drawn. What can't be read is named, and never raises.

    Args:
        features: OUT's.
        numbers: N int64, ascending: which rows of OUT the map shows.
        facts: Their columns.
        most: How many thumbnails.
        most_bytes: Of all thumbnails together; of more, evenly drawn ones are kept.
    """
    places = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)) if most else []
    rows = _rows(features, numbers, facts, places)
    read = thumbnails(features.opened, rows, side=SIDE, quality=QUALITY)
    gone = [row for row in rows if read[row.row].problem]
    problem = f"{gone[0].key}: {read[gone[0].row].problem}" if gone else ""
    images = {row.row: read[row.row].data for row in rows if read[row.row].data}
    return MapThumbnails(_within(images, most_bytes), [row.row for row in gone], problem)


def _rows(features: Features, numbers: np.ndarray, facts: "pa.Table", places: np.ndarray) -> list[StoredRow]:
    """Returns the rows at these places of the map, numbered by their places."""
    if not len(places):
        return []
    ends = np.cumsum([footer.rows for footer in read_footers(features.parts)])
    parts = np.searchsorted(ends, numbers[places], "right")
    firsts = np.concatenate([[0], ends])[parts]
    part_rows = (numbers[places] - firsts).tolist()
    stored = facts.select(ROW_COLUMNS).take(places).to_pylist()
    return [
        StoredRow(row=int(place), **row, part=features.parts[part], part_row=part_row)
        for place, row, part, part_row in zip(places, stored, parts, part_rows, strict=True)
    ]


def _within(images: dict[int, bytes], most_bytes: int) -> dict[int, bytes]:
    """Leaves every so-many-th thumbnail, so that the rest is still evenly drawn."""
    total = sum(map(len, images.values()))
    if total <= most_bytes:
        return images
    share = most_bytes / total
    return {place: image for i, (place, image) in enumerate(images.items()) if int((i + 1) * share) > int(i * share)}
