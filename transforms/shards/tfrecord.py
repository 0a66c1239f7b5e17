"""TFRecord: records of `tf.train.Example`, each framed by its length and two checksums.

A record is: length (uint64, little endian), masked CRC32C of the length (uint32), data, masked CRC32C of the data
(uint32). Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details. TensorFlow's own
reader tells no offsets and stops at the first bad record, so the framing is read here.
"""

import re
import struct
from collections.abc import Iterator, Mapping

import google_crc32c

from transforms.labels.kept import type_of
from transforms.labels.values import as_label
from transforms.records import EncodedImage, Failure, Shard, Unit
from transforms.shards import example
from transforms.shards.fields import Fields, choose, missing, name_or, usual
from transforms.shards.format import Format
from transforms.shards.stream import (
    MAX_ENCODED_BYTES,
    BrokenError,
    Stream,
    broken,
    cut,
    failure,
    open_stream,
    stretches,
)
from transforms.text import clean

IMAGE_FIELDS = ("image/encoded", "image")
# Where one is empty, the next counts. The synset comes before its text: two of ImageNet's are called crane.
LABEL_FIELDS = ("image/class/synset", "image/class/text", "image/class/label", "label", "class")
NAME_FIELDS = ("image/filename", "file_name", "filename")
# To find out which features there are: not all records need have all.
_LOOK_AT_RECORDS = 16
_HEADER_BYTES = 12
_CRC_BYTES = 4


def masked_crc(data: bytes) -> int:
    """Returns the masked CRC32C: rotated right by 15 bits, plus 0xa282ead8, modulo 2**32 (see the module's source)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Returns a record around `data`."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def starts_like(head: bytes) -> bool:
    """Returns whether the bytes start with a length and its right checksum."""
    if len(head) < _HEADER_BYTES:
        return False
    return struct.unpack("<I", head[8:_HEADER_BYTES])[0] == masked_crc(head[:8])


def resolve(shard: Shard, fields: Fields) -> tuple[str, str, str]:
    """Returns the names of the image, label and name features, by a look at the first records.

    One record is enough where it has all that is wanted, but an image may well come without a label. Where there is no
    record, or the first is broken, the usual names are taken, and reading reports what is wrong.

    Raises:
        FeaturemillError: The records lack a feature that was asked for, or have no image under a usual name.
    """
    labels = LABEL_FIELDS if fields.label is None else (fields.label,) if fields.label else ()
    seen: set[str] = set()
    images: set[str] = set()
    for features in _first(shard):
        seen.update(features)
        images.update(name for name in features if example.is_bytes(features, name))
        if _image_field(fields, images) and (not labels or usual(labels, seen)):
            break
    if not seen:
        return fields.image or IMAGE_FIELDS[0], fields.label or "", fields.name or ""
    image = _image_field(fields, images)
    if not image:
        wanted = fields.image or " or ".join(IMAGE_FIELDS)
        raise missing(shard.file.uri, role="image", wanted=wanted, present=seen)
    there = {"present": seen, "usable": seen}
    return (
        image,
        choose(shard, "label", asked=fields.label, names=LABEL_FIELDS, **there),
        choose(shard, "name", asked=fields.name, names=NAME_FIELDS, **there),
    )


def _image_field(fields: Fields, present: set[str]) -> str:
    if fields.image:
        return fields.image if fields.image in present else ""
    return usual(IMAGE_FIELDS, present)


def _first(shard: Shard) -> Iterator[Mapping]:
    """Yields the features of the first records, up to one that is broken."""
    with open_stream(shard) as stream:
        try:
            for _ in range(_LOOK_AT_RECORDS):
                length = _read_length(stream)
                data = None if length is None or length > MAX_ENCODED_BYTES else _read_data(stream, length)
                if data is None:
                    return
                yield example.parse(data)
        except (BrokenError, ValueError):
            return


def split(shard: Shard, unit_bytes: int) -> list[Unit]:
    """Returns units that start and stop at records, by one pass over the headers."""
    with open_stream(shard) as stream:
        return cut(shard, _starts(stream), unit_bytes)


def _starts(stream: Stream) -> Iterator[int]:
    try:
        while True:
            offset = stream.position
            length = _read_length(stream)
            if length is None:
                break
            yield offset
            stream.skip(length + _CRC_BYTES)
    except BrokenError:
        pass
    yield stream.position


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a unit, in order.

    A record with a bad checksum is one failure, and reading goes on behind it, since its length was right; a bad
    length ends the shard.
    """
    shard, index = unit.shard, unit.first_index
    with open_stream(shard, unit.start, through=True) as stream:
        while unit.stop < 0 or stream.position < unit.stop:
            offset = stream.position
            try:
                length = _read_length(stream)
                if length is None:
                    if unit.stop >= 0:
                        raise BrokenError("truncated", f"the shard has become shorter: it ends at {offset}")
                    return
                row = _record(shard, stream, length=length, index=index, offset=offset)
            except BrokenError as error:
                yield broken(shard, error, offset)
                return
            yield row
            index += 1


