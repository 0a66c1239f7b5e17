"""ImageNet's own head against Keras: its network, its `predict`, its `decode_predictions`."""

import hashlib
import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.prediction.summary import summary_text
from tests.support.fakes import FakeEngine
from tests.transforms.network.test_weights import random_weights, write_published
from transforms.errors import FeaturemillError, UsageError
from transforms.network import published
from transforms.network.bases import BASES
from transforms.network.weights import Weights
from transforms.predictors import imagenet
from transforms.predictors.predictions import true_codes
from transforms.spec import FeatureSpec

TOP_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
# As in the published index, two classes are called crane.
INDEX = {str(i): [f"n{i:08}", "crane" if i in (134, 517) else f"thing_{i}"] for i in range(1000)}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of Keras's, and no network."""

    def no_network(*args, **more):
        raise OSError("no network")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(socket, "create_connection", no_network)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keras/models").mkdir(parents=True)
    return tmp_path / "keras/models"


@pytest.fixture
def index(cache, monkeypatch) -> Path:
    """The class index where Keras keeps it."""
    return plant(cache, monkeypatch, json.dumps(INDEX).encode())


def plant(cache: Path, monkeypatch, content: bytes) -> Path:
    path = cache / published.CLASS_INDEX.name
    path.write_bytes(content)
    expected = replace(published.CLASS_INDEX, digest=hashlib.md5(content).hexdigest())
    monkeypatch.setattr(published, "CLASS_INDEX", expected)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    """Two images at the network's own size: resizing isn't what is compared here."""
    random = np.random.default_rng(3)
    (tmp_path / "in/n00000517").mkdir(parents=True)
    for number in range(2):
        coarse = Image.fromarray(random.integers(0, 256, (14, 14, 3), np.uint8))
        coarse.resize((224, 224)).save(tmp_path / f"in/n00000517/{number}.png")
    return tmp_path / "in/n00000517/0.png"


SPEC = FeatureSpec("vgg16", "0" * 64, (imagenet.FEATURE,))
# No arrays: the fake engine has none.
FAKE = Weights({}, "0" * 64, "fake", is_random=False)


class Softmax(FakeEngine):
    """Probabilities that depend on the image."""

    def embed(self, pixels):
        logits = np.stack(pixels).reshape(len(pixels), -1)[:, ::150][:, :1000].astype(np.float32) / 50
        powers = np.exp(logits)
        return {"predictions": powers / powers.sum(axis=1, keepdims=True)}


def load_softmax(job) -> Softmax:
    assert job.include_top
    return Softmax(job.sizes, job.batch_size)


def options(inputs, output=None, **more) -> PredictOptions:
    return PredictOptions(head="imagenet", inputs=(str(inputs),), output=output and str(output), **more)


@pytest.mark.long
def test_equals_keras_predict_and_decode_predictions(photo, index, cache, tmp_path, monkeypatch):
    from keras.applications import vgg16

    arrays = dict(random_weights("vgg16", include_top=True, tap="predictions").arrays)
    kernel, bias = arrays["predictions"]
    # As drawn, the scores lie so far apart that all but one class have the probability 0.
    arrays["predictions"] = kernel / 50, bias
    write_published(cache / TOP_FILE, arrays)
    files = BASES["vgg16"].published
    monkeypatch.setitem(files, True, published._hash(files[True], str(cache / TOP_FILE)))
    predict(options(photo.parent.parent, tmp_path / "PRED", backbone="vgg16", probabilities=True, engine="ncnn"))
    found = pq.read_table(tmp_path / "PRED/predictions").to_pylist()

    model = vgg16.VGG16(weights=str(cache / TOP_FILE))
    pixels = np.stack([np.asarray(Image.open(row["key"]), np.float32) for row in found])
    expected = model.predict(vgg16.preprocess_input(pixels), verbose=0)
    # The index that it has read already, as it keeps it.
    monkeypatch.setattr("keras.src.applications.imagenet_utils.CLASS_INDEX", INDEX)
    for row, chances, decoded in zip(found, expected, vgg16.decode_predictions(expected, top=5), strict=True):
        np.testing.assert_allclose(row["probabilities"], chances, rtol=1e-3, atol=1e-7)
        named = list(zip(row["top_wnids"], row["top_labels"], strict=True))
        assert named == [(wnid, name) for wnid, name, _ in decoded]
        np.testing.assert_allclose(row["top_scores"], [score for *_, score in decoded], rtol=1e-3)
        assert (row["wnid"], row["label"]) == named[0]
        assert row["true_label"] == "n00000517"
        assert row["agrees"] == (row["wnid"] == "n00000517")
    # A check of the test: classes that differ, and none that has it all.
    assert len({row["top_wnids"][1] for row in found}) == 2 or found[0]["top_wnids"] != found[1]["top_wnids"]
    assert 0.001 < found[0]["top_scores"][4] < found[0]["top_scores"][0] < 0.99


