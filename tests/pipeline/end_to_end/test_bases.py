"""Each base of `keras.applications` from images to a tuned head and one model file, on drawn weights.

The table of docs/running.md is filled by the tests with `made`: equal to Keras, its layers and its taps by
`test_the_numbers_and_the_layers_are_keras_own`; verify and predict by `test_verified`
and `test_one_model_gives_what_predict_gives`, which exports too; finetune by `test_tuned_as_at_inference`.
"""

import inspect
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from PIL import Image

from pipeline.demo.samples import draw_items, write_folder
from pipeline.describe import DescribeOptions, describe_text, plot
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
from transforms.embedding.embed_images import EmbedImages
from transforms.end_to_end.plan import first_unfrozen, plan_tuning
from transforms.end_to_end.tuning import TuningNetwork
from transforms.engines import check_engine, choose, load_stored_engine
from transforms.errors import FeaturemillError, UsageError
from transforms.images.decode import decode_image
from transforms.network import applications
from transforms.network.bases import BASES, describe, expect_size, layers
from transforms.network.keras_import import import_keras
from transforms.network.weights import load_weights
from transforms.predictors.head import load_head
from transforms.spec import Feature, FeatureSpec
from transforms.store.features import open_features

SIZE = 64
GRAPHS = [name for name, base in BASES.items() if not base.is_chain]
# A layer in the middle that all above depends on, and what is unfrozen: a block behind it.
MIDDLE = {
    "resnet50": ("conv5_block2_out", "conv5_block3"),
    "efficientnetv2-b0": ("block6g_add", "block6h"),
    "efficientnetv2-s": ("block6n_add", "block6o"),
    "convnext-tiny": ("convnext_tiny_downsampling_block_2", "convnext_tiny_stage_3"),
    "mobilenetv3-large": ("expanded_conv_13_add", "expanded_conv_14"),
    "densenet121": ("conv5_block15_concat", "conv5_block16"),
}


# As docs/decisions.md says of their authors' code.
FITTED = {
    "resnet50": (224, "crop", "bilinear"),
    "efficientnetv2-b0": (224, "crop", "bicubic"),
    "efficientnetv2-s": (384, "squash", "bilinear"),
    "convnext-tiny": (224, "crop", "bicubic"),
    "mobilenetv3-large": (224, "crop", "bilinear"),
    "densenet121": (224, "crop", "bicubic"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_images_are_fitted_as_its_authors_do(name):
    base = BASES[name]
    assert (base.image_size, base.resize, base.interpolation) == FITTED[name]
    # Keras says the size alone, where it says any.
    source = inspect.getsource(getattr(import_keras().applications, base.builder))
    assert {int(size) for size in re.findall(r"default_size=(\d+)", source)} <= {base.image_size}


@pytest.mark.parametrize("name", GRAPHS)
def test_only_engines_that_take_graphs_compute_it(name):
    for engine in ("ncnn", "winograd"):
        with pytest.raises(UsageError, match=f"the engine {engine} doesn't compute {name}; pass --engine keras"):
            check_engine(engine, "float32", name)
    with pytest.raises(UsageError, match=f"no engine computes {name} in 'int16'; pass another --precision"):
        choose("auto", "int16", name)
    assert choose("auto", "float32", name) == "keras"


def test_what_normalises_pixels_is_in_the_fingerprint():
    features = (Feature("embedding", "relu", "avg"),)
    specs = [FeatureSpec("densenet121", "", features, normalise=how) for how in ("torch", "inside", "caffe")]
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert [FeatureSpec.from_json(spec.to_json()) for spec in specs] == specs
    # Nor are there other fingerprints for what was made before.
    assert "normalise" not in specs[-1].to_json()
    with pytest.raises(ValueError, match="normalis"):
        FeatureSpec.from_json(specs[0].to_json().replace('"torch"', '"tosh"'))


def published(name, path):
    """Writes drawn weights as Keras publishes them; returns Keras's own network with them."""
    keras = import_keras()
    builder = getattr(keras.applications, BASES[name].builder)
    network = builder(include_top=False, pooling="avg", weights=None, input_shape=(SIZE, SIZE, 3))
    arrays = load_weights("random:3", layers(name), backbone=name).arrays
    weighted = [layer for layer in network.layers if layer.weights]
    for layer, mine in zip(weighted, arrays.values(), strict=True):
        # The gains of EfficientNetV2's shortcuts: as drawn, 40 blocks would make large numbers of any rounding.
        layer.set_weights((mine[0] * 0.65, *mine[1:]) if layer.name.endswith("project_bn") else mine)
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, network)
    network.save_weights(path.with_suffix(".weights.h5"))
    return network


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """A base's weights, photos of many sizes, OUT with a tap in the middle, and a head on what the base gives."""
    name, built, build = request.param, [], applications._build
    folder = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applications, "_build", lambda *given: built.append(given) or build(*given))
        expect_size(name, SIZE)
        network = published(name, folder / "base.h5")
        # The last of each class is damaged.
        items = [item for item in draw_items(per_class=5, size=SIZE + 16, seed=2) if "_004" not in item.name]
        write_folder(folder / "photos", items)
        inputs = {"inputs": (str(folder / "photos"),), "weights": str(folder / "base.h5"), "image_size": SIZE}
        asked = {**inputs, "output": str(folder / "out"), "backbone": name}
        options = ExtractOptions(**asked, features=(BASES[name].feature, f"tap={MIDDLE[name][0]}:flatten"))
        run(options)
    # It is read off and computed.
    assert len(built) <= 1
    quick = {"learning_curve": False, "errors": False, "validation": 0.4}
    train(
        TrainOptions(
            features=str(folder / "out"),
            output=str(folder / "head"),
            kinds=("ridge",),
            columns=("embedding", "tap"),
            **quick,
        )
    )
    spec = open_features(str(folder / "out")).spec
    paths = sorted((folder / "photos").rglob("*.jpg"))
    yield SimpleNamespace(
        name=name, folder=folder, network=network, asked=asked, options=options, spec=spec, paths=paths
    )
    # Hundreds of megabytes of weights.
    shutil.rmtree(folder)


