"""A network as the kernel's steps, at one image size: what is computed how, and where it lies meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transforms.engines.engine import OutOfMemory
from transforms.engines.winograd.kernel import FREQUENCIES, TILE, Kernel, aligned_bytes
from transforms.engines.winograd.weights import LayerWeights, is_direct, padded
from transforms.network.normalise import preprocess
from transforms.network.vgg import CHANNELS, Layer, LayerInfo, describe

# Tiles at a time, for one channel or filter: about what the caches of a core hold with their frequencies and products;
# but not too few, because each group of tiles reads all weights.
_GROUP_TILES, _LEAST_TILES = 30_000, 96
# The most images whose deep layers are computed together: more gain nothing, and cost memory.
MOST_JOINT = 4
# What is done with a tap's output of one image, a view of H×W×C or D float32.
Take = Callable[[str, int, np.ndarray], None]


@dataclass(frozen=True)
class Step:
    """A convolution with what is fused to it, or a pooling by itself.

    Attributes:
        info: The layer.
        output: The name of the layer whose output it yields: its own, or the pooling's behind it.
        side: Of the output's image.
        tiles: How many are computed at a time; 0 for a direct convolution, or a pooling.
        joint: Whether it is computed for several images at once.
    """

    info: LayerInfo
    output: str
    side: int
    tiles: int
    joint: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """P×P×C of its output, with the border."""
        # What follows reads whole tiles.
        pitch = -(-self.side // TILE) * TILE + 2
        return pitch, pitch, self.info.output_shape[-1]


class Network:
    """The network at one image size. Safe to share between threads, each with a `Room` of its own."""

    def __init__(
        self,
        kernel: Kernel,
        table: Sequence[Layer],
        weights: Mapping[str, LayerWeights],
        *,
        side: int,
        taps: Sequence[str],
    ):
        """Plans the steps.

        Args:
            kernel: What computes them.
            table: The network, cut behind the deepest tap.
            weights: As `weights.Layout.open` returns them.
            side: Of the images.
            taps: Layers whose outputs are taken.
        """
        self._kernel, self._weights, self._side, self._taps = kernel, weights, side, frozenset(taps)
        infos = describe(table, side)
        self._vectors = [info for info in infos if info.layer.kind in ("flatten", "dense")]
        self.steps = _steps([info for info in infos if info.layer.kind in ("conv", "pool")], self._taps)
        sizes = [0]
        for step in self.steps:
            if step.tiles:
                dtype, channels = weights[step.info.name]["weights"].dtype, step.info.input_shape[-1]
                sizes.append(kernel.workspace_bytes(dtype, channels, step.info.layer.units, step.tiles))
        self.workspace_bytes = max(sizes)

    def run(self, pixels: np.ndarray, room: "Room", take: Take) -> None:
        """Computes N images.

        Args:
            pixels: N×S×S×3 uint8, N at most `MOST_JOINT`.
            room: Of this thread.
            take: Called with each tap of each image; what it is given is overwritten soon after.
        """
        alone = [step for step in self.steps if not step.joint]
        inner = slice(1, self._side + 1)
        image = room.array("input", (1, self._side + 2, self._side + 2, CHANNELS), self._side)
        last = room.array("joint", (MOST_JOINT, *alone[-1].shape), alone[-1].side)[: len(pixels)]
        for i, each in enumerate(pixels):
            image[0, inner, inner] = preprocess(each)
            current = image
            for number, step in enumerate(alone):
                is_last = step is alone[-1]
                target = last[i : i + 1] if is_last else room.array(f"alone{number % 2}", (1, *step.shape), step.side)
                current = self._step(step, current, target, room, take, i)
        current = last
        for number, step in enumerate(self.steps[len(alone) :]):
            target = room.array(f"joint{number % 2}", (MOST_JOINT, *step.shape), step.side)[: len(pixels)]
            current = self._step(step, current, target, room, take, 0)
        if self._vectors:
            self._run_vectors(_inside(current, self.steps[-1].side).reshape(len(pixels), -1), take)

    def _step(
        self, step: Step, source: np.ndarray, target: np.ndarray, room: "Room", take: Take, first: int
    ) -> np.ndarray:
        """Computes a step into `target` and returns it; `first` is the number of the first image of `source`."""
        in_side = step.info.input_shape[0]
        if step.info.layer.kind == "pool":
            pooled = _inside(source, step.side * 2)
            pooled = np.maximum(pooled[:, ::2], pooled[:, 1::2])
            np.maximum(pooled[:, :, ::2], pooled[:, :, 1::2], out=_inside(target, step.side))
        else:
            weights = self._weights[step.info.name]
            if not step.tiles:
                self._kernel.direct(source, target, weights["weights"], weights["bias"], side=in_side)
            else:
                self._kernel.conv(
                    source,
                    target,
                    weights["weights"],
                    weights.get("scales"),
                    weights["bias"],
                    side=in_side,
                    pooled=step.output != step.info.name,
                    tiles=step.tiles,
                    workspace=room.workspace(self.workspace_bytes),
                )
        if step.output in self._taps:
            for i, image in enumerate(_inside(target, step.side), first):
                take(step.output, i, image)
        return target

    def _run_vectors(self, vectors: np.ndarray, take: Take) -> None:
        for info in self._vectors:
            if info.layer.kind == "dense":
                weights, units = self._weights[info.name], info.layer.units
                products = self._kernel.dense(vectors, weights["weights"], padded(units, self._kernel.panel))
                vectors = _activate(products[:, :units] + weights["bias"], info.layer.activation)
            if info.name in self._taps:
                for i, vector in enumerate(vectors):
                    take(info.name, i, vector)


def _steps(infos: Sequence[LayerInfo], taps: frozenset[str]) -> list[Step]:
    merged: list[tuple[LayerInfo, LayerInfo]] = []
    for info in infos:
        before = merged[-1][0] if merged else info
        # A pooling is part of the convolution before it, unless that one's own output is wanted too.
        if info.layer.kind == "pool" and _is_tiled(before) and before.name not in taps:
            merged[-1] = before, info
        else:
            merged.append((info, info))
    steps, joint = [], False
    for info, output in merged:
        weights = FREQUENCIES * info.input_shape[-1] * info.layer.units
        # Weights that are larger than an image's activations are better read for several images at once.
        joint = joint or (_is_tiled(info) and weights > info.output_size)
        tiles = max(_LEAST_TILES, _GROUP_TILES // sum((info.input_shape[-1], info.layer.units)))
        steps.append(Step(info, output.name, output.output_shape[0], tiles if _is_tiled(info) else 0, joint))
    return steps


def _is_tiled(info: LayerInfo) -> bool:
    return info.layer.kind == "conv" and not is_direct(info)


def _inside(activations: np.ndarray, side: int) -> np.ndarray:
    """Returns N×S×S×C of N×P×P×C, as a view."""
    return activations[:, 1 : side + 1, 1 : side + 1]


def _activate(values: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return np.maximum(values, 0)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Room:
    """The memory of one thread: activations between two steps, and the kernel's workspace."""

    def __init__(self) -> None:
        self._arrays: dict[tuple, np.ndarray] = {}
        self._workspace = np.empty(0, np.uint8)

    def array(self, name: str, shape: tuple[int, ...], side: int) -> np.ndarray:
        """Returns float32 of this name and shape for images of this side: beside these only zeros are in it.

        Raises:
            OutOfMemory: There is none.
        """
        if (name, shape, side) not in self._arrays:
            try:
                self._arrays[name, shape, side] = np.zeros(shape, np.float32)
            except MemoryError as error:
                raise OutOfMemory(f"activations of {shape} do not fit into memory") from error
        return self._arrays[name, shape, side]

    def workspace(self, size: int) -> np.ndarray:
        """Returns so many bytes, uint8.

        Raises:
            OutOfMemory: There are none.
        """
        if self._workspace.size < size:
            self._workspace = aligned_bytes(size)
        return self._workspace
