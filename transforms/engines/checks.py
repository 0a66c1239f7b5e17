"""The checks of every engine before it computes anything."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from transforms.errors import FeaturemillError
from transforms.network.bases import base_of, check_feature, cut, expect_size, layers
from transforms.network.normalise import preprocess
from transforms.network.vgg import CHANNELS, KERNEL, MIN_IMAGE_SIZE, Layer, check_top
from transforms.network.weights import Weights, load_weights
from transforms.pools import pool_planes
from transforms.spec import FeatureSpec


def computed_layers(spec: FeatureSpec, *, include_top: bool = True) -> tuple[Layer, ...]:
    """Returns the table of the network up to the deepest tap; none of a base from a file, which is known by itself.

    Args:
        spec: Names the taps.
        include_top: Whether they may be in the dense layers. Of a spec that is stored already the taps say it.

    Raises:
        UsageError: A tap that the network hasn't, or dense layers at an image size that can't be.
    """
    if base_of(spec.backbone).is_file:
        return ()
    expect_size(spec.backbone, spec.image_size)
    for feature in spec.features:
        check_feature(feature, spec.backbone, include_top)
    include_top = include_top and base_of(spec.backbone).has_top
    table = cut(layers(spec.backbone, include_top=include_top), [feature.tap for feature in spec.features])
    check_top(table, spec.image_size)
    return table


def check_named(backbone: str, command: str, *, files: Sequence[str] = ()) -> None:
    """Raises FeaturemillError for a base from a file, which a command doesn't take; of `files` it does."""
    base = base_of(backbone)
    if base.is_file and base.file not in files:
        raise FeaturemillError(
            f"{command} doesn't take networks from {base.file} files; use a head on features of a named base, such as "
            "vgg19"
        )


def planned_weights(source: str, table: Sequence[Layer], spec: FeatureSpec) -> Weights:
    """Loads the weights of a table.

    Raises:
        FeaturemillError: They can't be loaded, or aren't the ones that the spec names.
    """
    weights = load_weights(source, table, backbone=spec.backbone)
    if weights.sha256 != spec.weights:
        raise FeaturemillError(
            f"weights {weights.origin} have SHA-256 {weights.sha256[:12]}…, but the run was planned with "
            f"{spec.weights[:12]}…: the file was replaced, or differs on this machine; restore it and run again"
        )
    return weights


def check_pixels(pixels: np.ndarray | Sequence[np.ndarray], *, side: int, batch_size: int) -> np.ndarray:
    """Checks a batch that `Engine.embed` was given, and returns it as one array, N×S×S×3 uint8.

    Raises:
        ValueError: Another shape or dtype than N×S×S×3 uint8, no image, or more than a batch.
    """
    if isinstance(pixels, Sequence):
        pixels = np.stack(pixels)
    count = len(pixels)
    if pixels.shape != (count, side, side, CHANNELS) or pixels.dtype != np.uint8:
        raise ValueError(f"expected N×{side}×{side}×{CHANNELS} uint8, got {pixels.shape} {pixels.dtype}")
    if not 0 < count <= batch_size:
        raise ValueError(f"a batch has 1 to {batch_size} images, not {count}")
    return pixels


def check_arithmetic(
    what: str,
    embed: Callable[[np.ndarray, str], np.ndarray],
    table: Sequence[Layer],
    kernels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    channels_first: bool,
    tolerance: float,
    cure: str,
) -> None:
    """Compares an engine's convolutions, on one small fixed image, with NumPy's.

    NumPy's part takes up to 0.2 s. It catches a build that miscalculates on this machine, or that has a switch
    for coarser arithmetic, on by default.

    Args:
        what: The engine, for the error.
        embed: Takes S×S×3 uint8 and the name of a tap, and returns its output, flattened: D float32.
        table: The network.
        kernels: As `convolutions` takes them, with `channels_first`.
        channels_first: The same.
        tolerance: The largest difference that is fine, as a share of the largest value.
        cure: What to do about it, for the error.

    Raises:
        FeaturemillError: They differ by more; the engine must not be used.
    """
    last = [layer.name for layer in table if layer.kind in ("conv", "pool")][-1]
    # Not of full contrast: no number comes near the largest of float16.
    pixels = np.random.default_rng(0).integers(64, 192, (MIN_IMAGE_SIZE, MIN_IMAGE_SIZE, CHANNELS), np.uint8)
    found = embed(pixels, last)
    planes = preprocess(pixels).transpose(2, 0, 1)
    outputs = convolutions(planes, table, kernels, channels_first=channels_first)
    expected = pool_planes(outputs[last], "flatten")
    drift = float(np.abs(found - expected).max() / np.abs(expected).max()) if expected.any() else 0.0
    if not drift <= tolerance:
        raise FeaturemillError(
            f"the engine {what} miscalculates on this machine: {last} differs from NumPy's by {drift:.1e} of its "
            f"largest value, {tolerance:.0e} is allowed; {cure}"
        )


def convolutions(
    planes: np.ndarray,
    table: Sequence[Layer],
    kernels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    channels_first: bool,
) -> dict[str, np.ndarray]:
    """Computes the convolutions and poolings of one image in NumPy: matrix products over the 3×3 windows.

    Args:
        planes: C×H×W, preprocessed; float64 for float64 arithmetic.
        table: The network; its other layers are passed over.
        kernels: {layer name: (kernel, bias)}, kernels of outputs × inputs.
        channels_first: Whether a kernel's inputs are in the order channel, row, column, else row, column, channel.

    Returns:
        {name of a convolution or pooling: C×H×W}.
    """
    outputs, output = {}, planes
    order = (0, 3, 4, 1, 2) if channels_first else (3, 4, 0, 1, 2)
    for layer in table:
        if layer.kind == "conv":
            kernel, bias = kernels[layer.name]
            padded = np.pad(output, ((0, 0), (KERNEL // 2,) * 2, (KERNEL // 2,) * 2))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (KERNEL, KERNEL), axis=(1, 2))
            columns = windows.transpose(order).reshape(kernel.shape[1], -1)
            output = np.maximum(kernel @ columns + bias[:, None], 0).reshape(-1, *output.shape[1:])
        elif layer.kind == "pool":
            channels, height, width = output.shape
            output = output[:, : height // 2 * 2, : width // 2 * 2]
            output = output.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))
        else:
            continue
        outputs[layer.name] = output
    return outputs