each = pytest.mark.parametrize("made", GRAPHS, indirect=True)


def one(name):
    """For what doesn't hang on the base."""
    return pytest.mark.parametrize("made", [name], indirect=True)


@pytest.mark.long
@each
def test_the_numbers_and_the_layers_are_keras_own(made):
    name, network, base = made.name, made.network, BASES[made.name]
    assert (made.options.resize, made.options.interpolation) == (base.resize, base.interpolation)
    assert made.spec.normalise == base.normalise
    engine = load_stored_engine("auto", made.spec, str(made.folder / "base.h5"))
    pixels = np.stack([decode_image(p.read_bytes(), made.spec, max_pixels=10**8).pixels for p in made.paths[:3]])
    found = engine.embed(pixels)
    prepare = sys.modules[getattr(import_keras().applications, base.builder).__module__].preprocess_input
    infos = describe(layers(name), SIZE)
    tap = network.layers[1 + [info.name for info in infos].index(MIDDLE[name][0])]
    whole = import_keras().Model(network.input, [network.output, tap.output])
    # As a graph: in one TensorFlow computes layers together, which rounds otherwise.
    expected = whole.predict(prepare(pixels.astype(np.float32)), verbose=0)
    assert expected[0].shape[1] == base.width == found["embedding"].shape[1]
    # In the middle drawn weights make large numbers that cancel.
    for name_of, theirs, tolerance in (("embedding", expected[0], 1e-5), ("tap", expected[1], 1e-4)):
        theirs = theirs.reshape(len(pixels), -1)
        np.testing.assert_allclose(found[name_of], theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())

    # The table is Keras's, and all of it can be tapped.
    assert sum(info.parameters for info in infos) == network.count_params()
    assert [info.output_shape for info in infos] == [tuple(layer.output.shape[1:]) for layer in network.layers[1:]]
    text = describe_text(DescribeOptions(name, image_size=SIZE))
    assert all(f"\n{info.name} " in text for info in infos)
    # The other layout of Keras's holds the same.
    files = [str(made.folder / file) for file in ("base.h5", "base.weights.h5")]
    assert len({load_weights(file, layers(name), backbone=name).sha256 for file in files}) == 1


@pytest.mark.long
@each
def test_verified(made):
    assert verify(VerifyOptions(made.asked["output"], sample=2)).ok


