"""Targets: the files that a command is asked to write, checked before any work is done for them."""

import os
from collections.abc import Sequence

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.store.layout import OUTPUT_FILES, OUTPUT_FOLDERS, PREDICTION_FILES, PREDICTION_FOLDERS
from transforms.store.output import Output

# What a run or a prediction writes, beside or below its manifest.
_FILES = {*OUTPUT_FILES, *PREDICTION_FILES}
_FOLDERS = {*OUTPUT_FOLDERS, *PREDICTION_FOLDERS}
# Endings of files with rows, see `tables.write_rows`.
ROWS = (".parquet", ".csv", ".jsonl")


def check_targets(
    sources: Sequence[str],
    *,
    rows: str | None = None,
    page: str | None = None,
    plot: str | None = None,
    overwrite: bool = False,
) -> None:
    """Checks that files can be written here, and that none is one that is read or an OUT's own.

    A page may lie in OUT. No two can be the same file: their endings differ.

    Args:
        sources: All that is read: OUT or other Parquet (files, folders, patterns), images, vectors.
        rows: A file of --output; None if they weren't asked for, as for the others.
        page: Of --html.
        plot: Of --plot.
        overwrite: Whether files that are there may be replaced.

    Raises:
        UsageError: No name, another ending, no such folder, a folder, a file that is read or is some OUT's own.
        FeaturemillError: A file that is there already, as all commands say it.
    """
    kinds = ((rows, ROWS), (page, (".html", ".htm")), (plot, (".png", ".svg")))
    for path, endings in ((path, endings) for path, endings in kinds if path is not None):
        full = _real(path)
        folder = os.path.dirname(full)
        if not path:
            raise UsageError("a file to write has no name; give one")
        if storage.is_local(path) and not os.path.isdir(folder):
            raise UsageError(f"cannot write {path}: there is no folder {folder}; make it, or choose another place")
        if storage.is_local(path) and os.path.isdir(full):
            raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
        for source in sources:
            if _is_read(source, full):
                raise UsageError(f"cannot write {path}: it is one of the files of {source}; choose another place")
        if _is_outs_own(full):
            raise UsageError(f"cannot write {path}: {folder} is kept for parts and totals; choose another place")
        if not path.lower().endswith(endings):
            raise UsageError(f"cannot write {path}: its ending has to be {' or '.join(endings)}")
        if storage.stat(path) and not overwrite:
            raise FeaturemillError(f"{path} is there already; choose another place, or pass --overwrite")


def check_replaceable(output: str, names: Sequence[str], *, what: str, overwrite: bool) -> None:
    """Checks that a local file, or a folder with files of ours, may be written in the place of what is there.

    Args:
        output: The file or folder.
        names: All that may be in the folder, first what always is; none for a file. It is replaced as a whole: what
            somebody else put there would go with it.
        what: What something else is, in the error.
        overwrite: Whether what is ours may be replaced.

    Raises:
        FeaturemillError: There is something else, or it isn't to be replaced.
    """
    is_folder = os.path.isdir(output)
    there = set(os.listdir(output)) if is_folder else set()
    if not os.path.lexists(output) or (is_folder and names and not there):
        return
    if not (names[0] in there and there <= set(names) if names else os.path.isfile(output)):
        raise FeaturemillError(f"{output} is there and {what}; choose another --output, or move it elsewhere")
    if not overwrite:
        raise FeaturemillError(f"{output} is there already; choose another --output, or pass --overwrite")


def _real(path: str) -> str:
    path = storage.absolute(path)
    return os.path.realpath(path) if storage.is_local(path) else path


def _is_read(source: str, full: str) -> bool:
    """Returns whether a file is the source or one of its files, or would be taken for one."""
    source = storage.absolute(source)
    folders = [source, *(storage.join(source, name) for name in _FOLDERS)]
    if full == _real(source) or (full.endswith(".parquet") and os.path.dirname(full) in map(_real, folders)):
        return True
    # Links and patterns lead elsewhere, but never to a file that isn't there yet.
    if storage.is_local(source) != storage.is_local(full) or not storage.stat(full):
        return False
    infos = [info for folder in folders for info in storage.list_infos(folder) if info.uri.endswith(".parquet")]
    return full in {_real(info.uri) for info in infos or storage.match(source)}


def _is_outs_own(full: str) -> bool:
    """Returns whether a file would lie among the files or the parts of an OUT, whatever is read."""
    folder, name = os.path.split(full)
    above, last = os.path.split(folder)
    if name in _FILES and Output(folder).has_manifest:
        return True
    # An OUT may itself be called `features`, beside another manifest.
    return last in _FOLDERS and Output(above).has_manifest and not Output(folder).has_manifest


def check_beside(output: str, given: str) -> None:
    """Raises UsageError for an output inside of what is read; both are absolute."""
    if f"{output}/".startswith(f"{given}/"):
        raise UsageError(f"the output {output} lies inside the input {given}; choose a folder beside it")
