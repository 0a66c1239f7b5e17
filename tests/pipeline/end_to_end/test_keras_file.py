"""A user's `.keras` file from images to predictions, in Keras's safe mode."""

import json
import resource
import zipfile
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that
from PIL import Image

import featuremill
from pipeline.demo.samples import draw_items, write_folder
from pipeline.describe import DescribeOptions, describe_text
from pipeline.end_to_end import finetune as finetune_module
from pipeline.end_to_end.export import ExportOptions, export
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.exploration.query import QueryOptions, query
from pipeline.extraction.estimate import EstimateOptions, estimate
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import run
from pipeline.maintenance.verify import VerifyOptions, verify
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from transforms.declared import shared
from transforms.end_to_end.tuning import TuningNetwork
from transforms.engines import load_stored_engine
from transforms.errors import FeaturemillError
from transforms.network import keras_file
from transforms.network.bases import open_file
from transforms.network.keras_file import KerasFile
from transforms.network.keras_import import import_keras
from transforms.network.normalise import preprocess
from transforms.network.weights import load_weights
from transforms.pools import pool_output
from transforms.predictors.head import load_head
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
    stored = pq.read_table(f"{asked.output}/features").slice(0, 1).to_pylist()[0]
    assert query(QueryOptions(output=asked.output, images=(stored["key"],), feature="patches")).queries
    assert estimate(EstimateOptions(**shared(asked, ExtractOptions), images=4, seconds=1)).sampled == 4
    with beam.Pipeline("FnApiRunner") as pipeline:
        images = pipeline | beam.Create([(stored["key"], Path(stored["key"]).read_bytes())])
        rows = images | featuremill.EmbedImages(spec, weights=asked.weights)
        assert_that(rows.rows, lambda rows: np.testing.assert_array_equal(rows[0].features["cls"], stored["cls"]))
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
    text = describe_text(DescribeOptions(asked.weights))
    assert "Its outputs: --feature embedding=dense:flatten." in text
    assert "\nmaps " in text


def shortcut(side=SIDE):
    """Returns a network with a way around its second convolution, and with averages that are no batch's."""
    keras = import_keras()
    layers, drawn = keras.layers, keras.initializers.RandomNormal(stddev=0.2, seed=1)
    averages = {"moving_mean_initializer": drawn, "moving_variance_initializer": keras.initializers.Constant(3.0)}
    pixels = keras.Input((side, side, 3))
    maps = layers.Conv2D(6, 4, strides=4, kernel_initializer=drawn, name="first")(pixels)
    maps = layers.BatchNormalization(**averages, name="normed")(maps)
    # What isn't to be trained any more, says the file.
    maps += layers.Conv2D(6, 3, padding="same", kernel_initializer=drawn, trainable=False, name="second")(maps)
    maps = layers.Dropout(0.5)(layers.BatchNormalization(**averages, name="last")(maps))
    vector = layers.GlobalAveragePooling2D(name="vector")(maps)
    return keras.Model(pixels, layers.Dense(4, name="dense")(vector))


def row(side=SIDE):
    """Returns layers in a row, of which one is a network and one has weights that are no floats, for any side."""
    keras = import_keras()
    layers, drawn = keras.layers, keras.initializers.RandomNormal(stddev=0.2, seed=1)
    convolution = layers.Conv2D(6, 4, strides=4, kernel_initializer=drawn)
    base = keras.Sequential([keras.Input((None, None, 3)), convolution, layers.BatchNormalization()], name="base")
    scaled = layers.Normalization(name="scaled")
    scaled.adapt(np.random.default_rng(0).normal(20, 60, (8, 3)).astype(np.float32))
    last = layers.Conv2D(5, 3, kernel_initializer=drawn, name="last")
    vector = layers.GlobalAveragePooling2D(name="vector")
    return keras.Sequential([keras.Input((None, None, 3)), scaled, base, last, vector, layers.Dense(4, name="dense")])


@pytest.fixture(scope="module", params=[shortcut, row])
def made(request, tmp_path_factory):
    """A base in a file, OUT with its taps, and a head on what is pooled."""
    folder, taps = tmp_path_factory.mktemp("made"), {shortcut: ("normed", "first"), row: ("base", "scaled")}
    request.param(None if request.param is row else SIDE).save(folder / "net.keras")
    write_folder(folder / "photos", [i for i in draw_items(per_class=6, size=40, seed=2) if i.name.endswith("jpg")])
    tap, below = taps[request.param]
    features = ("vector=vector:flatten", f"tap={tap}:flatten", f"below={below}:flatten")
    run(options(folder, features=features, image_size=SIDE))
    head = {"output": str(folder / "head"), "learning_curve": False, "errors": False, "validation": 0.4}
    train(TrainOptions(features=str(folder / "out"), kinds=("ridge",), columns=("vector",), **head))
    return SimpleNamespace(folder=folder, features=features, tap=tap, net=str(folder / "net.keras"))


