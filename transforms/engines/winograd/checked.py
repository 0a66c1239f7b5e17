"""Chooses the instruction set: the fastest that finds on this CPU, bit for bit, what the plain loops find."""

import logging
import platform

import numpy as np

from transforms.engines.winograd.kernel import (
    CURE,
    FREQUENCIES,
    MULTIPLE,
    TILE,
    Kernel,
    aligned_bytes,
    kernels,
    library_path,
)
from transforms.engines.winograd.weights import pack
from transforms.errors import FeaturemillError

_SIDE, _TILES = 2 * TILE + 1, 5
_log = logging.getLogger(__name__)
# {(library, instruction set): whether it is right}
_verdicts: dict[tuple[str, str], bool] = {}


def checked_kernel() -> Kernel:
    """Returns the fastest instruction set whose numbers are right here. The first time it takes some milliseconds.

    All compute the same operations in the same order. One that finds other bits was compiled wrongly, or this CPU's
    instructions aren't what they should be; then the next one is taken.

    Raises:
        FeaturemillError: As `kernels`; or there is none but plain loops, or none is right.
    """
    *others, plain = kernels()
    if not others:
        raise FeaturemillError(
            "the engine winograd, the only one at --precision int16, needs an x86-64 CPU with AVX2 and FMA, which this "
            f"one ({platform.machine()}) isn't; {CURE}"
        )
    for kernel in others:
        name = str(library_path()), kernel.name
        if name not in _verdicts:
            pairs = zip(_small_layers(kernel), _small_layers(plain), strict=True)
            _verdicts[name] = all(np.array_equal(*pair) for pair in pairs)
            if not _verdicts[name]:
                _log.warning("the engine winograd doesn't use %s: its numbers are wrong on this CPU", kernel.name)
        if _verdicts[name]:
            return kernel
    names = ", ".join(kernel.name for kernel in others)
    raise FeaturemillError(
        f"the engine winograd computes wrong numbers on this CPU ({names}); pass --engine ncnn or --engine keras, and "
        "please report it"
    )


def _small_layers(kernel: Kernel) -> list[np.ndarray]:
    """Returns what small layers of drawn numbers come to: convolutions of both precisions, a direct and a dense one."""
    rng = np.random.default_rng(0)
    pitch = -(-_SIDE // TILE) * TILE + 2
    source = np.zeros((1, pitch, pitch, MULTIPLE), np.float32)
    source[:, 1 : _SIDE + 1, 1 : _SIDE + 1] = rng.normal(size=(1, _SIDE, _SIDE, MULTIPLE))
    bias = rng.normal(size=MULTIPLE).astype(np.float32)
    spectra = rng.normal(size=(FREQUENCIES, MULTIPLE, MULTIPLE))
    scales = rng.random((FREQUENCIES, MULTIPLE), np.float32)
    found = []
    for dtype, factor, scale in ((np.float32, 1, None), (np.int16, 1000, scales)):
        packed = np.concatenate([pack((each * factor).astype(dtype), kernel.panel) for each in spectra])
        for pooled in (False, True):
            target = np.zeros_like(source)
            size = kernel.workspace_bytes(packed.dtype, MULTIPLE, MULTIPLE, _TILES)
            chosen = {"side": _SIDE, "pooled": pooled, "tiles": _TILES, "workspace": aligned_bytes(size)}
            kernel.conv(source, target, packed, scale, bias, **chosen)
            found.append(target)
    target = np.zeros_like(source)
    few = np.ascontiguousarray(source[..., :3])
    kernel.direct(few, target, rng.normal(size=(27, MULTIPLE)).astype(np.float32), bias, side=_SIDE)
    matrix = rng.normal(size=(MULTIPLE, MULTIPLE)).astype(np.float32)
    rows = source.reshape(-1, MULTIPLE)
    return [*found, target, kernel.dense(rows, pack(matrix, kernel.panel), MULTIPLE)]
