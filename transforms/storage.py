"""Files, wherever they lie: local paths directly, everything else through pyarrow's file systems.

Local files don't go through pyarrow: its local file system can't flush to disk (`fsync`), and importing it takes time
that `--help` should not.
"""

import errno
import glob
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.object_stores import READ_BYTES, Place, Reader, StoreError, Writer, ask, has_answered, place
from transforms.records import FileInfo
from transforms.text import one_line, shown_within

if TYPE_CHECKING:
    from pyarrow import fs

T = TypeVar("T")

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
# Objects appear whole under their names elsewhere; these have folders, and rename.
_FILE_SYSTEMS = ("hdfs", "viewfs")
# A listing of a million objects takes minutes; a store that answered lately is trusted to go on.
_LISTING_SECONDS = 600
_DELETING_THREADS, _DELETED_PER_SECOND = 16, 20
# What makes a name a pattern.
_MAGIC = re.compile(r"[*?\[]")
# There is no file of that name: also where links lead round in a circle, or no name may be so long.
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_local(uri: str) -> bool:
    return _SCHEME.match(uri) is None


def absolute(path: str) -> str:
    """Returns the absolute local path, or the URL as it is, without a slash at the end."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def join(folder: str, *names: str) -> str:
    return "/".join([folder.rstrip("/"), *names])


def _scheme(uri: str) -> str:
    return _SCHEME.match(uri).group(1).lower()


def _is_object_store(uri: str) -> bool:
    return not is_local(uri) and _scheme(uri) not in _FILE_SYSTEMS


def open_read(uri: str, *, ahead: int = READ_BYTES, buffer: int = -1) -> BinaryIO:
    """Opens for reading; the file can seek.

    Args:
        uri: The file.
        ahead: Bytes that are asked of an object store at once, by who wants only a little.
        buffer: Bytes that are read of a local file at once, by who wants them all; by default a few blocks.

    Raises:
        OSError: The file isn't there or can't be read; errors of stores are OSErrors too, then and while reading.
    """
    if is_local(uri):
        return open(uri, "rb", buffer)
    there = place(uri)
    file = ask(lambda: there.files.open_input_file(there.path))
    return Reader(file, ask(file.size, is_answered=False), ahead)


def open_write(uri: str) -> BinaryIO:
    """Opens for writing. On a store the file appears when it is closed, and never if a `with` ends in an error."""
    return open(uri, "wb") if is_local(uri) else Writer(uri)


def written_as(uri: str, temporary: str) -> str:
    """Returns where to write what is to appear whole as `uri`, before it is renamed to that: there on object stores."""
    return uri if _is_object_store(uri) else temporary


def read_bytes(uri: str) -> bytes:
    with open_read(uri) as file:
        return file.read()


def sync(file: BinaryIO) -> None:
    """Flushes a local file to disk; nothing to do elsewhere.

    Raises:
        OSError: The disk is full or broken: what was written may not be there.
    """
    if not isinstance(file, io.BufferedWriter) or not isinstance(file.raw, io.FileIO):
        return
    file.flush()
    _flush(file.fileno())


def sync_tree(folder: str) -> None:
    """Flushes a local folder with all that is in it to disk.

    Raises:
        OSError: As `sync`.
    """
    for path, _, files in os.walk(folder):
        for name in (*(os.path.join(path, file) for file in files), path):
            sync_name(name)


def sync_name(path: str) -> None:
    """Flushes a local file or folder to disk, by its name.

    Raises:
        OSError: As `sync`.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems can't, or not for folders; they say so, and nothing is lost by going on.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def rename(old: str, new: str) -> None:
    """Moves a finished file into place, replacing what is there.

    Atomic on a local disk, where the folder is flushed too. On object stores what was written under its own name is
    there already. On HDFS the target may not exist, so "exists" counts as done: whoever was first wrote the same rows.

    Raises:
        OSError: The file couldn't be moved.
    """
    if old == new:
        return
    if is_local(new):
        os.replace(old, new)
        sync_name(os.path.dirname(new))
        return
    source, target = place(old), place(new)
    try:
        ask(lambda: source.files.move(source.path, target.path))
    except OSError:
        # An object that is there may be the one that was to be replaced.
        if _is_object_store(new) or stat(new) is None:
            raise


def make_folder(uri: str) -> None:
    """Creates a folder with its parents; object stores have none, so nothing happens there."""
    if is_local(uri):
        os.makedirs(uri, exist_ok=True)


