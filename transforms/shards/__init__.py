"""Image shards, one module per format behind one face: find them, split them into units, read a unit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from transforms.errors import FeaturemillError
from transforms.isolated import Crashed, Isolated
from transforms.labels.folders import partition_value
from transforms.labels.kept import arrow_type, fit, parse_keep
from transforms.labels.values import LABEL_LETTERS, TOO_LONG, as_label
from transforms.records import EncodedImage, Failure, Kept, Shard, Unit
from transforms.shards import files
from transforms.shards.detect import FORMATS
from transforms.shards.fields import NAME_BYTES, Fields, missing
from transforms.shards.files import slice_files
from transforms.shards.inputs import Found, find
from transforms.shards.names import IMAGE_EXTENSIONS
from transforms.shards.stream import MAX_ENCODED_BYTES, failure, look
from transforms.text import clean, one_line

__all__ = [
    "FORMATS",
    "IMAGE_EXTENSIONS",
    "MAX_ENCODED_BYTES",
    "Fields",
    "Found",
    "find",
    "kept_columns",
    "look_at_labels",
    "read",
    "reading_child",
    "slice_files",
    "split",
]

_RECORD_SECONDS = 30.0


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


def kept_columns(found: Found, asked: Sequence[str], known: Mapping[str, str]) -> tuple[Kept, ...]:
    """Returns the columns that come along, each with its type.

    Without one in `asked`, a column has that which OUT has for it, or else its own in the first shard of a format.

    Args:
        asked: `COLUMN` or `COLUMN:TYPE`.
        known: {column: type} in OUT.

    Raises:
        FeaturemillError: No first shard has such a column, or its type can't come along; or it can't be read.
    """
    firsts: dict[str, Shard] = {}
    for shard in found.shards:
        firsts.setdefault(shard.format, shard)
    columns = [replace(kept, type=kept.type or known.get(kept.name, "")) for kept in map(parse_keep, asked)]
    if all(kept.type for kept in columns):
        return tuple(columns)
    if not firsts and not found.columns:
        raise FeaturemillError(
            f"--keep {asked[0]}: the inputs are image files, and these have no columns; leave it out"
        )
    there = dict(found.columns)
    for shard in firsts.values():
        try:
            there = FORMATS[shard.format].columns(shard) | there
        except OSError as error:
            raise _unreadable(shard, error) from error
    for kept in columns:
        if not kept.type and kept.name not in there:
            uri = " and ".join(shard.file.uri for shard in firsts.values()) or "the tables of paths"
            raise missing(uri, role="keep", wanted=kept.name, present=there)
        if not kept.type and not there[kept.name]:
            raise FeaturemillError(
                f"--keep {kept.name}: its type is none that comes along as it is; pass --keep {kept.name}:string, or "
                "another TYPE, or leave it out"
            )
    return tuple(replace(kept, type=kept.type or there[kept.name]) for kept in columns)


def reading_child() -> Isolated:
    """Returns a child process for `read`: one that computes for over 30 s between two records is ended."""
    return Isolated(seconds=_RECORD_SECONDS, may_wait=True)


def is_native(unit: Unit) -> bool:
    """Returns whether a unit is read by native code, which damaged data may crash."""
    return not unit.shard.is_listing and FORMATS[unit.shard.format].is_native


def read(unit: Unit, *, apart: Isolated | None = None, all_apart: bool = False) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a unit as they are stored, one record in memory at a time.

    What is wrong with the data is a Failure of the stage `read` and never raises. Where a shard can't be read any
    further, one Failure with the key `URI#@offset` says so.

    Args:
        unit: What is read.
        apart: A child process in which formats with native readers are read; where that crashes, or takes longer for
            a record than it has, nothing more is read.
        all_apart: All other shards are read there, too.

    Raises:
        FeaturemillError: The shard has vanished, or its disk or store fails.
    """
    if apart and (is_native(unit) or (all_apart and not unit.shard.is_listing)):
        yield from _read_apart(unit, apart)
        return
    try:
        images = files.read(unit) if unit.shard.is_listing else _read_shard(unit)
        yield from (_bounded(unit.shard, image) for image in islice(images, unit.limit))
    except OSError as error:
        raise _unreadable(unit.shard, error) from error


