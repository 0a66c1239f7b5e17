"""Thumbnails of some rows of OUT, read again from their sources as far as these are still there."""

import io
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from transforms.features import Features
from transforms.listing import read_footers
from transforms.records import FeaturemillError, Unit
from transforms.rereading import reread
from transforms.units import read_plan

SIDE = 64
QUALITY = 55


@dataclass(frozen=True)
class Wanted:
    """A row that is to have a thumbnail."""

    place: int
    sha256: bytes


@dataclass
class Thumbnails:
    """Small pictures of some rows.

    Attributes:
        images: {place among the map's rows: bytes of a WebP image}.
        gone: Places whose source is gone or changed.
        problems: Why, a line each.
        left_out: How many were read and would have made the page too large.
    """

    images: dict[int, bytes]
    gone: list[int]
    problems: list[str]
    left_out: int


def read_thumbnails(
    features: Features,
    numbers: np.ndarray,
    facts: dict[str, list],
    *,
    most: int,
    most_bytes: int,
) -> Thumbnails:
    """Reads thumbnails of at most `most` rows, evenly drawn. What can't be read is named, and never raises.

    Args:
        features: OUT's.
        numbers: N int64: which rows of OUT the map shows.
        facts: Their `key`, `position` and `sha256`.
        most: How many thumbnails.
        most_bytes: Of all thumbnails together; those of the first rows are kept, and `left_out` says of the others.
    """
    found = Thumbnails({}, [], [], 0)
    places = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)) if most else []
    wanted: dict[str, dict[tuple[str, int], Wanted]] = defaultdict(dict)
    for place, unit_id in zip(places, _unit_ids(features, numbers[places]), strict=True):
        row = (facts["key"][place], facts["position"][place])
        wanted[unit_id][row] = Wanted(int(place), facts["sha256"][place])
    try:
        units = {planned.unit_id: planned.unit for planned in read_plan(features.output)}
    except FeaturemillError as error:
        units, found.problems = {}, [str(error)]
    spec = replace(features.spec, image_size=SIDE, resize="pad", decode="fast", interpolation="bilinear")

    def read(unit_id: str) -> tuple[dict[int, bytes], list[str]]:
        return _of_unit(units.get(unit_id), wanted[unit_id], spec)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for images, problems in pool.map(read, list(wanted)):
            found.images.update(images)
            found.problems += problems
    found.gone = sorted(set(map(int, places)) - found.images.keys())
    _keep_within(found, most_bytes)
    return found


def _of_unit(unit: Unit | None, wanted: dict[tuple[str, int], Wanted], spec) -> tuple[dict[int, bytes], list[str]]:
    if unit is None:
        return {}, [f"{key}: plan.parquet doesn't know its source" for key, _ in wanted]
    images, problems = {}, []
    # A copy: `reread` takes out what it finds.
    for row, pixels in reread(unit, dict(wanted), spec, problems):
        images[row.place] = _webp(pixels)
    return images, problems


def _unit_ids(features: Features, numbers: np.ndarray) -> list[str]:
    """Returns the id of the unit that each of these rows of OUT is of."""
    found: list[str] = []
    first = 0
    for footer in read_footers(features.parts):
        here = numbers[(numbers >= first) & (numbers < first + footer.rows)] - first
        if len(here):
            found += [footer.reports[number].unit_id for number in footer.unit_numbers()[here]]
        first += footer.rows
    return found


def _webp(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def _keep_within(found: Thumbnails, most_bytes: int) -> None:
    """Leaves every so-many-th thumbnail, so that the rest is still evenly drawn."""
    total = sum(map(len, found.images.values()))
    if total <= most_bytes:
        return
    places = sorted(found.images)
    share = most_bytes / total
    kept = {place for i, place in enumerate(places) if int((i + 1) * share) > int(i * share)}
    found.left_out = len(places) - len(kept)
    found.images = {place: image for place, image in found.images.items() if place in kept}
