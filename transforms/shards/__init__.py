"""Image shards, one module per format behind one face: find them, split them into units, read a unit."""

from collections.abc import Iterator
from itertools import islice

from transforms.errors import FeaturemillError
from transforms.records import EncodedImage, Failure, Shard, Unit
from transforms.shards import files
from transforms.shards.detect import FORMATS
from transforms.shards.fields import Fields
from transforms.shards.files import slice_files
from transforms.shards.inputs import Found, find
from transforms.shards.names import IMAGE_EXTENSIONS
from transforms.shards.stream import MAX_ENCODED_BYTES
from transforms.text import clean, one_line

__all__ = [
    "FORMATS",
    "IMAGE_EXTENSIONS",
    "MAX_ENCODED_BYTES",
    "Fields",
    "Found",
    "find",
    "read",
    "slice_files",
    "split",
]


def split(shard: Shard, unit_bytes: int) -> list[Unit]:
    """Cuts a shard into units of at most `unit_bytes`, at record boundaries.

    A record (or row group) that is longer gets a unit of its own. A gzip shard stays whole: every unit would have to
    decompress all that lies before it. The last unit is open-ended, so that its reader reports any damage.

    Raises:
        FeaturemillError: The shard isn't there or can't be read. Damage of its content raises nothing.
    """
    if shard.file.size <= unit_bytes or shard.compression:
        return [Unit(shard, input_bytes=shard.file.size)]
    try:
        return FORMATS[shard.format].split(shard, unit_bytes)
    except OSError as error:
        raise _unreadable(shard, error) from error


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a unit as they are stored, one record in memory at a time.

    What is wrong with the data is a Failure of the stage `read` and never raises. Where a shard can't be read any
    further, one Failure with the key `URI#@offset` says so.

    Raises:
        FeaturemillError: The shard has vanished, or its disk or store fails.
    """
    try:
        images = files.read(unit) if unit.shard.is_listing else FORMATS[unit.shard.format].read(unit)
        yield from islice(images, unit.limit)
    except OSError as error:
        raise _unreadable(unit.shard, error) from error


def _unreadable(shard: Shard, error: OSError) -> FeaturemillError:
    return FeaturemillError(
        f"cannot read {clean(shard.file.uri)}: {clean(one_line(error))}; "
        "bring it back and run the same command again: it resumes"
    )
