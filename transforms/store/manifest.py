"""manifest.json: what OUT or PRED is, typed, written and read."""

import hashlib
import json
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from transforms import storage
from transforms.declared import wrong_field
from transforms.errors import FeaturemillError
from transforms.records import Kept
from transforms.spec import ADDED_COLUMNS, FeatureSpec, is_feature_name
from transforms.store.layout import write_file
from transforms.text import clean, one_line

SCHEMA_VERSION = 1
PREDICTIONS_SCHEMA_VERSION = 1
PREDICTIONS = "predictions"
_ANEW = "run the same extract command again, which writes it anew from what the parts say"


@dataclass(frozen=True)
class Totals:
    """Sums over units; `rows_read = rows_embedded + rows_failed`."""

    units: int
    rows_read: int
    rows_embedded: int
    rows_failed: int
    input_bytes: int
    read_seconds: float
    decode_seconds: float
    embed_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class Relocation:
    """A relocation that is under way or was cut off.

    Attributes:
        token: Stands in the footers of the files that it has written.
        moves: Pairs of an old place and its new one.
        status: The manifest's before it began, and once it has finished.
    """

    token: str
    moves: tuple[tuple[str, str], ...]
    status: str

    @classmethod
    def from_json(cls, values: Any) -> "Relocation":
        """Returns the relocation that a JSON value holds; raises ValueError if it isn't one."""
        moves = values.get("moves") if isinstance(values, Mapping) else None
        if not isinstance(moves, list) or not all(map(_is_move, moves)):
            raise ValueError("relocation has no moves of one place to another")
        if problem := wrong_field(values, {"token": str, "status": str}):
            raise ValueError(f"relocation: {problem}")
        return cls(values["token"], tuple(map(tuple, moves)), values["status"])


@dataclass(frozen=True)
class Manifest:
    """The manifest of an OUT. `dataclasses.replace` makes the next one.

    Attributes:
        status: `running` or `complete`.
        fingerprint: Of the spec; every part carries it.
        spec: What decided the numbers.
        weights: Where the weights came from.
        weights_are_random: True if they were never trained.
        sample_limit: N of a sample, else None.
        totals: Over all units, None before the first run has finished.
        failures: {`stage: error`: count}.
        notes: {note: records}, see `UnitReport`.
        engines: Which engines embedded the units.
        repeats: Keys and contents seen more than once, None where that wasn't looked for.
        versions: Of the libraries that made it.
        added_columns: Which of `spec.ADDED_COLUMNS` the parts have; an OUT begun without them goes on without them.
        kept: {column: name of its type} of those that came along with the images.
        parts_sha256: Of the content of all parts, see `reports.parts_sha256`; empty until the first run
            has finished, and in an OUT of an earlier version.
        added_features: Names of the features that were added later; each has a folder of its own in OUT.
        relocation: The one that is under way or was cut off; on disk only then.
        updated: When it was written, UTC.
        stored: The JSON that it was read from; what this version doesn't know of it is written again as it was.
    """

    status: str
    fingerprint: str
    spec: FeatureSpec
    weights: str = ""
    weights_are_random: bool = False
    sample_limit: int | None = None
    totals: Totals | None = None
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    engines: list[str] = field(default_factory=list)
    repeats: dict[str, Any] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    added_columns: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    parts_sha256: str = ""
    added_features: list[str] = field(default_factory=list)
    relocation: Relocation | None = None
    updated: str = ""
    stored: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_complete(self) -> bool:
        """True if the last run finished."""
        return self.status == "complete"

    @property
    def between(self) -> dict[str, str]:
        """{column: name of its type} of those that parts have between `spec.ROW_COLUMNS` and the features."""
        return dict.fromkeys(self.added_columns, "string") | self.kept

    @property
    def cure(self) -> str:
        """The command that finishes what isn't finished, in words."""
        if self.relocation:
            moves = " ".join(shlex.quote(clean(f"{old}={new}")) for old, new in self.relocation.moves)
            return f"featuremill relocate OUT {moves}"
        return "the same extract command"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], spec: FeatureSpec) -> "Manifest":
        """Returns the manifest that a JSON object with this spec holds.

        Raises:
            KeyError, TypeError, ValueError: Its totals, or other values, are missing or of another type.
        """
        totals, relocation = values["totals"], values.get("relocation")
        inner = {"spec": spec, "totals": Totals(**_known_values(Totals, totals)) if totals else None}
        inner["relocation"] = None if relocation is None else Relocation.from_json(relocation)
        known = _known_values(cls, {**values, **inner, "stored": values})
        if not all(map(is_feature_name, known.get("added_features", ()))):
            raise ValueError("added_features are no names")
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that is on disk."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("updated", "stored")}
        values["spec"] = self.stored.get("spec") or json.loads(self.spec.to_json())
        values |= {name: values[name] and asdict(values[name]) for name in ("totals", "relocation")}
        for name in ("relocation", "added_columns", "kept", "added_features", "notes", "parts_sha256"):
            # An earlier version's manifest stays as it was.
            if not values[name]:
                del values[name]
        updated = {"updated": self.updated} if self.updated else {}
        renewed = ("relocation", "added_features", "notes", "parts_sha256", "sha256")
        stored = {name: value for name, value in self.stored.items() if name not in renewed}
        return {**stored, "schema_version": SCHEMA_VERSION, **values, **updated}


