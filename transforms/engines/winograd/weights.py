"""A network's weights as the kernel takes them: transformed once per machine, then mapped into memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transforms.engines.cache import cached_file
from transforms.engines.winograd.kernel import FREQUENCIES, MULTIPLE
from transforms.engines.winograd.points import transform
from transforms.errors import FeaturemillError
from transforms.network.vgg import KERNEL, TOP_IMAGE_SIZES, LayerInfo, describe
from transforms.text import one_line

# Part of the cache file's name: raise it when the layout or the numbers change.
CACHE_VERSION = 1
_ALIGNMENT = 64
_LARGEST_WEIGHT, _LARGEST_INPUT, _LARGEST_SUM = 2**15 - 1, 2**13 - 1, 2**31 - 1
# Below it, weights are zero: their inverse would be too large.
_SMALLEST = 1e-30
LayerWeights = Mapping[str, np.ndarray]


def is_direct(info: LayerInfo) -> bool:
    """Returns whether a convolution is computed as it is written: the first one, of few channels."""
    return info.input_shape[-1] % MULTIPLE > 0


def transformed(kernel: np.ndarray) -> Iterator[np.ndarray]:
    """Yields G g Gᵀ for every pair of a channel and a filter, a frequency at a time.

    In float64, by products and sums of whole arrays, so that every machine finds the same bits.

    Args:
        kernel: 3×3×C×K.

    Yields:
        C×K float64, 36 times, row by row.
    """
    filters = [[float(value) for value in row] for row in transform().filters]
    kernel = kernel.astype(np.float64)
    for row in filters:
        half = [_sum(row, kernel[:, column]) for column in range(KERNEL)]
        for column in filters:
            yield _sum(column, half)


def _sum(factors: Sequence[float], arrays: Iterable[np.ndarray]) -> np.ndarray:
    parts = [factor * array for factor, array in zip(factors, arrays, strict=True) if factor]
    return sum(parts[1:], parts[0])


def quantised(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds the weights of a frequency to 16 bits, each filter's with a scale of its own.

    No sum can overflow 32 bits, whatever the inputs v are: |v| ≤ L = 2¹³ - 1, and a filter's factor f is such that
    L · Σ |round(f·w)| ≤ L · (f · Σ |w| + C/2) ≤ 2³¹ - 1.

    Args:
        weights: C×K float64.

    Returns:
        C×K int16, and the K float32 to multiply sums with.
    """
    peaks, sums = np.abs(weights).max(axis=0), np.abs(weights).sum(axis=0)
    is_zero = peaks < _SMALLEST
    most = _LARGEST_SUM / _LARGEST_INPUT - len(weights) / 2
    factors = np.minimum(_LARGEST_WEIGHT / np.where(is_zero, 1, peaks), most / np.where(is_zero, 1, sums))
    factors[is_zero] = 0
    scales = np.where(is_zero, 0, 1 / np.where(is_zero, 1, factors)).astype(np.float32)
    return np.rint(weights * factors).astype(np.int16), scales