def tuned(made, output, *, head="head", **more):
    asked = {"epochs": 2, "batch_size": 8, "unfreeze": "last", "learning_rate": 1e-2, **more}
    features = {"head": str(made.folder / head), "features": str(made.folder / "out")}
    return finetune_module.finetune(FinetuneOptions(**{**features, **asked}, output=str(output)))


@pytest.fixture
def always(monkeypatch):
    """The start is never kept, see `test_finetune`."""
    tuning = finetune_module.tune
    monkeypatch.setattr(
        finetune_module, "tune", lambda *given, **more: tuning(*given, **{**more, "start_loss": np.inf})
    )


def arrays_of(path):
    return {layer.name: layer.get_weights() for layer in import_keras().saving.load_model(path).layers}


def test_tuned_as_at_inference_and_used_as_any_other(made, tmp_path, monkeypatch, always):
    step = TuningNetwork.step

    def watched(self, inputs, codes):
        logits = self.logits(inputs).astype(np.float64)
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(codes)), codes]
        assert step(self, inputs, codes) == pytest.approx(expected.mean(), rel=1e-4)
        return expected.mean()

    monkeypatch.setattr(TuningNetwork, "step", watched)
    summary = tuned(made, tmp_path / "new")
    # The deepest stored layer that all goes through.
    assert summary.plan.column == "tap"
    assert "batch normalisation and dropout stay as at inference" in summary.facts["training"]
    assert "base.keras" in finetune_module.finetuned_text(summary)
    before, after = arrays_of(made.net), arrays_of(tmp_path / "new/base.keras")
    changed = {name for name in before if any((a != b).any() for a, b in zip(before[name], after[name], strict=True))}
    assert changed == set(summary.plan.trained) == {"last"}
    # Its averages, where it has some.
    for a, b in zip(before["last"][2:], after["last"][2:], strict=True):
        np.testing.assert_array_equal(a, b)

    # Extracted again with the network that it has now, and the same way to normalise: labels from images, one model.
    base, again = str(tmp_path / "new/base.keras"), tmp_path / "again"
    photos = (str(made.folder / "photos"),)
    found = {"backbone": base, "output": str(again), "features": made.features, "image_size": SIDE}
    run(options(made.folder, **found))
    spec = load_head(str(tmp_path / "new")).spec
    assert open_features(str(again)).fingerprint == spec.fingerprint == summary.head.fingerprint
    assert (spec.normalise, spec.weights) == ("tf", open_file("keras", base).sha256)
    assert spec.weights != open_features(str(made.folder / "out")).spec.weights
    given = {"head": str(tmp_path / "new"), "probabilities": True}
    for inputs, output in ((photos, "of_images"), ((str(again),), "of_features")):
        predict(PredictOptions(**given, inputs=inputs, output=str(tmp_path / output)))
    rows = [pq.read_table(tmp_path / output / "predictions").to_pylist() for output in ("of_images", "of_features")]
    assert len(rows[0]) == len(rows[1]) > 8
    export(ExportOptions(str(tmp_path / "new"), str(tmp_path / "model.keras")))
    model = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = {each["key"]: each["probabilities"] for each in rows[1]}
    for each in rows[0]:
        image = np.array(Image.open(each["key"]).convert("RGB"))
        np.testing.assert_allclose(np.asarray(model(image[None]))[0], expected[each["key"]], atol=1e-5)
        np.testing.assert_allclose(each["probabilities"], expected[each["key"]], atol=1e-5)
    # And it can be tuned further, all of it.
    further = tuned(made, tmp_path / "further", head=tmp_path / "new", features=str(again), unfreeze="all")
    assert further.plan.start == 0
    assert set(further.plan.trained) >= {made.tap, "last"}


def test_tuned_from_taps_and_from_images_alike(made, tmp_path, always):
    taps, images = (tuned(made, tmp_path / source, source=source, epochs=1) for source in ("taps", "images"))
    assert (taps.plan.start > 0, images.plan.start) == (True, 0)
    # What its layers compute is what the file does; losses of a head that knows little wouldn't tell.
    arrays = load_weights(made.net, images.plan.table, backbone="keras").arrays
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    vectors = TuningNetwork(images.plan, arrays, batch_size=2).vectors(pixels)
    expected = open_file("keras", made.net).cut(["vector"])([preprocess(pixels, "tf")])
    np.testing.assert_allclose(vectors, np.squeeze(expected), rtol=1e-4, atol=1e-5)
    assert images.tuning.first_loss == pytest.approx(taps.tuning.first_loss, abs=1e-4)
    assert images.tuning.epochs[0]["validation_loss"] == pytest.approx(
        taps.tuning.epochs[0]["validation_loss"], abs=1e-4
    )


def test_a_copy_that_computes_something_else_is_refused(made, tmp_path, monkeypatch):
    """As of a layer that keeps more than its weights."""
    real = KerasFile.copy

    def copied(self, side):
        copy = real(self, side)
        copy.set_weights([values + 0.01 for values in copy.get_weights()])
        return copy

    monkeypatch.setattr(KerasFile, "copy", copied)
    open_file("keras", made.net)._described = 0, ()
    with pytest.raises(FeaturemillError, match="can't be tuned: a copy of its layers with its weights computes other"):
        tuned(made, tmp_path / "new", epochs=1)


