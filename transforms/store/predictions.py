"""PRED as an object: whether a prediction may go there, is there already, begins, and is finished."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet.seals import read_metadata, seal_of
from transforms.store.layout import ERRORS_FILE, PREDICTION_FILES, PREDICTION_FOLDERS, is_own, write_file
from transforms.store.manifest import (
    PREDICTIONS,
    PREDICTIONS_SCHEMA_VERSION,
    PredictionSettings,
    PredictionsManifest,
    is_as_written,
)
from transforms.store.output import ELSEWHERE, Folder, Output


def are_predictions(folder: str) -> bool:
    """Tells a PRED, by its manifest, from anything else."""
    manifest = storage.join(storage.absolute(folder), "manifest.json")
    try:
        return json.loads(storage.read_bytes(manifest)).get("kind") == PREDICTIONS
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def output_behind(folder: str) -> Output:
    """Returns the OUT at a folder, or the one behind the predictions there.

    What is no such folder is returned all the same: whoever asks for its manifest sees what it is.
    """
    output = Output(folder)
    # The manifest is read once, and looked at for what else it is only where it isn't an OUT's.
    with suppress(FeaturemillError):
        if not output.has_manifest or output.manifest:
            return output
    return output_predicted(folder) or output


def output_predicted(folder: str) -> Output | None:
    """Returns the OUT that a PRED was made from: the one kept in it, or its only input, or PRED where both are gone.

    Of anything else None.
    """
    if not are_predictions(folder):
        return None
    predictions = Predictions(folder)
    inputs = predictions.manifest.settings.inputs or ()
    for location in (predictions.features_folder, *(inputs if len(inputs) == 1 else ())):
        if (found := Output(location)).has_manifest:
            return found
    return Output(folder)


class Predictions(Folder):
    """A PRED; its manifest is read when it is first asked for, and once."""

    FOLDERS = PREDICTION_FOLDERS

    @cached_property
    def manifest(self) -> PredictionsManifest | None:
        """Read from manifest.json; None where nothing is yet.

        Raises:
            FeaturemillError: The folder holds something else.
        """
        if self.is_local and os.path.lexists(self.folder) and not os.path.isdir(self.folder):
            raise FeaturemillError(f"{self} is not a folder; choose another --output")
        there = storage.list_folder(self.folder) & {*PREDICTION_FILES, "head.json"}
        if not there and not any(storage.is_folder(self.path(name)) for name in self.FOLDERS if name != "_tmp"):
            return None
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            values = json.loads(storage.read_bytes(self.path("manifest.json")))
            ours = values["kind"] == PREDICTIONS and values["schema_version"] == PREDICTIONS_SCHEMA_VERSION
            if ours and not is_as_written(values):
                raise FeaturemillError(
                    f"{self.path('manifest.json')} was changed or damaged: its content doesn't give the hash that it "
                    "carries; restore it, or choose another --output"
                )
            if ours and "settings" in values:
                return PredictionsManifest.from_json(values)
        raise FeaturemillError(f"{self} holds something else than predictions of this version; choose another --output")

    @property
    def features_folder(self) -> str:
        """The folder of the images' features: an OUT of extract inside PRED."""
        return self.path("features")

    @property
    def part_files(self) -> list[str]:
        """The parts of predictions that are finished, absolute and in their order.

        Raises:
            FeaturemillError: They aren't finished, or aren't those that were written.
        """
        if self.manifest is None or not self.manifest.is_complete:
            raise FeaturemillError(f"{self} is not finished; finish it with the same predict command")
        if not self.is_as_written:
            raise FeaturemillError(f"{self} was changed or damaged; predict again with --overwrite")
        folder = self.path("predictions")
        return sorted(info.uri for info in storage.list_infos(folder) if info.uri.endswith(".parquet"))

    @property
    def parts(self) -> int:
        """The number of parts."""
        return sum(is_own(self.FOLDERS, "predictions", name) for name in storage.list_folder(self.path("predictions")))

    @property
    def is_as_written(self) -> bool:
        """True if its files are those that the manifest names, by one small read each; True if it names none."""
        for name, expected in (self.manifest.files or {}).items():
            try:
                if name.endswith(".parquet"):
                    with storage.open_read(self.path(name)) as file:
                        found = seal_of(read_metadata(file))
                else:
                    found = hashlib.sha256(storage.read_bytes(self.path(name))).hexdigest()
            except (OSError, pa.ArrowException):
                return False
            if found != expected:
                return False
        return True

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Read from metrics.json; None where there is none."""
        if "metrics.json" not in storage.list_folder(self.folder):
            return None
        return json.loads(storage.read_bytes(self.path("metrics.json")))

    def check_settings(self, settings: PredictionSettings) -> None:
        """Checks that the predictions there are those that are asked for now.

        Raises:
            FeaturemillError: They aren't, with what differs.
        """
        there, now = vars(self.manifest.settings), vars(settings)
        changed = [name for name, value in now.items() if there[name] != value]
        if changed:
            differences = "; ".join(f"{name} {there[name]} | {now[name]}" for name in changed)
            raise FeaturemillError(
                f"{self} holds other predictions (there | now): {differences}. Choose another --output, or --overwrite"
            )

    def clear(self, *, keep_features: bool = False) -> None:
        """Removes what a prediction wrote, and nothing else.

        Args:
            keep_features: Whether the images' features stay.

        Raises:
            FeaturemillError: It can't be removed.
        """
        with self.writing(ELSEWHERE, what="clear"):
            # First of all it must no longer say "complete": this may be cut off halfway.
            self.say_running(self.manifest)
            self._remove(name for name in self.FOLDERS if name != "features" or not keep_features)
            self.remove_files(PREDICTION_FILES)

    def begin(self, manifest: PredictionsManifest) -> None:
        """Says in the manifest that a run is under way, and removes what an earlier one predicted.

        Raises:
            FeaturemillError: The folder can't be written.
        """
        with self.writing(ELSEWHERE):
            self.say_running(manifest)
            for name in ("predictions", "failures"):
                self._remove([name])
                storage.make_folder(self.path(name))
            self.remove_files(["metrics.json", ERRORS_FILE])

    def finish(self, manifest: PredictionsManifest, *, metrics: dict[str, Any] | None, errors: str = "") -> None:
        """Writes metrics.json if there are metrics, says "complete", and removes what isn't needed any more.

        Args:
            manifest: What it is to say.
            metrics: Of the predictions.
            errors: The page with their errors; empty for none.

        Raises:
            FeaturemillError: The folder can't be written.
        """
        files = dict(manifest.files or {})
        written = {"metrics.json": json.dumps(metrics, indent=2) + "\n"} if metrics is not None else {}
        for name, text in {**written, **({ERRORS_FILE: errors} if errors else {})}.items():
            # Keys may hold what is no text; a browser shows a mark in its place.
            data = text.encode("utf-8", "replace")
            write_file(self.folder, name, data)
            files[name] = hashlib.sha256(data).hexdigest()
        self.write_manifest(replace(manifest, status="complete", files=files))
        self.tidy()

    def discard(self) -> None:
        """Removes what an unfinished prediction wrote, and PRED if nothing else is in it. Says nothing if it can't."""
        with suppress(OSError, FeaturemillError):
            self._remove(self.FOLDERS)
            self.remove_files(PREDICTION_FILES)
            if self.is_local:
                os.rmdir(self.folder)

    def tidy(self) -> None:
        """Removes temporary files, and the features unless they are kept. They go last: up to there they save work."""
        self._remove(["_tmp"] if self.manifest.features_kept else ["_tmp", "features"])

    def _remove(self, names: Iterable[str]) -> None:
        there = [name for name in names if storage.is_folder(self.path(name))]
        if "features" in there:
            features = Output(self.features_folder)
            features.remove_all()
            if self.is_local:
                with suppress(OSError):
                    os.rmdir(features.folder)
        self.remove_own(name for name in there if name != "features")

    def copy_failures(self) -> None:
        """Copies the failures of the images' extraction to PRED/failures."""
        for info in storage.list_infos(storage.join(self.features_folder, "failures")):
            write_file(self.folder, f"failures/{info.uri.rsplit('/', 1)[-1]}", storage.read_bytes(info.uri))
