"""Files of Keras as bases: a model's layers as taps, loaded in Keras's safe mode, and what the model is known by."""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.network.applications import GraphLayerInfo, calls, read_off
from transforms.network.files import NetworkFile, Tap
from transforms.network.keras_import import import_keras
from transforms.pools import extra_tokens
from transforms.text import did_you_mean, one_line, size_text

if TYPE_CHECKING:
    import keras

Arrays = Mapping[str, tuple[np.ndarray, ...]]
# What an archive may unpack to, its description alone, and the weights of what that describes.
_MOST_BYTES, _MOST_CONFIG_BYTES = 4 * 2**30, 2**26


class KerasFile(NetworkFile):
    """A network from a `.keras` file, `model` as Keras loads it. Its taps are layers."""

    def __init__(self, path: str):
        super().__init__(path)
        self.model = _load(path)
        # Of a model that was never built there is no such attribute.
        shapes = [tuple(each.shape) for each in getattr(self.model, "inputs", None) or ()]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3 or shapes[0][1] != shapes[0][2] or shapes[0][0]:
            takes = " and ".join(map(str, shapes)) or "inputs of unknown shapes"
            raise FeaturemillError(f"{path} takes {takes}, not N×S×S×3 images; save another")
        self.side = shapes[0][1] or 0
        # Of a Sequential, too, whose layers' graph is hidden.
        self._graph = import_keras().Model(self.model.inputs, self.model.outputs)
        # What is used twice has no one output.
        used = {name: nodes[0].outputs for name, nodes in calls(self._graph).items() if len(nodes) == 1}
        self._outputs = {
            layer.name: used[layer.name][0]
            for layer in self.model.layers
            if len(used.get(layer.name, ())) == 1
            and len(used[layer.name][0].shape) in (2, 3, 4)
            and used[layer.name][0] is not self.model.inputs[0]
        }
        if not self._outputs:
            raise FeaturemillError(f"{path} has no layer that can be tapped; use a functional or sequential model")
        self.outputs = tuple(self._outputs)[-1:]
        self._described: tuple[int, tuple[GraphLayerInfo, ...]] = 0, ()
        self.parameters = self.model.count_params()
        self.sha256 = self._identity()

    def _identity(self) -> str:
        sha256 = hashlib.sha256(json.dumps(self.model.get_config(), sort_keys=True, default=str).encode())
        for weight in sorted(self.model.weights, key=lambda each: each.path):
            array = np.asarray(import_keras().ops.convert_to_numpy(weight))
            sha256.update(f"{weight.path} {array.dtype} {array.shape}\n".encode())
            sha256.update(array.tobytes())
        return sha256.hexdigest()

    def taps(self, names: Iterable[str], side: int) -> dict[str, Tap]:
        names = list(dict.fromkeys(names))
        keras = import_keras()
        part = self.cut(names)
        try:
            given = part(keras.Input((side, side, 3)))
        except Exception as error:
            # Layers may raise anything.
            raise FeaturemillError(
                f"{self.path} can't compute images of {side}×{side}: {one_line(error)}; pass another --image-size"
            ) from error
        return {name: _tap(name, tuple(output.shape[1:])) for name, output in zip(names, given, strict=True)}

    def tappable(self, side: int) -> Iterator[Tap]:
        yield from self.taps(self._outputs, side).values()

    def cut(self, names: Iterable[str]) -> "keras.Model":
        """Returns the model up to some layers, whose outputs it gives as a list.

        Raises:
            UsageError: There is no such layer.
        """
        for name in names:
            if name not in self._outputs:
                raise UsageError(f"{self.path} has no layer {name!r}{did_you_mean(name, self._outputs)}")
        return import_keras().Model(self.model.inputs, [self._outputs[name] for name in names])

    def described(self, side: int | None) -> tuple[GraphLayerInfo, ...]:
        """Returns all layers with their shapes and costs, at an image size or the last one that was described.

        Raises:
            FeaturemillError: It can't be copied, uses a layer more than once, or doesn't compute in float32.
        """
        if side is not None and self._described[0] != side:
            leaves = (layer for layer in self.model._flatten_layers() if layer.weights and not hasattr(layer, "layers"))
            for layer in leaves:
                if layer.compute_dtype != "float32":
                    raise FeaturemillError(
                        f"{self.path} computes {layer.name} in {layer.compute_dtype}, and only float32 is trained; "
                        "save it with layers of float32"
                    )
            try:
                copy = self.copy(side)
                self._check_copy(copy, side)
                self._described = side, read_off(copy, file=self.path)
            except FeaturemillError:
                raise
            except Exception as error:
                # Layers may raise anything.
                raise FeaturemillError(
                    f"{self.path} can't be taken apart: {one_line(error)}; save it as a functional or sequential model"
                ) from error
        return self._described[1]

    def _check_copy(self, copy: "keras.Model", side: int) -> None:
        """Raises FeaturemillError if layers hold what isn't in their weights, so that a copy is another network."""
        pixels = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
        numpy = import_keras().ops.convert_to_numpy
        pairs = zip(*(each([pixels], training=False) for each in (self._graph, copy)), strict=True)
        if not all(np.allclose(*map(numpy, pair), rtol=1e-3, atol=1e-4) for pair in pairs):
            raise FeaturemillError(
                f"{self.path} can't be tuned: a copy of its layers with its weights computes other numbers; "
                "leave out layers that keep more than weights"
            )

    def copy(self, side: int) -> "keras.Model":
        """Returns a network with the same layers and weights at one image size, to be changed."""
        keras = import_keras()
        copy = keras.models.clone_model(self.model, input_tensors=keras.Input((side, side, 3)))
        copy.set_weights(self.model.get_weights())
        for layer in copy._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                # It computes by numbers that it made of its weights.
                layer.finalize_state()
        # Not as a Sequential, whose layers' graph is hidden.
        return keras.Model(copy.inputs, copy.outputs)

    def arrays(self, names: Iterable[str]) -> Arrays:
        """Returns {layer: its arrays} of those layers that have any."""
        layers = (self.model.get_layer(name) for name in names)
        return {layer.name: tuple(layer.get_weights()) for layer in layers if layer.weights}

    def archive(self, arrays: Arrays) -> bytes:
        """Returns a `.keras` file of the model with other weights, {layer: its arrays}; all else in it is the same."""
        copy = type(self.model).from_config(self.model.get_config())
        for layer in copy.layers:
            layer.set_weights(arrays.get(layer.name, ()))
        with tempfile.TemporaryDirectory() as folder:
            copy.save(path := os.path.join(folder, "network.keras"))
            with open(path, "rb") as file:
                return file.read()