def _bounded(shard: Shard, image: EncodedImage | Failure) -> EncodedImage | Failure:
    """Returns the record without a label that is too long for one; a failure in its place if its key is too long."""
    # A letter has four bytes at most.
    if len(image.key) - len(image.source) > NAME_BYTES // 4:
        size = len(image.key.encode()) - len(image.source.encode()) - 1
        if size > NAME_BYTES:
            message = (
                f"the name of the image at {image.position} of {shard.file.uri} has over {NAME_BYTES} bytes, the most "
                f"that a key has: {image.key[len(image.source) + 1 :][:60]}…"
            )
            where = f"@{image.position}"
            return failure(shard, key=where, position=image.position, error="key too long", message=message)
    if image.label is not None and len(image.label) > LABEL_LETTERS:
        unusable = {"unusable": TOO_LONG} if isinstance(image, EncodedImage) else {}
        image = replace(image, label=None, **unusable)
    return _fitted(image, shard.keep) if shard.keep and isinstance(image, EncodedImage) else image


def _fitted(image: EncodedImage, keep: tuple[Kept, ...]) -> EncodedImage:
    """Returns the image with what comes along in its type, and notes on what is missing or doesn't fit."""
    values, notes = [], []
    for kept, stored in zip(keep, image.kept or (None,) * len(keep), strict=True):
        value, why = fit(stored, arrow_type(kept.type))
        values.append(value)
        if value is None:
            notes.append(f"whose {kept.name} can't be kept as {kept.type}: {why}" if why else f"without {kept.name}")
    return replace(image, kept=tuple(values), notes=tuple(notes))


def _read_apart(unit: Unit, child: Isolated) -> Iterator[EncodedImage | Failure]:
    shard, position = unit.shard, unit.first_index
    try:
        for record in child.iterate(read, unit):
            position = record.position + 1
            yield record
    except Crashed as error:
        reason, cure = f"crashed the reader ({error.how})", "write it again"
        if error.reason == "too slow":
            reason, cure = f"it takes {error.how}", "write it again, or raise --record-seconds to wait for it"
        message = f"cannot read {shard.file.uri} beyond record {position}: {reason}; {cure}"
        error = error.reason if error.reason == "too slow" else "crashed the reader"
        yield failure(shard, key=f"@{position}", position=position, error=error, message=message)


def look_at_labels(shard: Shard, *, records: int, most_bytes: int) -> tuple[list[str | None], bool]:
    """Returns the labels of a shard's first images, and whether these are all of them.

    Args:
        shard: Where to look.
        records: At most so many.
        most_bytes: No image that begins after so many bytes is read, where images must be read to get at labels.

    Raises:
        FeaturemillError: The shard can't be read.
    """
    own_look = FORMATS[shard.format].look
    try:
        if own_look and not shard.label_field.endswith("="):
            return own_look(shard, records)
        labels: list[str | None] = []
        # What else lies between the images counts, too: on a store it is fetched.
        unit = look(shard, most_bytes)
        for image in _read_shard(unit):
            if len(labels) >= records or most_bytes <= 0:
                return labels, False
            if isinstance(image, EncodedImage):
                labels.append(image.label)
                most_bytes -= len(image.data)
        # Of the last one before a cut, the label may lie behind it.
        return (labels, True) if unit.stop < 0 else (labels[:-1], False)
    except OSError as error:
        raise _unreadable(shard, error) from error


def _read_shard(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a shard, with the label that a folder of its path gives to all of them, if one does."""
    shard = unit.shard
    read_format = FORMATS[shard.format].read
    if not shard.label_field.endswith("="):
        return read_format(unit)
    label = as_label(partition_value(shard.file.uri, shard.label_field[:-1]))[0]
    images = read_format(replace(unit, shard=replace(shard, label_field="")))
    return (replace(image, label=label) if isinstance(image, EncodedImage) else image for image in images)


def _unreadable(shard: Shard, error: OSError) -> FeaturemillError:
    return FeaturemillError(
        f"cannot read {clean(shard.file.uri)}: {clean(one_line(error))}; "
        "bring it back and run the same command again: it resumes"
    )