def delete(uris: Iterable[str]) -> None:
    """Deletes files, of which any may be gone already."""
    uris = list(uris)
    remote = [uri for uri in uris if not is_local(uri)]
    for uri in uris:
        if is_local(uri):
            with suppress(FileNotFoundError):
                os.remove(uri)
    if len(remote) == 1:
        _delete_remote(remote[0])
    elif remote:
        list(ahead(_delete_remote, remote, threads=_DELETING_THREADS))


def _delete_remote(uri: str) -> None:
    there = place(uri)
    with suppress(FileNotFoundError):
        ask(lambda: there.files.delete_file(there.path))


def stat(uri: str) -> FileInfo | None:
    """Returns the file as listed, or None if there is no such file. Folders, pipes and sockets aren't files."""
    if is_local(uri):
        try:
            info = os.stat(uri)
        except OSError as error:
            if error.errno not in _NO_SUCH_FILE:
                raise
            return None
        return FileInfo(uri, info.st_size, str(info.st_mtime_ns)) if S_ISREG(info.st_mode) else None
    there = place(uri)
    if _scheme(uri) in ("s3", "gs"):
        # pyarrow would list what may lie below the name of a file that isn't there.
        try:
            _reached(uri, lambda: ask(lambda: there.files.open_input_file(there.path)))
        except FileNotFoundError:
            return None
    info = _reached(uri, partial(_info, there))
    return _file(there, info) if info.is_file else None


def _info(there: Place) -> "fs.FileInfo":
    return ask(lambda: there.files.get_file_info(there.path))