def pack(weights: np.ndarray, panel: int) -> np.ndarray:
    """Puts a matrix in the order in which it is multiplied: K/panel × C × panel.

    Args:
        weights: C×K; of int16, which are multiplied in pairs, C is even, and the order K/panel × C/2 × panel × 2.
        panel: Divides K.
    """
    pair = 2 if weights.dtype == np.int16 else 1
    channels, filters = weights.shape
    return weights.reshape(channels // pair, pair, filters // panel, panel).transpose(2, 0, 3, 1).ravel()


def padded(columns: int, panel: int) -> int:
    """Returns K, raised to a multiple of the panel."""
    return -(-columns // panel) * panel


class Layout:
    """Contents of the file of a network's weights: each array aligned, then the SHA-256 of all before it.

    Attributes:
        size: Bytes of the file.
    """

    def __init__(self, table: Sequence, precision: str, panel: int):
        self._precision, self._panel = precision, panel
        # {layer: {array: (first byte, dtype, shape)}}
        self._places: dict[str, dict[str, tuple[int, type, tuple[int, ...]]]] = {}
        self.size = 0
        # Convolutions have the same weights at any image size; the top's are made for this one.
        for info in describe(table, TOP_IMAGE_SIZES[0]):
            if info.layer.has_weights:
                self._places[info.name] = {}
                for name, dtype, shape in self._arrays(info):
                    self._places[info.name][name] = (self.size, dtype, shape)
                    self.size += -(-np.dtype(dtype).itemsize * int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT
        self.size += hashlib.sha256().digest_size

    def _arrays(self, info: LayerInfo) -> Iterator[tuple[str, type, tuple[int, ...]]]:
        kernel_shape, bias_shape = info.weight_shapes
        ins, outs = kernel_shape[-2:]
        if info.layer.kind == "dense":
            yield "weights", np.float32, (ins * padded(outs, self._panel),)
        elif is_direct(info):
            yield "weights", np.float32, (KERNEL**2 * ins, outs)
        elif self._precision == "int16":
            yield "weights", np.int16, (FREQUENCIES * ins * outs,)
            yield "scales", np.float32, (FREQUENCIES, outs)
        else:
            yield "weights", np.float32, (FREQUENCIES * ins * outs,)
        yield "bias", np.float32, bias_shape

    def write(self, layers: Iterable[tuple[str, tuple[np.ndarray, np.ndarray]]], file: BinaryIO) -> None:
        """Writes the file.

        Args:
            layers: (name, (kernel, bias)) as `Weights.arrays` has them, in the table's order; one at a time.
            file: Where to.
        """
        digest = hashlib.sha256()
        for name, (kernel, bias) in layers:
            arrays = {**self._converted(name, kernel), "bias": bias.astype(np.float32)}
            for part, (_, dtype, shape) in self._places[name].items():
                data = np.ascontiguousarray(arrays[part], np.dtype(dtype).newbyteorder("<")).reshape(shape)
                for piece in (data.data.cast("B"), bytes(-data.nbytes % _ALIGNMENT)):
                    digest.update(piece)
                    file.write(piece)
        file.write(digest.digest())

    def _converted(self, name: str, kernel: np.ndarray) -> dict[str, np.ndarray]:
        if kernel.ndim == 2:
            spare = padded(kernel.shape[1], self._panel) - kernel.shape[1]
            return {"weights": pack(np.pad(kernel, ((0, 0), (0, spare))), self._panel)}
        if kernel.size == np.prod(self._places[name]["weights"][2]):
            return {"weights": kernel}
        spectra = transformed(kernel)
        if self._precision != "int16":
            return {"weights": np.concatenate([pack(each.astype(np.float32), self._panel) for each in spectra])}
        rounded, scales = zip(*map(quantised, spectra), strict=True)
        return {"weights": np.concatenate([pack(each, self._panel) for each in rounded]), "scales": np.stack(scales)}

    def holds(self, path: Path) -> bool:
        """Returns whether a file is whole: its size, and its hash."""
        with path.open("rb") as file:
            file.seek(0, 2)
            if file.tell() != self.size:
                return False
        data = np.memmap(path, np.uint8, "r")
        end = hashlib.sha256().digest_size
        return hashlib.sha256(data[:-end]).digest() == data[-end:].tobytes()

    def open(self, path: str) -> dict[str, dict[str, np.ndarray]]:
        """Returns {layer: {"weights", "scales", "bias"}}, mapped into memory: all processes of a machine share them.

        Raises:
            FeaturemillError: The process may not have so much memory.
        """
        try:
            data = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise FeaturemillError(
                f"cannot map {path} into memory: {one_line(error)}; raise the limit (ulimit -v) or pass --engine keras"
            ) from error

        def view(at: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
            size = np.dtype(dtype).itemsize * int(np.prod(shape))
            return np.asarray(data[at : at + size]).view(dtype).reshape(shape)

        return {layer: {name: view(*place) for name, place in places.items()} for layer, places in self._places.items()}

    def cached(
        self, sha256: str, layers: Callable[[], Iterable[tuple[str, tuple[np.ndarray, np.ndarray]]]]
    ) -> AbstractContextManager[str]:
        """Returns the path of a file of these weights, as a context: see `cached_file`.

        Args:
            sha256: The weights' own hash, by which the cache knows them.
            layers: Returns what `write` takes; never called where the cache has them.

        Raises:
            FeaturemillError: There is no room for them anywhere.
        """
        name = f"{sha256}-{self._precision}-{self._panel}-v{CACHE_VERSION}.winograd.bin"
        return cached_file(name, self.holds, lambda: partial(self.write, layers()))
