"""Thumbnails of stored rows: their images, read again from where they lie and checked to be the ones of then."""

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from transforms import shards, storage
from transforms.features import FeatureSpec
from transforms.images import PIXEL_CEILING, ImageError, decode_image
from transforms.listing import read_footer
from transforms.records import EncodedImage, FeaturemillError, Unit
from transforms.shards.names import clean
from transforms.stored_rows import StoredRow
from transforms.units import read_plan

SIDE = 160
QUALITY = 75
# How the whole image is brought to SIDE; nothing else of it matters here.
_SPEC = FeatureSpec("", "", (), image_size=SIDE, resize="pad", interpolation="bilinear", decode="fast")


@dataclass(frozen=True)
class Thumbnail:
    """A small image for a page, or why there is none.

    Attributes:
        uri: `data:` URI of a WebP with sides of at most SIDE; empty where there is none.
        width: Its pixels.
        height: Its pixels.
        problem: Empty where there is one.
    """

    uri: str = ""
    width: int = SIDE
    height: int = SIDE
    problem: str = ""


def thumbnail(data: bytes) -> Thumbnail:
    """Returns a small image of an encoded one."""
    try:
        decoded = decode_image(data, _SPEC, max_pixels=PIXEL_CEILING)
    except ImageError as error:
        return Thumbnail(problem=f"can't be decoded: {error}")
    scale = SIDE / max(decoded.width, decoded.height)
    width, height = max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    image = Image.fromarray(decoded.pixels[top : top + height, left : left + width])
    target = io.BytesIO()
    image.save(target, "WEBP", quality=QUALITY)
    uri = f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode()}"
    return Thumbnail(uri, width, height)


def thumbnails(output: str, rows: Iterable[StoredRow]) -> dict[int, Thumbnail]:
    """Returns {row number: thumbnail}; one that says why where a source is gone, or no longer what it was.

    Args:
        output: OUT; plain Parquet has no sources that are known how to read.
        rows: Of OUT; each is read once.
    """
    rows = {row.row: row for row in rows}
    found = dict.fromkeys(rows, Thumbnail(problem="where its image lies isn't known"))
    sources = _Sources(output)
    places: dict[Unit, list[StoredRow]] = defaultdict(list)
    for row in rows.values():
        try:
            unit = sources.unit(row)
            if unit is not None:
                places[_narrow(unit, row)].append(row)
        except (FeaturemillError, OSError) as error:
            found[row.row] = Thumbnail(problem=f"its source can't be read: {clean(storage.one_line(error))}")
    for unit, some in places.items():
        found.update(_read(unit, some))
    return found


class _Sources:
    """Where rows came from, by OUT's plan and the footers of merged parts."""

    def __init__(self, output: str):
        self._output = output
        self._footers: dict[str, tuple[tuple[str, ...], Sequence[int]]] = {}

    @cached_property
    def _units(self) -> dict[str, Unit]:
        return {planned.unit_id: planned.unit for planned in read_plan(self._output)}

    def unit(self, row: StoredRow) -> Unit | None:
        if row.sha256 is None or row.position is None:
            return None
        if row.part not in self._footers:
            footer = read_footer(row.part)
            ids = tuple(report.unit_id for report in footer.reports)
            self._footers[row.part] = ids, footer.unit_numbers()
        ids, numbers = self._footers[row.part]
        return self._units.get(ids[numbers[row.part_row]])


def _narrow(unit: Unit, row: StoredRow) -> Unit:
    """Returns as little of a unit as holds the row: its file, its record, or its row group."""
    if unit.files:
        files = tuple(listed for listed in unit.files if clean(listed.file.uri) == row.key)
        return replace(unit, files=files, start=0, stop=len(files))
    if unit.shard.format == "parquet":
        return _narrow_parquet(unit, row)
    # A compressed shard can't be entered in its middle.
    return unit if unit.shard.compression else replace(unit, start=row.position, stop=row.position + 1, limit=None)


def _narrow_parquet(unit: Unit, row: StoredRow) -> Unit:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_read(unit.shard.file.uri) as file:
            metadata = pq.read_metadata(file)
    except pa.ArrowException as error:
        raise FeaturemillError(storage.one_line(error)) from error
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first <= row.position < first + rows:
            return replace(unit, start=group, stop=group + 1, first_index=first, limit=None)
        first += rows
    raise FeaturemillError(f"{unit.shard.file.uri} has no row {row.position:,} any more")


def _read(unit: Unit, rows: Sequence[StoredRow]) -> dict[int, Thumbnail]:
    """Returns the thumbnails of rows from one place."""
    # By position: the name of a record that has none would depend on where reading began. Files all have position 0.
    wanted: dict[int, list[StoredRow]] = defaultdict(list)
    for row in rows:
        wanted[row.position].append(row)
    found: dict[int, Thumbnail] = {}
    reason = "its source no longer holds it"
    try:
        for record in shards.read(unit):
            if not isinstance(record, EncodedImage):
                reason = record.message
                continue
            here = wanted.get(record.position, ())
            same = [row for row in here if hashlib.sha256(record.data).digest() == row.sha256]
            if same:
                found.update(dict.fromkeys((row.row for row in same), thumbnail(record.data)))
            for row in here:
                found.setdefault(row.row, Thumbnail(problem="its source changed since it was embedded"))
            if len(found) == len(rows):
                break
    except (FeaturemillError, OSError) as error:
        reason = f"its source can't be read: {clean(storage.one_line(error))}"
    return {row.row: found.get(row.row, Thumbnail(problem=reason)) for row in rows}