@pytest.mark.long
@each
def test_one_model_gives_what_predict_gives(made, tmp_path):
    """From photos of several sizes: with the base's own way to resize and to normalise inside."""
    inputs, output = made.asked["inputs"], str(tmp_path / "predicted")
    predict(PredictOptions(head=str(made.folder / "head"), inputs=inputs, output=output, probabilities=True))
    rows = [row for path in Path(output, "predictions").glob("*") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == len(made.paths)
    expected = {row["key"]: row["probabilities"] for row in rows}
    export(ExportOptions(str(made.folder / "head"), str(tmp_path / "model.keras")))
    model = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images = {path: np.array(Image.open(path).convert("RGB")) for path in made.paths[:4]}
    assert len({image.shape for image in images.values()}) > 1
    for path, image in images.items():
        key = next(key for key in expected if key.endswith(path.name))
        np.testing.assert_allclose(np.asarray(model(image[None], training=False))[0], expected[key], atol=1e-5)


@pytest.mark.long
@each
def test_other_commands_embed_the_same(made):
    asked, stored = made.asked, open_features(made.asked["output"])
    expected = {name: dict(zip(stored.keys, stored.to_numpy(name), strict=True)) for name in stored.names}
    [neighbours] = query(QueryOptions(output=asked["output"], images=(str(made.paths[0]),))).neighbours
    assert neighbours[0].row.key == str(made.paths[0])
    assert neighbours[0].score == pytest.approx(1, abs=1e-5)
    assert neighbours[0].score > neighbours[1].score
    assert estimate(EstimateOptions(**asked, images=4, seconds=1)).sampled == 4

    def check_rows(rows):
        assert sorted(row.key for row in rows) == sorted(stored.keys)
        for row in rows:
            assert set(row.features) == set(expected)
            for name, vectors in expected.items():
                vector = vectors[row.key]
                np.testing.assert_allclose(row.features[name], vector, rtol=1e-4, atol=1e-5 * np.abs(vector).max())

    pairs = [(str(path), path.read_bytes()) for path in made.paths]
    with test_pipeline.TestPipeline("FnApiRunner") as pipeline:
        embedded = pipeline | beam.Create(pairs) | EmbedImages(stored.spec, weights=asked["weights"])
        assert_that(embedded.rows, check_rows)


def tuned(made, output, **more):
    asked = {"epochs": 1, "batch_size": 8, "unfreeze": MIDDLE[made.name][1], **more}
    return finetune_module.finetune(
        FinetuneOptions(head=str(made.folder / "head"), features=made.asked["output"], output=str(output), **asked)
    )


@pytest.fixture
def always(monkeypatch):
    """The start is never kept, see `test_finetune`."""
    tuning = finetune_module.tune
    never = {"start_loss": np.inf}
    monkeypatch.setattr(finetune_module, "tune", lambda *given, **more: tuning(*given, **{**more, **never}))


def arrays_of(made, path):
    return load_weights(str(path), layers(made.name), backbone=made.name).arrays


@pytest.mark.long
@each
def test_tuned_as_at_inference(made, tmp_path, monkeypatch, always):
    """Each step's loss is that of inference: nothing is dropped, and a photo's numbers hang on no other's."""
    step = TuningNetwork.step

    def watched(self, inputs, codes):
        logits = self.logits(inputs).astype(np.float64)
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(codes)), codes]
        loss = step(self, inputs, codes)
        assert loss == pytest.approx(expected.mean(), rel=1e-4)
        return loss

    monkeypatch.setattr(TuningNetwork, "step", watched)
    summary = tuned(made, tmp_path / "new", source="taps", learning_rate=1e-3)
    assert summary.plan.column == "tap"
    assert "from the stored tap" in summary.facts["training"]
    assert "batch normalisation and dropout stay as at inference" in summary.facts["training"]
    before, after = (arrays_of(made, path) for path in (made.folder / "base.h5", tmp_path / "new/base.weights.h5"))
    changed = {name for name in before if any((a != b).any() for a, b in zip(before[name], after[name], strict=True))}
    assert changed == set(summary.plan.trained)
    infos = {info.name: info for info in describe(layers(made.name), SIZE)}
    for name in changed:
        for array, a, b in zip(infos[name].arrays, before[name], after[name], strict=True):
            if array.name.startswith("moving"):
                np.testing.assert_array_equal(a, b)
    # What it gives is a base of its own.
    assert load_head(str(tmp_path / "new")).spec.weights != made.spec.weights


@pytest.mark.long
@pytest.mark.parametrize("made", ["resnet50", "mobilenetv3-large"], indirect=True)
def test_tuned_from_taps_and_from_images_alike(made, tmp_path, always):
    """They differ by float32's rounding, as in `test_finetune`."""
    taps, images = (tuned(made, tmp_path / source, source=source, learning_rate=1e-5) for source in ("taps", "images"))
    assert (taps.plan.start > 0, images.plan.start) == (True, 0)
    assert images.tuning.first_loss == pytest.approx(taps.tuning.first_loss, abs=1e-4)
    for a, b in zip(taps.tuning.epochs, images.tuning.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-4)
    # The frozen layers were in the network.
    before, after = (arrays_of(made, path) for path in (made.folder / "base.h5", tmp_path / "images/base.weights.h5"))
    for name in images.plan.frozen:
        for a, b in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.long
