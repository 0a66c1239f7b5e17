"""A network as ncnn reads it: the text of its layers, and the file of its weights, kept in a cache. No ncnn here.

The weight file holds, for each layer with weights: four zero bytes (ncnn's flag for plain float32), the kernel, the
bias. Whenever it is taken from the cache, its content must give the weights' own hash.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transforms.engines.cache import cached_file
from transforms.network.vgg import KERNEL, TOP_IMAGE_SIZES, LayerInfo, describe
from transforms.network.weights import Weights, digest_layers

# Part of the cache file's name: raise it when the layout changes.
CACHE_VERSION = 2
INPUT = "pixels"
_TEXT_MAGIC = 7767517
_PLAIN_FLOAT32 = bytes(4)


def network_text(table: Sequence) -> str:
    """Returns ncnn's text (`.param`) of a table: one layer a line, its output blob called as the layer is.

    ReLU is part of its layer (`9=1`), so a tap is what Keras's layer of that name yields.

    Args:
        table: From `network.vgg.layers`, perhaps `cut`, without dropouts.
    """
    lines, previous = [f"Input {INPUT} 0 1 {INPUT}"], INPUT
    for info in _infos(table):
        lines += _layer_lines(info, previous)
        previous = info.name
    return "\n".join([str(_TEXT_MAGIC), f"{len(lines)} {len(lines)}", *lines, ""])


def _infos(table: Sequence) -> tuple[LayerInfo, ...]:
    # Convolutions have the same weights at any image size; the top's are made for this one.
    return describe(table, TOP_IMAGE_SIZES[0])


def _layer_lines(info: LayerInfo, previous: str) -> list[str]:
    name, units = info.name, info.layer.units
    relu = " 9=1" if info.layer.activation == "relu" else ""
    kernel_size = info.parameters - units
    if info.layer.kind == "conv":
        # 1: kernel, 4: padding on each side, 5: has a bias.
        return [_line("Convolution", name, previous, f"0={units} 1={KERNEL} 4={KERNEL // 2} 5=1 6={kernel_size}{relu}")]
    if info.layer.kind == "pool":
        # 5=1: an odd last row or column is dropped, as Keras does it.
        return [_line("Pooling", name, previous, "0=0 1=2 2=2 5=1")]
    if info.layer.kind == "flatten":
        # To channels last first, so that vectors and dense kernels are Keras's.
        order = f"{name}_order"
        return [_line("Permute", order, previous, "0=3"), _line("Flatten", name, order, "")]
    dense = f"0={units} 1=1 2={kernel_size}{relu}"
    if info.layer.activation == "softmax":
        logits = f"{name}_logits"
        return [_line("InnerProduct", logits, previous, dense), _line("Softmax", name, logits, "0=0 1=1")]
    return [_line("InnerProduct", name, previous, dense)]


def _line(kind: str, name: str, previous: str, settings: str) -> str:
    return f"{kind} {name} 1 1 {previous} {name} {settings}".rstrip()


def weight_file(sha256: str, table: Sequence, load: Callable[[], Weights]) -> AbstractContextManager[str]:
    """Returns the path of the converted weights, as a context: see `cached_file`.

    Args:
        sha256: The weights' own hash, by which the cache knows them, and which its content must give.
        table: The network that they are for.
        load: Loads the weights; never called where the cache has them, so Keras isn't needed then.

    Raises:
        FeaturemillError: The weights can't be loaded, or there is no room for the converted ones anywhere.
    """
    return cached_file(
        f"{sha256}-v{CACHE_VERSION}.ncnn.bin",
        lambda path: digest_layers(read_layers(path, table)) == sha256,
        lambda: partial(write_arrays, load().arrays),
    )


def read_layers(path: Path, table: Sequence) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yields (layer name, (kernel, bias)) of a file, as `Weights.arrays` has them, one layer in memory at a time.

    Raises:
        ValueError: It is of another size, or has a flag that ncnn would take for numbers of another kind.
    """
    with path.open("rb") as file:
        for info in _infos(table):
            if not info.layer.has_weights:
                continue
            if file.read(len(_PLAIN_FLOAT32)) != _PLAIN_FLOAT32:
                raise ValueError("cut off, or of another kind")
            kernel_shape, [units] = info.weight_shapes
            numbers = np.frombuffer(file.read(4 * info.parameters), "<f4")
            kernel, bias = numbers[:-units], numbers[-units:]
            if len(kernel_shape) == 4:
                height, width, ins, outs = kernel_shape
                yield info.name, (kernel.reshape(outs, ins, height, width).transpose(2, 3, 1, 0), bias)
            else:
                yield info.name, (kernel.reshape(kernel_shape[::-1]).T, bias)
        if file.read(1):
            raise ValueError("longer than its network's")


def write_arrays(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], file: BinaryIO) -> None:
    """Writes `Weights.arrays` as ncnn reads them."""
    for kernel, bias in arrays.values():
        for data in (_PLAIN_FLOAT32, _outputs_first(kernel), np.ascontiguousarray(bias, "<f4").data):
            file.write(data)


def _outputs_first(kernel: np.ndarray) -> memoryview:
    """Turns Keras's height×width×in×out into ncnn's out×in×height×width, and in×out into out×in."""
    order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    return np.ascontiguousarray(kernel.transpose(order), "<f4").data


def read_weights(path: str, table: Sequence) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the convolutions' weights in a file, without copying them.

    Returns:
        {layer name: (kernel, bias)}, float32; kernels are out × in·height·width.
    """
    # Every piece is a multiple of four bytes long, so the whole file is one array of float32.
    numbers = np.memmap(path, "<f4", mode="r")
    found, at = {}, 0
    for info in _infos(table):
        if info.layer.kind != "conv":
            continue
        at += len(_PLAIN_FLOAT32) // 4
        units, kernel_size = info.layer.units, info.parameters - info.layer.units
        found[info.name] = (
            numbers[at : at + kernel_size].reshape(units, -1),
            numbers[at + kernel_size : at + info.parameters],
        )
        at += info.parameters
    return found
