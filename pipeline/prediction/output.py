"""PRED as a whole: whether a prediction may go there, is there already, begins, and is finished."""

import json
import os
from contextlib import suppress
from typing import Any

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.store.layout import PREDICTION_FILES, PREDICTION_FOLDERS, features_folder, write_file
from transforms.store.manifest import write_manifest
from transforms.text import one_line

SCHEMA_VERSION = 1
KIND = "predictions"


def read_predictions(output: str) -> dict[str, Any] | None:
    """Returns PRED's manifest; None where nothing is yet.

    Raises:
        FeaturemillError: PRED holds something else.
    """
    if storage.is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
        raise FeaturemillError(f"{output} is not a folder; choose another --output")
    there = storage.list_folder(output) & {*PREDICTION_FILES, "head.json"}
    if not there and not any(storage.is_folder(storage.join(output, name)) for name in PREDICTION_FOLDERS[:-1]):
        return None
    try:
        manifest = json.loads(storage.read_bytes(storage.join(output, "manifest.json")))
        if manifest["kind"] == KIND and manifest["schema_version"] == SCHEMA_VERSION and "settings" in manifest:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise FeaturemillError(f"{output} holds something else than predictions of this version; choose another --output")


def check_settings(output: str, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """Checks that PRED's predictions are those that are asked for now.

    Raises:
        FeaturemillError: They aren't, with what differs.
    """
    there = manifest["settings"]
    different = [f"{name} {there.get(name)} | {value}" for name, value in settings.items() if there.get(name) != value]
    if different:
        raise FeaturemillError(
            f"{output} holds other predictions (there | now): {'; '.join(different)}. "
            "Choose another --output, or --overwrite"
        )


def clear(output: str, manifest: dict[str, Any]) -> None:
    """Removes what a prediction wrote to PRED, and nothing else.

    Raises:
        FeaturemillError: It can't be removed.
    """
    try:
        # First of all it must no longer say "complete": this may be cut off halfway.
        storage.make_folder(storage.join(output, "_tmp"))
        write_manifest(output, {**manifest, "status": "running"})
        for name in PREDICTION_FOLDERS:
            _remove(storage.join(output, name))
        there = storage.list_folder(output)
        storage.delete(storage.join(output, name) for name in PREDICTION_FILES if name in there)
    except OSError as error:
        raise FeaturemillError(
            f"cannot clear {output}: {one_line(error)}; choose another --output or fix the permissions"
        ) from error


def begin(output: str, manifest: dict[str, Any]) -> None:
    """Says in the manifest that a run is under way, and removes what an earlier one predicted.

    Raises:
        FeaturemillError: PRED can't be written.
    """
    try:
        storage.make_folder(storage.join(output, "_tmp"))
        write_manifest(output, {**manifest, "status": "running"})
        for name in ("predictions", "failures"):
            _remove(storage.join(output, name))
            storage.make_folder(storage.join(output, name))
        if "metrics.json" in storage.list_folder(output):
            storage.delete([storage.join(output, "metrics.json")])
    except OSError as error:
        raise FeaturemillError(
            f"cannot write to {output}: {one_line(error)}; choose another --output or fix the permissions"
        ) from error


def finish(output: str, manifest: dict[str, Any], *, metrics: dict[str, Any] | None) -> None:
    """Writes metrics.json if there are metrics, says "complete", and removes what isn't needed any more.

    Raises:
        FeaturemillError: PRED can't be written.
    """
    if metrics is not None:
        write_file(output, "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    write_manifest(output, {**manifest, "status": "complete"})
    tidy(output, keep_features=manifest["features_kept"])


def discard(output: str) -> None:
    """Removes what an unfinished prediction wrote, and PRED if nothing else is in it. Says nothing if it can't."""
    with suppress(OSError, FeaturemillError):
        for name in PREDICTION_FOLDERS:
            _remove(storage.join(output, name))
        there = storage.list_folder(output)
        storage.delete(storage.join(output, name) for name in PREDICTION_FILES if name in there)
        if storage.is_local(output):
            os.rmdir(output)


def tidy(output: str, *, keep_features: bool) -> None:
    """Removes temporary files, and the features unless they are wanted. They go last: up to there they save work."""
    _remove(storage.join(output, "_tmp"))
    if not keep_features:
        _remove(features_folder(output))


def _remove(folder: str) -> None:
    if storage.is_folder(folder):
        storage.remove_tree(folder)


def copy_failures(output: str) -> None:
    """Copies the failures of the images' extraction to PRED/failures."""
    for info in storage.list_infos(storage.join(features_folder(output), "failures")):
        write_file(output, f"failures/{info.uri.rsplit('/', 1)[-1]}", storage.read_bytes(info.uri))


def parts(output: str) -> int:
    """Returns how many parts there are."""
    return len(storage.list_folder(storage.join(output, "predictions")))
