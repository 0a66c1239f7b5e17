"""The names of OUT's and PRED's files and folders."""

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from transforms import storage
from transforms.committed import write_whole
from transforms.errors import FeaturemillError
from transforms.text import one_line

# The ids of units as `unit_id` makes them, and the names of merged parts without their ending.
_UNIT, MERGED = r"[A-Za-z0-9._-]+-\d{9,}-[0-9a-f]{16}", r"compact-[0-9a-f]{32}"
# What isn't finished has a name of its own.
_UNFINISHED = r".+\.[0-9a-f]{32}(\.[a-z]+)*"
# What a run writes at the top of OUT, and {folder: names in it}; these are removed and nothing else.
SKIPPED_FILE = "skipped.parquet"
OUTPUT_FILES = ("manifest.json", "plan.parquet", "units.parquet", SKIPPED_FILE)
OUTPUT_FOLDERS = {
    "features": rf"({_UNIT}|{MERGED})\.parquet",
    "failures": rf"{_UNIT}\.parquet",
    "_tmp": _UNFINISHED,
}
# The same of a prediction and PRED; its features are an OUT.
ERRORS_FILE = "errors.html"
PREDICTION_FILES = ("metrics.json", ERRORS_FILE, "manifest.json")
PREDICTION_FOLDERS = {"predictions": r"part-\d{5,}\.parquet", **OUTPUT_FOLDERS}
TODO_PREFIX = "todo."
# What the folder of an added feature begins with, which is an OUT of its own.
ADDED_PREFIX = "features-"


def write_file(output: str, name: str, data: bytes) -> None:
    """Writes a small file of OUT or PRED, whole or not at all.

    Args:
        output: The folder; it has `_tmp`.
        name: Of the file, perhaps with a folder before it.
        data: Its content.

    Raises:
        FeaturemillError: It can't be written.
    """
    temporary = storage.join(output, "_tmp", f"{os.path.basename(name)}.{uuid.uuid4().hex}")
    with writing(name, output):
        write_whole(storage.join(output, name), data, temporary)


@contextmanager
def writing(what: str, output: object, *, then: str = "") -> Iterator[None]:
    """Turns a failure to write, inside the context, into one line.

    Args:
        what: Is written.
        output: OUT or PRED.
        then: What running the same command again does, behind a colon.

    Raises:
        FeaturemillError: For an OSError.
    """
    try:
        yield
    except OSError as error:
        raise FeaturemillError(
            f"cannot write {what} to {output}: {one_line(error)}; free some space or fix the permissions "
            f"and run the same command again{then}"
        ) from error


def is_own(folders: Mapping[str, str], folder: str, name: str) -> bool:
    """Returns whether a file's name is one that ours can have in a folder of OUT or PRED."""
    return re.fullmatch(folders[folder], name) is not None


def part_uri(output: str, unit_id: str) -> str:
    return storage.join(output, "features", f"{unit_id}.parquet")


def failures_uri(output: str, unit_id: str) -> str:
    return storage.join(output, "failures", f"{unit_id}.parquet")


def plan_uri(output: str) -> str:
    return storage.join(output, "plan.parquet")
