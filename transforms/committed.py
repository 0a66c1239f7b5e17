"""Files and folders that appear whole or not at all: written under another name, flushed to disk, then moved."""

import ctypes
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from transforms import storage

# Of renameat2(2): paths are relative to the working folder; the two names change places.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def committed_file(uri: str, temporary: str | None = None, *, replaces: bool = False) -> Iterator[BinaryIO]:
    """Yields a file that appears as `uri`, whole and on disk, once the block ends without an error.

    On object stores it is written under its own name, since objects appear whole there.

    Args:
        uri: The file. On a disk its folder must be there.
        temporary: Its name until then, in the same file system; by default one beside it.
        replaces: Delete one that is there where a file system's rename can't replace it (HDFS). Else one that is there
            counts as the same.

    Raises:
        OSError: It can't be written. Nothing of it is left then, as far as the disk can still delete.
    """
    name = storage.written_as(uri, temporary or f"{uri}.{uuid.uuid4().hex}.tmp")
    try:
        with storage.open_write(name) as file:
            yield file
            storage.sync(file)
        if replaces and name != uri and not storage.is_local(uri):
            storage.delete([uri])
        storage.rename(name, uri)
    except BaseException:
        if name != uri:
            with suppress(OSError):
                storage.delete([name])
        raise


def write_whole(uri: str, data: bytes, temporary: str | None = None) -> None:
    """Writes `data` to `uri`, so that readers see the old file or the new one, whole; as `committed_file` does.

    Raises:
        OSError: It can't be written.
    """
    with committed_file(uri, temporary, replaces=True) as file:
        file.write(data)


@contextmanager
def committed_folder(folder: str) -> Iterator[str]:
    """Yields an empty local folder, which takes the place of `folder`, whole and on disk, once the block ends.

    Where `folder` is a link, what it leads to is replaced. The folder above must be there.

    Raises:
        OSError: It can't be written. What was at `folder` is still there then.
    """
    folder = os.path.realpath(folder)
    new = f"{folder}.{uuid.uuid4().hex}.tmp"
    try:
        os.mkdir(new)
        yield new
        storage.sync_tree(new)
        _put(new, folder)
    finally:
        storage.remove_tree(new)


def _put(new: str, folder: str) -> None:
    """Moves a folder to a name; what was there may be found under the name `new` afterwards."""
    if not os.path.isdir(folder):
        storage.rename(new, folder)
    elif _exchange(new, folder):
        storage.sync_name(os.path.dirname(folder))
    else:
        # A folder can't replace one that isn't empty: that is moved away just before, and back if the other move
        # fails. Between the two there is none, never half of one.
        old = f"{folder}.{uuid.uuid4().hex}.old"
        os.rename(folder, old)
        try:
            storage.rename(new, folder)
        except OSError:
            os.rename(old, folder)
            raise
        storage.remove_tree(old)


def _exchange(one: str, other: str) -> bool:
    """Lets two names change places at once; False where the system or its file system can't."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = [os.fsencode(name) for name in (one, other)]
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
