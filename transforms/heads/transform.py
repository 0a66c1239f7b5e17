"""`Transform`: what happens to a row's vectors before a head sees them, in NumPy and in Keras."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.heads import TRANSFORMS
from transforms.similarity.unit_vectors import unit_length

# Squares of float32 below it are nothing, and a root's slope there is no number.
_TINY = 1e-30
# In training, roots of numbers far below the mean are as steep as those of this share of it.
_SMOOTH = 0.01


@dataclass(frozen=True)
class Transform:
    """A fixed function of D numbers, column of vectors by column; it knows nothing of labels.

    `sqrt` is the root of each number's size, with its sign: few large numbers no longer drown the others (Arandjelović
    and Zisserman 2012, Three Things Everyone Should Know to Improve Object Retrieval, section 3). `l2` makes each
    column's vector have length 1; zeros stay zeros.

    Attributes:
        name: One of `TRANSFORMS`.
        widths: Numbers of each column; D is their sum. Empty: one column of any width.
        scales: What the numbers of each column are multiplied by at the end; empty: nothing.
    """

    name: str = "none"
    widths: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def is_identity(self) -> bool:
        return self.name == "none" and not self.scales

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Returns n×D float32 for n×D float32; the same array where nothing happens."""
        if self.is_identity:
            return vectors
        parts = [self._column(part) for part in self._split(vectors)]
        scaled = [part * np.float32(scale) for part, scale in zip(parts, self._factors(), strict=True)]
        return np.concatenate(scaled, axis=1) if len(scaled) > 1 else scaled[0]

    def with_spread(self, vectors: np.ndarray) -> "Transform":
        """Returns the same, scaled so that each of several columns varies as much as any other in these n×D float32.

        The variances of a column's numbers, summed up, become 1: a flattened tap has more numbers than an averaged
        one, and isn't to count for more.
        """
        if len(self.widths) < 2:
            return self
        columns = map(self._column, self._split(vectors))
        spreads = [np.sqrt(float(column.var(axis=0, dtype=np.float64).sum())) for column in columns]
        return Transform(self.name, self.widths, tuple(1 / spread if spread else 1.0 for spread in spreads))

    def keras(self, vectors: Any) -> Any:
        """Returns the same for a tensor of Keras, n×D, of which gradients can be taken everywhere."""
        from transforms.network.keras_import import import_keras

        if self.is_identity:
            return vectors
        ops = import_keras().ops
        ends = np.cumsum(self.widths)[:-1].tolist()
        parts = []
        for part, scale in zip(ops.split(vectors, ends, axis=1) if ends else [vectors], self._factors(), strict=True):
            if self.name.startswith("sqrt"):
                part = _keras_root(part, ops)
            if self.name.endswith("l2"):
                part = part / ops.sqrt(ops.maximum(ops.sum(part * part, axis=1, keepdims=True), _TINY))
            parts.append(part * scale)
        return ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "widths": list(self.widths), "scales": list(self.scales)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Transform":
        return cls(values["name"], tuple(values["widths"]), tuple(values["scales"]))

    def problem(self, dims: int) -> str:
        """Returns what of it can't be that of a head that takes `dims` numbers; empty if nothing."""
        if self.name not in TRANSFORMS:
            return f"no transform is called {self.name!r}"
        if self.widths and (min(self.widths) < 1 or sum(self.widths) != dims):
            return f"its transform is of {sum(self.widths):,} numbers, not of {dims:,}"
        if self.scales and (len(self.scales) != len(self.widths) or not all(0 < s < np.inf for s in self.scales)):
            return "its transform's scales aren't one number above 0 for each column"
        return ""

    def _split(self, vectors: np.ndarray) -> Sequence[np.ndarray]:
        return np.split(vectors, np.cumsum(self.widths)[:-1], axis=1) if len(self.widths) > 1 else [vectors]

    def _factors(self) -> Sequence[float]:
        return self.scales or [1.0] * max(1, len(self.widths))

    def _column(self, vectors: np.ndarray) -> np.ndarray:
        if self.name.startswith("sqrt"):
            vectors = np.copysign(np.sqrt(np.abs(vectors)), vectors)
        return unit_length(vectors) if self.name.endswith("l2") else vectors


def _keras_root(x: Any, ops: Any) -> Any:
    """Returns each number's root with its sign. Its slope stays finite at 0, where features of a network often are."""
    size = ops.abs(x)
    floor = ops.maximum(ops.stop_gradient(ops.mean(size)) * _SMOOTH, _TINY)
    smooth = ops.sqrt(size + floor)
    return ops.sign(x) * (smooth + ops.stop_gradient(ops.sqrt(size) - smooth))