@dataclass(frozen=True)
class PredictionTotals:
    """Sums over a prediction; `read = predicted + failed`. Those with a default are on disk only where they are known.

    Attributes:
        abstained: Rows that the head is too unsure of, where it may abstain.
        far: Rows far from all that the head was trained on, where that is measured.
    """

    read: int
    predicted: int
    failed: int
    abstained: int | None = None
    far: int | None = None


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """The settings that decide predictions, as JSON values. Those with a default are on disk only where they differ.

    Attributes:
        head_sha256: Of the head.
        inputs: Absolute.
        feature_columns: That the head takes.
        top: How many guesses a row has.
        probabilities: Whether all classes' are there.
        labels: The file with true labels, absolute, None without one.
        fields: Of records: where image, label and name are.
        threshold: Below it a row has no label.
    """

    head_sha256: str
    inputs: list[str]
    feature_columns: list[str]
    top: int
    probabilities: bool
    labels: str | None
    label_column: str
    key_column: str
    labels_mode: str = "replace"
    group_column: str | None = None
    fields: dict[str, Any]
    max_pixels: int
    threshold: float = 0.0


@dataclass(frozen=True)
class PredictionsManifest:
    """The manifest of a PRED. The fields with a default are on disk only once they are known.

    Attributes:
        head: Name of the head.
        settings: What decides the predictions.
        inputs_sha256: Of names, sizes and times of all that was read.
        fingerprint: Of the head's spec, None if it has none.
        classes: The head's.
        features_kept: Whether the images' features stay in PRED.
        totals: Of all rows; None before the run has finished.
        versions: Of the libraries that made it.
        failures: {`stage: error`: count}.
        predicted_labels: {label: rows}, the commonest first.
        true_labels: `known`, `agreed`, `accuracy` and `no_class`.
        weights: Where the network's weights came from.
        never_trained: The head's layers that never were.
        weights_are_random: True if the network's weights, or the head's, were never trained.
        notes: What else there is to know, a line each.
        parts: How many.
        files: {path in PRED: seal or SHA-256 (hex)} of what it consists of; none in one of an earlier version.
        status: `running` or `complete`.
        updated: When it was written, UTC.
    """

    head: str
    settings: PredictionSettings
    inputs_sha256: str
    fingerprint: str | None
    classes: list[str]
    features_kept: bool
    totals: PredictionTotals | None
    versions: dict[str, str | None]
    failures: dict[str, int] | None = None
    predicted_labels: dict[str, int] | None = None
    true_labels: dict[str, Any] | None = None
    weights: str | None = None
    never_trained: list[str] | None = None
    weights_are_random: bool | None = None
    notes: list[str] | None = None
    parts: int | None = None
    files: dict[str, str] | None = None
    status: str | None = None
    updated: str | None = None

    @property
    def is_complete(self) -> bool:
        """True if the last run finished."""
        return self.status == "complete"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PredictionsManifest":
        """Returns the manifest that a JSON object holds; what is missing is None.

        Raises:
            ValueError: A value is of another type.
        """
        totals = values.get("totals")
        inner = {"settings": _record(PredictionSettings, values["settings"])}
        inner["totals"] = None if totals is None else _record(PredictionTotals, totals)
        return _record(cls, {**values, **inner})

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that is on disk."""
        values = {**_known(self), "settings": _known(self.settings), "totals": self.totals and _known(self.totals)}
        return {"schema_version": PREDICTIONS_SCHEMA_VERSION, "kind": PREDICTIONS, **values}


def _known(record: Any) -> dict[str, Any]:
    """Returns a record as a JSON object, without the fields that have their default."""
    return {f.name: getattr(record, f.name) for f in fields(record) if getattr(record, f.name) != f.default}


def _record(cls: type, values: Any) -> Any:
    """Returns the record that a JSON object holds; what has no default and is missing is None. Raises ValueError as
    `_known_values` does."""
    missing = {f.name: None for f in fields(cls) if f.default is MISSING}
    return cls(**missing | _known_values(cls, values))


def _known_values(cls: type, values: Any) -> dict[str, Any]:
    """Returns those values of a JSON object that are fields of a record.

    Raises:
        ValueError: One is of another type, or this is no object.
    """
    if not isinstance(values, Mapping):
        raise ValueError("it holds no object where one should be")
    if problem := wrong_field(values, get_type_hints(cls)):
        raise ValueError(problem)
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def _is_move(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(place, str) for place in value)


def write_manifest(folder: str, manifest: Manifest | PredictionsManifest) -> None:
    """Writes manifest.json, stamped with the time and its own hash."""
    stamped = {**manifest.to_json(), "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    stamped["sha256"] = own_sha256(stamped)
    write_file(folder, "manifest.json", (json.dumps(stamped, indent=2) + "\n").encode())


def own_sha256(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 (hex) of the canonical JSON of a JSON object, without the hash of its own that it carries."""
    values = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_as_written(values: Mapping[str, Any]) -> bool:
    """Returns whether a manifest's JSON gives the hash that it carries; one of an earlier version carries none."""
    return "sha256" not in values or values["sha256"] == own_sha256(values)


