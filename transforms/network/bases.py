"""The bases: what each is, in one record, and what all else asks of them by name or by table."""

import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.errors import UsageError
from transforms.network import applications, vgg
from transforms.network.files import NetworkFile, opened
from transforms.network.keras_file import KerasFile
from transforms.network.keras_import import import_keras
from transforms.network.onnx_file import OnnxFile
from transforms.network.published import Published, application_file
from transforms.network.vgg import Layer, LayerInfo
from transforms.pools import POOLS
from transforms.spec import DEFAULT_FEATURE, VGG_NORMALISATION, Feature
from transforms.text import did_you_mean

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Base:
    """The facts about a frozen network.

    Attributes:
        published: {whether with the top: the file of its published weights}; of networks that are used without
            their top, only False.
        feature: Taken where nobody names one.
        width: Numbers of that feature.
        builder: The function of `keras.applications` that builds it; empty for a chain of layers from a plain table.
        normalise: One of `transforms.spec.NORMALISATIONS`.
        image_size, resize, interpolation: The image that it expects, as `SpecOptions` calls it.
        file: The ending of a user's file that says what it is: the fields above that have defaults are then only those.
    """

    published: Mapping[bool, Published]
    feature: str
    width: int
    builder: str = ""
    normalise: str = "inside"
    image_size: int = 224
    resize: str = "crop"
    interpolation: str = "bilinear"
    file: str = ""

    @property
    def is_file(self) -> bool:
        return bool(self.file)

    @property
    def is_chain(self) -> bool:
        """True if every layer takes what the one before it gives, so that any engine can compute it."""
        return not self.builder and not self.is_file

    @property
    def kind(self) -> str:
        """Kind that an engine must be able to compute: a `chain` of VGG's layers, a `graph` of Keras's, or `onnx`."""
        return "onnx" if self.file == ".onnx" else "chain" if self.is_chain else "graph"

    @property
    def has_top(self) -> bool:
        return True in self.published


def _vgg(name: str, bare: str, with_top: str) -> Base:
    path = f"{name}/{name}_weights_tf_dim_ordering_tf_kernels"
    return Base(
        published={False: application_file(f"{path}_notop.h5", bare), True: application_file(f"{path}.h5", with_top)},
        feature=DEFAULT_FEATURE,
        width=512,
        normalise=VGG_NORMALISATION,
        resize="squash",
    )


def _application(builder: str, path: str, digest: str, feature: str, width: int, **differs: Any) -> Base:
    return Base(
        published={False: application_file(path, digest)},
        builder=builder,
        feature=f"embedding={feature}",
        width=width,
        **differs,
    )


# Files and hashes from Keras 3.15's keras/src/applications, which says nothing of how images are fitted: so as their
# authors' code tests them (docs/decisions.md names it). Nearly so where MobileNetV3 squashes 7/8 of either side.
BASES = {
    "vgg16": _vgg("vgg16", "6d6bbae143d832006294945121d1f1fc", "64373286793e3c8b2b4e3219cbf3544b"),
    "vgg19": _vgg("vgg19", "253f8cb515780f3b799900260a226db6", "cbe5617147190e668d6c5d5026f83318"),
    "resnet50": _application(
        "ResNet50",
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",
        "conv5_block3_out:avg",
        2048,
        normalise="caffe",
    ),
    "efficientnetv2-b0": _application(
        "EfficientNetV2B0",
        "efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
        "top_activation:avg",
        1280,
        interpolation="bicubic",
    ),
    "efficientnetv2-s": _application(
        "EfficientNetV2S",
        "efficientnet_v2/efficientnetv2-s_notop.h5",
        "af0682fb74e8c54910f2d4393339c070",
        "top_activation:avg",
        1280,
        image_size=384,
        resize="squash",
    ),
    # Its normalisation comes after the pooling.
    "convnext-tiny": _application(
        "ConvNeXtTiny",
        "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        "layer_normalization:flatten",
        768,
        interpolation="bicubic",
    ),
    "mobilenetv3-large": _application(
        "MobileNetV3Large",
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
        "activation_19:avg",
        960,
    ),
    "densenet121": _application(
        "DenseNet121",
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "30ee3e1110167f948a6b9946edeeb738",
        "relu:avg",
        1024,
        normalise="torch",
        interpolation="bicubic",
    ),
}
# The networks of users' files, whose path stands where other bases' weights are named.
FILES = {name: Base(published={}, feature="", width=0, file=f".{name}") for name in ("onnx", "keras")}
# All names, those of BASES first.
NETWORKS = ChainMap(FILES, BASES)
_KINDS = {"onnx": OnnxFile, "keras": KerasFile}
TOPPED = tuple(name for name, base in BASES.items() if base.has_top)


