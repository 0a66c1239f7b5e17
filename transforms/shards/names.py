"""What a file's name tells: image or shard, hidden or not; and text that any file can hold."""

import re

# One list for folders, globs and tar members: what Pillow opens and people keep photographs in.
IMAGE_EXTENSIONS = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "mpo",
        "png",
        "apng",
        "gif",
        "webp",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "jp2",
        "j2k",
        "avif",
        "ico",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
    ]
)

_SHARD_NAMES = (
    ("tfrecord", re.compile(r"\.(tfrecords?|tfrec)(-\d+-of-\d+)?(\.gz|\.gzip)?$", re.IGNORECASE)),
    ("tar", re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)),
    ("parquet", re.compile(r"\.(parquet|parq|pq)$", re.IGNORECASE)),
    # `train-00000-of-01024`, as ImageNet's own scripts name TFRecords. Only worth a look inside.
    ("unknown", re.compile(r"[^.]-\d{2,}-of-\d{2,}$")),
)


def base_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def is_image(name: str) -> bool:
    """True if the last extension of a file's or member's name is that of an image."""
    _, dot, extension = base_name(name).rpartition(".")
    return bool(dot) and extension.lower() in IMAGE_EXTENSIONS


def named_format(uri: str) -> str:
    """Returns `tfrecord`, `tar`, `parquet`, `unknown` (a numbered shard of some kind) or empty (no shard's name)."""
    name = base_name(uri)
    return next((kind for kind, pattern in _SHARD_NAMES if pattern.search(name)), "")


def is_hidden(path: str) -> bool:
    """True if a part of a relative path starts with a dot, or is the shadow folder that macOS puts into archives."""
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