def test_a_network_that_stays_as_it_was_is_known_as_before(made, tmp_path, monkeypatch):
    tuning = finetune_module.tune
    never = {"start_loss": -np.inf}
    monkeypatch.setattr(finetune_module, "tune", lambda *given, **more: tuning(*given, **{**more, **never}))
    summary = tuned(made, tmp_path / "new", epochs=1)
    assert summary.tuning.best_epoch == 0
    assert summary.head.spec == open_features(str(made.folder / "out")).spec


def test_one_line_says_what_cannot_be_tuned(tmp_path):
    keras = import_keras()
    layers = keras.layers
    write_folder(tmp_path / "photos", [i for i in draw_items(per_class=4, size=40, seed=2) if i.name.endswith("jpg")])
    pixels, twice = keras.Input((SIDE, SIDE, 3)), layers.Conv2D(3, 3, padding="same", name="twice")
    shared = layers.GlobalAveragePooling2D(name="vector")(twice(layers.ReLU()(twice(pixels))))
    keras.Model(pixels, shared).save(tmp_path / "shared.keras")
    pixels = keras.Input((SIDE, SIDE, 3))
    coarse = layers.Conv2D(3, 3, dtype="mixed_float16", name="coarse")(pixels)
    keras.Model(pixels, layers.GlobalAveragePooling2D(name="vector")(coarse)).save(tmp_path / "coarse.keras")
    shortcut().save(tmp_path / "net.keras")
    cases = {
        "shared": ("all", "uses its layer twice 2 times, .* can't be cut in two; build it with a layer for each use"),
        "coarse": ("all", "computes coarse in float16, and only float32 is trained"),
        "net": ("block5", "'block5' is no layer, no block, .*choose from first, normed, second"),
    }
    quick = {"learning_curve": False, "errors": False, "validation": 0.4, "kinds": ("ridge",), "columns": ("vector",)}
    for name, (unfreeze, says) in cases.items():
        out, head = str(tmp_path / f"{name}-out"), str(tmp_path / f"{name}-head")
        run(
            options(tmp_path, backbone=str(tmp_path / f"{name}.keras"), output=out, features=("vector=vector:flatten",))
        )
        train(TrainOptions(features=out, output=head, **quick))
        with pytest.raises(FeaturemillError, match=says) as error:
            finetune_module.finetune(
                FinetuneOptions(head=head, features=out, output=str(tmp_path / "new"), unfreeze=unfreeze)
            )
        assert "\n" not in str(error.value)
    # A tap of pixels that were normalised otherwise is another.
    out = str(tmp_path / "other")
    run(options(tmp_path, normalise="torch", output=out, features=("vector=vector:flatten",)))
    with pytest.raises(FeaturemillError, match=r"different features \(head \| features\): normalise tf \| torch"):
        finetune_module.finetune(
            FinetuneOptions(head=head, features=out, output=str(tmp_path / "new"), unfreeze="last")
        )


def test_networks_in_a_network_are_taps(tmp_path):
    row(None).save(tmp_path / "row.keras")
    text = describe_text(DescribeOptions(str(tmp_path / "row.keras")))
    assert "\nbase " in text
    assert open_file("keras", str(tmp_path / "row.keras")).taps(["base"], 40)["base"].shape == (10, 10, 6)


def test_what_a_model_is_known_by(tmp_path):
    model = network(None)
    model.save(tmp_path / "net.keras")
    # Saved again, from a process that built others before, under another name.
    import_keras().saving.load_model(tmp_path / "net.keras").save(tmp_path / "again.keras")
    first, again = open_file("keras", str(tmp_path / "net.keras")), open_file("keras", str(tmp_path / "again.keras"))
    assert first.sha256 == again.sha256
    assert (first.image_size(None), first.image_size(48)) == (224, 48)
    assert first.taps(["maps"], 48)["maps"].shape == (12, 12, 6)
    # At another size than a file of settings has, the same share is cut.
    config = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    sides = {side: options(tmp_path, normalise=str(tmp_path / "config.json"), image_size=side) for side in (None, 64)}
    assert [(asked.image_size, asked.short_side) for asked in sides.values()] == [(32, 35), (64, 70)]
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
    keras.Sequential([keras.layers.Conv2D(3, 3), keras.layers.Flatten()]).save(tmp_path / "unbuilt.keras")
    (tmp_path / "text.keras").write_text("hello")
    network().save(tmp_path / "net.keras")
    for name, says in (
        ("lambda", "it holds code .a Lambda layer., which is never run"),
        ("two", r"\(None, 32, 32, 3\) and \(None, 32, 32, 3\), not N×S×S×3"),
        ("oblong", r"takes \(None, 8, 6, 3\), not"),
        ("unbuilt", "takes inputs of unknown shapes, not"),
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
