"""Plain image files: listings cut into units, and read ahead by a few threads."""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.object_stores import is_answer
from transforms.records import LISTING, EncodedImage, Failure, FileInfo, ListedFile, Shard, Unit
from transforms.shards.stream import MAX_ENCODED_BYTES
from transforms.text import clean, one_line

# Enough to hide the latency of an object store; a local disk gains little and loses nothing.
_THREADS = 8
_AHEAD_FILES = 32
_AHEAD_BYTES = 64 << 20
# The machine's trouble, not the file's: going on would list good images as failures.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def slice_files(files: Sequence[ListedFile], per_unit: int) -> list[Unit]:
    """Cuts a listing into units of at most `per_unit` files, in order.

    Each unit is a listing of its own: it starts at 0, and its shard names the deepest common folder of its files, their
    bytes and a version made of their URIs, sizes and versions. So a unit's identity doesn't change when files are added
    elsewhere in the listing. A unit never crosses from one store or bucket to another.
    """
    units = []
    for _, group in groupby(files, key=lambda listed: _root(listed.file.uri)):
        listing = tuple(group)
        units += [_unit(listing[i : i + per_unit]) for i in range(0, len(listing), per_unit)]
    return units


def _root(uri: str) -> str:
    return "/" if storage.is_local(uri) else "/".join(uri.split("/", 3)[:3])


def _unit(files: tuple[ListedFile, ...]) -> Unit:
    size = sum(listed.file.size for listed in files)
    version = hashlib.sha256()
    for listed in files:
        info = listed.file
        version.update(f"{info.uri}\0{info.size}\0{info.version}\0".encode("utf-8", "surrogateescape"))
    folder = FileInfo(_common_folder([listed.file.uri for listed in files]), size, version.hexdigest())
    return Unit(Shard(folder, LISTING), 0, len(files), input_bytes=size, files=files)


def _common_folder(uris: Sequence[str]) -> str:
    # Sorted text differs most between the first and the last, also part by part.
    first, last = (uri.split("/")[:-1] for uri in (min(uris), max(uris)))
    common = [a for a, b in zip(first, last, strict=False)]
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            common = common[:i]
            break
    return "/".join(common) or "/"


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the files of a unit, in order; one that has vanished or can't be read is a failure.

    Raises:
        FeaturemillError: The folder of the listing can't be reached any more, a store is in trouble, or the machine
            runs out of file handles.
    """
    limits = {"threads": _THREADS, "most": _AHEAD_FILES, "most_bytes": _AHEAD_BYTES}
    with closing(ahead(_read, unit.files, size=lambda listed: listed.file.size, **limits)) as found:
        for listed, data in zip(unit.files, found, strict=True):
            yield _row(unit.shard, listed, data)


def _read(listed: ListedFile) -> bytes | OSError:
    try:
        with storage.open_read(listed.file.uri) as file:
            return file.read(MAX_ENCODED_BYTES + 1)
    except OSError as error:
        return error


def _row(shard: Shard, listed: ListedFile, data: bytes | OSError) -> EncodedImage | Failure:
    uri = listed.file.uri
    key = clean(uri)
    if isinstance(data, OSError):
        error = data
        if not _is_files_own(error, shard.file.uri, uri):
            folder = clean(shard.file.uri)
            cure = f"bring its folder {folder} back (or free the machine's resources)"
            if not storage.is_local(uri):
                cure = f"see that {folder} can be reached"
            message = f"cannot read {key}: {clean(one_line(error))}; {cure}"
            raise FeaturemillError(f"{message} and run the same command again: it resumes") from error
        reason = "vanished" if isinstance(error, FileNotFoundError) or error.errno == errno.ENOENT else "unreadable"
        message = f"cannot read {key}: {clean(one_line(error))}"
    else:
        if len(data) <= MAX_ENCODED_BYTES:
            return EncodedImage(key, listed.label, key, 0, data, split=listed.split)
        reason, message = "too large", f"{key} has over {MAX_ENCODED_BYTES} bytes, the most that is read"
    return Failure(key, listed.label, key, 0, "read", reason, message)


def _is_files_own(error: OSError, folder: str, uri: str) -> bool:
    """Returns whether only this file can't be read; with the machine or a store in trouble, good images can't be."""
    if error.errno in _OUT_OF_RESOURCES:
        return False
    try:
        # Stores other than S3 and Google's don't say that a file isn't there; they are asked.
        is_own = storage.is_local(uri) or is_answer(error) or storage.stat(uri) is None
        return is_own and storage.is_folder(folder)
    except FeaturemillError:
        return False
