"""Thumbnails of stored rows: their images, read again from where they lie and checked to be the ones of then.

They are decoded in child processes, always: few images, in commands of which nothing is kept if one crashes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from transforms import shards
from transforms.errors import FeaturemillError
from transforms.images.thumbnail import QUALITY, SIDE, Thumbnail, thumbnail
from transforms.isolated import Crashed, Isolated
from transforms.machine import available_cores
from transforms.records import EncodedImage, Unit
from transforms.rows.lookup import StoredRow
from transforms.rows.sources import cause_of
from transforms.store.listing import read_footers
from transforms.store.units import read_plan
from transforms.text import clean

# Of each image, in its child process.
SECONDS, MEMORY = 30.0, 2 * 2**30
# Plain files that a thread reads at a time.
_FILES = 64
_CHILDREN = 8


class Thumbnailer:
    """Makes thumbnails of encoded images in a child process, and has another one to read with.

    Attributes:
        reader: For `shards.read`.
    """

    def __init__(self, *, side: int = SIDE, quality: int = QUALITY):
        """Args: pixels of the longer side, and the quality of the WebP, 0 to 100."""
        self._make = partial(thumbnail, side=side, quality=quality)
        self._decoder = Isolated(seconds=SECONDS, memory=MEMORY)
        self.reader = Isolated(seconds=SECONDS, memory=MEMORY, may_wait=True)

    def __enter__(self) -> "Thumbnailer":
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()
        self.reader.close()

    def make(self, data: bytes) -> Thumbnail:
        """Returns a thumbnail, or why there is none."""
        try:
            return self._decoder.call(self._make, data)
        except Crashed as error:
            return Thumbnail(problem=f"can't be decoded: {error}")
        except MemoryError:
            return Thumbnail(problem="can't be decoded: it takes too much memory")


def thumbnails(
    output: str, rows: Iterable[StoredRow], *, side: int = SIDE, quality: int = QUALITY
) -> dict[int, Thumbnail]:
    """Returns {row number: thumbnail}; one that says why where a source is gone, or no longer what it was.

    Args:
        output: OUT; plain Parquet has no sources that are known how to read.
        rows: Of OUT; each is read once.
        side: Pixels of the longer side.
        quality: Of the WebP, 0 to 100.
    """
    rows = {row.row: row for row in rows}
    found = dict.fromkeys(rows, Thumbnail(problem="where its image lies isn't known"))
    placed = [row for row in rows.values() if row.sha256 is not None and row.position is not None]
    tasks: list[tuple[Unit, Sequence[StoredRow]]] = []
    for unit, some in _by_unit(output, placed, found):
        try:
            tasks += _narrowed(unit, some)
        except (FeaturemillError, OSError) as error:
            _give_up(found, some, error)
    threads = min(_CHILDREN, available_cores(), len(tasks))
    waiting = iter(tasks)
    with ThreadPoolExecutor(threads or 1) as pool:
        for done in [pool.submit(_read_all, waiting, side=side, quality=quality) for _ in range(threads)]:
            found.update(done.result())
    return found


def _give_up(found: dict[int, Thumbnail], rows: Iterable[StoredRow], error: Exception) -> None:
    found.update((row.row, Thumbnail(problem=_unreadable(error))) for row in rows)


def _unreadable(error: Exception) -> str:
    return f"its source can't be read: {cause_of(error)}"


def _by_unit(
    output: str, rows: Sequence[StoredRow], found: dict[int, Thumbnail]
) -> Iterator[tuple[Unit, list[StoredRow]]]:
    """Yields the units that rows came from, by OUT's plan and the footers of its parts."""
    if not rows:
        return
    by_part: dict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        by_part[row.part].append(row)
    by_id: dict[str, list[StoredRow]] = defaultdict(list)
    try:
        for some, footer in zip(by_part.values(), read_footers(list(by_part)), strict=True):
            numbers = footer.unit_numbers()
            for row in some:
                by_id[footer.reports[numbers[row.part_row]].unit_id].append(row)
        units = [planned for planned in read_plan(output) if planned.unit_id in by_id]
    except (FeaturemillError, OSError) as error:
        _give_up(found, rows, error)
        return
    for planned in units:
        yield planned.unit, by_id[planned.unit_id]


def _narrowed(unit: Unit, rows: Sequence[StoredRow]) -> Iterator[tuple[Unit, Sequence[StoredRow]]]:
    """Yields as little of a unit as holds the rows: their files, or parts of the shard."""
    if unit.files:
        listed = {clean(listed.file.uri): listed for listed in unit.files}
        for first in range(0, len(rows), _FILES):
            some = rows[first : first + _FILES]
            files = tuple(listed[row.key] for row in some if row.key in listed)
            yield replace(unit, files=files, start=0, stop=len(files)), some
    else:
        rows, at = sorted(rows, key=lambda row: row.position), 0
        for part, count in shards.FORMATS[unit.shard.format].narrow(unit, [row.position for row in rows]):
            yield part, rows[at : at + count]
            at += count


def _read_all(tasks: Iterator[tuple[Unit, Sequence[StoredRow]]], *, side: int, quality: int) -> dict[int, Thumbnail]:
    """Returns the thumbnails of those tasks that no other thread has taken, with child processes of its own."""
    found: dict[int, Thumbnail] = {}
    with Thumbnailer(side=side, quality=quality) as thumbnailer:
        for unit, rows in tasks:
            found |= _read(unit, rows, thumbnailer)
    return found


def _read(unit: Unit, rows: Sequence[StoredRow], thumbnailer: Thumbnailer) -> dict[int, Thumbnail]:
    """Returns the thumbnails of rows from one place."""
    # The name of a record that has none would depend on where reading began; files all have position 0.
    wanted: dict[str | int, list[StoredRow]] = defaultdict(list)
    for row in rows:
        wanted[row.key if unit.files else row.position].append(row)
    found: dict[int, Thumbnail] = {}
    reason = "its source no longer holds it"
    try:
        for record in shards.read(unit, apart=thumbnailer.reader):
            here = wanted.get(record.key if unit.files else record.position, ())
            if not isinstance(record, EncodedImage):
                reason = record.message
                if unit.files:
                    found.update((row.row, Thumbnail(problem=record.message)) for row in here)
                continue
            same = [row for row in here if hashlib.sha256(record.data).digest() == row.sha256]
            if same:
                shown = thumbnailer.make(record.data)
                found.update(dict.fromkeys((row.row for row in same), shown))
            for row in here:
                found.setdefault(row.row, Thumbnail(problem="its source changed since it was embedded"))
            if len(found) == len(rows):
                break
    except (FeaturemillError, OSError) as error:
        reason = _unreadable(error)
    return {row.row: found.get(row.row, Thumbnail(problem=reason)) for row in rows}
