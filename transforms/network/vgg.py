"""The VGG networks as tables: layers, shapes, and the `keras.Sequential` built from them.

Everything else about a network is derived from its table. Keras is imported only where a model is built.

Source of the architecture: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015, table 1, columns D (VGG16) and E (VGG19); names as in `keras.applications`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transforms.errors import UsageError
from transforms.network.keras_import import import_keras
from transforms.text import did_you_mean

if TYPE_CHECKING:
    import keras

# Per block: how many convolutions, and how many filters each has.
_BLOCKS = {
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
BACKBONES = tuple(_BLOCKS)
KERNEL = 3
CHANNELS = 3
MIN_IMAGE_SIZE = 32
# The published dense layers take 7×7×512 numbers, which is what these image sizes come to after five poolings.
TOP_IMAGE_SIZES = range(224, 256)

Kind = Literal["conv", "pool", "flatten", "dense", "dropout"]


@dataclass(frozen=True)
class Layer:
    """One row of a network's table.

    Attributes:
        name: Keras's name, `block1_conv1` … `predictions`.
        kind: What it does. A `conv` is 3×3 with padding, a `pool` takes the maximum of 2×2 and halves the size.
        units: Filters of a convolution, width of a dense layer; 0 for the rest.
        activation: `relu`, `softmax` or empty.
        rate: Share of the inputs that a dropout drops.
    """

    name: str
    kind: Kind
    units: int = 0
    activation: str = ""
    rate: float = 0.0

    @property
    def has_weights(self) -> bool:
        return self.kind in ("conv", "dense")

    @property
    def is_vector(self) -> bool:
        """True if the output has no positions to pool over."""
        return self.kind in ("flatten", "dense")


@dataclass(frozen=True)
class Array:
    """One array of a layer's weights.

    Attributes:
        name: What it is to the layer, such as `kernel`, `bias` or `gamma`.
        shape: As Keras has it.
        owner: The layer that holds it: a layer may be made of others.
        fan_in: Numbers that a unit takes, of a kernel; 0 for the rest.
        is_scale: Whether it multiplies, or is a variance: 1 leaves things as they are, and not 0.
    """

    name: str
    shape: tuple[int, ...]
    owner: str
    fan_in: int = 0
    is_scale: bool = False


@dataclass(frozen=True)
class LayerInfo:
    """A layer's shape and costs at one image size.

    Attributes:
        layer: Its row in the table.
        input_shape: Of one image, channels last.
        output_shape: The same after the layer.
        parameters: Weights and biases.
        macs: Multiply-accumulates for one image; biases, activations and poolings aren't counted.
    """

    layer: Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def output_size(self) -> int:
        """Numbers in the output of one image."""
        return math.prod(self.output_shape)

    @property
    def output_bytes(self) -> int:
        """Bytes of that output as float32."""
        return 4 * self.output_size

    @property
    def arrays(self) -> "tuple[Array, ...]":
        """Its weights: the kernel, height×width×in×out or in×out, and the bias."""
        window = (KERNEL, KERNEL) if self.layer.kind == "conv" else ()
        kernel = (*window, self.input_shape[-1], self.layer.units)
        return (
            Array("kernel", kernel, self.name, fan_in=math.prod(kernel[:-1])),
            Array("bias", (self.layer.units,), self.name),
        )

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.arrays)


def layers(
    backbone: str,
    *,
    include_top: bool = False,
    classes: int = 1000,
    dense: Sequence[int] = (4096, 4096),
    block_dropout: float | Sequence[float] = 0.0,
    dense_dropout: float | Sequence[float] = 0.0,
) -> tuple[Layer, ...]:
    """Returns the table of a network.

    Example:
        >>> table = featuremill.layers("vgg16", include_top=True, dense=(4096,), block_dropout=0.25)
        >>> [layer.name for layer in table][-4:]
        ['block5_dropout', 'flatten', 'fc1', 'predictions']

    Args:
        backbone: `vgg16` or `vgg19`.
        include_top: Whether the dense layers follow: `flatten`, `fc1`, `fc2` …, `predictions`.
        classes: Width of `predictions`.
        dense: Widths of the dense layers before it.
        block_dropout: Dropout rate after each of the five blocks, or one for all; 0 adds no layer.
        dense_dropout: The same after each layer of `dense`.

    Raises:
        UsageError: A network, width or rate that can't be.
    """
    _check_backbone(backbone)
    if min((classes, *dense)) < 1:
        raise UsageError(f"dense layers need at least 1 unit, not {min((classes, *dense))}")
    blocks = _BLOCKS[backbone]
    table = []
    for block, ((convs, filters), rate) in enumerate(
        zip(blocks, _rates(block_dropout, len(blocks), "block"), strict=True), 1
    ):
        table += [Layer(f"block{block}_conv{i}", "conv", filters, "relu") for i in range(1, convs + 1)]
        table += [Layer(f"block{block}_pool", "pool"), *_dropout(f"block{block}", rate)]
    if include_top:
        table.append(Layer("flatten", "flatten"))
        for i, (units, rate) in enumerate(zip(dense, _rates(dense_dropout, len(dense), "dense"), strict=True), 1):
            table += [Layer(f"fc{i}", "dense", units, "relu"), *_dropout(f"fc{i}", rate)]
        table.append(Layer("predictions", "dense", classes, "softmax"))
    return tuple(table)


def _check_backbone(backbone: str) -> None:
    if backbone not in BACKBONES:
        raise UsageError(f"no backbone {backbone!r}{did_you_mean(backbone, BACKBONES)}")


def _rates(rates: float | Sequence[float], count: int, what: str) -> tuple[float, ...]:
    rates = tuple(rates) if isinstance(rates, Sequence) else (rates,) * count
    if len(rates) != count:
        raise UsageError(f"{what} dropout: {len(rates)} rates for {count} {what}s; give one rate, or {count}")
    for rate in rates:
        if not 0 <= rate < 1:
            raise UsageError(f"{what} dropout: a rate is at least 0 and below 1, not {rate}")
    return rates


def _dropout(name: str, rate: float) -> list[Layer]:
    return [Layer(f"{name}_dropout", "dropout", rate=rate)] if rate else []


def cut(table: Sequence[Layer], taps: Iterable[str]) -> tuple[Layer, ...]:
    """Returns the table up to the deepest of the taps; what lies behind is never computed.

    Raises:
        UsageError: No tap given, or one that isn't in the table.
    """
    names = [layer.name for layer in table]
    taps = list(taps)
    for tap in taps:
        if tap not in names:
            raise UsageError(f"no layer {tap!r}{did_you_mean(tap, names)}")
    if not taps:
        raise UsageError("no tap; name at least one layer")
    return tuple(table[: 1 + max(names.index(tap) for tap in taps)])


def describe(table: Sequence[Layer], image_size: int) -> tuple[LayerInfo, ...]:
    """Returns shapes, parameters and multiply-accumulates of each layer, by arithmetic alone.

    Args:
        table: From `layers`.
        image_size: Pixels on a side. A pooling of an odd size drops the last row and column.

    Raises:
        UsageError: The image is too small for five poolings.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"image size {image_size} is below {MIN_IMAGE_SIZE}: five poolings would leave nothing")
    infos: list[LayerInfo] = []
    shape: tuple[int, ...] = (image_size, image_size, CHANNELS)
    for layer in table:
        output = _output_shape(layer, shape)
        kernel = shape[-1] * layer.units * (KERNEL**2 if layer.kind == "conv" else 1)
        macs = kernel * (math.prod(output[:-1]) if layer.kind == "conv" else 1)
        infos.append(LayerInfo(layer, shape, output, kernel + layer.units, macs))
        shape = output
    return tuple(infos)