@one("mobilenetv3-large")
def test_resumed_it_is_as_if_it_had_never_stopped(made, tmp_path, monkeypatch, always):
    asked = {"epochs": 2, "learning_rate": 1e-3}
    whole = tuned(made, tmp_path / "whole", **asked)
    write = finetune_module.write_checkpoint

    def cut_off(uri, checkpoint, description):
        write(uri, checkpoint, description)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "write_checkpoint", cut_off)
        with pytest.raises(RuntimeError, match="killed"):
            tuned(made, tmp_path / "new", **asked)
    again = tuned(made, tmp_path / "new", **asked, resume=True)
    losses = [[(point["loss"], point["validation_loss"]) for point in one.tuning.epochs] for one in (whole, again)]
    assert losses[0] == losses[1]
    np.testing.assert_equal(*(arrays_of(made, tmp_path / at / "base.weights.h5") for at in ("whole", "new")))
    # Mirrored, it starts from images.
    mirrored = tuned(made, tmp_path / "mirrored", **{**asked, "epochs": 1}, mirror=True)
    assert mirrored.plan.start == 0
    assert "mirrored by a draw (stored taps aren't used)" in mirrored.facts["training"]


def depends_on_pixels_without(table, layer, name):
    """Whether there is a way from the pixels to a layer that goes around another."""
    of, todo, seen = {each.name: each for each in table}, [name], set()
    while todo:
        current = todo.pop()
        if current in seen or current == layer:
            continue
        seen.add(current)
        if not of[current].inputs:
            return True
        todo += of[current].inputs
    return False


def test_tuning_starts_where_all_goes_through():
    """The layers that do to start from are those that no way goes around, below what is trained."""
    features = (Feature("a", "conv5_block3_out", "avg"), Feature("b", "conv4_block2_1_relu", "flatten"))
    spec = FeatureSpec("resnet50", "", features, image_size=SIZE, normalise="caffe")
    expect_size("resnet50", SIZE)
    table = layers("resnet50")
    for columns, unfreeze, deepest in (
        (["a"], "conv5_block3", "conv5_block2_out"),
        (["a"], "conv5_block3_2_conv", "conv5_block2_out"),
        (["a"], "conv5_block3_out", None),
        (["a"], "8", "conv5_block2_out"),
        (["a", "b"], "conv5", "conv4_block1_out"),
        # A way round ends before what is asked for: it isn't trained, nor in the way.
        (["b"], "conv4_block2", "conv4_block1_out"),
        (["a"], "all", "conv1_pad"),
    ):
        if deepest is None:
            with pytest.raises(UsageError, match="from conv5_block3_out on there is no convolution"):
                plan_tuning(table, spec, columns, unfreeze, ())
            continue
        plan = plan_tuning(table, spec, columns, unfreeze, features)
        assert plan.below == deepest
        taps = [feature.tap for feature in plan.features]
        ends = [*taps, *plan.trained]
        expected = [
            layer.name
            for layer in plan.taken
            if layer.name not in plan.trained
            and not any(depends_on_pixels_without(table, layer.name, end) for end in ends)
        ]
        assert list(plan.starts) == expected
    assert plan_tuning(table, spec, ["b"], "conv4_block2", ()).trained == ("conv4_block2_1_conv", "conv4_block2_1_bn")
    for wrong, says in (("block5", "is no layer"), ("conv", "is no layer"), ("0", "choose 1 to")):
        with pytest.raises(UsageError, match=says):
            first_unfrozen(table, wrong)
    assert table[first_unfrozen(table, "conv5_block3_2")].name == "conv5_block3_2_conv"


@pytest.mark.long
@one("mobilenetv3-large")
def test_what_hangs_on_no_base(made, tmp_path):
    name, asked = made.name, made.asked
    assert resumed(ExtractOptions(**asked), ["backbone", "weights"]) == made.options
    with pytest.raises(UsageError, match="leave --plot out"):
        plot(DescribeOptions(name, plot=str(tmp_path / "a.png")))
    for wrong, says in (({"include_top": True}, "leave --include-top out"), ({"features": ("a=fc9:avg",)}, "no layer")):
        with pytest.raises(UsageError, match=says):
            ExtractOptions(**{**asked, **wrong})
    stored = open_features(asked["output"])
    # In other processes.
    options = ExtractOptions(
        **{**asked, "output": str(tmp_path / "out")},
        features=(BASES[name].feature, "tap=expanded_conv_13_project:flatten"),
        workers=2,
    )
    run(options)
    two = open_features(str(tmp_path / "out"))
    rows = [dict(zip(each.keys, each.to_numpy(), strict=True)) for each in (stored, two)]
    assert rows[0].keys() == rows[1].keys()
    for key, vector in rows[0].items():
        np.testing.assert_allclose(rows[1][key], vector, rtol=1e-4, atol=1e-5 * np.abs(vector).max())
    # A stored tap that a shortcut goes around won't do.
    with pytest.raises(FeaturemillError, match=r"expanded_conv_13_project won't do, .*expanded_conv_13_add"):
        finetune_module.finetune(
            FinetuneOptions(
                head=str(made.folder / "head"),
                features=str(tmp_path / "out"),
                output=str(tmp_path / "new"),
                unfreeze="expanded_conv_14",
                source="taps",
            )
        )
