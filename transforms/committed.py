"""Files and folders that appear whole or not at all: written under another name, flushed to disk, then moved.

Who writes under a name that a user chose holds it meanwhile (`held`), so that there is one writer, which also removes
what killed ones left behind.
"""

import ctypes
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.locks import locked_name

# Of renameat2(2): paths are relative to the working folder; the two names change places.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# What stands behind a target's name until it is whole, and where one gives way that can't be exchanged.
_LEFTOVER = r"\.[0-9a-f]{32}\.(tmp(\.\w+)?|old)"
# Between its two names a folder is for a moment nowhere.
_MOMENT_SECONDS, _MOMENTS = 0.05, 40


@contextmanager
def held(*targets: str | None, parents: bool = False) -> Iterator[None]:
    """Keeps other commands off local files and folders that are going to be written or replaced as a whole.

    What commands that were killed left beside them is removed; a folder that was about to be replaced is brought back.

    Args:
        targets: None for what wasn't asked for; what isn't on this machine's disks is left alone.
        parents: Make the folders above, too; if nothing comes of them, they are removed again.

    Raises:
        FeaturemillError: Another command is at work on one.
    """
    names = {storage.absolute(name) for name in targets if name is not None and storage.is_local(name)}
    with ExitStack() as stack:
        # A folder that is a link is replaced behind it, a file that is one isn't.
        names = {os.path.join(os.path.realpath(folder), name) for folder, name in map(os.path.split, names)}
        for path in sorted({*names, *map(os.path.realpath, names)}):
            if stack.enter_context(locked_name(path, parents=parents)):
                _remove_leftovers(path)
        yield


def recover(folder: str) -> None:
    """Brings a folder back whose replacement was cut off between its two renames; does nothing where it is there."""
    if not storage.is_local(folder):
        return
    folder = os.path.realpath(folder)
    for _ in range(_MOMENTS):
        if os.path.lexists(folder) or not any(entry.name.endswith(".old") for entry in _leftovers(folder)):
            return
        # Another command may just be between them.
        with suppress(FeaturemillError), held(folder):
            continue
        time.sleep(_MOMENT_SECONDS)


def _leftovers(path: str) -> list[os.DirEntry]:
    """Returns what was to become a file or folder, or gave way to it; links aren't ours."""
    folder, name = os.path.split(path)
    is_ours = re.compile(re.escape(name) + _LEFTOVER).fullmatch
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if is_ours(e.name) and (e.is_file(follow_symlinks=False) or _is_real_folder(e))]
    except OSError:
        return []


def _is_real_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _remove_leftovers(path: str) -> None:
    # What can't be removed is in nobody's way.
    with suppress(OSError):
        for entry in _leftovers(path):
            if entry.name.endswith(".old") and not os.path.lexists(path):
                storage.rename(entry.path, path)
            elif _is_real_folder(entry):
                shutil.rmtree(entry.path)
            else:
                os.remove(entry.path)


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
