"""The content of head.json: read, and checked that it is what a head says."""

import json
from collections.abc import Mapping
from typing import Any

from transforms import heads, storage
from transforms.declared import wrong_field
from transforms.errors import FeaturemillError
from transforms.heads.transform import Transform
from transforms.store.manifest import own_sha256, why_missing
from transforms.text import one_line

# A head that transforms its vectors has the second, one that abstains the third: what knows only those before would
# leave that out without a word.
_SCHEMA_VERSIONS = (1, 2, 3)
# What head.json must hold, besides what only people read.
_TYPES = {
    "kind": str,
    "settings": dict[str, Any],
    "curve": list[dict[str, Any]],
    "classes": list[str],
    "temperature": float,
    "columns": list[str],
    "dims": list[int],
    "spec": dict[str, Any] | None,
    "weights": str,
    "weights_are_random": bool,
    "source": str,
    "split": dict[str, Any],
    "metrics": dict[str, Any],
    "versions": dict[str, Any],
    "arrays_sha256": str,
}
_TRANSFORM = {"name": str, "widths": list[int], "scales": list[float]}


def read_values(folder: str) -> dict[str, Any]:
    """Returns what a head's head.json says.

    Raises:
        FeaturemillError: There is none, it is of another version, or it isn't as it was written.
    """
    try:
        values = json.loads(storage.read_bytes(storage.join(folder, "head.json")))
    except OSError as error:
        raise FeaturemillError(
            f"{folder} is no head{why_missing(folder, 'head.json', error)}; pass the folder that featuremill train "
            "wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise damaged(folder, "head.json", f"no valid JSON: {one_line(error)}") from error
    if not isinstance(values, dict) or "schema_version" not in values:
        raise damaged(folder, "head.json", "it isn't a head's")
    if values["schema_version"] not in _SCHEMA_VERSIONS:
        raise FeaturemillError(
            f"{folder} has schema version {values['schema_version']!r}, this featuremill reads "
            f"{' and '.join(map(str, _SCHEMA_VERSIONS))}; train it again, or use the featuremill that wrote it"
        )
    if own_sha256(values) != values.get("sha256"):
        raise damaged(folder, "head.json", "its content doesn't give the hash that it carries")
    problem = _problem(values)
    if problem:
        raise damaged(folder, "head.json", problem)
    return values


def _problem(values: dict[str, Any]) -> str:
    """Returns what a head.json says that no head's does; empty if nothing."""
    missing = sorted(_TYPES.keys() - values.keys())
    problem = f"it lacks {missing[0]}" if missing else wrong_field(values, _TYPES)
    if problem:
        return problem
    classes, dims = values["classes"], values["dims"]
    if not classes or len(set(classes)) < len(classes):
        return "its classes are none, or not all different"
    if not dims or len(dims) != len(values["columns"]) or min(dims) < 1:
        return "its columns don't have a number of dimensions each"
    if not 0 < values["temperature"] < float("inf"):
        return "its temperature isn't above 0"
    if values["kind"] not in heads.KINDS:
        return f"no kind of head is called {values['kind']!r}"
    if wrong_field(values, {"fingerprints": list[str]}):
        return "its fingerprints aren't a list"
    if "transform" in values:
        transform = values["transform"]
        if wrong_field(values, {"transform": dict[str, Any]}) or _TRANSFORM.keys() - transform.keys():
            return "its transform isn't one"
        problem = wrong_field(transform, _TRANSFORM) or Transform.from_json(transform).problem(sum(dims))
        if problem:
            return problem
    problem = _metrics_problem(values["metrics"])
    if problem:
        return problem
    tuned = values["settings"].get("finetuned", {})
    return wrong_field({"finetuned": tuned}, {"finetuned": dict[str, Any]}) or wrong_field(
        tuned, {"never_trained": list[str]}
    )


def _metrics_problem(metrics: Mapping[str, Any]) -> str:
    """Returns what is wrong with the part of the judgement that predictions depend on; empty if nothing."""
    problem = wrong_field(metrics, {"confidences": list[float], "abstaining": dict[str, Any], "far": dict[str, Any]})
    if problem:
        return problem
    abstaining = {"threshold": None, **metrics["abstaining"]} if "abstaining" in metrics else {}
    far = {"distance": None, **metrics["far"]} if "far" in metrics else {}
    problem = wrong_field(abstaining, {"threshold": float}) or wrong_field(far, {"distance": float})
    if problem:
        return problem
    kept = [*metrics.get("confidences", ()), *([abstaining["threshold"]] if abstaining else [])]
    return "" if all(0 <= one <= 1 for one in kept) else "its threshold or its confidences aren't between 0 and 1"


def damaged(folder: str, name: str, cause: str) -> FeaturemillError:
    """Returns the error for a head's file that isn't as it was written."""
    return FeaturemillError(
        f"{storage.join(folder, name)} was changed or damaged ({cause}); restore the folder, or train again"
    )
