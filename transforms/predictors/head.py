"""HEAD on disk: a folder with arrays and JSON, whole or not there, and what it may be used on."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from transforms import heads, storage
from transforms.committed import recover
from transforms.errors import FeaturemillError
from transforms.heads.far import Far
from transforms.heads.model import Model
from transforms.heads.transform import Transform
from transforms.predictors.folder import check_place, open_arrays, sha256_of, write_folder
from transforms.predictors.head_json import damaged, read_values
from transforms.rows.table import Table
from transforms.spec import FeatureSpec
from transforms.store.manifest import own_sha256
from transforms.text import one_line

_FAR = "far_vectors"
_AS_STORED = ("weights", "weights_are_random", "source", "split", "metrics", "versions")


@dataclass(frozen=True)
class Head:
    """A trained head with all that is needed to use it rightly.

    Attributes:
        model: Takes D numbers, gives C scores.
        classes: The C labels, sorted.
        temperature: Divides the scores before softmax.
        columns, dims: The vector columns that were trained on, in order, and their numbers; D is the sum.
        spec: What decided these numbers; None if they came from plain Parquet.
        weights: Where the backbone's weights came from; a path relative to the head's folder for fine-tuned ones; empty
            if unknown.
        weights_are_random: Whether they were random ones; after fine-tuning, whether some of them still are.
        source: What it was trained on.
        split: `Split.report`.
        metrics: How it was judged.
        versions: {library: version}.
        far_vectors: M×D float32, training rows that distances are measured by; None where none is.
        fingerprints: One for each column, where they are of several specs; `spec` is None then.
    """

    model: Model
    classes: tuple[str, ...]
    temperature: float
    columns: tuple[str, ...]
    dims: tuple[int, ...]
    spec: FeatureSpec | None
    weights: str = ""
    weights_are_random: bool = False
    source: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    far_vectors: np.ndarray | None = None
    fingerprints: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the spec; None if there is none."""
        return self.spec.fingerprint if self.spec else None

    @property
    def origin(self) -> str:
        """Name of what it was trained on, where that isn't one network's features."""
        return "features of several networks" if self.fingerprints else "vectors of unknown origin"

    @property
    def group_column(self) -> str | None:
        """The column whose equal values were kept together when it was trained; None where there was none."""
        return self.split.get("options", {}).get("group_column") or None

    @property
    def never_trained(self) -> tuple[str, ...]:
        """Names of a fine-tuned network's layers that are still random; empty where all are, or none."""
        return tuple(self.model.settings.get("finetuned", {}).get("never_trained", ()))

    @property
    def threshold(self) -> float:
        """The probability below which a row stays without an answer; 0 where all are answered.

        It is kept with the judgement, as `confidences` are: a head that is tuned further is judged anew, and is sure in
        another way.
        """
        return self.metrics.get("abstaining", {}).get("threshold", 0.0)

    @cached_property
    def far(self) -> Far | None:
        """Detector of rows far from all training rows; None where the head doesn't keep it."""
        if self.far_vectors is None or "far" not in self.metrics:
            return None
        return Far(self.far_vectors, self.metrics["far"]["distance"], self.model.transform)

    @property
    def confidences(self) -> tuple[float, ...]:
        """Confidences of the head on its validation rows, ascending; empty where it doesn't say."""
        return tuple(self.metrics.get("confidences", ()))

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Returns N×C float64, each row summing to 1.

        Args:
            vectors: N×D float32.
        """
        return softmax(heads.logits(self.model, vectors), self.temperature)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns N×C float64: the softmax of each row of `logits` / `temperature`."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def save_head(head: Head, folder: str, *, files: Mapping[str, bytes] | None = None, overwrite: bool = False) -> None:
    """Writes a head: `head.npz`, `head.json`, `metrics.json` and more; a local folder appears whole or not at all.

    The same head gives the same bytes. On an object store `head.json` comes last, and without it there is no head.

    Args:
        head: What to write.
        files: {name: content} of other files that belong to it.
        overwrite: Replace the head that is there.

    Raises:
        FeaturemillError: As `check_place`, or the folder can't be written.
    """
    folder = storage.absolute(folder)
    check_place(folder, overwrite=overwrite)
    metrics = json.dumps(_plain(head.metrics), indent=2, allow_nan=False).encode()
    files = {**(files or {}), "metrics.json": metrics}
    names = sorted([*files, "head.npz"])
    arrays = head.model.arrays
    if head.far:
        # Of numbers below 1 float16 keeps 3 digits, and half the bytes.
        arrays = {**arrays, _FAR: head.far.vectors.astype(np.float16)}
    try:
        write_folder(folder, files, arrays, lambda sha256: _description(head, names, sha256))
    except OSError as error:
        raise FeaturemillError(
            f"cannot write the head to {folder} ({one_line(error)}); free some space or fix the permissions"
        ) from error


def _description(head: Head, files: list[str], arrays_sha256: str) -> bytes:
    """Returns the content of head.json."""
    transform = head.model.transform
    values = {
        "schema_version": 3 if head.threshold or head.far else 1 if transform.is_identity else 2,
        "kind": head.model.kind,
        "settings": head.model.settings,
        "curve": head.model.curve,
        "classes": head.classes,
        "temperature": head.temperature,
        "columns": head.columns,
        "dims": head.dims,
        "spec": asdict(head.spec) if head.spec else None,
        "fingerprint": head.fingerprint,
        **({"fingerprints": head.fingerprints} if head.fingerprints else {}),
        "weights": head.weights,
        "weights_are_random": head.weights_are_random,
        "source": head.source,
        "split": head.split,
        "metrics": head.metrics,
        "versions": head.versions,
        "files": files,
        "arrays_sha256": arrays_sha256,
        **({} if transform.is_identity else {"transform": transform.to_json()}),
    }
    values = _plain(values)
    return json.dumps({**values, "sha256": own_sha256(values)}, indent=2, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """Returns JSON values: NumPy's as Python's, and null for numbers that JSON hasn't (NaN, infinity)."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def load_head(folder: str) -> Head:
    """Reads a head.

    Raises:
        FeaturemillError: There is none, it is of another version, or it isn't as it was written.
    """
    folder = storage.absolute(folder)
    recover(folder)
    values = read_values(folder)
    try:
        with open_arrays(folder) as file:
            if sha256_of(file) != values["arrays_sha256"]:
                raise damaged(folder, "head.npz", "its hash isn't the one that head.json has for it")
            file.seek(0)
            transform = Transform.from_json(values["transform"]) if "transform" in values else Transform()
            arrays = _arrays(file)
            far = arrays.pop(_FAR, None)
            model = Model(values["kind"], arrays, values["settings"], tuple(values["curve"]), transform)
        head = Head(
            model=model,
            classes=tuple(values["classes"]),
            temperature=values["temperature"],
            columns=tuple(values["columns"]),
            dims=tuple(values["dims"]),
            spec=FeatureSpec.from_json(json.dumps(values["spec"])) if values["spec"] else None,
            fingerprints=tuple(values.get("fingerprints", ())),
            far_vectors=None if far is None else far.astype(np.float32),
            **{name: values[name] for name in _AS_STORED},
        )
        problem = heads.kind_of(model.kind).problem(model, sum(head.dims), len(head.classes))
        if "far" in head.metrics and (far is None or far.shape != (len(far), sum(head.dims)) or not len(far)):
            problem = "the rows that distances are measured by aren't there"
    except FeaturemillError:
        raise
    except Exception as error:
        # NumPy raises whatever the damage leads to.
        raise damaged(folder, "head.npz", one_line(error)) from error
    if problem:
        raise damaged(folder, "head.npz", problem)
    return head