def test_a_photo_is_shown_with_names(photo, index):
    summary = predict(options(photo, top=3), load=load_softmax, weights=FAKE)
    [row] = summary.shown
    logits = np.asarray(Image.open(photo)).reshape(-1)[::150][:1000] / 50
    best = np.argsort(-logits, kind="stable")[:3]
    assert row["top_wnids"] == [INDEX[str(i)][0] for i in best]
    assert row["top_labels"] == [INDEX[str(i)][1] for i in best]
    line = rf"{row['score']:.4f}  {row['wnid']}  {row['label']}"
    assert re.search(line, summary_text(summary))


def test_evaluate_by_wordnet_ids(photo, index, tmp_path):
    summary = predict(options(photo.parent.parent, tmp_path / "PRED", evaluate=True), load=load_softmax, weights=FAKE)
    assert summary.metrics["rows"] == 2
    assert "n00000517 crane" in [row["label"] for row in summary.metrics["per_class"]]
    (photo.parent.parent / "cranes").mkdir()
    photo.rename(photo.parent.parent / "cranes" / photo.name)
    with pytest.raises(FeaturemillError, match="no class of imagenet, the first is 'cranes'"):
        predict(options(photo.parent.parent, tmp_path / "PRED2", evaluate=True), load=load_softmax, weights=FAKE)


def test_names_of_two_classes_are_no_true_labels(index):
    import pyarrow as pa

    found = imagenet.predictor(SPEC, imagenet.load_classes())
    labels = pa.array(["crane", "n00000134", "n00000517", "thing_7", None, "cat"])
    assert true_codes(labels, found).tolist() == [-1, 134, 517, 7, -1, -1]
    assert len(set(found.unique_labels)) == 1000


def test_without_the_index_or_the_weights_the_offline_way_is_named(photo, cache, monkeypatch):
    with pytest.raises(FeaturemillError) as caught:
        predict(options(photo))
    for part in ("imagenet_class_index.json", published.CLASS_INDEX.digest, published.CLASS_INDEX.url, str(cache)):
        assert part in str(caught.value)
    assert "--weights" not in str(caught.value)
    (cache / published.CLASS_INDEX.name).write_text("{}")
    with pytest.raises(FeaturemillError, match=r"is not the published file: 2 bytes .* to have it fetched again$"):
        predict(options(photo))
    plant(cache, monkeypatch, json.dumps(INDEX).encode())
    with pytest.raises(FeaturemillError, match=rf"cannot fetch vgg19_weights.* put it into {cache}, or pass --weights"):
        predict(options(photo))
    assert list(cache.iterdir()) == [cache / published.CLASS_INDEX.name]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"0": "cat"}', b"\xff", b'{"0": ["a"]}', b"{}"])
def test_an_index_that_isnt_one(photo, cache, monkeypatch, content):
    plant(cache, monkeypatch, content)
    with pytest.raises(FeaturemillError, match="doesn't list 1,000 classes"):
        imagenet.load_classes()


def test_random_weights_are_called_so(photo, index):
    summary = predict(options(photo), load=load_softmax, weights=replace(FAKE, is_random=True))
    assert "never trained" in summary_text(summary)


def test_features_arent_images(tmp_path, index):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT/manifest.json").write_text('{"spec": {}, "fingerprint": ""}')
    with pytest.raises(UsageError, match=r"imagenet takes images, and .*OUT holds features"):
        predict(options(tmp_path / "OUT"), weights=FAKE)


def test_name_address_and_hash_are_keras_own():
    """Read from the installed Keras, so that a new release that moves them is noticed."""
    import keras

    source = (Path(keras.__file__).parent / "src/applications/imagenet_utils.py").read_text()
    source = "".join(source.split()).replace('""', "")
    for part in (published.CLASS_INDEX.name, published.CLASS_INDEX.url, published.CLASS_INDEX.digest):
        assert f'"{part}"' in source
