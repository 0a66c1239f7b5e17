"""The engine `onnx`: users' networks by ONNX Runtime, on a CPU or an NVIDIA GPU, without Keras or TensorFlow."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transforms.engines.checks import check_pixels, planned_weights
from transforms.engines.engine import EngineInfo, OutOfMemory, batch_per_thread
from transforms.errors import FeaturemillError
from transforms.machine import available_cores
from transforms.network.bases import open_file
from transforms.network.files import forget
from transforms.network.normalise import preprocess
from transforms.network.onnx_file import import_onnx
from transforms.spec import FeatureSpec
from transforms.text import counted

# TF32, which ONNX Runtime would use on its own, has 10 bits of mantissa.
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})


class OnnxEngine:
    """See `transforms.engines.engine.Engine`. Safe to share between threads.

    On a CPU each image is computed by itself, by one thread: so its numbers depend neither on its neighbours nor on
    the number of threads. A file that fixes another number of images gets them, and a GPU gets whole batches.
    """

    def __init__(
        self, spec: FeatureSpec, weights_source: str, *, include_top: bool, batch_size: int, threads: int | None
    ):
        _, runtime = import_onnx()
        planned_weights(weights_source, (), spec)
        self._file, self._spec = open_file("onnx", weights_source), spec
        names = list(dict.fromkeys(feature.tap for feature in spec.features))
        self._taps = self._file.taps(names, spec.image_size)
        for feature in spec.features:
            self._taps[feature.tap].size(feature)
        providers = [_CUDA] if visible_device() != "CPU" else []
        self._session = self._file.session(names, threads=1, providers=[*providers, "CPUExecutionProvider"])
        self.on_cpu = self._session.get_providers()[0] != _CUDA[0]
        threads = (threads or available_cores()) if self.on_cpu else 1
        self._pool = ThreadPoolExecutor(threads, "onnx")
        self.batch_size = batch_size
        # Otherwise each is the first of a batch that is empty behind it.
        self._is_alone = self.on_cpu and self._step > 1 and not self._is_steady()
        forget()
        device = f"CPU, {counted(threads, 'thread')}" if self.on_cpu else "GPU (CUDA)"
        self.description = f"onnx (onnxruntime {runtime.__version__}, {device})"

    def resize(self, batch_size: int) -> None:
        """Takes at most so many images from now on."""
        self.batch_size = batch_size

    def embed(self, pixels: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size."""
        pixels = check_pixels(pixels, side=self._spec.image_size, batch_size=self.batch_size)
        step = 1 if self._is_alone else self._step
        pieces = list(self._pool.map(self._run, (pixels[at : at + step] for at in range(0, len(pixels), step))))
        features = {}
        for feature in self._spec.features:
            tap = self._taps[feature.tap]
            outputs = (output for piece in pieces for output in piece[feature.tap])
            features[feature.name] = np.stack([tap.pooled(output, feature.pool) for output in outputs])
        return features

    @property
    def _step(self) -> int:
        return self._file.batch or (1 if self.on_cpu else self.batch_size)

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {tap: its output} of at most a step's images."""
        missing = self._step - len(pixels)
        full = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
        try:
            outputs = self._file.run(self._session, preprocess(full, self._spec.normalise))
        except FeaturemillError as error:
            if "allocate" in str(error).lower():
                raise OutOfMemory(f"a batch of {len(full)} does not fit into memory") from error
            raise
        return {name: output[: len(pixels)] for name, output in zip(self._taps, outputs, strict=True)}

    def _is_steady(self) -> bool:
        """Returns whether an image's bits are the same at any place of a batch, among any neighbours."""
        side, step = self._spec.image_size, self._step
        pixels = np.random.default_rng(0).integers(0, 256, (step, side, side, 3), np.uint8)
        there, back, alone = self._run(pixels), self._run(pixels[::-1]), self._run(pixels[:1])
        return all(
            np.array_equal(there[name], back[name][::-1]) and np.array_equal(there[name][:1], alone[name])
            for name in there
        )


def visible_device() -> str:
    """Returns `CPU`, or `GPU (CUDA)` where ONNX Runtime was built for it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "CPU" if hidden or _CUDA[0] not in import_onnx()[1].get_available_providers() else "GPU (CUDA)"


ENGINE = EngineInfo(
    libraries=("onnxruntime",),
    precisions=("float32",),
    load=OnnxEngine,
    check=import_onnx,
    batch_size=lambda threads, on_gpu: 64 if on_gpu else batch_per_thread(threads),
    idle_gpu=", but ONNX Runtime can't use it: pip install onnxruntime-gpu",
    visible_device=visible_device,
    takes=("onnx",),
)