def base_of(backbone: str) -> Base:
    """Returns a base by its name, or the one of FILES by the name of a file.

    Raises:
        UsageError: There is none.
    """
    backbone = file_kind(backbone) or backbone
    if backbone not in NETWORKS:
        files = f" (files are {' or '.join(base.file for base in FILES.values())})" if "." in backbone else ""
        raise UsageError(f"no backbone {backbone!r}{files}{did_you_mean(backbone, BASES)}")
    return NETWORKS[backbone]


def file_kind(backbone: str) -> str:
    """Returns which of FILES a backbone is that is named by its file; else nothing."""
    return next((name for name, base in FILES.items() if backbone.lower().endswith(base.file)), "")


def open_file(backbone: str, path: str) -> NetworkFile:
    """Returns the network in the file of a base of FILES.

    Raises:
        FeaturemillError: It isn't there, or can't be used.
    """
    return opened(path, _KINDS[backbone])


def layers(backbone: str, *, include_top: bool = False, **options: Any) -> tuple[Layer, ...]:
    """Returns the table of a base.

    Example:
        >>> table = featuremill.layers("vgg16", include_top=True, dense=(4096,), block_dropout=0.25)
        >>> [layer.name for layer in table][-4:]
        ['block5_dropout', 'flatten', 'fc1', 'predictions']

    Args:
        backbone: One of BASES.
        include_top: Whether the dense layers follow: `flatten`, `fc1`, `fc2` …, `predictions`.
        options: Of VGG, see `vgg.layers`: `classes`, `dense`, `block_dropout`, `dense_dropout`.

    Raises:
        UsageError: No such base, a base without what was asked for, or a width or rate that can't be.
    """
    base = base_of(backbone)
    if base.is_file:
        raise UsageError(
            f"{backbone}: a file's network has no table of layers here; featuremill describe FILE lists its taps"
        )
    if base.is_chain:
        return vgg.layers(backbone, include_top=include_top, **options)
    if include_top or options:
        raise UsageError(f"{backbone} is used without its top, and as it is; include_top and others are for VGG")
    return applications.layers(base.builder, base.image_size)


def expect_size(backbone: str, image_size: int) -> None:
    """Builds a graph at the size at which it will be used, so that it needn't be at another for its layers' names."""
    if base_of(backbone).builder:
        applications.describe(base_of(backbone).builder, image_size)


def cut(table: Sequence[Layer], taps: Iterable[str]) -> tuple[Layer, ...]:
    """Returns the layers of a table that the taps need; nothing else is ever computed.

    Raises:
        UsageError: No tap given, or one that isn't in the table.
    """
    taps = list(taps)
    chain = vgg.cut(table, taps)
    return applications.cut(table, taps) if is_graph(table) else chain


def is_graph(table: Sequence[Layer]) -> bool:
    return isinstance(table[0], applications.GraphLayer)


def is_cut(table: Sequence[Layer], index: int) -> bool:
    """Returns whether all layers behind one can be computed from its output alone."""
    known = {layer.name for layer in table[index:]}
    return not is_graph(table) or all(layer.inputs and known.issuperset(layer.inputs) for layer in table[index + 1 :])


def describe(table: Sequence[Layer], image_size: int | None = None) -> tuple[LayerInfo, ...]:
    """Returns shapes, parameters and multiply-accumulates of each layer of a table.

    Args:
        table: From `layers`, perhaps `cut`.
        image_size: Pixels on a side; None for one that fits all layers, where only their weights are of interest.

    Raises:
        UsageError: The image is too small.
    """
    if not is_graph(table):
        return vgg.describe(table, image_size or vgg.TOP_IMAGE_SIZES[0])
    names, first = {layer.name for layer in table}, table[0]
    if first.file:
        infos = open_file("keras", first.file).described(image_size)
    else:
        infos = applications.describe(first.builder, image_size or applications.built_size(first.builder))
    return tuple(info for info in infos if info.name in names)


