"""`EmbedImages`: the network for other people's pipelines. (key, encoded bytes) in, feature rows out.

`ExtractUnits` is for whole datasets: its rows go to Parquet, unit by unit. This transform is for images that are
elements of somebody's own graph. It decodes and embeds by the same code, so the numbers are the same, bit for bit.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from transforms.declared import check
from transforms.embedding.batches import Decoded, decode_threads, embed_batch
from transforms.embedding.decoders import Decoders, Task
from transforms.embedding.settings import Embedding
from transforms.engines.engine import Engine
from transforms.records import EncodedImage, Failure
from transforms.spec import FeatureSpec

ROWS, FAILURES = "rows", "failures"


@dataclass(frozen=True)
class EmbeddedImage:
    """One image's features.

    Attributes:
        key: As it was given.
        sha256: Of the encoded bytes.
        width, height: Pixels, after EXIF rotation and before resizing.
        features: {feature name: D numbers}, in the dtype of the spec.
    """

    key: str
    sha256: bytes
    width: int
    height: int
    features: dict[str, np.ndarray]


class EmbedImages(beam.PTransform):
    """(key, encoded bytes) elements in; `EmbeddedImage` and, tagged, `Failure` elements out.

    The result has two collections, `rows` and `failures`; every image is in one of them. Windows and timestamps are
    kept, so that bounded and unbounded inputs work. Batches are filled from all elements of a bundle; the engine has
    one fixed shape, so an image's numbers don't depend on its neighbours. Runners that stream in bundles of single
    images get batches of single images: put `beam.BatchElements` or a `GroupIntoBatches` and a `FlatMap` before it.

    Example:
        >>> import apache_beam as beam
        >>> stored = featuremill.open_features("features")
        >>> image = open("photos/disc/disc_000.jpg", "rb").read()
        >>> with beam.Pipeline("FnApiRunner") as pipeline:
        ...     images = pipeline | beam.Create([("mine", image)])
        ...     embedded = images | featuremill.EmbedImages(stored.spec, weights=stored.weights)
        ...     _ = embedded.rows | beam.Map(lambda row: print(row.key, row.features["embedding"].shape))
        mine (512,)

    Args:
        spec: What decides the numbers, such as `open_features(OUT).spec`.
        load: Makes the engine, once per worker process. Tests inject one without weights.
        settings: The other fields of `Embedding`, such as `weights` (`imagenet`, a path that workers can read, or
            `random:SEED`, such as `open_features(OUT).weights`; the spec names them by hash), `engine`, `batch_size`,
            `threads`, `max_pixels` and `record_seconds`. An image that takes longer is a failure. One that crashes its
            decoder ends the worker, and the runner's next attempt too; `apart=True` decodes in child processes, where
            it is a failure.

    Raises:
        UsageError: A setting that can't be.
    """

    def __init__(
        self, spec: FeatureSpec, *, load: Callable[[Embedding], Engine] = Embedding.load_engine, **settings: Any
    ) -> None:
        super().__init__()
        self.embedding = Embedding(spec=spec, **settings)
        self.load = load
        check(self.embedding)

    def expand(self, images: beam.PCollection[tuple[str, bytes]]) -> Any:
        embed = beam.ParDo(_Embed(self)).with_outputs(FAILURES, main=ROWS)
        return images | "Embed" >> embed.with_output_types(EmbeddedImage)


@dataclass(frozen=True)
class _Pending:
    """An image that is being decoded, and where in the stream it belongs."""

    number: int
    task: Task
    timestamp: Any
    window: Any


class _Embed(beam.DoFn):
    """Gathers a bundle's images into batches; while one is in the engine, the next is decoded."""

    def __init__(self, transform: EmbedImages):
        self._embedding, self._load = transform.embedding, transform.load
        self._shared = Shared()

    def setup(self) -> None:
        self._engine = self._shared.acquire(lambda: self._embedding.join_engine(self._load))
        self._decoders = Decoders(
            decode_threads(self._engine, self._embedding.threads), self._embedding, apart=self._embedding.apart
        )

    def start_bundle(self) -> None:
        self._pending: deque[_Pending] = deque()
        self._number = 0

    def process(
        self, element: tuple[str, bytes], timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        key, data = element
        # Keys may repeat: until it leaves, an image is known by its number, in the place of a position.
        self._number += 1
        image = EncodedImage(key, None, key, self._number, data)
        self._pending.append(_Pending(self._number, self._decoders.submit([image]), timestamp, window))
        if len(self._pending) >= 2 * self._engine.batch_size:
            yield from self._embed(self._engine.batch_size)

    def finish_bundle(self) -> Iterator[Any]:
        while self._pending:
            yield from self._embed(self._engine.batch_size)

    def teardown(self) -> None:
        self._decoders.close()

    def _embed(self, count: int) -> Iterator[Any]:
        """Embeds the first images that wait, and yields what became of them, each in its own window."""
        taken = [self._pending.popleft() for _ in range(min(count, len(self._pending)))]
        results = [result for pending in taken for result in self._decoders.results(pending.task)]
        failures = [result for result in results if isinstance(result, Failure)]
        decoded = [result for result in results if isinstance(result, Decoded)]
        rows, vectors = embed_batch(decoded, self._engine, failures.append, spec=self._embedding.spec)
        by_number = {pending.number: pending for pending in taken}
        for row, (key, _, _, number, sha256, width, height, *_) in enumerate(rows):
            features = {name: array[row] for name, array in vectors.items()}
            yield _placed(EmbeddedImage(key, sha256, width, height, features), by_number[number])
        for failure in failures:
            value = _placed(replace(failure, position=0), by_number[failure.position])
            yield beam.pvalue.TaggedOutput(FAILURES, value)


def _placed(value: Any, pending: _Pending) -> WindowedValue:
    return WindowedValue(value, pending.timestamp, (pending.window,))