def _output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    if layer.kind == "conv":
        return (*shape[:-1], layer.units)
    if layer.kind == "pool":
        return (shape[0] // 2, shape[1] // 2, shape[2])
    if layer.kind == "flatten":
        return (math.prod(shape),)
    return (layer.units,) if layer.kind == "dense" else shape


def check_top(table: Sequence[Layer], image_size: int) -> None:
    """Checks that a table with dense layers can take the published weights at this image size.

    Raises:
        UsageError: Their kernel is made for 7×7×512 inputs.
    """
    dense = [layer.name for layer in table if layer.kind == "dense"]
    if dense and image_size not in TOP_IMAGE_SIZES:
        raise UsageError(
            f"{dense[-1]} can't be computed at image size {image_size}: with the top, image_size must be "
            f"{TOP_IMAGE_SIZES[0]}…{TOP_IMAGE_SIZES[-1]}; change --image-size, or tap a layer before {dense[0]}"
        )


def build(
    table: Sequence[Layer], image_size: int, *, dtype: str = "float32", kernels: str = "glorot_uniform"
) -> "keras.Sequential":
    """Builds a chain of layers as `bases.build` does, which calls this.

    Args:
        table, image_size, dtype: See there.
        kernels: Keras's initializer of the kernels; `zeros` is quickest where weights will be set.
    """
    keras = import_keras()
    # Said again for each layer, because a user's keras.json may say otherwise.
    image = {"data_format": "channels_last"}
    stack = [keras.Input((image_size, image_size, CHANNELS), dtype="float32")]
    for layer in table:
        named = {"name": layer.name, "dtype": dtype}
        drawn = {"kernel_initializer": kernels}
        if layer.kind == "conv":
            window = {"padding": "same", "activation": layer.activation}
            new = keras.layers.Conv2D(layer.units, KERNEL, **window, **image, **drawn, **named)
        elif layer.kind == "pool":
            new = keras.layers.MaxPooling2D(2, **image, **named)
        elif layer.kind == "flatten":
            new = keras.layers.Flatten(**image, **named)
        elif layer.kind == "dense":
            new = keras.layers.Dense(layer.units, activation=layer.activation, **drawn, **named)
        else:
            new = keras.layers.Dropout(layer.rate, **named)
        stack.append(new)
    return keras.Sequential(stack)
