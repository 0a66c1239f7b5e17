"""Networks of `keras.applications`, built by Keras's own functions and read off as tables of layers.

Such a network is a graph: a layer takes what one or several others give. It ends with its average pooling, and what
comes behind that. Its shapes are known only once Keras has built it, which takes seconds.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any

from transforms.errors import FeaturemillError, UsageError
from transforms.network.keras_import import import_keras
from transforms.network.vgg import CHANNELS, MIN_IMAGE_SIZE, Array, Layer, LayerInfo

if TYPE_CHECKING:
    import keras

_SCALES = re.compile(r"gamma|moving_variance|variable.*")
# Keras's defaults are one for all threads.
_turn = Lock()
# {builder: image size} of the last that was described.
_built: dict[str, int] = {}
# {(builder, image size): network}: the last that was described, until somebody builds it.
_spare: "dict[tuple[str, int], keras.Model]" = {}


@dataclass(frozen=True)
class GraphLayer(Layer):
    """One layer of a graph; `kind` is the name of its class.

    Attributes:
        builder: The function of `keras.applications` that makes its network; or
        file: the path of a user's file that holds it.
        inputs: Names of the layers whose outputs it takes; none where it takes the pixels.
        weights: Its arrays.
        yields_vector: See `is_vector`.
    """

    kind: str
    builder: str = ""
    file: str = ""
    inputs: tuple[str, ...] = ()
    weights: tuple[Array, ...] = ()
    yields_vector: bool = False

    @property
    def has_weights(self) -> bool:
        return bool(self.weights)

    @property
    def is_vector(self) -> bool:
        return self.yields_vector


@dataclass(frozen=True)
class GraphLayerInfo(LayerInfo):
    """A graph's layer at one image size; of several inputs, `input_shape` is the first's."""

    layer: GraphLayer

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.layer.weights


def layers(builder: str, image_size: int) -> tuple[GraphLayer, ...]:
    """Returns the table of a network, which is the same at any size: of one that was built already, or of this one."""
    return tuple(info.layer for info in describe(builder, built_size(builder, image_size)))


def built_size(builder: str, otherwise: int = MIN_IMAGE_SIZE) -> int:
    """Returns an image size that `describe` needn't build the network for, or another if there is none."""
    return _built.get(builder, otherwise)


@lru_cache(maxsize=16)
def describe(builder: str, image_size: int) -> tuple[GraphLayerInfo, ...]:
    """Returns all layers with their shapes and costs. Builds the network, once for each size.

    Args:
        builder: A function of `keras.applications`.
        image_size: Pixels on a side.

    Raises:
        UsageError: The image is too small.
    """
    network = _build(builder, image_size)
    _built[builder] = image_size
    # Only one: each has all of its weights.
    _spare.clear()
    _spare[builder, image_size] = network
    return read_off(network, builder=builder)


def read_off(network: "keras.Model", **origin: str) -> tuple[GraphLayerInfo, ...]:
    """Returns all layers of a graph with their shapes and costs.

    Args:
        network: Of one image size.
        origin: The rows' `builder` or `file`.

    Raises:
        FeaturemillError: It uses a layer more than once.
    """
    pixels, infos, used = network.inputs[0]._keras_history.operation, [], calls(network)
    for layer in network.layers:
        if layer is pixels:
            continue
        if len(used[layer.name]) > 1:
            raise FeaturemillError(
                f"{' '.join(origin.values())} uses its layer {layer.name} {len(used[layer.name])} times, and such a "
                "network can't be cut in two; build it with a layer for each use"
            )
        taken = used[layer.name][0].input_tensors
        names = dict.fromkeys(name for tensor in taken for name in _sources(tensor))
        output = tuple(used[layer.name][0].outputs[0].shape[1:])
        weights = _arrays(layer)
        row = GraphLayer(
            layer.name,
            type(layer).__name__,
            **origin,
            inputs=tuple(name for name in names if name != pixels.name),
            weights=weights,
            yields_vector=len(output) == 1,
        )
        # A kernel is applied once at each position; of layers made of others, as if at their last one's positions.
        macs = sum(prod(array.shape) for array in weights if array.fan_in) * prod(output[:-1])
        parameters = sum(prod(array.shape) for array in weights)
        infos.append(GraphLayerInfo(row, tuple(taken[0].shape[1:]), output, parameters, macs))
    return tuple(infos)


