"""Encoded images to features, batch by batch: what a unit's recipe and `EmbedImages` have in common."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from transforms.embedding.settings import Embedding
from transforms.engines.engine import Engine, OutOfMemory
from transforms.errors import FeaturemillError
from transforms.images.decode import DecodedImage, ImageError, decode_image
from transforms.isolated import Crashed, Isolated
from transforms.machine import available_cores
from transforms.records import EncodedImage, Failure
from transforms.spec import FeatureSpec
from transforms.text import one_line, size_text

# Two threads hide decoding behind any engine that computes on the same cores: more would only take these from it, and
# hold more large images in memory. Beside a GPU all cores are free to decode, and all are needed.
CPU_DECODE_THREADS = 2


@dataclass(frozen=True)
class Decoded:
    """An image that became pixels; its encoded bytes are let go."""

    image: EncodedImage
    sha256: bytes
    result: DecodedImage

    def failure(self, stage: str, error: str, message: str) -> Failure:
        return _failure(self.image, self.sha256, stage=stage, error=error, message=message)

    def row(self) -> tuple:
        """Returns what a part has before its features: `spec.ROW_COLUMNS`, `spec.ADDED_COLUMNS`, what comes along."""
        image, size = self.image, (self.result.width, self.result.height)
        return image.key, image.label, image.source, image.position, self.sha256, *size, image.split, *image.kept


def decode_threads(engine: Engine, threads: int | None) -> int:
    """Returns how many threads should decode for an engine.

    Args:
        engine: A loaded one.
        threads: This worker's share of the cores, None for all of them.
    """
    return CPU_DECODE_THREADS if engine.on_cpu else max(CPU_DECODE_THREADS, threads or available_cores())


def decode_record(image: EncodedImage, how: Embedding, apart: Isolated | None = None) -> Decoded | Failure:
    """Decodes one image; one that can't be is a failure.

    Args:
        image: Encoded bytes.
        how: The spec and the limits.
        apart: The child process in which it is decoded, with a limit to time and memory; by default in this process.
    """
    sha256 = hashlib.sha256(image.data).digest()
    decode = partial(decode_image, image.data, how.spec, max_pixels=how.max_pixels, name=image.key)
    try:
        result = apart.call(decode) if apart else decode()
    except ImageError as error:
        if apart and error.reason == "out of memory":
            return _too_large(image, sha256, how)
        return _failure(image, sha256, stage="decode", error=error.reason, message=str(error))
    except MemoryError:
        return _too_large(image, sha256, how)
    except Crashed as error:
        if error.reason == "too slow":
            return too_slow(image, how, sha256)
        message = f"crashed the decoder ({error.how}); convert it to PNG or JPEG with another program"
        return _failure(image, sha256, stage="decode", error="crashed the decoder", message=message)
    # The encoded bytes aren't needed any more, and a queue of large ones would add up.
    return Decoded(image.without_data(), sha256, result)


def too_slow(image: EncodedImage, how: Embedding, sha256: bytes | None = None) -> Failure:
    """Returns the failure of an image that takes too long to decode."""
    message = f"decoding it takes over {how.record_seconds:g} s; raise --record-seconds to wait for it"
    sha256 = sha256 or hashlib.sha256(image.data).digest()
    return _failure(image, sha256, stage="decode", error="too slow", message=message)


def _too_large(image: EncodedImage, sha256: bytes, how: Embedding) -> Failure:
    message = f"decoding it takes over {size_text(how.record_memory)} of memory; raise --record-memory to allow it"
    return _failure(image, sha256, stage="decode", error="out of memory", message=message)


def _failure(image: EncodedImage, sha256: bytes, *, stage: str, error: str, message: str) -> Failure:
    return Failure(image.key, image.label, image.source, image.position, stage, error, message, sha256)


def embed_batch(
    batch: list[Decoded], engine: Engine, fail: Callable[[Failure], None], *, spec: FeatureSpec
) -> tuple[list[tuple], dict[str, "np.ndarray"]]:
    """Embeds a batch of N images; those that can't be embedded are failures.

    Args:
        batch: N decoded images, of any number: the engine takes them in batches of its own size.
        engine: A loaded one.
        fail: Is called with each failure.
        spec: The engine's; its dtype is that of the stored numbers.

    Returns:
        The rows that are good, and {feature name: M×D} for them, M ≤ N, in the stored dtype.
    """
    good: list[tuple] = []
    vectors: dict[str, list[np.ndarray]] = {}
    for images, features in _embed_or_split(batch, engine, fail):
        with np.errstate(over="ignore"):
            stored = {name: array.astype(spec.dtype, copy=False) for name, array in features.items()}
        finite = np.all([np.isfinite(array).all(axis=1) for array in stored.values()], axis=0)
        good.extend(image.row() for image, ok in zip(images, finite, strict=True) if ok)
        for image, ok in zip(images, finite, strict=True):
            if not ok:
                fail(image.failure("embed", "not finite", _not_finite(spec)))
        for name, array in stored.items():
            vectors.setdefault(name, []).append(array[finite])
    return good, {name: np.concatenate(arrays) for name, arrays in vectors.items()}


def _not_finite(spec: FeatureSpec) -> str:
    if spec.precision == "float16":
        return "a layer's numbers are NaN, or too large for float16; --precision bfloat16 holds them"
    return f"its features hold NaN, or numbers too large for {spec.dtype}"


def _embed_or_split(
    batch: list[Decoded], engine: Engine, fail: Callable[[Failure], None]
) -> Iterator[tuple[list[Decoded], dict[str, "np.ndarray"]]]:
    """Yields (images, features). A batch that fails is split in halves, down to the guilty image.

    Raises:
        FeaturemillError: It isn't the image: the engine can't even embed a black one, or has no memory for one.
    """
    if not batch:
        return
    # Smaller than it was when the batch was gathered, perhaps, after another thread ran out of memory.
    size = engine.batch_size
    if len(batch) <= size:
        try:
            yield batch, engine.embed([decoded.result.pixels for decoded in batch])
            return
        except OutOfMemory as error:
            # The engine pads every batch to its size: it is that which has to shrink, however few the images.
            if size == 1:
                raise FeaturemillError(
                    f"out of memory with a single image ({one_line(error)}); free some or lower --image-size"
                ) from error
            # Another thread may have done so meanwhile.
            engine.resize(min(engine.batch_size, size // 2))
            yield from _embed_or_split(batch, engine, fail)
            return
        except FeaturemillError:
            # Of the process that the engine is in.
            raise
        except Exception as error:
            if len(batch) == 1:
                _check_alive(engine, batch[0].result.pixels.shape, error)
                fail(batch[0].failure("embed", type(error).__name__, one_line(error)))
                return
    middle = len(batch) // 2
    yield from _embed_or_split(batch[:middle], engine, fail)
    yield from _embed_or_split(batch[middle:], engine, fail)


def _check_alive(engine: Engine, shape: tuple[int, ...], cause: Exception) -> None:
    try:
        engine.embed(np.zeros((1, *shape), np.uint8))
    except Exception as error:
        raise FeaturemillError(f"the engine {engine.description} fails on any image: {one_line(error)}") from cause
