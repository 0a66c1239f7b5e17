"""Reads a file's name: image or not, of which kind, hidden or not."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile

from transforms.records import SkippedFile

# One list for folders, globs and tar members: what Pillow opens and people keep photographs in.
IMAGE_EXTENSIONS = frozenset(
    [
        *(
            "jpg",
            "jpeg",
            "jpe",
            "pjpeg",
            "pjp",
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
        ),
        *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "avif", "heic", "heif", "hif", "ico", "ppm", "pgm", "pbm", "pnm"),
    ]
)

# Pictures of kinds that aren't read. A file of one is listed as an image all the same: it becomes a failure that says
# so, where passing over it would lose it.
UNREAD_EXTENSIONS = frozenset(
    [
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "gpr", "iiq", "kdc", "mef", "mos", "mrw", "nef"),
        *("nrw", "orf", "pef", "raf", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
        *("jxl", "jxr", "wdp", "hdp", "jls", "qoi", "bpg", "flif", "exr", "hdr", "tga", "pcx", "dds", "sgi", "icns"),
        *("psd", "psb", "xcf", "svg", "svgz", "eps", "wmf", "emf", "dcm", "dicom", "fits", "fit", "fts", "djvu"),
    ]
)
# Why a file is passed over, where that is all there is to say.
HIDDEN = "hidden"
BY_NAME = "neither image nor shard by its name"
# What stands behind the ending where a name was made from an address, or a copy was numbered.
_BEHIND = re.compile(
    rf"\.({'|'.join(sorted(IMAGE_EXTENSIONS))})(\?.*|[^a-z0-9./?][^./]*|\.\d+)$", re.IGNORECASE | re.DOTALL
)
_ENDING = re.compile(r"\.(?=[a-z0-9_]*[a-z])[a-z0-9_]{1,12}$", re.IGNORECASE)


def base_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def common_folder(first: str, last: str) -> str:
    """Returns the folders that two paths, and all that are sorted between them, begin with, such as `/data/train`."""
    pairs = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    return "/".join(name for name, other in takewhile(lambda pair: pair[0] == pair[1], pairs))


def extension(name: str) -> str:
    """Returns the last extension of a file's or member's name in lower case, without the dot; empty if it has none."""
    _, dot, last = base_name(name).rpartition(".")
    return last.lower() if dot else ""


def has_ending(name: str) -> bool:
    """Returns whether a file's name ends in a kind: not `photo`, `2021.05.03` or `Mr. Smith`."""
    return _ENDING.search(base_name(name)) is not None


def is_image(name: str) -> bool:
    """Returns whether the last extension of a file's or member's name is an image's: of `1.jpg?width=400` too."""
    return extension(name) in IMAGE_EXTENSIONS or _BEHIND.search(base_name(name)) is not None


def is_picture(name: str) -> bool:
    """Returns whether it is that of an image, or of a picture of a kind that isn't read."""
    return is_image(name) or extension(name) in UNREAD_EXTENSIONS


def count_by_ending(skipped: Iterable[SkippedFile]) -> dict[str, int]:
    """Returns {`.txt`, `no ending` or `hidden`: files}, the commonest first."""
    counts = Counter(
        HIDDEN
        if each.reason == HIDDEN
        else f".{extension(each.file.uri)}"
        if has_ending(each.file.uri)
        else "no ending"
        for each in skipped
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def is_hidden(path: str) -> bool:
    """Returns whether a part of a relative path starts with a dot, or is the shadow folder of macOS in archives."""
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
