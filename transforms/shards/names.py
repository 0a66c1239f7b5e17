"""Reads a file's name: image or not, hidden or not."""

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


def base_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def is_image(name: str) -> bool:
    """True if the last extension of a file's or member's name is that of an image."""
    _, dot, extension = base_name(name).rpartition(".")
    return bool(dot) and extension.lower() in IMAGE_EXTENSIONS


def is_hidden(path: str) -> bool:
    """True if a part of a relative path starts with a dot, or is the shadow folder that macOS puts into archives."""
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
