"""What the poolings are, whatever computes them: the constants, and the NumPy twin of the Keras engine's."""

import math

import numpy as np

# Source of `gem`: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018, equation 3, with
# p fixed: (mean of max(x, floor)³) to the power of 1/3.
GEM_POWER = 3
GEM_FLOOR = 1e-6


def pool_planes(output: np.ndarray, pool: str) -> np.ndarray:
    """Pools one image's output.

    Args:
        output: C×H×W float32, or D where the layer yields a vector.
        pool: One of `features.POOLS`; a vector only has `flatten`.

    Returns:
        C float32, or H·W·C for `flatten`: in Keras's order, channels last. Sums are in float64.
    """
    if pool == "flatten":
        return np.moveaxis(output, 0, -1).ravel() if output.ndim == 3 else output.ravel()
    positions = output.reshape(len(output), -1)
    if pool == "max":
        return positions.max(axis=1)
    if pool == "gem":
        # Not `** GEM_POWER`: NumPy's power takes eight times as long.
        powers = math.prod([np.maximum(positions, GEM_FLOOR, dtype=np.float64)] * GEM_POWER)
        return (powers.mean(axis=1) ** (1 / GEM_POWER)).astype(np.float32)
    return positions.mean(axis=1, dtype=np.float64).astype(np.float32)
