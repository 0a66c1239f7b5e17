"""Thumbnails of stored rows: their images, read again from where they lie and checked to be the ones of then.

They are decoded in child processes, always: few images, in commands of which nothing is kept if one crashes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

from transforms import shards
from transforms.errors import FeaturemillError
from transforms.images.thumbnail import QUALITY, SIDE, Thumbnail, thumbnail
from transforms.isolated import Crashed, Isolated
from transforms.machine import available_cores
from transforms.records import Unit
from transforms.rows.lookup import StoredRow
from transforms.rows.sources import reread, unreadable
from transforms.store.listing import read_footers
from transforms.store.output import Output

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
        """Takes the pixels of the longer side, and the quality of the WebP, 0 to 100."""
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
    output: Output | None, rows: Iterable[StoredRow], *, side: int = SIDE, quality: int = QUALITY
) -> dict[int, Thumbnail]:
    """Returns {row number: thumbnail}; one that says why where a source is gone, or no longer what it was.

    Args:
        output: OUT; None for plain Parquet, which has no sources that are known how to read.
        rows: Of OUT; each is read once.
        side: Pixels of the longer side.
        quality: Of the WebP, 0 to 100.
    """
    rows = {row.row: row for row in rows}
    found = dict.fromkeys(rows, Thumbnail(problem="where its image lies isn't known"))
    placed = [row for row in rows.values() if output and row.sha256 is not None and row.position is not None]
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
    found.update((row.row, Thumbnail(problem=unreadable(error))) for row in rows)


def _by_unit(
    output: Output, rows: Sequence[StoredRow], found: dict[int, Thumbnail]
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
        units = [planned for planned in output.plan if planned.unit_id in by_id]
    except (FeaturemillError, OSError) as error:
        _give_up(found, rows, error)
        return
    for planned in units:
        yield planned.unit, by_id[planned.unit_id]


def _narrowed(unit: Unit, rows: Sequence[StoredRow]) -> Iterator[tuple[Unit, Sequence[StoredRow]]]:
    """Yields rows with as little of the unit as holds them: a few files at a time, or parts of the shard."""
    if unit.files:
        yield from ((unit, rows[first : first + _FILES]) for first in range(0, len(rows), _FILES))
    else:
        rows, at = sorted(rows, key=lambda row: row.position), 0
        for part, count in shards.FORMATS[unit.shard.format].narrow(unit, [row.position for row in rows]):
            yield part, rows[at : at + count]
            at += count


def _read_all(tasks: Iterator[tuple[Unit, Sequence[StoredRow]]], *, side: int, quality: int) -> dict[int, Thumbnail]:
    """Returns the thumbnails of those tasks that no other thread has taken, with child processes of its own."""
    found: dict[int, Thumbnail] = {}
    with Thumbnailer(side=side, quality=quality) as thumbnailer:
        for row, image in chain.from_iterable(reread(*task, apart=thumbnailer.reader) for task in tasks):
            found[row.row] = Thumbnail(problem=image) if isinstance(image, str) else thumbnailer.make(image)
    return found