def _read_length(stream: Stream) -> int | None:
    """Returns the length of the next record's data, None at the end of the shard."""
    header = stream.read(_HEADER_BYTES)
    if not header:
        return None
    if len(header) < _HEADER_BYTES:
        raise BrokenError("truncated", f"the shard ends at byte {stream.position}, inside a record's header")
    if not starts_like(header):
        raise BrokenError("bad length", "the checksum of a record's length is wrong")
    return struct.unpack("<Q", header[:8])[0]


def _read_data(stream: Stream, length: int) -> bytes | None:
    """Returns a record's data, None if its checksum is wrong."""
    data = stream.read_exactly(length)
    [crc] = struct.unpack("<I", stream.read_exactly(_CRC_BYTES))
    return data if crc == masked_crc(data) else None


def _record(shard: Shard, stream: Stream, *, length: int, index: int, offset: int) -> EncodedImage | Failure:
    place = f"record {index} (byte {offset}) of {shard.file.uri}"
    if length > MAX_ENCODED_BYTES:
        stream.skip(length + _CRC_BYTES)
        message = f"{place} has {length} bytes; at most {MAX_ENCODED_BYTES} are read"
        return failure(shard, key=str(index), position=offset, error="too large", message=message)
    data = _read_data(stream, length)
    if data is None:
        message = f"{place}: the checksum of its data is wrong"
        return failure(shard, key=str(index), position=offset, error="bad crc", message=message)
    try:
        return _image(shard, example.parse(data), index=index, offset=offset)
    except ValueError as error:
        message = f"{place}: {error}"
        return failure(shard, key=str(index), position=offset, error="bad example", message=message)


def _image(shard: Shard, features: Mapping, *, index: int, offset: int) -> EncodedImage | Failure:
    key = name_or(example.value_of(features, shard.name_field), str(index))
    label, unusable = _label(features, shard.label_field)
    data = example.value_of(features, shard.image_field)
    if isinstance(data, bytes):
        source = clean(shard.file.uri)
        kept = tuple(example.value_of(features, column.name) for column in shard.keep)
        return EncodedImage(f"{source}#{key}", label, source, offset, data, unusable, kept=kept)
    where = f"record {index} (byte {offset}) of {shard.file.uri}: {shard.image_field}"
    what = f"has {len(data)} values instead of one" if isinstance(data, list) else "holds no bytes"
    error, what = ("no image", "is missing") if data is None else ("wrong field type", what)
    return failure(shard, key=key, position=offset, error=error, message=f"{where} {what}", label=label)


def _label(features: Mapping, field: str) -> tuple[str | None, str]:
    """Returns the label, and why one that is there can't be used; a usual field that is empty stands back."""
    names = LABEL_FIELDS[LABEL_FIELDS.index(field) :] if field in LABEL_FIELDS else (field,)
    for name in names:
        label, unusable = as_label(example.value_of(features, name))
        if label is not None or unusable:
            return label, unusable
    return None, ""


def _columns(shard: Shard) -> dict[str, str]:
    found: dict[str, str] = {}
    for features in _first(shard):
        for name in features:
            value = example.value_of(features, name)
            if value is not None:
                found.setdefault(name, type_of(value))
    return found


FORMAT = Format(
    name="tfrecord",
    title="TFRecord",
    sign="checksum of the first length",
    ending=re.compile(r"\.(tfrecords?|tfrec)(-\d+-of-\d+)?(\.gz|\.gzip)?$", re.IGNORECASE),
    gzip=True,
    # A writer that was given no record leaves an empty file.
    matches=lambda head, named: starts_like(head) if head else named,
    resolve=resolve,
    split=split,
    read=read,
    narrow=stretches,
    columns=_columns,
)
