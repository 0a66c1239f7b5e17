"""Looks at a file's first bytes and returns the shard that it holds."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.records import FileInfo, Shard
from transforms.shards import parquet, tar, tfrecord
from transforms.shards.fields import Fields, NoImageError
from transforms.shards.format import Format
from transforms.shards.names import base_name, extension, has_ending
from transforms.text import clean, one_line

FORMATS: dict[str, Format] = {each.name: each for each in (tfrecord.FORMAT, tar.FORMAT, parquet.FORMAT)}
# `train-00000-of-01024`, as ImageNet's own scripts name TFRecords, and other names that are only worth a look inside.
_NUMBERED = re.compile(r"[^.]-\d{2,}-of-\d{2,}$")
_MAYBE = re.compile(r"\.(records?|tfr)(\.gz|\.gzip)?$|^part-[rm]-\d+$", re.IGNORECASE)
NOTHING_BY_CONTENT = "neither image nor shard by its first bytes"
# Anything may be in these. Where a look costs a request they are passed over, as are names without an ending.
_ANYTHING = ("bin", "blob", "dat", "data", "file", "image", "img")
_HEAD_BYTES = 64 << 10
# Of gzip, whose first bytes may unpack to many.
_UNZIPPED_BYTES = 512
_GZIP_MAGIC = b"\x1f\x8b"
# Other packings, only to say what to do about them.
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    # Of TFRecords written with TensorFlow's option ZLIB.
    **dict.fromkeys((b"\x78\x01", b"\x78\x9c", b"\x78\xda"), "zlib"),
}
_SIGNS_BYTES = 16
_IMAGE_MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
# Object stores answer slowly, but many at once.
_THREADS = 16


@dataclass(frozen=True)
class Looked:
    """The result of a look inside: a shard, an image file, or neither for the `reason` given.

    A shard without images has the error that says so.
    """

    file: FileInfo
    kind: Literal["shard", "image", "unknown"]
    shard: Shard | None = None
    reason: str = ""
    error: NoImageError | None = None


def named_format(uri: str) -> str:
    """Returns the name of a format, `unknown` (a numbered shard of some kind) or empty (no shard's name)."""
    name = base_name(uri)
    found = next((known.name for known in FORMATS.values() if known.ending.search(name)), "")
    return found or ("unknown" if _NUMBERED.search(name) or _MAYBE.search(name) else "")


def may_be_anything(uri: str) -> bool:
    """Returns whether a name says nothing: no ending, or one of any data; other tools' own marks aside."""
    name = base_name(uri)
    return extension(name) in _ANYTHING or not (has_ending(name) or name.startswith("_"))


def _is_image(head: bytes) -> bool:
    is_boxed = head[4:8] == b"ftyp" and head[8:12] in _BRANDS
    return head.startswith(_IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or is_boxed


def look_inside(files: Sequence[FileInfo], fields: Fields) -> list[Looked]:
    """Looks at the first bytes of many files at once.

    Raises:
        FeaturemillError: A file can't be read, or lacks a field.
    """
    return list(ahead(lambda file: _look(file, fields), files, threads=_THREADS))


def guess_inside(files: Sequence[FileInfo], fields: Fields) -> list[Looked]:
    """Looks at the first bytes of files whose names say nothing; whatever is wrong with one is a reason.

    One without an ending is an image or nothing: logs of training are TFRecords too.
    """
    return list(ahead(lambda file: _guess(file, fields), files, threads=_THREADS))


def _guess(file: FileInfo, fields: Fields) -> Looked:
    try:
        if has_ending(file.uri):
            return _look(file, fields)
        with storage.open_read(file.uri) as opened:
            is_image = _is_image(opened.read(_SIGNS_BYTES))
    except (OSError, FeaturemillError) as error:
        return Looked(file, "unknown", reason=clean(one_line(error)))
    return Looked(file, "image") if is_image else Looked(file, "unknown", reason=NOTHING_BY_CONTENT)


def _look(file: FileInfo, fields: Fields) -> Looked:
    try:
        with storage.open_read(file.uri, ahead=_HEAD_BYTES) as opened:
            head = opened.read(_HEAD_BYTES)
        shard = _shard(file, head)
        if shard is not None:
            return _resolved(shard, fields)
    except OSError as error:
        cause = clean(one_line(error))
        raise FeaturemillError(f"cannot read {clean(file.uri)}: {cause}; check the path and its permissions") from error
    if _is_image(head):
        return Looked(file, "image")
    return Looked(file, "unknown", reason=_reason(head))


def _resolved(shard: Shard, fields: Fields) -> Looked:
    resolve = FORMATS[shard.format].resolve
    try:
        image, label, name = resolve(shard, fields)
    except NoImageError as error:
        if fields.image:
            try:
                resolve(shard, replace(fields, image=None))
            except NoImageError:
                pass
            else:
                # It has images, and not the one that was asked for.
                raise
        return Looked(shard.file, "unknown", reason=str(error).partition("; pass ")[0], error=error)
    return Looked(shard.file, "shard", replace(shard, image_field=image, label_field=label, name_field=name))


def _shard(file: FileInfo, head: bytes) -> Shard | None:
    """Returns the shard that the first bytes make of a file, without its fields; None if it is none."""
    named = named_format(file.uri)
    compression = ""
    if head.startswith(_GZIP_MAGIC):
        compression, head = "gzip", _unzipped(head)
    for name, known in FORMATS.items():
        if (known.gzip or not compression) and known.matches(head, named == name):
            return Shard(file, name, compression)
    return None


def _unzipped(head: bytes) -> bytes:
    """Returns the first bytes in a gzip stream, as many as there are."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _UNZIPPED_BYTES)
    except zlib.error:
        return b"damaged"


def foreign_packing(head: bytes) -> str:
    """Returns the name of the packing that a file's first bytes show, such as `zip`; empty for gzip and for none."""
    return next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "")


def _reason(head: bytes) -> str:
    if not head:
        return "it is empty"
    if packing := foreign_packing(head):
        return f"it is packed with {packing}; unpack it, or pack it with gzip"
    if head.startswith(_GZIP_MAGIC):
        packed = [f"a {known.title}" for known in FORMATS.values() if known.gzip]
        return f"it is packed with gzip, but holds neither {' nor '.join(packed)}"
    signs = ", ".join(f"a {known.title} ({known.sign})" for known in FORMATS.values())
    return f"looked for {signs} and an image (JPEG, PNG, GIF, WebP, BMP, TIFF)"
