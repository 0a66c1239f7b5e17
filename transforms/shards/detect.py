"""What a file holds, by its first bytes; and the shard that comes of it."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.records import FileInfo, Shard
from transforms.shards import parquet, tar, tar_headers, tfrecord
from transforms.shards.fields import Fields
from transforms.shards.names import named_format
from transforms.text import clean, one_line

_FORMATS = {"tfrecord": tfrecord, "tar": tar, "parquet": parquet}
_HEAD_BYTES = 64 << 10
_GZIP_MAGIC = b"\x1f\x8b"
# Other packings, only to say what to do about them.
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
# Object stores answer slowly, but many at once.
_THREADS = 16


@dataclass(frozen=True)
class Looked:
    """What a look inside came to: a shard, an image file, or neither for the `reason` given."""

    file: FileInfo
    kind: Literal["shard", "image", "unknown"]
    shard: Shard | None = None
    reason: str = ""


def look_inside(files: Sequence[FileInfo], fields: Fields) -> list[Looked]:
    """Looks at the first bytes of many files at once.

    Raises:
        FeaturemillError: A file can't be read, or lacks a field.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda file: _look(file, fields), files))


def _look(file: FileInfo, fields: Fields) -> Looked:
    try:
        with storage.open_read(file.uri, ahead=_HEAD_BYTES) as opened:
            head = opened.read(_HEAD_BYTES)
        shard = _shard(file, head)
        if shard is not None:
            image, label, name = _FORMATS[shard.format].resolve(shard, fields)
            return Looked(file, "shard", replace(shard, image_field=image, label_field=label, name_field=name))
    except OSError as error:
        cause = clean(one_line(error))
        raise FeaturemillError(f"cannot read {clean(file.uri)}: {cause}; check the path and its permissions") from error
    if head.startswith(_IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return Looked(file, "image")
    return Looked(file, "unknown", reason=_reason(head))


def _shard(file: FileInfo, head: bytes) -> Shard | None:
    """Returns the shard that the first bytes make of a file, without its fields; None if it is none."""
    named = named_format(file.uri)
    compression = ""
    if head.startswith(_GZIP_MAGIC):
        compression, head = "gzip", _unzipped(head)
    if not head:
        return Shard(file, "tfrecord", compression) if named == "tfrecord" else None
    if head.startswith(b"PAR1") and not compression:
        return Shard(file, "parquet")
    if tfrecord.starts_like(head):
        return Shard(file, "tfrecord", compression)
    # An archive without members is nothing but blocks of zeros.
    empty_tar = named == "tar" and len(head) >= tar_headers.BLOCK_BYTES and not any(head)
    if tar_headers.starts_like(head) or empty_tar:
        return Shard(file, "tar", compression)
    return None


def _unzipped(head: bytes) -> bytes:
    """Returns the first bytes in a gzip stream, as many as there are."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, tar_headers.BLOCK_BYTES)
    except zlib.error:
        return b"damaged"


def _reason(head: bytes) -> str:
    if not head:
        return "it is empty"
    packing = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "")
    if packing:
        return f"it is packed with {packing}; unpack it, or pack it with gzip"
    if head.startswith(_GZIP_MAGIC):
        return "it is packed with gzip, but holds neither a TFRecord nor a tar"
    return (
        "looked for a TFRecord (checksum of the first length), a tar (checksum of the first header), a Parquet (PAR1) "
        "and an image (JPEG, PNG, GIF, WebP, BMP, TIFF)"
    )
