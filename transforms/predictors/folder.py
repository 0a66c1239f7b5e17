"""A head's folder: where one may be written, and how it gets there whole or not at all, array by array."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from transforms import storage
from transforms.committed import committed_folder
from transforms.errors import FeaturemillError

# Files that a head's folder may have beside those that its head.json lists.
_OWN_FILES = {"head.json", "head.npz", "metrics.json", "report.html", "errors.html", "rows.parquet"}
_READ_BYTES = 2**20


def check_place(folder: str, *, overwrite: bool) -> None:
    """Checks that a head may be written here, before any work is done for it.

    Raises:
        FeaturemillError: There is a head and it isn't to be replaced, or there is something else.
    """
    folder = storage.absolute(folder)
    if storage.stat(folder):
        raise FeaturemillError(f"{folder} is a file, and a head is a folder; choose another --output")
    if storage.is_local(folder):
        _check_parent(folder)
    names = _names(folder)
    if not names:
        return
    strange = sorted(names - _own_files(folder))
    if strange or "head.json" not in names:
        raise FeaturemillError(
            f"{folder} holds what is no head's ({', '.join((strange or sorted(names))[:3])}), and would be replaced as "
            "a whole; choose another --output, or move that elsewhere"
        )
    if not overwrite:
        raise FeaturemillError(f"{folder} holds a head already; choose another --output, or pass --overwrite")


def _check_parent(folder: str) -> None:
    parent = os.path.dirname(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK):
        raise FeaturemillError(
            f"{folder} can't be written: {parent} is no folder one may write to; choose another --output"
        )


def _names(folder: str) -> set[str]:
    """Returns the names of what is in a folder, folders included."""
    if not storage.is_local(folder):
        return storage.list_folder(folder)
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def _own_files(folder: str) -> set[str]:
    # A damaged head may be replaced, too.
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        return _OWN_FILES | set(json.loads(storage.read_bytes(storage.join(folder, "head.json")))["files"])
    return _OWN_FILES


def write_folder(
    folder: str, files: Mapping[str, bytes], arrays: Mapping[str, np.ndarray], describe: Callable[[str], bytes]
) -> None:
    """Writes `head.npz`, other files, and last of all `head.json`, replacing a head that is there.

    A local folder appears whole or not at all. On an object store there is no head without `head.json`. The arrays are
    never in memory twice: those of knn are as large as its rows.

    Args:
        folder: Where, absolute.
        files: {name: content} of the other files.
        arrays: Of `head.npz`.
        describe: Takes the SHA-256 (hex) of `head.npz` and returns the content of `head.json`.

    Raises:
        OSError: It can't be written.
    """
    if storage.is_local(folder):
        _write_local(folder, files, arrays, describe)
    else:
        _write_remote(folder, files, arrays, describe)


def _write_local(
    folder: str, files: Mapping[str, bytes], arrays: Mapping[str, np.ndarray], describe: Callable[[str], bytes]
) -> None:
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with committed_folder(folder) as new:
        _write_files(new, files)
        npz = storage.join(new, "head.npz")
        with storage.open_write(npz) as file:
            np.savez(file, **arrays)
        # Read back, because zip files are finished by going back in them.
        with storage.open_read(npz) as file:
            sha256 = sha256_of(file)
        _write_files(new, {"head.json": describe(sha256)})


def _write_remote(
    folder: str, files: Mapping[str, bytes], arrays: Mapping[str, np.ndarray], describe: Callable[[str], bytes]
) -> None:
    # A store's files can't go back, as zip files do.
    with tempfile.TemporaryFile() as npz:
        np.savez(npz, **arrays)
        sha256 = sha256_of(npz)
        # head.json first: without it there is no head.
        there = sorted(_names(folder), key=lambda name: name != "head.json")
        storage.delete(storage.join(folder, name) for name in there)
        _write_files(folder, files)
        npz.seek(0)
        with storage.open_write(storage.join(folder, "head.npz")) as file:
            shutil.copyfileobj(npz, file, _READ_BYTES)
    _write_files(folder, {"head.json": describe(sha256)})


def _write_files(folder: str, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        with storage.open_write(storage.join(folder, name)) as file:
            file.write(data)


def sha256_of(file: BinaryIO) -> str:
    """Returns SHA-256 (hex) of a whole file that can seek, reading a little at a time."""
    file.seek(0)
    digest = hashlib.sha256()
    while data := file.read(_READ_BYTES):
        digest.update(data)
    return digest.hexdigest()


def open_arrays(folder: str) -> BinaryIO:
    """Opens `head.npz`; from elsewhere it is fetched at once, not in the small reads of a zip file.

    Raises:
        OSError: It can't be read.
    """
    uri = storage.join(folder, "head.npz")
    return storage.open_read(uri) if storage.is_local(uri) else io.BytesIO(storage.read_bytes(uri))
