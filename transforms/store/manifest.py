"""manifest.json: what OUT is, written and read."""

import json
import sys
import time
from importlib import metadata
from typing import Any

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.spec import FeatureSpec
from transforms.store.layout import write_file
from transforms.text import one_line

_LIBRARIES = ("featuremill", "apache-beam", "keras", "tensorflow", "ncnn", "numpy", "pillow", "pyarrow", "scikit-learn")
SCHEMA_VERSION = 1


def write_manifest(output: str, manifest: dict[str, Any]) -> None:
    """Writes manifest.json, stamped with the time."""
    stamped = {**manifest, "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_file(output, "manifest.json", (json.dumps(stamped, indent=2) + "\n").encode())


def new_manifest(spec: FeatureSpec, *, weights: str, weights_are_random: bool, limit: int | None) -> dict[str, Any]:
    """Returns the manifest of an OUT that holds nothing yet."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "fingerprint": spec.fingerprint,
        "spec": json.loads(spec.to_json()),
        "weights": weights,
        "weights_are_random": weights_are_random,
        "sample_limit": limit,
        "totals": None,
        "failures": {},
        "engines": [],
        "repeats": None,
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str | None]:
    """Returns the versions of Python and of what computes here, None for what isn't installed."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read_manifest(output: str) -> dict[str, Any]:
    """Returns OUT's manifest.

    Raises:
        FeaturemillError: There is none, or it can't be read.
    """
    uri = storage.join(output, "manifest.json")
    try:
        manifest = json.loads(storage.read_bytes(uri))
    except OSError as error:
        if isinstance(error, PermissionError):
            raise FeaturemillError(f"{uri} can't be read ({one_line(error)}); fix the permissions") from error
        raise FeaturemillError(
            f"{output} holds no features: can't read manifest.json ({one_line(error)}); "
            "pass the folder that featuremill extract wrote to"
        ) from error
    except ValueError as error:
        raise FeaturemillError(f"{uri} is not valid JSON: {error}; restore it or extract again") from error
    if not isinstance(manifest, dict) or not {"fingerprint", "spec", "status", "totals"} <= manifest.keys():
        raise FeaturemillError(f"{uri} is not a manifest of featuremill; restore it or extract to another folder")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise FeaturemillError(
            f"{uri} has schema version {manifest.get('schema_version')!r}, this featuremill reads {SCHEMA_VERSION}"
        )
    try:
        FeatureSpec.from_json(json.dumps(manifest["spec"]))
    except (KeyError, TypeError) as error:
        raise FeaturemillError(f"{uri}: its spec is not one of featuremill ({error}); restore it") from error
    return manifest
