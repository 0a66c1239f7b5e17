"""Targets: the files that a command is asked to write, checked before any work is done for them."""

import os

from pipeline.output import OUTPUT_FILES, OUTPUT_FOLDERS
from transforms import storage
from transforms.records import UsageError


def check_targets(source: str, *paths: str | None) -> None:
    """Checks that files can be written here, and that none is one that is read or another target.

    Args:
        source: What is read: OUT, or other Parquet.
        paths: Files; None for those that weren't asked for.

    Raises:
        UsageError: No name, no such folder, a folder, one of OUT's own files, or the same file twice.
    """
    seen = set()
    for path in (path for path in paths if path is not None):
        full = os.path.realpath(storage.absolute(path)) if storage.is_local(path) else path
        folder = os.path.dirname(full)
        if not path:
            raise UsageError("a file to write has no name; give one")
        if full in seen:
            raise UsageError(f"{path} would be written twice; give each result a file of its own")
        if storage.is_local(path) and not os.path.isdir(folder):
            raise UsageError(f"{path} can't be written: there is no folder {folder}; make it first")
        if storage.is_local(path) and os.path.isdir(full):
            raise UsageError(f"{path} can't be written: it is a folder; name a file in it")
        if _is_sources_own(source, full):
            raise UsageError(f"{path} can't be written: it is one of the files of {source}; choose another place")
        seen.add(full)


def _is_sources_own(source: str, full: str) -> bool:
    """Whether a file is the source, or would be taken for one of its files."""
    source = os.path.realpath(storage.absolute(source)) if storage.is_local(source) else source.rstrip("/")
    if full == source:
        return True
    if not full.startswith(source + "/"):
        return False
    first, _, rest = full.removeprefix(source + "/").partition("/")
    return first in (OUTPUT_FOLDERS if rest else OUTPUT_FILES) or first.endswith(".parquet")
