"""The compiled library: which instruction sets it has for this CPU, and its layers. See abi.hpp."""

import ctypes
import functools
import platform
from ctypes import c_char_p, c_int, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import ClassVar

import numpy as np

from transforms.engines.engine import OutOfMemory
from transforms.errors import FeaturemillError
from transforms.text import one_line

# Of library.cpp.
_VERSION = 1
# Of abi.hpp: where it has each precision.
_PRECISIONS = {np.dtype(np.float32): 0, np.dtype(np.int16): 1}
# Outputs and frequencies on a tile's side: F(4, 3).
TILE, FREQUENCIES = 4, 6**2
# Filters and channels come in multiples of it.
MULTIPLE = 64
_ALIGNMENT = 64
_NOT_BUILT = (
    "isn't here: installing could not compile it; install GCC 11 or Clang 14, or newer (apt install g++), and "
    "install featuremill again"
)
CURE = "pass --engine ncnn or --engine keras, which compute in float32"


class _Conv(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("images", "side", "channels", "filters", "pooled")),
        *((name, c_int32) for name in ("in_pitch", "out_pitch", "tiles")),
        *((name, c_void_p) for name in ("input", "weights", "scales", "bias", "output", "workspace")),
        ("workspace_bytes", c_int64),
    ]


class _Direct(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("images", "side", "channels", "filters", "in_pitch", "out_pitch")),
        *((name, c_void_p) for name in ("input", "weights", "bias", "output")),
    ]


class _Dense(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("rows", "depth", "columns")),
        *((name, c_void_p) for name in ("input", "weights", "output")),
    ]


class Kernel:
    """The layers, computed with one instruction set. Safe to share between threads; calls hold no lock of Python's.

    Activations are N×P×P×C float32, P the pitch, with the image's own S×S at (1, 1) and zeros around it.

    Attributes:
        name: The instruction set's, such as `AVX2`.
        panel: Columns of a matrix that are multiplied at a time, the order in which weights are stored.
    """

    def __init__(self, library: ctypes.CDLL, name: str):
        self.name = name
        self._library = library
        self._name = name.encode()
        self.panel: int = library.winograd_panel(self._name)

    def workspace_bytes(self, dtype: np.dtype, channels: int, filters: int, tiles: int) -> int:
        """Returns what `conv` needs beside its input and output, for weights of a type and so many tiles at a time."""
        return self._library.winograd_workspace(self._name, _PRECISIONS[dtype], channels, filters, tiles)

    def conv(
        self,
        source: np.ndarray,
        target: np.ndarray,
        weights: np.ndarray,
        scales: np.ndarray | None,
        bias: np.ndarray,
        *,
        side: int,
        pooled: bool,
        tiles: int,
        workspace: np.ndarray,
    ) -> None:
        """Computes a 3×3 convolution, its bias and ReLU, and the 2×2 pooling behind it if `pooled`.

        Args:
            source: N×P×P×C float32; P at least S + 2, S raised to a multiple of `TILE`.
            target: N×Q×Q×K float32, whose image is overwritten; its border stays as it is.
            weights: Of `FREQUENCIES`, each as `weights.pack` returns it: float32, or int16 for arithmetic with 16 bits.
            scales: Of int16: what to multiply the products with, 36×K float32; else None.
            bias: K float32.
            side: S of `source`.
            pooled: Whether `target` has ⌊S/2⌋ pixels on a side instead of S.
            tiles: How many are computed at a time.
            workspace: uint8, at least `workspace_bytes`, aligned to 64 bytes.

        Raises:
            ValueError: What doesn't fit together.
        """
        images, pitch, _, channels = source.shape
        _, out_pitch, _, filters = target.shape
        integer = weights.dtype == np.int16
        _check(source, np.float32, (images, pitch, pitch, channels))
        _check(target, np.float32, (images, out_pitch, out_pitch, filters))
        _check(weights, np.int16 if integer else np.float32, (FREQUENCIES * channels * filters,))
        if integer and scales is None:
            raise ValueError("int16 weights need the scales of their products")
        if scales is not None:
            _check(scales, np.float32, (FREQUENCIES, filters))
        _check(bias, np.float32, (filters,))
        _check(workspace, np.uint8, (workspace.size,), alignment=_ALIGNMENT)
        given = _Conv(
            *(images, side, channels, filters, pooled, pitch, out_pitch, tiles),
            *map(_address, (source, weights, scales, bias, target, workspace)),
            workspace.size,
        )
        _succeed(self._library.winograd_conv(self._name, _PRECISIONS[weights.dtype], ctypes.byref(given)))

    def direct(
        self, source: np.ndarray, target: np.ndarray, weights: np.ndarray, bias: np.ndarray, *, side: int
    ) -> None:
        """Computes a 3×3 convolution of few channels, its bias and ReLU; as `conv`, but weights are 3·3·C×K float32."""
        images, pitch, _, channels = source.shape
        _, out_pitch, _, filters = target.shape
        _check(source, np.float32, (images, pitch, pitch, channels))
        _check(target, np.float32, (images, out_pitch, out_pitch, filters))
        _check(weights, np.float32, (9 * channels, filters))
        _check(bias, np.float32, (filters,))
        given = _Direct(
            *(images, side, channels, filters, pitch, out_pitch), *map(_address, (source, weights, bias, target))
        )
        _succeed(self._library.winograd_direct(self._name, ctypes.byref(given)))

    def dense(self, source: np.ndarray, weights: np.ndarray, columns: int) -> np.ndarray:
        """Returns N×K float32, the product of N×D rows and a D×K matrix.

        Args:
            source: N×D float32.
            weights: As `weights.pack` returns them, for a K that is a multiple of `panel`.
            columns: K.

        Raises:
            ValueError: What doesn't fit together.
        """
        rows, depth = source.shape
        _check(source, np.float32, (rows, depth))
        _check(weights, np.float32, (depth * columns,))
        target = np.empty((rows, columns), np.float32)
        given = _Dense(rows, depth, columns, *map(_address, (source, weights, target)))
        _succeed(self._library.winograd_dense(self._name, ctypes.byref(given)))
        return target


