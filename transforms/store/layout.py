"""The names of OUT's and PRED's files and folders."""

import os
import uuid

from transforms import storage
from transforms.committed import write_whole
from transforms.errors import FeaturemillError
from transforms.text import one_line

# What a run writes at the top of OUT; --overwrite removes these and nothing else.
SKIPPED_FILE = "skipped.parquet"
OUTPUT_FILES = ("manifest.json", "plan.parquet", "units.parquet", SKIPPED_FILE)
OUTPUT_FOLDERS = ("features", "failures", "_tmp")
# What a prediction writes at the top of PRED; --overwrite removes these and nothing else.
PREDICTION_FILES = ("metrics.json", "manifest.json")
PREDICTION_FOLDERS = ("predictions", "failures", "features", "_tmp")
TODO_PREFIX = "todo."


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
    try:
        write_whole(storage.join(output, name), data, temporary)
    except OSError as error:
        raise FeaturemillError(
            f"cannot write {name} to {output}: {one_line(error)}; free some space or fix the permissions "
            "and run the same command again"
        ) from error


def part_uri(output: str, unit_id: str) -> str:
    return storage.join(output, "features", f"{unit_id}.parquet")


def failures_uri(output: str, unit_id: str) -> str:
    return storage.join(output, "failures", f"{unit_id}.parquet")


def plan_uri(output: str) -> str:
    return storage.join(output, "plan.parquet")