def _arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """Returns the arrays of a `head.npz`; none is larger than its file, since they lie there unpacked.

    Raises:
        ValueError, OSError …: It isn't one.
    """
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("its arrays are packed, as featuremill never writes them")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def check_features(head: Head, table: Table) -> str | None:
    """Checks that a head may be used on features.

    Features of another fingerprint pass if the specs differ only in which features are stored, and the columns used are
    of the same layers and poolings.

    Returns:
        None, or a sentence to print where it can't be known.

    Raises:
        FeaturemillError: It may not.
    """
    if sum(head.dims) != sum(table.dims):
        raise FeaturemillError(
            f"the head takes {sum(head.dims):,} numbers ({', '.join(head.columns)}), {table.location} has "
            f"{sum(table.dims):,} ({', '.join(table.columns)}); name the features that it was trained on"
        )
    if head.fingerprints or table.fingerprints:
        if head.fingerprints != table.fingerprints:
            raise FeaturemillError(
                f"the head and {table.location} are of different features (their fingerprints differ): it was trained "
                f"on {', '.join(head.columns)} of {head.source}; pass features made in the same way"
            )
        return None
    if head.spec is None or table.spec is None:
        what = "the head was trained on" if head.spec is None else "these are"
        return (
            f"{what} plain Parquet without a fingerprint: whether {table.location} was computed as the head's "
            "features were can't be checked"
        )
    ours, theirs = _decisive(head.spec, head.columns), _decisive(table.spec, table.columns)
    if ours != theirs:
        different = [
            f"{name} {_short(ours[name])} | {_short(theirs[name])}" for name in ours if ours[name] != theirs[name]
        ]
        raise FeaturemillError(
            f"the head and {table.location} are of different features (head | features): {'; '.join(different)}; "
            "extract with the head's settings, or train on these features"
        )
    return None


def _decisive(spec: FeatureSpec, columns: tuple[str, ...]) -> dict[str, Any]:
    """Returns what decides the numbers in some columns of a spec."""
    values = asdict(spec)
    of = {feature.name: f"{feature.tap}:{feature.pool}" for feature in spec.features}
    return {**values, "features": ", ".join(of[name] for name in columns)}


def _short(value: object) -> str:
    """Returns a value for people: of a hash the first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
