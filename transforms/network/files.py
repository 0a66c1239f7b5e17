"""Users' networks from files: the face of each kind, what a tap of one gives, and how that is pooled."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, prod
from typing import Any

import numpy as np

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.pools import POOLS, pool_planes
from transforms.spec import Feature
from transforms.text import counted, one_line

_DEFAULT_SIDE = 224


@dataclass(frozen=True)
class Tap:
    """A tensor that can be taken.

    Attributes:
        name: The tensor's.
        shape: Of one image.
        channels: The axis of `shape` with the channels; None where neither shape nor what made it says.
        extra: Of tokens T×D, how many come before the patches, the class token first; None where that isn't known. Of
            other shapes 0.
    """

    name: str
    shape: tuple[int, ...]
    channels: int | None
    extra: int | None = 0

    @property
    def text(self) -> str:
        """Its shape in words."""
        shape = "×".join(map(str, self.shape))
        if self.channels is None:
            return f"{shape}, laid out in an unknown way"
        if len(self.shape) == 1:
            return f"a vector of {shape}"
        if len(self.shape) == 3:
            return f"{shape}, channels {'last' if self.channels else 'first'}"
        if self.extra is None:
            return f"{shape} tokens, which of them are patches is unknown"
        side = isqrt(prod(self.shape) // self.shape[self.channels])
        before = ["the class token", *[counted(self.extra - 1, "other")] * (self.extra > 1)] if self.extra else []
        return f"{shape} tokens: {', '.join([*before, f'{side}×{side} patches'])}"

    @property
    def default_pool(self) -> str:
        if len(self.shape) == 1 or self.channels is None:
            return "flatten"
        return "cls" if len(self.shape) == 2 and self.extra != 0 else "avg"

    def size(self, feature: Feature) -> int:
        """Returns how many numbers a feature has.

        Raises:
            UsageError: Its pool doesn't fit.
        """
        pool, problem = POOLS[feature.pool], ""
        if pool.keeps_all:
            return prod(self.shape)
        if len(self.shape) == 1:
            problem = f"{self.name} yields a vector, there is nothing to pool; write {feature.name}={self.name}:flatten"
        elif self.channels is None:
            problem = (
                f"{self.name} gives {self.text}; take its numbers as they lie with {feature.name}={self.name}:flatten, "
                "or tap another tensor"
            )
        elif pool.takes_class and (len(self.shape) != 2 or self.extra == 0):
            problem = f"{self.name} has no class token ({self.text}); use another pool, such as avg"
        elif not pool.takes_class and self.extra is None:
            problem = f"{self.name} gives {self.text}; use cls, for the first of them, or flatten"
        if problem:
            raise UsageError(f"feature {str(feature)!r}: {problem}")
        return self.shape[self.channels]

    def pooled(self, output: np.ndarray, pool: str) -> np.ndarray:
        """Returns the feature of one image's output: D float32."""
        chosen, output = POOLS[pool], output.astype(np.float32)
        if self.channels is None or output.ndim == 1:
            return output.ravel()
        planes = np.moveaxis(output, self.channels, 0)
        planes = planes.reshape(*planes.shape[:2], -1)
        if not (chosen.keeps_all or chosen.takes_class):
            planes = planes[:, self.extra :]
        return pool_planes(planes, pool)


class NetworkFile:
    """A network of one input, images.

    Attributes:
        path: Where it is.
        sha256: Of its weights and of what is computed with them.
        outputs: Names of what it gives.
        batch: The images that it takes at once, 0 for any number.
        side: Pixels on a side, 0 for any number.
        parameters: Numbers in its weights.

    Raises:
        FeaturemillError: It isn't there, isn't whole, or isn't such a network; or what reads it isn't installed.
    """

    sha256: str
    outputs: tuple[str, ...]
    batch = 0
    side: int
    parameters: int

    def __init__(self, path: str):
        self.path = path

    def image_size(self, asked: int | None) -> int:
        """Returns the pixels on a side: as asked, or its own.

        Raises:
            UsageError: It takes another size alone.
        """
        if self.side and asked not in (None, self.side):
            raise UsageError(f"{self.path} takes images of {self.side}×{self.side} alone, not {asked}×{asked}")
        return self.side or asked or _DEFAULT_SIDE

    def taps(self, names: Iterable[str], side: int) -> dict[str, Tap]:
        """Returns {name of a tap: what it gives}.

        Raises:
            UsageError: There is no such tap.
            FeaturemillError: It can't be computed at this size, or its numbers are no features.
        """
        raise NotImplementedError

    def tappable(self, side: int) -> Iterator[Tap]:
        """Yields all that can be tapped."""
        raise NotImplementedError


def opened(path: str, kind: type[NetworkFile]) -> Any:
    """Returns the network in a file, read anew where the file is another than last time.

    Raises:
        FeaturemillError: See `NetworkFile`.
    """
    path = storage.absolute(path)
    try:
        info = storage.stat(path)
    except (OSError, ValueError) as error:
        raise FeaturemillError(f"cannot read {path}: {one_line(error)}") from error
    if info is None:
        raise FeaturemillError(f"no network file {path}; pass --backbone FILE, or --weights with where it is now")
    return _opened(path, info, kind)


@lru_cache(maxsize=1)
def _opened(path: str, info: Any, kind: type[NetworkFile]) -> NetworkFile:
    return kind(path)


def forget() -> None:
    """Lets go of the network that was opened last."""
    _opened.cache_clear()
