"""A network as ncnn reads it: the text of its layers, and the file of its weights, kept in a cache. No ncnn here.

The weight file holds, for each layer with weights: four zero bytes (ncnn's flag for plain float32), the kernel, the
bias. Whenever it is taken from the cache, its content must give the weights' own hash.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.machine import home_folder
from transforms.network.vgg import KERNEL, TOP_IMAGE_SIZES, LayerInfo, describe
from transforms.network.weights import Weights, digest_layers
from transforms.text import one_line

# Part of the cache file's name: raise it when the layout changes.
CACHE_VERSION = 2
INPUT = "pixels"
_TEXT_MAGIC = 7767517
_PLAIN_FLOAT32 = bytes(4)
_log = logging.getLogger(__name__)


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


@contextmanager
def weight_file(sha256: str, table: Sequence, load: Callable[[], Weights]) -> Iterator[str]:
    """Yields the path of the converted weights: from the cache if they are there and are those, else made now.

    Args:
        sha256: The weights' own hash, by which the cache knows them, and which its content must give.
        table: The network that they are for.
        load: Loads the weights; never called where the cache has them, so Keras isn't needed then.

    Raises:
        FeaturemillError: The weights can't be loaded, or there is no room for the converted ones anywhere.
    """
    path = cache_folder() / f"{sha256}-v{CACHE_VERSION}.ncnn.bin"
    if _holds(path, table, sha256):
        yield str(path)
        return
    weights = load()
    try:
        _write(path, weights.arrays)
    except OSError as error:
        _log.warning(
            "cannot keep converted weights in %s (%s): they are made anew for each process; set FEATUREMILL_CACHE",
            path.parent,
            one_line(error),
        )
    else:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="featuremill-") as folder:
        path = Path(folder, path.name)
        try:
            _write(path, weights.arrays)
        except OSError as error:
            raise FeaturemillError(
                f"cannot write {path}: {one_line(error)}; free some space, or set FEATUREMILL_CACHE to another disk"
            ) from error
        yield str(path)


def cache_folder() -> Path:
    """Returns the folder of converted weights: `$FEATUREMILL_CACHE`, by default `~/.cache/featuremill`."""
    return Path(os.environ.get("FEATUREMILL_CACHE") or Path(home_folder(), ".cache", "featuremill"))


def _holds(path: Path, table: Sequence, sha256: str) -> bool:
    """True if the file is there and holds the weights of this hash, whoever wrote it."""
    try:
        is_right = digest_layers(_keras_order(path, table)) == sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("cannot read %s (%s): the weights are converted again", path, one_line(error))
        return False
    except ValueError:
        is_right = False
    if not is_right:
        _log.warning("%s is damaged or cut off, or was replaced: the weights are converted again", path)
    return is_right


def _keras_order(path: Path, table: Sequence) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
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


def _write(path: Path, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the file whole or not at all: several workers may do so at once, and any may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed_file(str(path)) as file:
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
