"""The poolings of a tap's output: each in NumPy for one image, and in Keras operations for a batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Source of `gem`: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018, equation 3, with
# p fixed: (mean of max(x, floor)³) to the power of 1/3.
_GEM_POWER = 3
_GEM_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A way to make a vector of a tap's output.

    Attributes:
        planes: Takes C×P float32, the P positions of one image, and returns C float32; sums are in float64.
        output: Takes N×H×W×C float32, a tensor of Keras, and returns N×C.
        keeps_all: It only flattens: D is H·W·C instead of C, channels last, and vectors may be taken too. `planes`
            and `output` take the tap's output as it is, C×H×W or D, and N×H×W×C or N×D.
        takes_class: It takes the first of a transformer's tokens alone; the others take the patches' alone.
    """

    planes: Callable[["np.ndarray"], "np.ndarray"]
    output: Callable[[Any], Any]
    keeps_all: bool = False
    takes_class: bool = False


def _mean_planes(positions: "np.ndarray") -> "np.ndarray":
    return positions.mean(axis=1, dtype="float64").astype("float32")


def _mean_output(output: Any) -> Any:
    from keras import ops

    return ops.mean(output, axis=(1, 2))


def _max_output(output: Any) -> Any:
    from keras import ops

    return ops.max(output, axis=(1, 2))


def _gem_planes(positions: "np.ndarray") -> "np.ndarray":
    import numpy as np

    # Not `** _GEM_POWER`: NumPy's power takes eight times as long.
    powers = math.prod([np.maximum(positions, _GEM_FLOOR, dtype=np.float64)] * _GEM_POWER)
    return (powers.mean(axis=1) ** (1 / _GEM_POWER)).astype(np.float32)


def _gem_output(output: Any) -> Any:
    from keras import ops

    powers = ops.power(ops.maximum(output, _GEM_FLOOR), _GEM_POWER)
    return ops.power(ops.mean(powers, axis=(1, 2)), 1 / _GEM_POWER)


def _flat_planes(output: "np.ndarray") -> "np.ndarray":
    return output.transpose(1, 2, 0).ravel() if output.ndim == 3 else output.ravel()


def _flat_output(output: Any) -> Any:
    from keras import ops

    # The number of images may be unknown.
    return ops.reshape(output, (-1, math.prod(output.shape[1:])))


# Before the patches: the class token, and DINOv2's four registers.
_MOST_EXTRA = 5


def extra_tokens(tokens: int) -> int | None:
    """Returns how many of T tokens come before the patches, which are n×n as images are square; None for too many."""
    extra = tokens - math.isqrt(tokens) ** 2
    return extra if extra <= _MOST_EXTRA else None


POOLS = {
    "avg": Pool(planes=_mean_planes, output=_mean_output),
    "max": Pool(planes=lambda positions: positions.max(axis=1), output=_max_output),
    "gem": Pool(planes=_gem_planes, output=_gem_output),
    "flatten": Pool(planes=_flat_planes, output=_flat_output, keeps_all=True),
    "cls": Pool(planes=lambda positions: positions[:, 0], output=lambda output: output[:, 0, 0], takes_class=True),
}


def pool_planes(output: "np.ndarray", pool: str) -> "np.ndarray":
    """Pools one image's output, C×H×W float32 (D where the layer yields a vector), to C float32; `flatten` to D."""
    chosen = POOLS[pool]
    return chosen.planes(output if chosen.keeps_all else output.reshape(len(output), -1))


def pool_output(output: Any, pool: str) -> Any:
    """Pools N×H×W×C to N×C float32 whatever the precision before it, or flattens to N×D: `pool_planes` in Keras.

    Of tokens, N×T×C, `cls` takes the first, and the other pools the patches.
    """
    from keras import ops

    chosen = POOLS[pool]
    if len(output.shape) == 3 and not chosen.keeps_all:
        before = 0 if chosen.takes_class else extra_tokens(output.shape[1])
        output = ops.expand_dims(output[:, before:], 2)
    return chosen.output(ops.cast(output, "float32"))