def _reached(uri: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FeaturemillError(f"cannot reach {uri}: {one_line(error)}; check the path and credentials") from error


def _file(there: Place, info: "fs.FileInfo") -> FileInfo:
    # Some stores that speak S3 list milliseconds and answer for one object in whole seconds.
    micros = info.mtime_ns // 1000
    seconds = float(micros // 10**6) if there.root.lower() == "s3://" else micros / 10**6
    return FileInfo(there.uri(info.path), info.size, repr(seconds))


def match(pattern: str) -> list[FileInfo]:
    """Returns the files that a glob pattern matches, sorted by URI; `**` crosses folders.

    Raises:
        FeaturemillError: The file system can't be reached, or it is no pattern.
    """
    if is_local(pattern):
        infos = (stat(path) for path in glob.iglob(pattern, recursive=True))
        return sorted((info for info in infos if info), key=lambda info: info.uri)
    magic = _MAGIC.search(pattern)
    if magic is None:
        info = stat(pattern)
        return [info] if info else []
    folder, _, rest = pattern[: magic.start()].rpartition("/")
    rest += pattern[magic.start() :]
    if folder.endswith("/"):
        raise FeaturemillError(f"cannot look up {pattern}: the name of a bucket can't be a pattern; name each bucket")
    try:
        is_wanted = re.compile(_translated(rest), re.DOTALL).fullmatch
    except re.error as error:
        raise FeaturemillError(f"{pattern} is not a pattern: {error}; write [[] for a bracket that is meant") from error
    found = _listed(folder, recursive="/" in rest or "**" in rest)
    return [info for info in found if is_wanted(info.uri[len(folder) + 1 :])]


def _translated(pattern: str) -> str:
    """Returns a glob pattern as a regular expression: `**` is any text, `*` any without a slash."""
    parts = re.split(r"(\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    meanings = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    for i in range(1, len(parts), 2):
        if parts[i] in meanings:
            parts[i] = meanings[parts[i]]
        else:
            inner = parts[i][1:-1].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
            parts[i] = f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner.replace('^', chr(92) + '^', 1)}]"
    parts[::2] = map(re.escape, parts[::2])
    return "".join(parts)


def _listed(folder: str, *, recursive: bool) -> list[FileInfo]:
    """Returns the files below a store's folder, or directly in it, sorted by URI; what stands for a folder is none."""
    from pyarrow.fs import FileSelector

    there = place(folder)

    def listed() -> "list[fs.FileInfo]":
        if not has_answered():
            # A silent store is found out here, because the listing's timeout is long.
            _info(there)
        selector = FileSelector(there.path, allow_not_found=True, recursive=recursive)
        return ask(lambda: there.files.get_file_info(selector), more=_LISTING_SECONDS) or _check_bucket(there)

    infos = _reached(folder, listed)
    return sorted((_file(there, info) for info in infos if info.is_file), key=lambda info: info.uri)


def _check_bucket(there: Place) -> list:
    """Returns nothing, if there is such a bucket: pyarrow lists one that isn't there as an empty one."""
    bucket = there.path.partition("/")[0]
    try:
        is_there = not bucket or ask(lambda: there.files.get_file_info(bucket)).type.name != "NotFound"
    except StoreError as error:
        # Listing is allowed and this isn't: then there is one.
        is_there = error.is_answer
        if not is_there:
            raise
    if not is_there:
        raise StoreError(f"there is no bucket {bucket}", is_answer=True)
    return []


def is_folder(uri: str) -> bool:
    """Returns whether it is a folder, or a prefix under which an object store holds something."""
    if is_local(uri):
        return os.path.isdir(uri)
    there = place(uri)
    info = _reached(uri, partial(_info, there))
    if info.type.name == "NotFound":
        _reached(uri, partial(_check_bucket, there))
    # An object's name may be a prefix of others.
    return info.type.name == "Directory" or (info.is_file and bool(_listed(uri, recursive=True)))


def walk(folder: str) -> Iterator[FileInfo]:
    """Yields every file below a folder, in no particular order.

    Local symbolic links are followed to files only. One that leads nowhere, or to itself, is yielded too, so that it is
    accounted for.
    """
    if not is_local(folder):
        yield from _listed(folder, recursive=True)
        return
    for root, _, names in os.walk(folder, onerror=_raise):
        yield from _infos(root, names)


def _infos(folder: str, names: Iterable[str]) -> Iterator[FileInfo]:
    for name in names:
        path = os.path.join(folder, name)
        info = stat(path)
        if info:
            yield info
        elif os.path.islink(path) and not os.path.exists(path):
            yield FileInfo(path, 0, f"link to {os.readlink(path)}")


def _raise(error: OSError) -> None:
    raise error


def list_folder(folder: str) -> set[str]:
    """Returns the names of the files directly in a folder; none if it isn't there. One listing, no request per file."""
    if not is_local(folder):
        return {info.uri.rsplit("/", 1)[-1] for info in _listed(folder, recursive=False)}
    try:
        with os.scandir(folder) as entries:
            # Beyond links by path: of one that leads to itself the entry raises an error.
            return {e.name for e in entries if e.is_file(follow_symlinks=False) or os.path.isfile(e.path)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def list_infos(folder: str) -> list[FileInfo]:
    """Returns the files directly in a folder as `walk` yields them; none if it isn't there. `""` is the root."""
    if not is_local(folder):
        return _listed(folder, recursive=False)
    folder = folder or "/"
    try:
        return list(_infos(folder, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def look_up(uris: Iterable[str]) -> dict[str, FileInfo]:
    """Returns those of the files that are there, by one listing per folder: no request per file."""
    by_folder: dict[str, set[str]] = {}
    for uri in uris:
        by_folder.setdefault(uri.rsplit("/", 1)[0], set()).add(uri)
    found = {}
    for folder, wanted in by_folder.items():
        found.update({info.uri: info for info in list_infos(folder) if info.uri in wanted})
    return found


def remove_tree(folder: str, is_ours: Callable[[str], object] | None = None) -> None:
    """Removes a folder of ours and what is in it, if it is there; where it is a link, only the link.

    Args:
        folder: Its path or URL.
        is_ours: Tells whether a file of such a name in it is ours. Only such are removed then, and the folder if
            nothing else is in it; where it is a link, nothing is.
    """
    if not is_local(folder):
        there, files = place(folder), _listed(folder, recursive=True)
        ours = [info for info in files if is_ours is None or is_ours(info.uri[len(folder) + 1 :])]
        if len(ours) < len(files):
            delete(info.uri for info in ours)
        elif files:
            # Stores delete a thousand at a time.
            ask(lambda: there.files.delete_dir(there.path), more=len(files) / _DELETED_PER_SECOND)
    elif is_ours:
        _remove_ours(folder, is_ours)
    elif os.path.islink(folder):
        os.remove(folder)
    elif os.path.isdir(folder):
        shutil.rmtree(folder)


def _remove_ours(folder: str, is_ours: Callable[[str], object]) -> None:
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_ours(entry.name) and not entry.is_dir(follow_symlinks=False)]
    delete(os.path.join(folder, name) for name in names)
    # Only if it is empty now.
    with suppress(OSError):
        os.rmdir(folder)


def readable(uri: str) -> str:
    """Returns a local path relative to the working folder where that is shorter; always printable, on one line."""
    relative = os.path.relpath(uri) if is_local(uri) else uri
    return shown_within(min(uri, relative, key=len))