def calls(network: "keras.Model") -> dict[str, list[Any]]:
    """Returns {layer: how it is used}: Keras's nodes, with `input_tensors` and `outputs`, one for each use.

    A layer's own `input` and `output` may be those of another graph, as they are of a network that is a layer here.
    """
    found = defaultdict(list)
    for nodes in network._nodes_by_depth.values():
        for node in nodes:
            found[node.operation.name].append(node)
    return found


def _sources(tensor: "keras.KerasTensor") -> list[str]:
    """Returns the names of the layers that a tensor comes from, through what is computed between layers, such as +."""
    made_by, node, _ = tensor._keras_history
    if isinstance(made_by, import_keras().Layer):
        return [made_by.name]
    return [name for each in made_by._inbound_nodes[node].input_tensors for name in _sources(each)]


def _arrays(layer: "keras.Layer") -> tuple[Array, ...]:
    keras = import_keras()
    arrays = []
    for part in layer.layers if isinstance(layer, keras.Sequential) else (layer,):
        for weight in part.weights:
            shape = tuple(weight.shape)
            # A depthwise kernel has one input for each of its channels.
            inputs = shape[:-2] if isinstance(part, keras.layers.DepthwiseConv2D) else shape[:-1]
            arrays.append(
                Array(
                    weight.name,
                    shape,
                    part.name,
                    fan_in=prod(inputs) if len(shape) > 1 else 0,
                    is_scale=bool(_SCALES.fullmatch(weight.name)),
                )
            )
    return tuple(arrays)


def cut(table: Sequence[GraphLayer], taps: Sequence[str]) -> tuple[GraphLayer, ...]:
    """Returns the layers that the taps need, in their order."""
    needed = set(taps)
    for layer in reversed(table):
        if layer.name in needed:
            needed.update(layer.inputs)
    return tuple(layer for layer in table if layer.name in needed)


def build(table: Sequence[GraphLayer], image_size: int, *, dtype: str = "float32") -> "keras.Model":
    """Builds the layers of a table, as `cut` made it; their weights are to be set."""
    builder = table[0].builder
    described = _spare.pop((builder, image_size), None) if dtype == "float32" else None
    network = described or _build(builder, image_size, dtype)
    taken = {name for layer in table for name in layer.inputs}
    ends = [network.get_layer(layer.name).output for layer in table if layer.name not in taken]
    model = import_keras().Model(network.input, ends)
    unknown = {layer.name for layer in model.layers if layer.weights} - {layer.name for layer in table}
    if unknown:
        raise FeaturemillError(f"{builder} has layers that can't be followed ({min(unknown)}); install Keras 3.15")
    return model


def _build(builder: str, image_size: int, dtype: str = "float32") -> "keras.Model":
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"image size {image_size} is below {MIN_IMAGE_SIZE}: nothing would be left of an image")
    keras = import_keras()
    with _turn:
        # A user's keras.json may say otherwise, and the builders take no argument for it.
        kept = keras.config.dtype_policy(), keras.config.image_data_format()
        keras.config.set_dtype_policy(dtype)
        keras.config.set_image_data_format("channels_last")
        try:
            network = getattr(keras.applications, builder)(
                include_top=False, weights=None, pooling="avg", input_shape=(image_size, image_size, CHANNELS)
            )
        finally:
            keras.config.set_dtype_policy(kept[0])
            keras.config.set_image_data_format(kept[1])
    _rename(network)
    return network


def _rename(network: "keras.Model") -> None:
    """Gives layers without a name of their own the one that they would have in a process of their own.

    Keras numbers them by all that the process ever built.
    """
    counts: Counter[str] = Counter()
    for layer in network.layers:
        kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
        if re.fullmatch(rf"{kind}(_\d+)?", layer.name):
            layer.name = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
