"""`EmbedImages` in a foreign pipeline: the same numbers as `extract`, every image once, windows kept."""

from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing import test_pipeline, test_stream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue

from pipeline.demo.samples import draw_items, draw_samples
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.support import deadly
from tests.support.fakes import FakeEngine
from transforms.embedding import decoders
from transforms.embedding.embed_images import EmbeddedImage, EmbedImages
from transforms.embedding.settings import Embedding
from transforms.records import Failure
from transforms.spec import Feature, FeatureSpec
from transforms.store.features import open_features

SPEC = FeatureSpec("vgg19", "0" * 64, (Feature("embedding", "block5_pool", "avg"),), image_size=32)


def load_fake(embedding: Embedding) -> FakeEngine:
    return FakeEngine({"embedding": 4}, batch_size=4)


def images(folder) -> list[tuple[str, bytes]]:
    draw_samples(str(folder), per_class=3, size=40)
    return [(str(path), path.read_bytes()) for path in sorted(folder.rglob("photos/**/*")) if path.is_file()]


@dataclass
class Same:
    """A matcher for `assert_that` that also shows what it saw."""

    check: object

    def __call__(self, actual: list) -> None:
        self.check(list(actual))


@pytest.mark.parametrize("feature", ["embedding=block5_pool:avg", "texture=block2_conv1:gem"])
def test_same_numbers_as_extract(tmp_path, feature):
    pairs = images(tmp_path)
    asked = ExtractOptions(
        inputs=(str(tmp_path / "photos"),),
        output=str(tmp_path / "out"),
        weights="random:3",
        features=(feature,),
        image_size=32,
        batch_size=8,
    )
    run(asked)
    stored = open_features(str(tmp_path / "out"))
    expected = dict(zip(stored.keys, stored.to_numpy(stored.names[0]), strict=True))
    assert len(expected) >= 8
    failed = len(pairs) - len(expected)
    assert failed >= 2

    def check_rows(rows):
        assert all(isinstance(row, EmbeddedImage) for row in rows)
        assert sorted(row.key for row in rows) == sorted(expected)
        for row in rows:
            np.testing.assert_array_equal(row.features[stored.names[0]], expected[row.key])

    def check_failures(failures):
        assert len(failures) == failed
        assert all(isinstance(failure, Failure) and failure.stage == "decode" for failure in failures)

    with test_pipeline.TestPipeline("FnApiRunner") as pipeline:
        # Another batch size than extract's: neighbours don't matter.
        embedded = pipeline | beam.Create(pairs) | EmbedImages(stored.spec, weights="random:3", batch_size=3)
        assert_that(embedded.rows, Same(check_rows), "rows")
        assert_that(embedded.failures, Same(check_failures), "failures")


def test_repeated_keys_and_windows():
    # Only the last of each class is broken.
    good = draw_items(per_class=4, size=40, seed=0)[:3]
    stamped = [TimestampedValue(("same key", item.data), 10 * i) for i, item in enumerate(good)]
    stamped.append(TimestampedValue(("same key", b"no image"), 15))

    def check(found):
        assert sorted(found) == [(0, "row"), (10, "failure"), (10, "row"), (20, "row")]

    with test_pipeline.TestPipeline("FnApiRunner") as pipeline:
        windowed = pipeline | beam.Create(stamped) | beam.Map(lambda x: x) | beam.WindowInto(FixedWindows(10))
        embedded = windowed | EmbedImages(SPEC, load=load_fake)
        rows = embedded.rows | "r" >> beam.Map(lambda _, w=beam.DoFn.WindowParam: (int(w.start), "row"))
        failures = embedded.failures | "f" >> beam.Map(lambda _, w=beam.DoFn.WindowParam: (int(w.start), "failure"))
        both = (rows, failures) | beam.Flatten() | "all" >> beam.WindowInto(GlobalWindows())
        assert_that(both, Same(check))


def test_a_stream_without_end():
    data = draw_items(per_class=4, size=40, seed=0)[0].data
    stream = test_stream.TestStream()
    for i in range(10):
        stream = stream.advance_watermark_to(i).add_elements([TimestampedValue((f"photo{i}", data), i)])
    options = beam.options.pipeline_options.PipelineOptions(["--streaming"])
    with test_pipeline.TestPipeline("BundleBasedDirectRunner", options=options) as pipeline:
        rows = (pipeline | stream.advance_watermark_to_infinity() | EmbedImages(SPEC, load=load_fake)).rows
        counts = (
            rows
            | beam.WindowInto(FixedWindows(5))
            | beam.Map(lambda r: 1)
            | beam.CombineGlobally(sum).without_defaults()
        )
        assert_that(counts, Same(lambda found: np.testing.assert_array_equal(found, [5, 5])))


def test_deadly_images_are_failures_where_all_is_decoded_apart(tmp_path, monkeypatch):
    for name, value in deadly.codecs(tmp_path / "codecs").items():
        monkeypatch.setenv(name, value)
    good = [(f"good{n}", item.data) for n, item in enumerate(draw_items(per_class=3, size=40, seed=0)[:2])]
    images = [(deed, deadly.image(deed)) for deed in ("abort", "loop", "hold")]
    images[1:1], images[3:3] = good[:1], good[1:]

    def check_failures(failures):
        assert sorted((failure.key, failure.error) for failure in failures) == [
            ("abort", "crashed the decoder"),
            ("hold", "too slow"),
            ("loop", "too slow"),
        ]

    with test_pipeline.TestPipeline("FnApiRunner") as pipeline:
        made = EmbedImages(SPEC, load=load_fake, apart=True, record_seconds=0.5)
        embedded = pipeline | beam.Create(images) | made
        assert_that(embedded.rows, Same(lambda rows: np.testing.assert_equal(len(rows), 2)), "rows")
        assert_that(embedded.failures, Same(check_failures), "failures")


def test_an_image_that_takes_too_long_is_a_failure(monkeypatch):
    [good, *_] = draw_items(per_class=3, size=40, seed=0)
    is_over, decode_record = [], decoders.decode_record

    def held_up(image, how, apart=None):
        while apart is None and image.key == "loop" and not is_over:
            pass
        return decode_record(image, how, apart)

    monkeypatch.setattr(decoders, "decode_record", held_up)
    with test_pipeline.TestPipeline("FnApiRunner") as pipeline:
        images = [("loop", good.data), ("good", good.data)]
        embedded = pipeline | beam.Create(images) | EmbedImages(SPEC, load=load_fake, record_seconds=0.5)
        assert_that(embedded.rows, Same(lambda rows: np.testing.assert_equal(rows[0].key, "good")), "rows")
        assert_that(
            embedded.failures, Same(lambda found: np.testing.assert_equal(found[0].error, "too slow")), "failures"
        )
    is_over.append(True)


def test_a_path_instead_of_bytes_is_refused_while_building():
    pipeline = test_pipeline.TestPipeline("FnApiRunner")
    with pytest.raises(beam.typehints.TypeCheckError, match="bytes"):
        pipeline | beam.Create([("a", "a.jpg")]) | EmbedImages(SPEC, load=load_fake)
