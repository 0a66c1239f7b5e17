"""A user's `.keras` file from images to predictions, in Keras's safe mode."""

import resource
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo.samples import draw_items, write_folder
from pipeline.describe import DescribeOptions, describe_text
from pipeline.end_to_end.export import ExportOptions, export
from pipeline.end_to_end.finetune import finetune
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import run
from pipeline.maintenance.verify import VerifyOptions, verify
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from transforms.engines import load_stored_engine
from transforms.errors import FeaturemillError
from transforms.network import keras_file
from transforms.network.bases import open_file
from transforms.network.keras_import import import_keras
from transforms.network.normalise import preprocess
from transforms.pools import pool_output
from transforms.store.features import open_features

SIDE = 32


def network(side=SIDE, seed=0):
    """Returns maps (N×8×8×6), tokens (N×65×6) with a first that is their mean, and a vector."""
    keras = import_keras()
    layers, drawn = keras.layers, keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    pixels = keras.Input((side, side, 3), name="pixels")
    maps = layers.Conv2D(6, 4, strides=4, kernel_initializer=drawn, name="maps")(pixels)
    maps = layers.Dropout(0.5, name="dropped")(layers.BatchNormalization(name="normed")(maps))
    mean = layers.GlobalAveragePooling2D(name="mean", keepdims=True)(maps)
    grid = layers.Reshape((-1, 6), name="grid")(maps)
    tokens = layers.Concatenate(axis=1, name="tokens")([layers.Reshape((1, 6), name="one")(mean), grid])
    vector = layers.GlobalAveragePooling1D(name="vector")(tokens)
    return keras.Model(pixels, layers.Dense(4, kernel_initializer=drawn, name="dense")(vector))


def options(tmp_path, **more):
    asked = {"backbone": str(tmp_path / "net.keras"), "normalise": "tf", "inputs": (str(tmp_path / "photos"),)}
    return ExtractOptions(**{**asked, "output": str(tmp_path / "out"), **more})


def test_from_images_to_predictions(tmp_path):
    model = network()
    model.save(tmp_path / "net.keras")
    write_folder(tmp_path / "photos", [i for i in draw_items(per_class=6, size=40, seed=2) if i.name.endswith("jpg")])
    features = ("cls=tokens:cls", "patches=tokens:avg", "maps=dropped:max", "all=maps:flatten", "logits=dense:flatten")
    asked = options(tmp_path, features=features)
    lines = []
    summary = run(asked, say=lines.append)
    assert summary.engines[0].startswith("keras (")
    assert "note     tokens gives 65×6 tokens: the class token, 8×8 patches" in lines
    spec = open_features(asked.output).spec
    assert (spec.backbone, spec.image_size, spec.normalise) == ("keras", SIDE, "tf")

    engine = load_stored_engine("auto", spec, asked.weights)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    found = engine.embed(pixels)
    given = preprocess(pixels, "tf")
    names = ("tokens", "dropped", "maps", "dense")
    part = import_keras().Model(model.inputs, [model.get_layer(name).output for name in names])
    tokens, dropped, maps, dense = part.predict(given, verbose=0)
    expected = (tokens[:, 0], tokens[:, 1:].mean(axis=1), dropped.max(axis=(1, 2)), maps.reshape(3, -1), dense)
    for name, values in zip(("cls", "patches", "maps", "all", "logits"), expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)

    plain = ExtractOptions(inputs=asked.inputs, output=asked.output)
    for again in (resumed(plain, []), resumed(asked, ["backbone", "normalise"])):
        assert run(again).this_run.units == 0
    assert verify(VerifyOptions(asked.output, sample=4)).ok
    head, quick = tmp_path / "head", {"learning_curve": False, "errors": False, "validation": 0.4}
    train(TrainOptions(features=asked.output, output=str(head), kinds=("ridge",), columns=("patches",), **quick))
    predicted = predict(
        PredictOptions(head=str(head), inputs=asked.inputs, output=str(tmp_path / "pred"), probabilities=True)
    )
    assert predicted.manifest.totals.predicted == summary.totals.rows_embedded
    export(ExportOptions(str(head), str(tmp_path / "model.keras")))
    both = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for row in pq.read_table(tmp_path / "pred/predictions").to_pylist():
        image = np.array(Image.open(row["key"]).convert("RGB"))
        np.testing.assert_allclose(np.asarray(both(image[None]))[0], row["probabilities"], atol=1e-5)
    with pytest.raises(FeaturemillError, match=r"finetune doesn't take networks from .keras files"):
        finetune(FinetuneOptions(head=str(head), features=asked.output, output=str(tmp_path / "new"), unfreeze="1"))
    text = describe_text(DescribeOptions(asked.weights))
    assert "Its outputs: --feature embedding=dense:flatten." in text
    assert "\nmaps " in text