def _check(array: np.ndarray, dtype: type, shape: tuple[int, ...], alignment: int = 4) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous or _address(array) % alignment:
        raise ValueError(f"expected {shape} {np.dtype(dtype)} in one aligned piece, got {array.shape} {array.dtype}")


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _succeed(code: int) -> None:
    if code:
        raise ValueError("the kernel refuses its arguments: sizes that don't fit together")


def aligned_bytes(count: int) -> np.ndarray:
    """Returns a workspace of so many bytes, uint8, as `Kernel.conv` takes it.

    Raises:
        OutOfMemory: There is none.
    """
    try:
        room = np.empty(count + _ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise OutOfMemory(f"{count} bytes of workspace do not fit into memory") from error
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + count]


@functools.cache
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.winograd_name.restype = c_char_p
    library.winograd_workspace.restype = c_int64
    library.winograd_workspace.argtypes = [c_char_p, c_int, c_int, c_int, c_int]
    library.winograd_conv.argtypes = [c_char_p, c_int, c_void_p]
    library.winograd_direct.argtypes = library.winograd_dense.argtypes = [c_char_p, c_void_p]
    return library


def library_path() -> Path | None:
    """Returns the compiled library, or None where installing could not compile it."""
    paths = [Path(__file__).with_name(f"_library{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def unbuilt() -> str:
    """Returns that the library isn't here, and the cure, on machines that it is for; else nothing."""
    is_for_this = platform.machine().lower() in ("x86_64", "amd64")
    return _NOT_BUILT if is_for_this and library_path() is None else ""


def kernels() -> list[Kernel]:
    """Returns what can run on this CPU, the fastest first and the plain loops last.

    Raises:
        FeaturemillError: There is no library, or it can't be loaded, or is another version's.
    """
    path = library_path()
    if path is None:
        raise FeaturemillError(f"the engine winograd, the only one at --precision int16, {_NOT_BUILT}, or {CURE}")
    try:
        library = _library(str(path))
        version = library.winograd_version()
    except (OSError, AttributeError) as error:
        raise FeaturemillError(
            f"the engine winograd can't be loaded: {one_line(error)}; install featuremill again, or {CURE}"
        ) from error
    if version != _VERSION:
        raise FeaturemillError(f"{path} is of another version; install featuremill again (pip install), or {CURE}")
    names = []
    while (name := library.winograd_name(len(names))) is not None:
        names.append(name.decode())
    return [Kernel(library, name) for name in names if name]
