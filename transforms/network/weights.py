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
from transforms.network.vgg import TOP_IMAGE_SIZES, Layer, LayerInfo, describe
from transforms.text import did_you_mean

_ENDINGS = (".h5", ".hdf5", ".keras")
BIAS_SCALE = 0.01
# So many numbers are hashed at a time.
_PIECE_NUMBERS = 2**18


@dataclass(frozen=True)
class Weights:
    """The arrays of a table's layers.

    Attributes:
        arrays: {layer name: (kernel, bias)}, float32. Kernels are height×width×in×out, or in×out.
        sha256: Of the layers used, whatever file they came from, see `digest`.
        origin: Where they come from, for people: `imagenet (FILE)`, a path, or `random:SEED`.
        is_random: True if they were never trained.
    """

    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]
    sha256: str
    origin: str
    is_random: bool


def load_weights(source: str, layers: Sequence[Layer], *, backbone: str) -> Weights:
    """Loads the weights of the layers that a run computes.

    Args:
        source: `imagenet` (Keras's published files, from its cache or the net), the path or URL of an `.h5`,
            `.weights.h5` or `.keras` file, or `random:SEED`.
        layers: The table, cut behind the deepest tap; only these layers are read and hashed.
        backbone: `vgg16` or `vgg19`, to tell when a file holds the other.

    Raises:
        UsageError: `source` is none of these.
        FeaturemillError: A file that isn't there, isn't whole, or doesn't fit; with the layer and the cure.
    """
    needed = _needed(layers)
    seed = re.fullmatch(r"random:(\d+)", source)
    if seed:
        return _weights(_random_arrays(needed, int(seed.group(1))), needed, source, is_random=True)
    if source == "imagenet":
        path = published.published_file(backbone, with_top=any(info.layer.kind == "dense" for info in needed))
        arrays = weight_files.read_arrays(path, needed, backbone=backbone)
        return _weights(arrays, needed, f"imagenet ({os.path.basename(path)})", is_random=False)
    _check_source(source)
    path = storage.absolute(source)
    return _weights(weight_files.read_arrays(path, needed, backbone=backbone), needed, path, is_random=False)


def source_of(origin: str) -> str:
    """Returns the `source` by which weights of this `Weights.origin` are loaded again."""
    # For the published file, the origin adds its name in brackets.
    return "imagenet" if origin.startswith("imagenet ") else origin


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
    # Convolutions have the same weights at any image size; the top's are made for this one.
    return [info for info in describe(layers, TOP_IMAGE_SIZES[0]) if info.layer.has_weights]


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
    arrays: dict[str, tuple[np.ndarray, np.ndarray]], needed: Sequence[LayerInfo], origin: str, *, is_random: bool
) -> Weights:
    for info in needed:
        for what, array in zip(("kernel", "bias"), arrays[info.name], strict=True):
            if not np.isfinite(array).all():
                bad = int(array.size - np.isfinite(array).sum())
                raise FeaturemillError(
                    f"{origin}: {info.name}'s {what} holds {bad} values that are NaN or infinite; "
                    "the file is damaged or its training diverged: use another"
                )
    return Weights(arrays, digest(arrays), origin, is_random)


def digest(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Returns the SHA-256 (hex) over name, shapes and little-endian float32 bytes of each layer, in order."""
    return digest_layers(arrays.items())


def digest_layers(layers: Iterable[tuple[str, tuple[np.ndarray, np.ndarray]]]) -> str:
    """Returns what `digest` does, of layers that come one after the other."""
    sha256 = hashlib.sha256()
    for name, pair in layers:
        for array in pair:
            sha256.update(f"{name} {'×'.join(map(str, array.shape))}\n".encode())
            # A transposed matrix is put in order much faster by pieces, each copied as it lies first, than at once.
            rows = max(1, _PIECE_NUMBERS * len(array) // array.size)
            for start in range(0, len(array), rows):
                piece = array[start : start + rows].copy(order="K")
                sha256.update(np.ascontiguousarray(piece, "<f4").data)
    return sha256.hexdigest()


def _random_arrays(needed: Sequence[LayerInfo], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws He-normal kernels, which keep the scale of activations through any number of ReLU layers.

    Source: He et al., "Delving Deep into Rectifiers", 2015: standard deviation √(2 / inputs of a unit). Each layer
    has a stream of its own, so cutting the table changes no layer's numbers, nor does Keras's backend.
    """
    arrays = {}
    for info in needed:
        name = np.frombuffer(info.name.encode(), np.uint8)
        stream = np.random.Generator(np.random.PCG64([seed, *name.tolist()]))
        kernel_shape, bias_shape = info.weight_shapes
        kernel = stream.standard_normal(kernel_shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(kernel_shape[:-1])))
        arrays[info.name] = kernel, stream.standard_normal(bias_shape, np.float32) * np.float32(BIAS_SCALE)
    return arrays
