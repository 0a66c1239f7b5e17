"""Chooses whether a GPU computes a graph compiled, and its batch size: measured once for each card, then kept."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

from transforms.committed import write_whole
from transforms.declared import wrong_field
from transforms.engines.cache import cache_folder
from transforms.text import one_line

# Batches are doubled from the first size on, up to the last, while an image gains more than this share by it: on an
# H100 sizes from 64 to 512 are within 7 % of each other (docs/running.md), and each size is compiled anew.
_FIRST, _LAST, _GAIN = 64, 1024, 0.05
# Compiling must pay for itself within so many images: it takes PyTorch up to 21 s at each start.
_IMAGES = 100_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """A way to compute the same graph.

    Attributes:
        compiled: Whether the backend's own compiler makes one program of it.
        batch_size: The most images of a batch.
    """

    compiled: bool
    batch_size: int

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'not compiled'}, batches of {self.batch_size}"


@dataclass(frozen=True)
class Speed:
    """The measured speed of a graph.

    Attributes:
        first_seconds: Until the first batch was there.
        images_per_second: Of those behind it; 0 where a batch doesn't fit into memory, or can't be computed.
    """

    first_seconds: float
    images_per_second: float

    @property
    def seconds(self) -> float:
        """Seconds that many images take, the start included."""
        return self.first_seconds + _IMAGES / self.images_per_second if self.images_per_second else float("inf")


def fastest_graph(
    measure: Callable[[Graph], Speed], *, compiled: Sequence[bool], batch_size: int | None = None
) -> tuple[Graph, bool]:
    """Finds the fastest way to compute a graph on this card.

    Args:
        measure: Computes a few batches.
        compiled: What the backend can do, what it does on a CPU first.
        batch_size: The size that the user asked for, None for the smallest that is about as fast as any.

    Returns:
        The graph, and whether that holds for other runs: not where memory was so short that others may have taken it.
    """
    first, *others = compiled
    size = batch_size or _FIRST
    best = measure(Graph(first, size))
    is_sure = best.images_per_second > 0
    if batch_size is None:
        while not best.images_per_second and size > 1:
            size //= 2
            best = measure(Graph(first, size))
        # What is half the size of one that didn't fit isn't doubled again.
        while is_sure and size < _LAST:
            more = measure(Graph(first, 2 * size))
            if more.images_per_second <= best.images_per_second * (1 + _GAIN):
                break
            size, best = 2 * size, more
    speeds = {first: best, **{other: measure(Graph(other, size)) for other in others}}
    return Graph(min(speeds, key=lambda each: speeds[each].seconds), size), is_sure


def kept_graph(*facts: str) -> Graph | None:
    """Returns what was found before for the same facts: the card, the versions, what is computed."""
    try:
        stored = json.loads(_path(facts).read_text())
        graph = Graph(**stored)
    except (OSError, ValueError, TypeError):
        # Not there, or damaged: it is measured again.
        return None
    return None if wrong_field(stored, get_type_hints(Graph)) or graph.batch_size < 1 else graph


def keep_graph(graph: Graph, *facts: str) -> None:
    """Keeps what was found in the cache folder, for other processes and runs."""
    path = _path(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(str(path), json.dumps(asdict(graph)).encode())
    except OSError as error:
        _log.warning(
            "cannot keep in %s how this GPU computes fastest (%s): it is measured in each process; set "
            "FEATUREMILL_CACHE",
            path.parent,
            one_line(error),
        )


def _path(facts: Sequence[str]) -> Path:
    return cache_folder() / f"graph-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json"