def _tap(name: str, shape: tuple[int, ...]) -> Tap:
    return Tap(name, shape, len(shape) - 1, extra_tokens(shape[0]) if len(shape) == 2 else 0)


def _count_weights(config: dict[str, Any]) -> int:
    """Returns how many numbers the weights of a described model are; none of them is made."""
    keras = import_keras()
    with keras.StatelessScope(initialize_variables=False):
        # Whatever would compile it would bring weights of its own.
        model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
        return sum(prod(variable.shape) for variable in model.variables)


def _check_size(size: int, most: int, path: str, what: str) -> None:
    if size > most:
        raise FeaturemillError(f"{path} {what} {size_text(size)}, over {size_text(most)}; use a smaller network")


def _load(path: str) -> "keras.Model":
    # A copy: Keras reads files of this machine alone, and what is checked is then what is loaded.
    with tempfile.NamedTemporaryFile(suffix=".keras") as copy:
        try:
            with storage.open_read(path) as file:
                shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            with zipfile.ZipFile(copy.name) as archive:
                _check_size(sum(each.file_size for each in archive.infolist()), _MOST_BYTES, path, "unpacks to")
                described = archive.getinfo("config.json")
                _check_size(described.file_size, _MOST_CONFIG_BYTES, path, "describes its layers in")
                config = archive.read(described)
            # In a thread of its own, since Keras remembers for each what is to be initialised later.
            with ThreadPoolExecutor(1) as thread:
                numbers = thread.submit(_count_weights, json.loads(config)).result()
            _check_size(4 * numbers, _MOST_BYTES, path, "has layers whose weights take")
            return import_keras().saving.load_model(copy.name, compile=False, safe_mode=True)
        except FeaturemillError:
            raise
        except Exception as error:
            # What a file says may fail in any layer's way.
            says = one_line(error).replace(copy.name, path)
            if "ambda" in says or "unsafe" in says:
                says = "it holds code (a Lambda layer), which is never run"
            raise FeaturemillError(
                f"cannot use {path} as a network: {says}; save it with layers of Keras alone, by model.save"
            ) from error