def new_manifest(
    spec: FeatureSpec,
    *,
    weights: str,
    weights_are_random: bool,
    limit: int | None,
    versions: dict[str, str | None],
    kept: Iterable[Kept] = (),
) -> Manifest:
    """Returns the manifest of an OUT that holds nothing yet."""
    return Manifest(
        status="running",
        fingerprint=spec.fingerprint,
        spec=spec,
        weights=weights,
        weights_are_random=weights_are_random,
        sample_limit=limit,
        versions=versions,
        added_columns=list(ADDED_COLUMNS),
        kept={column.name: column.type for column in kept},
    )


def is_extracted(folder: str) -> bool:
    """Returns whether a folder has the manifest of an OUT; whoever reads it then says what is wrong with it."""
    try:
        return {"spec", "fingerprint"} <= json.loads(storage.read_bytes(storage.join(folder, "manifest.json"))).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def other_kind(folder: str) -> str:
    """Returns what a folder is that is none of what was asked for, as the end of a clause; empty for strange ones."""
    names = storage.list_folder(folder)
    if "head.json" in names:
        return ": it is a head of featuremill train"
    if storage.is_folder(storage.join(folder, PREDICTIONS)):
        return _predictions_in(folder)
    if "manifest.json" in names and storage.is_folder(storage.join(folder, "features")):
        return ": it holds features of featuremill extract"
    return ""


def _predictions_in(folder: str) -> str:
    return f": it holds predictions of featuremill predict, which are Parquet files in {folder}/{PREDICTIONS}"


def why_missing(folder: str, name: str, error: OSError) -> str:
    """Returns why a folder's own file can't be read, as the end of a clause: what it is instead, or the error."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f": {name} can't be read ({one_line(error)})"
    if storage.is_folder(folder):
        return other_kind(folder) or f": it has no {name}"
    return ": it is a file" if storage.stat(folder) else ": there is no such folder"


def read_manifest(folder: str) -> Manifest:
    """Returns OUT's manifest.

    Raises:
        FeaturemillError: There is none, or it can't be read, or the folder is a PRED.
    """
    uri = storage.join(folder, "manifest.json")
    cure = "pass the folder that featuremill extract wrote to"
    try:
        values = json.loads(storage.read_bytes(uri))
    except OSError as error:
        if isinstance(error, PermissionError):
            raise FeaturemillError(f"{uri} can't be read ({one_line(error)}); fix the permissions") from error
        if storage.stat(storage.join(folder, "plan.parquet")) and not other_kind(folder):
            raise FeaturemillError(f"{folder} has lost its manifest.json; {_ANEW}") from error
        raise FeaturemillError(
            f"{folder} holds no features of featuremill extract{why_missing(folder, 'manifest.json', error)}; {cure}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FeaturemillError(f"{uri} is not valid JSON: {error}; delete it and {_ANEW}") from error
    if isinstance(values, dict) and values.get("kind") == PREDICTIONS:
        raise FeaturemillError(f"{folder} holds no features of featuremill extract{_predictions_in(folder)}; {cure}")
    if not isinstance(values, dict) or not {"fingerprint", "spec", "status", "totals"} <= values.keys():
        raise FeaturemillError(f"{uri} is not a manifest of featuremill; restore it or extract to another folder")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise FeaturemillError(
            f"{uri} has schema version {values.get('schema_version')!r}, this featuremill reads {SCHEMA_VERSION}"
        )
    if not is_as_written(values):
        raise FeaturemillError(
            f"{uri} was changed or damaged: its content doesn't give the hash that it carries; delete it and {_ANEW}"
        )
    wrong = "spec is not one"
    try:
        spec = FeatureSpec.from_json(json.dumps(values["spec"]))
        wrong = "fingerprint is not that"
        if spec.fingerprint != values["fingerprint"]:
            raise ValueError("its spec has another one")
        wrong = "totals or other values are not those"
        return Manifest.from_json(values, spec)
    except (KeyError, TypeError, ValueError) as error:
        raise FeaturemillError(
            f"{uri}: its {wrong} of featuremill ({one_line(error)}); delete it and {_ANEW}"
        ) from error
