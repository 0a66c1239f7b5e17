"""A network's weights as NumPy arrays: from the published files, any other file, or a seed."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.network import published, weight_files
from transforms.network.bases import base_of, describe, open_file
from transforms.network.vgg import Array, Layer, LayerInfo
from transforms.spec import source_of
from transforms.text import did_you_mean

_ENDINGS = (".h5", ".hdf5", ".keras")
BIAS_SCALE = 0.01
_SPREAD_OF_SCALES = 0.1
# So many numbers are hashed at a time.
_PIECE_NUMBERS = 2**18


@dataclass(frozen=True)
class Weights:
    """The arrays of a table's layers.

    Attributes:
        arrays: {layer name: its arrays as Keras has them}, float32. Kernels are height×width×in×out, or in×out; a
            convolution of VGG has (kernel, bias).
        sha256: Of the layers used, whatever file they came from, see `digest`.
        origin: Where they come from, for people: `imagenet (FILE)`, a path, or `random:SEED`.
        is_random: True if they were never trained.
    """

    arrays: Mapping[str, tuple[np.ndarray, ...]]
    sha256: str
    origin: str
    is_random: bool


def load_weights(source: str, layers: Sequence[Layer], *, backbone: str) -> Weights:
    """Loads the weights of the layers that a run computes.

    Args:
        source: `imagenet` (Keras's published files, from its cache or the net), the path or URL of an `.h5`,
            `.weights.h5` or `.keras` file, or `random:SEED`. Of bases from files that file.
        layers: The table, cut behind the deepest tap; only these layers are read and hashed. Of a file, all is hashed,
            and without a table its arrays stay there.
        backbone: The base, to find its published file, and to tell when a file holds another.

    Raises:
        UsageError: `source` is none of these.
        FeaturemillError: A file that isn't there, isn't whole, or doesn't fit; with the layer and the cure.
    """
    if base_of(backbone).is_file:
        file = open_file(backbone, source)
        arrays = file.arrays(layer.name for layer in layers) if layers else {}
        return Weights(arrays, file.sha256, file.path, is_random=False)
    needed = _needed(layers)
    seed = re.fullmatch(r"random:(\d+)", source)
    if seed:
        return _weights(_random_arrays(needed, int(seed.group(1))), needed, source, is_random=True)
    if source == "imagenet":
        file = base_of(backbone).published[any(info.layer.kind == "dense" for info in needed)]
        path = published.cached_file(file, otherwise="pass --weights PATH to use a file of your own")
        arrays = weight_files.read_arrays(path, needed, backbone=backbone)
        return _weights(arrays, needed, f"imagenet ({os.path.basename(path)})", is_random=False)
    _check_source(source)
    path = storage.absolute(source)
    return _weights(weight_files.read_arrays(path, needed, backbone=backbone), needed, path, is_random=False)


def stored_source(weights: str | None, origin: str) -> str:
    """Returns where to load the weights of an OUT from again.

    Args:
        weights: Where they are now, or None.
        origin: Where OUT's manifest says they came from.

    Raises:
        FeaturemillError: Random weights that can't be those: another seed, or instead of ImageNet's.
    """
    made_with = source_of(origin)
    if weights is None or weights == made_with:
        return made_with
    if weights.startswith("random:") and made_with.startswith(("random:", "imagenet")):
        raise FeaturemillError(f"the features were made with weights {origin}, not {weights}; leave --weights out")
    return weights


def _needed(layers: Sequence[Layer]) -> list[LayerInfo]:
    return [info for info in describe(layers) if info.layer.has_weights]


def _check_source(source: str) -> None:
    """Tells a mistyped word from a path. A file that is there is always meant."""
    if not storage.is_local(source) or os.path.exists(os.path.expanduser(source)):
        return
    if source.startswith("random"):
        raise UsageError(f"weights {source!r}: the seed is a whole number, such as random:0")
    if os.sep not in source and not source.endswith(_ENDINGS):
        hint = did_you_mean(source, ("imagenet", "random:0"))
        raise UsageError(f"weights {source!r} are neither a file here nor a known name{hint}")


def _weights(
    arrays: dict[str, tuple[np.ndarray, ...]], needed: Sequence[LayerInfo], origin: str, *, is_random: bool
) -> Weights:
    for info in needed:
        for what, array in zip(info.arrays, arrays[info.name], strict=True):
            if not np.isfinite(array).all():
                bad = int(array.size - np.isfinite(array).sum())
                raise FeaturemillError(
                    f"{origin}: {info.name}'s {what.name} holds {bad} values that are NaN or infinite; "
                    "the file is damaged or its training diverged: use another"
                )
    return Weights(arrays, digest(arrays), origin, is_random)


def digest(arrays: Mapping[str, tuple[np.ndarray, ...]]) -> str:
    """Returns the SHA-256 (hex) over name, shapes and little-endian float32 bytes of each layer, in order."""
    return digest_layers(arrays.items())


def digest_layers(layers: Iterable[tuple[str, tuple[np.ndarray, ...]]]) -> str:
    """Returns what `digest` does, of layers that come one after the other."""
    sha256 = hashlib.sha256()
    for name, arrays in layers:
        for array in map(np.atleast_1d, arrays):
            sha256.update(f"{name} {'×'.join(map(str, array.shape))}\n".encode())
            # A transposed matrix is put in order much faster by pieces, each copied as it lies first, than at once.
            rows = max(1, _PIECE_NUMBERS * len(array) // array.size)
            for start in range(0, len(array), rows):
                piece = array[start : start + rows].copy(order="K")
                sha256.update(np.ascontiguousarray(piece, "<f4").data)
    return sha256.hexdigest()


def _random_arrays(needed: Sequence[LayerInfo], seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Draws He-normal kernels, which keep the scale of activations through any number of ReLU layers.

    Source: He et al., "Delving Deep into Rectifiers", 2015: standard deviation √(2 / inputs of a unit). Each layer
    has a stream of its own, so cutting the table changes no layer's numbers, nor does Keras's backend.
    """
    arrays = {}
    for info in needed:
        name = np.frombuffer(info.name.encode(), np.uint8)
        stream = np.random.Generator(np.random.PCG64([seed, *name.tolist()]))
        arrays[info.name] = tuple(_drawn(array, stream) for array in info.arrays)
    return arrays


def _drawn(array: Array, stream: np.random.Generator) -> np.ndarray:
    numbers = stream.standard_normal(array.shape, np.float32)
    if array.is_scale:
        return np.abs(1 + np.float32(_SPREAD_OF_SCALES) * numbers)
    return numbers * np.float32(np.sqrt(2 / array.fan_in) if array.fan_in else BIAS_SCALE)
