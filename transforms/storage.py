"""Files, wherever they lie: local paths directly, everything else through Beam's FileSystems.

Local files don't go through Beam: its local file system can't flush to disk (`fsync`), and importing it costs over a
second that reading features from a laptop's disk should not.
"""

import errno
import glob
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO

from transforms import object_stores, storage
from transforms.errors import FeaturemillError
from transforms.object_stores import READ_BYTES, as_os_error
from transforms.records import FileInfo
from transforms.text import clean, one_line

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
# What a scheme needs installed: our extra, and the module by which its absence shows.
_EXTRAS = {"gs": ("gcp", "google.cloud.storage"), "s3": ("aws", "boto3")}
# Objects appear whole under their names there; other file systems rename.
_OBJECT_STORES = ("gs", "s3")
# There is no file of that name: also where links lead round in a circle, or no name may be so long.
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_local(uri: str) -> bool:
    return _SCHEME.match(uri) is None


def absolute(path: str) -> str:
    """Returns the absolute local path, or the URL as it is, without a slash at the end."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def join(folder: str, *names: str) -> str:
    return "/".join([folder.rstrip("/"), *names])


def _remote(uri: str) -> "type[FileSystems]":
    """Returns Beam's FileSystems.

    Raises:
        FeaturemillError: What the URL's scheme needs isn't installed.
    """
    scheme = _scheme(uri)
    extra, module = _EXTRAS.get(scheme, ("", ""))
    if extra and not _is_installed(module):
        raise FeaturemillError(f"cannot reach {uri}: {scheme}:// needs more; pip install 'featuremill[{extra}]'")
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    if FileSystems._pipeline_options is None:
        # A runner sets them on its workers; on the launching machine S3 refuses to start without.
        FileSystems.set_options(PipelineOptions([]))
    object_stores.settle(scheme)
    return FileSystems


def _scheme(uri: str) -> str:
    return _SCHEME.match(uri).group(1).lower()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def open_read(uri: str, *, ahead: int = READ_BYTES) -> BinaryIO:
    """Opens for reading; the file can seek.

    Args:
        uri: The file.
        ahead: Bytes that are asked of an object store at once, by who wants only a little.

    Raises:
        OSError: The file isn't there or can't be read; errors of stores are OSErrors too, then and while reading.
    """
    if is_local(uri):
        return open(uri, "rb")
    from apache_beam.io.filesystem import CompressionTypes

    with as_os_error(uri):
        file = _remote(uri).open(uri, "application/octet-stream", CompressionTypes.UNCOMPRESSED)
    return object_stores.reader(file, uri, ahead)


def open_write(uri: str) -> BinaryIO:
    """Opens for writing. Closing publishes an object store's file, even an error's: write to a temporary name."""
    if is_local(uri):
        return open(uri, "wb")
    from apache_beam.io.filesystem import CompressionTypes

    with as_os_error(uri, is_answered=False):
        file = _remote(uri).create(uri, "application/octet-stream", CompressionTypes.UNCOMPRESSED)
    return object_stores.Writer(file, uri)


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


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems can't, or not for folders; they say so, and nothing is lost by going on.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def rename(old: str, new: str) -> None:
    """Moves a finished file into place, replacing what is there.

    Atomic on a local disk, where the folder is flushed too. On object stores it is copy and delete, and each object
    appears whole. On HDFS the target may not exist, so "exists" counts as done: whoever was first wrote the same rows.

    Raises:
        OSError: The file couldn't be moved.
    """
    if is_local(new):
        os.replace(old, new)
        folder = os.open(os.path.dirname(new), os.O_RDONLY)
        try:
            _flush(folder)
        finally:
            os.close(folder)
        return
    files = _remote(new)
    try:
        with as_os_error(new):
            files.rename([old], [new])
    except OSError:
        # An object that is there may be the one that was to be replaced.
        if _scheme(new) in _OBJECT_STORES or not files.exists(new):
            raise


def replace_folder(new: str, folder: str) -> None:
    """Moves a finished local folder into place, replacing one that is there.

    A folder can't replace one that isn't empty: that is moved away just before, and back if the other move fails.
    Between the two there is none, never half of one. Where `folder` is a link, what it leads to is replaced.

    Raises:
        OSError: The folder couldn't be moved.
    """
    folder = os.path.realpath(folder)
    old = f"{folder}.{uuid.uuid4().hex}.old"
    if os.path.isdir(folder):
        os.rename(folder, old)
    try:
        rename(new, folder)
    except OSError:
        if os.path.isdir(old):
            os.rename(old, folder)
        raise
    if os.path.isdir(old):
        remove_tree(old)


def write_atomic(uri: str, data: bytes, temporary: str) -> None:
    """Writes `data` to `uri`, so that readers see the old file or the new one, whole.

    Local files are written under `temporary` and moved. On an object store an object appears whole as it is, and a
    rename would only be a copy that can fail halfway.
    """
    local = is_local(uri)
    with open_write(temporary if local else uri) as file:
        file.write(data)
        sync(file)
    if local:
        rename(temporary, uri)


def make_folder(uri: str) -> None:
    """Creates a folder with its parents; object stores have none, so nothing happens there."""
    if is_local(uri):
        os.makedirs(uri, exist_ok=True)


def delete(uris: Iterable[str]) -> None:
    """Deletes files. Local ones may be gone already; remote ones should be there, some stores complain otherwise."""
    uris = list(uris)
    for uri in uris:
        if is_local(uri):
            with suppress(FileNotFoundError):
                os.remove(uri)
    remote = [uri for uri in uris if not is_local(uri)]
    if remote:
        # Google's file system alone takes what it is to delete for patterns.
        names = [glob.escape(uri) for uri in remote] if _scheme(remote[0]) == "gs" else remote
        with as_os_error(remote[0]):
            _remote(remote[0]).delete(names)


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
    found = match(glob.escape(uri))
    return found[0] if found else None


def match(pattern: str, *, limit: int | None = None) -> list[FileInfo]:
    """Returns the files that a glob pattern matches, sorted by URI; `**` crosses folders.

    Args:
        pattern: The pattern.
        limit: Of an object store's, any so many: the rest of the listing isn't asked for.

    Raises:
        FeaturemillError: The file system can't be reached.
    """
    if is_local(pattern):
        infos = (stat(path) for path in glob.iglob(pattern, recursive=True))
        return sorted((info for info in infos if info), key=lambda info: info.uri)
    try:
        with as_os_error(pattern):
            [result] = _remote(pattern).match([pattern], [limit])
    except FeaturemillError:
        raise
    except OSError as error:
        raise FeaturemillError(f"cannot reach {pattern}: {one_line(error)}; check the path and credentials") from error
    return sorted(
        (
            FileInfo(entry.path, entry.size_in_bytes, repr(entry.last_updated_in_seconds))
            for entry in result.metadata_list
        ),
        key=lambda info: info.uri,
    )


def is_folder(uri: str) -> bool:
    """True for a local folder, or a prefix under which an object store holds something."""
    if is_local(uri):
        return os.path.isdir(uri)
    return bool(match(join(glob.escape(uri), "**"), limit=1))


def walk(folder: str) -> Iterator[FileInfo]:
    """Yields every file below a folder, in no particular order.

    Local symbolic links are followed to files only. One that leads nowhere, or to itself, is yielded too, so that it is
    accounted for.
    """
    if not is_local(folder):
        yield from match(join(glob.escape(folder), "**"))
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
        return {info.uri.rsplit("/", 1)[-1] for info in match(join(glob.escape(folder), "*"))}
    try:
        with os.scandir(folder) as entries:
            # Beyond links by path: of one that leads to itself the entry raises an error.
            return {e.name for e in entries if e.is_file(follow_symlinks=False) or os.path.isfile(e.path)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def list_infos(folder: str) -> list[FileInfo]:
    """Returns the files directly in a folder as `walk` yields them; none if it isn't there. `""` is the root."""
    if not is_local(folder):
        return match(join(glob.escape(folder), "*"))
    folder = folder or "/"
    try:
        return list(_infos(folder, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_tree(folder: str) -> None:
    """Removes a folder of ours and what is in it, if it is there; where it is a link, only the link."""
    if not is_local(folder):
        delete(info.uri for info in list(walk(folder)))
    elif os.path.islink(folder):
        os.remove(folder)
    elif os.path.isdir(folder):
        shutil.rmtree(folder)


def readable(uri: str) -> str:
    """Returns a local path relative to the working folder where that is shorter; always printable."""
    relative = os.path.relpath(uri) if storage.is_local(uri) else uri
    return clean(min(uri, relative, key=len))