def test_what_a_model_is_known_by(tmp_path):
    model = network(None)
    model.save(tmp_path / "net.keras")
    # Saved again, from a process that built others before, under another name.
    import_keras().saving.load_model(tmp_path / "net.keras").save(tmp_path / "again.keras")
    first, again = open_file("keras", str(tmp_path / "net.keras")), open_file("keras", str(tmp_path / "again.keras"))
    assert first.sha256 == again.sha256
    assert (first.image_size(None), first.image_size(48)) == (224, 48)
    assert first.taps(["maps"], 48)["maps"].shape == (12, 12, 6)
    model.get_layer("dense").bias.assign(np.ones(4))
    model.save(tmp_path / "again.keras")
    assert open_file("keras", str(tmp_path / "again.keras")).sha256 != first.sha256


def test_pools_of_tokens_are_those_of_one_image():
    tokens = np.random.default_rng(0).standard_normal((2, 9, 5)).astype(np.float32)
    np.testing.assert_allclose(pool_output(tokens, "max"), tokens.max(axis=1))
    np.testing.assert_allclose(pool_output(tokens[:, :8], "gem").shape, (2, 5))
    np.testing.assert_array_equal(pool_output(tokens, "cls"), tokens[:, 0])
    np.testing.assert_array_equal(pool_output(tokens, "flatten"), tokens.reshape(2, -1))


def test_nothing_huge_is_built(tmp_path, monkeypatch):
    keras = import_keras()
    # Of kinds that keep a state of their own, and wrap others.
    pixels = keras.Input((SIDE, SIDE, 3))
    layers = keras.layers
    maps = layers.SpectralNormalization(layers.Conv2D(4, 3))(layers.RandomFlip()(pixels))
    tokens = layers.Dropout(0.1)(layers.Reshape((-1, 4))(maps))
    whole = keras.Sequential([layers.Dense(5), layers.LSTM(3)])
    model = keras.Model(pixels, whole(layers.MultiHeadAttention(2, 4)(tokens, tokens)))
    model.compile("adam", "mse")
    model.save(tmp_path / "net.keras")
    assert open_file("keras", str(tmp_path / "net.keras")).parameters == model.count_params()
    with zipfile.ZipFile(tmp_path / "net.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["config.json"] = files["config.json"].replace(b'"units": 5', b'"units": 30000000')
    with zipfile.ZipFile(tmp_path / "huge.keras", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    monkeypatch.setattr(keras_file, "_MOST_BYTES", 10**8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FeaturemillError, match=r"huge.keras has layers whose weights take 600 MB, over 100 MB; use a"):
        open_file("keras", str(tmp_path / "huge.keras"))
    # Nor later, by what Keras makes up for when another such scope ends.
    with keras.StatelessScope():
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000
    monkeypatch.setattr(keras_file, "_MOST_CONFIG_BYTES", 100)
    with pytest.raises(FeaturemillError, match=r"describes its layers in .* kB, over 100 B"):
        open_file("keras", str(tmp_path / "huge.keras"))


def test_one_line_says_why_a_file_cannot_be_used(tmp_path, monkeypatch):
    keras = import_keras()
    pixels = keras.Input((SIDE, SIDE, 3))
    halved = keras.Model(pixels, keras.layers.Lambda(lambda x: x / 2, name="halved")(pixels))
    halved.save(tmp_path / "lambda.keras")
    other = keras.Input((SIDE, SIDE, 3))
    keras.Model([pixels, other], keras.layers.Add()([pixels, other])).save(tmp_path / "two.keras")
    small = keras.Input((8, 6, 3))
    keras.Model(small, keras.layers.Flatten()(small)).save(tmp_path / "oblong.keras")
    (tmp_path / "text.keras").write_text("hello")
    network().save(tmp_path / "net.keras")
    for name, says in (
        ("lambda", "it holds code .a Lambda layer., which is never run"),
        ("two", r"\(None, 32, 32, 3\) and \(None, 32, 32, 3\), not N×S×S×3"),
        ("oblong", r"takes \(None, 8, 6, 3\), not"),
        ("text", "cannot use .*text.keras as a network"),
        ("gone", "no network file"),
    ):
        with pytest.raises(FeaturemillError, match=says) as error:
            options(tmp_path, backbone=str(tmp_path / f"{name}.keras"))
        assert "\n" not in str(error.value)
    for more, says in (
        ({"precision": "bfloat16"}, "types of their own"),
        ({"engine": "winograd"}, "the engine winograd doesn't compute keras; pass --engine keras"),
        ({"features": ("a=maps:cls",)}, "maps has no class token"),
        ({"features": ("a=mapps:avg",)}, "has no layer 'mapps'; did you mean maps"),
        ({"normalise": None}, "doesn't say how its pixels are normalised"),
    ):
        with pytest.raises(FeaturemillError, match=says):
            options(tmp_path, **more)
    monkeypatch.setattr(keras_file, "_MOST_BYTES", 1_000)
    with zipfile.ZipFile(tmp_path / "net.keras", "a") as archive:
        archive.writestr("more", b"0" * 2_000)
    with pytest.raises(FeaturemillError, match=r"net.keras unpacks to"):
        open_file("keras", str(tmp_path / "net.keras"))
