"""Export: a head and its network as one model file that takes photographs, for use without featuremill."""

import json
import os
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.rendering.targets import check_replaceable
from pipeline.training.facts import never_trained_text
from transforms import storage
from transforms.committed import committed_file, committed_folder, held
from transforms.declared import check, declared
from transforms.engines.checks import check_named, computed_layers
from transforms.errors import FeaturemillError, UsageError
from transforms.network.weights import Weights, load_weights
from transforms.predictors.head import Head, load_head
from transforms.predictors.weights import check_weights, weights_source
from transforms.text import one_line, short

if TYPE_CHECKING:
    import keras

# What the model can't say itself: classes, spec, where all came from. In the .keras archive, in a SavedModel's assets.
NOTES = "featuremill.json"
_SAVED_MODEL = ("saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra")
# Else they would become folders of such a name.
_OTHER_FORMATS = (".h5", ".hdf5", ".tflite", ".onnx", ".pb", ".pt", ".pth", ".zip")


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export` of a HEAD; paths are made absolute."""

    head: str
    output: str = declared(
        help="A .keras file, or a folder for a SavedModel", flags=("--output", "-o"), metavar="MODEL"
    )
    weights: str | None = declared(None, help="Where the network's weights are now", unset="where they were")
    overwrite: bool = declared(False, help="Replace the model that is there")

    def __post_init__(self) -> None:
        check(self)
        if not self.output.strip() or not storage.is_local(self.output):
            raise UsageError(f"--output {self.output!r}: a model is written to a local path; copy it from there")
        if self.output.lower().endswith(_OTHER_FORMATS):
            raise UsageError(
                f"--output {self.output}: models are written as a .keras file, or as a SavedModel, which is a folder"
            )
        object.__setattr__(self, "head", storage.absolute(self.head))
        object.__setattr__(self, "output", storage.absolute(self.output))


def export(options: ExportOptions, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Writes a head as one model from uint8 RGB images to probabilities, with its network, poolings and resizing.

    Args:
        say: Is called with each line for people.

    Returns:
        What NOTES holds, with `output` and `format`.

    Raises:
        FeaturemillError: The head can't be exported, or these aren't its weights. Nothing is half written.
    """
    folder, output = options.head, options.output
    with held(output, parents=True):
        as_file = output.endswith(".keras")
        names = () if as_file else _SAVED_MODEL
        check_replaceable(output, names, what="is no model, or not alone", overwrite=options.overwrite)
        loaded = load_head(folder)
        if loaded.spec is None:
            raise FeaturemillError(
                f"{folder} was trained on {loaded.origin}, so there is no network to put before it; "
                "train it on the output of featuremill extract"
            )
        check_named(loaded.spec.backbone, "export", files=(".keras",))
        used = _load_weights(folder, loaded, options.weights)
        notes = _notes(loaded, used)
        if notes["weights_are_random"]:
            never = loaded.never_trained
            which = never_trained_text(never) if never else "the network was never trained"
            say(f"weights  RANDOM: {which}; this model is for trying things out only")
        if loaded.spec.decode == "fast":
            say("decode   the head saw large JPEGs decoded at reduced scale; the model takes whole pixels instead")
        from transforms.end_to_end.assembly import assemble

        _write(assemble(loaded, used.arrays, used.origin), output, notes, as_file=as_file)
        return {"output": output, "format": "keras" if as_file else "savedmodel", **notes}


def _load_weights(folder: str, head: Head, given: str | None) -> Weights:
    """Loads the network's weights, and checks that the head was trained on them."""
    spec = head.spec
    table = computed_layers(spec)
    used = load_weights(weights_source(head, folder, given), table, backbone=spec.backbone)
    check_weights(used, head, folder)
    return used


def _notes(head: Head, weights: Weights) -> dict[str, Any]:
    return {
        "classes": list(head.classes),
        "kind": head.model.kind,
        "temperature": head.temperature,
        "columns": list(head.columns),
        "spec": asdict(head.spec),
        "fingerprint": head.fingerprint,
        "weights": weights.origin,
        "weights_are_random": weights.is_random or head.weights_are_random,
        "trained_on": head.source,
    }


def _write(model: "keras.Model", output: str, notes: dict[str, Any], *, as_file: bool) -> None:
    """Writes the model, whole or not at all."""
    text = json.dumps(notes, indent=2)
    if not as_file:
        from transforms.end_to_end.signatures import check_backend

        check_backend()
    try:
        os.makedirs(os.path.dirname(output), exist_ok=True)
        if as_file:
            # Keras wants a name that ends so, and writes into the file that is open here.
            with committed_file(output, f"{output}.{uuid.uuid4().hex}.tmp.keras") as file:
                model.save(file.name)
                with zipfile.ZipFile(file.name, "a") as archive:
                    archive.writestr(NOTES, text)
        else:
            with committed_folder(output) as new:
                _save_folder(model, new, notes["classes"], text)
    except OSError as error:
        raise FeaturemillError(
            f"cannot write the model to {output} ({one_line(error)}); free some space or fix the permissions"
        ) from error


def _save_folder(model: "keras.Model", folder: str, classes: list[str], text: str) -> None:
    from transforms.end_to_end.signatures import save_signatures

    with TemporaryDirectory() as temporary:
        path = storage.join(temporary, NOTES)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        save_signatures(model, classes, folder, notes=path)


def export_text(exported: dict[str, Any]) -> str:
    """Returns the result for people."""
    classes = exported["classes"]
    named = ", ".join(map(short, classes[:5])) + (f" … ({len(classes)})" if len(classes) > 5 else "")
    asset = "" if exported["format"] == "keras" else "assets/"
    made_of = f"{exported['kind']} head on {exported['spec']['backbone']}, weights {exported['weights']}"
    return (
        f"{exported['output']}: {made_of}\n"
        f"takes uint8 RGB images of any size, gives probabilities of {named}; the classes are in its {asset}{NOTES}"
    )
