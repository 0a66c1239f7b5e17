"""The engine `winograd`: the base by our own kernel on x86-64 CPUs, float32 or int16, without Keras or TensorFlow."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from transforms.engines.checks import check_arithmetic, check_pixels, computed_layers, planned_weights
from transforms.engines.engine import EngineInfo
from transforms.engines.ncnn_model import read_layers, read_weights, weight_file
from transforms.engines.winograd.checked import checked_kernel
from transforms.engines.winograd.kernel import unbuilt
from transforms.engines.winograd.network import MOST_JOINT, Network, Room
from transforms.engines.winograd.weights import Layout
from transforms.machine import available_cores
from transforms.pools import pool_planes
from transforms.spec import FeatureSpec
from transforms.text import counted

# Each ten times what its arithmetic comes to at most, number by number; see docs/precision.md.
SELF_CHECK_TOLERANCES = {"float32": 1e-4, "int16": 5e-2}


class WinogradEngine:
    """See `transforms.engines.engine.Engine`. Safe to share between threads.

    A thread takes up to four images, whose deep layers it computes together, so that their large weights are read once.
    Every number is found by the same operations in the same order, so it depends on neither threads nor neighbours.
    """

    on_cpu = True

    def __init__(
        self, spec: FeatureSpec, weights_source: str, *, include_top: bool, batch_size: int, threads: int | None
    ):
        kernel = checked_kernel()
        table = computed_layers(spec, include_top=include_top)
        self._spec = spec
        self._threads = threads or available_cores()
        layout = Layout(table, spec.precision, kernel.panel)
        # The plain weights are checked by their own hash, and the self-check compares the transformed ones with them.
        with (
            weight_file(spec.weights, table, lambda: planned_weights(weights_source, table, spec)) as plain,
            layout.cached(spec.weights, lambda: read_layers(Path(plain), table)) as path,
        ):
            weights = layout.open(path)
            planes = [layer for layer in table if layer.kind in ("conv", "pool")]

            def run_small(pixels: np.ndarray, tap: str) -> np.ndarray:
                network = Network(kernel, planes, weights, side=len(pixels), taps=[tap])
                return _run(network, pixels[None], Room(), {tap: ["flatten"]})[0][tap, "flatten"]

            check_arithmetic(
                f"winograd at {spec.precision} with {kernel.name}",
                run_small,
                planes,
                read_weights(plain, table),
                channels_first=True,
                tolerance=SELF_CHECK_TOLERANCES[spec.precision],
                cure="delete the cached weights, or pass --engine ncnn or keras",
            )
        self._wanted: dict[str, list[str]] = {}
        for feature in spec.features:
            self._wanted.setdefault(feature.tap, []).append(feature.pool)
        self._network = Network(kernel, table, weights, side=spec.image_size, taps=list(self._wanted))
        self._pool = ThreadPoolExecutor(self._threads, "winograd")
        self._rooms = threading.local()
        self.description = f"winograd ({kernel.name}, CPU, {counted(self._threads, 'thread')})"
        self.batch_size = batch_size

    def resize(self, batch_size: int) -> None:
        """Takes at most so many images from now on; fewer than threads also use less memory."""
        self.batch_size = batch_size

    def embed(self, pixels: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size."""
        pixels = check_pixels(pixels, side=self._spec.image_size, batch_size=self.batch_size)
        size = min(MOST_JOINT, -(-len(pixels) // self._threads))
        groups = [pixels[i : i + size] for i in range(0, len(pixels), size)]
        images = [image for group in self._pool.map(self._embed_group, groups) for image in group]
        return {
            feature.name: np.stack([image[feature.tap, feature.pool] for image in images])
            for feature in self._spec.features
        }

    def _embed_group(self, pixels: np.ndarray) -> list[dict[tuple[str, str], np.ndarray]]:
        if not hasattr(self._rooms, "own"):
            self._rooms.own = Room()
        return _run(self._network, pixels, self._rooms.own, self._wanted)


def _run(
    network: Network, pixels: np.ndarray, room: Room, wanted: dict[str, list[str]]
) -> list[dict[tuple[str, str], np.ndarray]]:
    """Runs N×S×S×3 uint8; returns {(tap, pool): D float32} of each image."""
    found: list[dict[tuple[str, str], np.ndarray]] = [{} for _ in pixels]

    def take(tap: str, image: int, output: np.ndarray) -> None:
        planes = output.transpose(2, 0, 1) if output.ndim == 3 else output
        for pool in wanted[tap]:
            # A copy: what a pooling returns may be a view of what is overwritten.
            found[image][tap, pool] = np.array(pool_planes(planes, pool))

    network.run(pixels, room, take)
    return found


def _check() -> None:
    checked_kernel()


ENGINE = EngineInfo(
    libraries=(),
    precisions=("float32", "int16"),
    load=WinogradEngine,
    check=_check,
    unbuilt=unbuilt,
)