def build(table: Sequence[Layer], image_size: int, *, dtype: str = "float32", **options: Any) -> "keras.Model":
    """Builds the network, freshly initialised; its input is what `normalise.preprocess` returns.

    Example:
        >>> featuremill.build(featuremill.layers("vgg19"), 32).output_shape
        (None, 1, 1, 512)

    Args:
        table: From `layers`, perhaps `cut`.
        image_size: Pixels on a side.
        dtype: Keras's dtype policy of every layer.
        options: Of VGG, see `vgg.build`: `kernels`.
    """
    if is_graph(table):
        file = table[0].file
        return open_file("keras", file).copy(image_size) if file else applications.build(table, image_size, dtype=dtype)
    return vgg.build(table, image_size, dtype=dtype, **options)


def outputs_of(network: "keras.Model", inputs: Any, names: Sequence[str], start: str = "") -> dict[str, Any]:
    """Returns {layer: its output} of some layers, as part of a larger Keras model; in inference mode.

    Args:
        network: From `build`.
        inputs: N×S×S×3, normalised; or what the layer `start` gave.
        names: Of the layers.
        start: The layer that `inputs` come from; all that is asked for must depend on pixels through it alone.
    """
    keras = import_keras()
    outputs = {start: inputs} if start in names else {}
    names = [name for name in dict.fromkeys(names) if name != start]
    if isinstance(network, keras.Sequential):
        rows = [layer.name for layer in network.layers]
        for layer in network.layers[rows.index(start) + 1 if start else 0 :]:
            if not set(names) - outputs.keys():
                break
            inputs = outputs[layer.name] = layer(inputs)
    elif names:
        used = applications.calls(network)
        begin = used[start][0].outputs[0] if start else network.input
        part = keras.Model(begin, [used[name][0].outputs[0] for name in names])
        outputs |= zip(names, part(inputs), strict=True)
    return outputs


def tap_names(backbone: str, include_top: bool) -> tuple[str, ...]:
    """Returns the names of the layers whose output can be taken."""
    include_top = include_top and base_of(backbone).has_top
    return tuple(layer.name for layer in layers(backbone, include_top=include_top))


def check_feature(feature: Feature, backbone: str, include_top: bool) -> None:
    """Checks that the network has the feature's tap and that its pooling fits.

    Raises:
        UsageError: It doesn't; with the nearest valid names.
    """
    taps = tap_names(backbone, include_top)
    if feature.tap not in taps:
        if feature.tap in tap_names(backbone, True):
            raise UsageError(f"feature {str(feature)!r}: {feature.tap} is a layer of the top; pass --include-top")
        raise UsageError(
            f"feature {str(feature)!r}: {backbone} has no layer {feature.tap!r}{did_you_mean(feature.tap, taps)}"
        )
    if feature.pool not in POOLS:
        raise UsageError(f"feature {str(feature)!r}: no pooling {feature.pool!r}{did_you_mean(feature.pool, POOLS)}")
    if POOLS[feature.pool].takes_class:
        raise UsageError(f"feature {str(feature)!r}: {feature.tap} has no class token; use another pool, such as avg")
    if not POOLS[feature.pool].keeps_all and _all_layers(backbone)[feature.tap].is_vector:
        raise UsageError(
            f"feature {str(feature)!r}: {feature.tap} yields a vector, there is nothing to pool; "
            f"write {feature.name}={feature.tap}:flatten"
        )


def _all_layers(backbone: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers(backbone, include_top=base_of(backbone).has_top)}


def feature_size(
    feature: Feature, backbone: str, image_size: int, *, include_top: bool = True, weights: str = ""
) -> int:
    """Returns D, the numbers that the feature has for one image; of a base from a file, `weights` says from which.

    Raises:
        UsageError: The network has no such feature, or not at this image size.
    """
    if base_of(backbone).is_file:
        return open_file(backbone, weights).taps([feature.tap], image_size)[feature.tap].size(feature)
    expect_size(backbone, image_size)
    check_feature(feature, backbone, include_top)
    table = cut(list(_all_layers(backbone).values()), [feature.tap])
    vgg.check_top(table, image_size)
    shape = describe(table, image_size)[-1].output_shape
    return math.prod(shape) if POOLS[feature.pool].keeps_all else shape[-1]
