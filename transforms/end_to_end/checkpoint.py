"""The checkpoint of a fine-tuning on disk: one file, whole or not there, which is taken for the same training alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from transforms import storage
from transforms.committed import committed_file
from transforms.end_to_end.tuning import Checkpoint, Tuning
from transforms.errors import FeaturemillError
from transforms.text import one_line

_VERSION = 1


def checkpoint_of(head: str) -> str:
    """Returns where the checkpoint of a HEAD that is being trained lies: beside it."""
    return f"{head}.checkpoint"


def write_checkpoint(uri: str, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
    """Writes a checkpoint in the place of the one before: a line of JSON, then the arrays as in `.npy` files.

    A store's files can't go back, as those of `np.savez` do.

    Args:
        checkpoint: What to write.
        asked: JSON values that say which training it is.

    Raises:
        FeaturemillError: It can't be written; the one before is still there.
    """
    arrays = (*checkpoint.best, *checkpoint.network)
    values = {
        "schema_version": _VERSION,
        "asked": dict(asked),
        "tuning": asdict(checkpoint.tuning),
        "arrays": [len(checkpoint.best), len(checkpoint.network)],
    }
    line = json.dumps({**values, "sha256": _sha256(values, arrays)})
    try:
        with committed_file(uri, replaces=True) as file:
            file.write(f"{line}\n".encode())
            for array in arrays:
                np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError as error:
        raise FeaturemillError(
            f"cannot write the checkpoint {uri} ({one_line(error)}); free some space or fix the permissions, and go on "
            "with --resume"
        ) from error


def read_checkpoint(uri: str, asked: Mapping[str, Any]) -> Checkpoint:
    """Reads what `write_checkpoint` wrote.

    Args:
        uri: Where it is.
        asked: Which training is to go on.

    Raises:
        FeaturemillError: It can't be read, was changed, or is of another training; what differs is named.
    """
    try:
        with storage.open_read(uri) as file:
            values = json.loads(file.readline())
            if values["schema_version"] != _VERSION:
                raise ValueError(f"it has schema version {values['schema_version']!r}")
            best, network = values["arrays"]
            arrays = [np.lib.format.read_array(file, allow_pickle=False) for _ in range(best + network)]
            if values.pop("sha256") != _sha256(values, arrays) or file.read(1):
                raise ValueError("its content doesn't give the hash that it carries")
        tuning = {**values["tuning"], "epochs": tuple(values["tuning"]["epochs"])}
        checkpoint = Checkpoint(Tuning(**tuning), arrays[:best], arrays[best:])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FeaturemillError(
            f"{uri} can't be gone on with ({one_line(error)}); restore it, or begin anew with --overwrite"
        ) from error
    kept = values["asked"]
    different = [f"{name} {kept.get(name)} | {asked[name]}" for name in asked if kept.get(name) != asked[name]]
    if different:
        raise FeaturemillError(
            f"{uri} is of another training (it | now): {'; '.join(different)}; go on with what it was begun with, or "
            "begin anew with --overwrite"
        )
    return checkpoint


def _sha256(values: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
