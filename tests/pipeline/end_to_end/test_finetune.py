"""Fine-tuning starts as the head is, trains what it says and nothing else, and gives a head like any other."""

import io
import shutil
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.samples import draw_items, write_folder, write_tar
from pipeline.end_to_end import data as data_module
from pipeline.end_to_end import finetune as finetune_module
from pipeline.end_to_end.finetune import finetune, finetuned_json, finetuned_text
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.prediction.summary import summary_text
from pipeline.training.fits import Fit
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests.support.counts import ONCE, count_reads
from tests.support.properties import examples
from transforms import heads
from transforms.end_to_end import inputs as tuning_rows
from transforms.end_to_end.inputs import TuningRows
from transforms.end_to_end.plan import first_unfrozen, plan_tuning
from transforms.end_to_end.tuning import Tuning, TuningNetwork, tune
from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.choosing import Choosing
from transforms.evaluation.metrics import fit_temperature
from transforms.evaluation.split import TEST, TRAIN, VALIDATION, split
from transforms.heads import FitSettings
from transforms.heads import model as heads_model
from transforms.heads.cells import Rows
from transforms.heads.model import log_losses
from transforms.heads.transform import Transform
from transforms.network.keras_import import import_keras
from transforms.network.vgg import layers
from transforms.network.weights import load_weights
from transforms.predictors.head import load_head, save_head
from transforms.predictors.trained_rows import read_rows
from transforms.rows import spooled
from transforms.rows.table import open_table
from transforms.rows.vectors import StoredPart
from transforms.store.features import open_features

pytestmark = pytest.mark.long

FEATURES = ("embedding=block5_pool:avg", "tap=block4_pool:flatten")
NONE = Transform()
# Keys are paths, so each run of the tests splits otherwise: enough rows that no side can be without a class.
SPLIT = {"validation": 0.4, "test": 0.2}


def photos():
    """Returns 48 photos of two classes; every third has the other one's label.

    A head that is never wrong is sure beyond all measure: its loss is 0, or 20 after the first step of fine-tuning, and
    what rounding does to the gradients decides which.
    """
    items = [item for item in draw_items(per_class=30, size=40, seed=2) if item.name.endswith("jpg")]
    labels = sorted({item.label for item in items})[:2]
    chosen = [item for label in labels for item in [item for item in items if item.label == label][:24]]
    return [replace(item, label=labels[(i // 24 + (i % 3 == 0)) % 2]) for i, item in enumerate(chosen)]


def extract(inputs, output, **more):
    asked = {"backbone": "vgg16", "weights": "random:0", "image_size": 32, "features": FEATURES, **more}
    run(ExtractOptions(inputs=(str(inputs),), output=str(output), **asked))
    return output


def train_head(out, output, kind="ridge", **more):
    quick = {"learning_curve": False, "errors": False}
    train(TrainOptions(features=str(out), output=str(output), kinds=(kind,), **quick, **{**SPLIT, **more}))
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The photos, their features in several parts, and a head of each kind needed."""
    root = tmp_path_factory.mktemp("finetune")
    write_folder(root / "photos", photos())
    extract(root / "photos", root / "out")
    train_head(root / "out", root / "ridge")
    train_head(root / "out", root / "dense256", "dense256", settings=FitSettings(epochs=3))
    return root


def tuned(made, output, head="ridge", **more):
    asked = {"learning_rate": 1e-4, "epochs": 2, "batch_size": 8, **more}
    features = str(asked.pop("features", made / "out"))
    return finetune(FinetuneOptions(head=str(made / head), features=features, output=str(output), **asked))


@pytest.fixture
def always(monkeypatch):
    """The start is never kept: two epochs on drawn photos and drawn weights rarely better it."""
    start_is_never_kept(monkeypatch)


def start_is_never_kept(monkeypatch):
    tuning = finetune_module.tune
    monkeypatch.setattr(
        finetune_module, "tune", lambda *given, **more: tuning(*given, **{**more, "start_loss": np.inf})
    )


def judged(head, out, side):
    """Log loss and accuracy by the stored embedding and the head alone."""
    table = open_table(str(out), columns=head.columns)
    sides = split(table, folds=None, seed=0, near=None, **SPLIT).sides
    matrix = np.concatenate([batch for _, batch in table.vectors.batches()])
    probabilities = head.probabilities(matrix)[sides == side]
    codes = np.array([head.classes.index(label.as_py()) for label in table.labels])[sides == side]
    right = probabilities[np.arange(len(codes)), codes]
    return {
        "rows": len(codes),
        "log_loss": -np.log(right).mean(),
        "accuracy": (probabilities.argmax(axis=1) == codes).mean(),
    }


def fitted_alone(head, out):
    """A head of the same kind that no validation or test row trained, with its temperature."""
    table = open_table(str(out), columns=head.columns)
    sides = split(table, folds=None, seed=0, near=None, **SPLIT).sides.astype(np.int32)
    codes = np.array([head.classes.index(label.as_py()) for label in table.labels], np.int32)
    rows = Rows(table.vectors, codes, np.where(sides == TEST, -1, sides), head.classes)
    settings = FitSettings(transform=head.model.transform.name, epochs=head.split["options"]["settings"]["epochs"])
    model = Choosing(head.model.kind, rows, settings).fit((TRAIN,), (VALIDATION,))
    numbers, matrix = rows.matrix((VALIDATION,))
    return replace(head, model=model, temperature=fit_temperature(heads.logits(model, matrix), codes[numbers]))


def changed(weights):
    """Names of the layers that aren't what they were, bit for bit."""
    old = load_weights("random:0", layers("vgg16"), backbone="vgg16").arrays
    return {name for name in old if not all(map(np.array_equal, old[name], weights.arrays[name]))}


@pytest.mark.parametrize("head", ["ridge", "dense256"])
def test_from_head_to_another(made, tmp_path, head, always):
    summary = tuned(made, tmp_path / "new", head)
    old, new = load_head(str(made / head)), load_head(str(tmp_path / "new"))
    assert (summary.record["from"], summary.record["trained"][0]) == ("tap", "block5_conv1")
    # It starts as a head that the training rows alone made.
    start = fitted_alone(old, made / "out")
    for side, number in (("validation", VALIDATION), ("test", TEST)):
        assert summary.record["before"][side] == pytest.approx(judged(start, made / "out", number), rel=1e-3, abs=1e-4)
    # What was to be trained was, and nothing else.
    after = load_weights(str(tmp_path / "new" / new.weights), layers("vgg16"), backbone="vgg16")
    assert changed(after) == {"block5_conv1", "block5_conv2", "block5_conv3"} == set(summary.record["trained"])
    # Images give the new head what it was trained on.
    assert new.spec == replace(old.spec, weights=after.sha256)
    assert new.model.kind == head
    extract(made / "photos", tmp_path / "again", weights=str(tmp_path / "new" / new.weights))
    assert open_features(str(tmp_path / "again")).fingerprint == new.fingerprint
    for side, number in (("validation", VALIDATION), ("test", TEST)):
        assert summary.record["after"][side] == pytest.approx(
            judged(new, tmp_path / "again", number), rel=1e-3, abs=1e-4
        )
    assert new.metrics["judged_on"] == "test"
    text = finetuned_text(summary)
    assert "3 layers with weights trained; 10 frozen layers unchanged, bit for bit" in text
    named = text.splitlines()[-1].split(": ")[1].split(", ")
    assert sorted(named) == sorted(file.name for file in (tmp_path / "new").iterdir())
    # The layers below are random still, and it is said that they, but not all, are.
    assert new.weights_are_random
    assert new.never_trained == tuple(summary.record["frozen"])
    still = "the layers block1_conv1, block1_conv2, block2_conv1 and 7 more were never trained"
    assert summary.facts["warning"] == f"{still}: these figures are only a try"
    page = (tmp_path / "new/report.html").read_text()
    assert "finetuned: unfreeze" in page
    assert "&#39;unfreeze&#39;" not in page
    if head == "ridge":
        asked = PredictOptions(head=str(tmp_path / "new"), inputs=(str(tmp_path / "again"),))
        text = summary_text(predict(asked))
        weights = tmp_path / "new" / new.weights
        assert f"CAUTION  weights {weights}: {still}, so these predictions mean little" in text
        # A second time higher up: what the first has trained isn't random any more.
        again = tuned(made, tmp_path / "second", tmp_path / "new", features=tmp_path / "again", unfreeze="2", epochs=1)
        assert "block5_conv1" in again.record["frozen"]
        assert again.head.never_trained == new.never_trained
    assert finetuned_json(summary)["finetuned"]["best_epoch"] == summary.tuning.best_epoch


@pytest.mark.parametrize("source", ["taps", "images"])
def test_features_are_opened_once(made, tmp_path, monkeypatch, source):
    counts = count_reads(monkeypatch)
    tuned(made, tmp_path / "new", epochs=1, source=source)
    images = {"plan.parquet": 1, "read_plan": 1} if source == "images" else {}
    assert +counts == {**ONCE, **images}


@pytest.mark.parametrize("head", ["ridge", "dense256"])
def test_images_and_taps_are_the_same_training(made, tmp_path, head, always):
    """Same rows in the same batches in the same order, through another part of the network.

    Both ways differ by float32's rounding, 1e-7 of the losses. Adam's first steps are as long for a number whose
    gradient is rounding as for any other; they are short here, so that the losses stay that close. In another order
    the rows would make them differ by 1e-3 and more.
    """
    taps, images = (
        tuned(made, tmp_path / source, head, source=source, learning_rate=1e-5) for source in ("taps", "images")
    )
    assert (taps.plan.start, images.plan.start) == (14, 0)
    assert images.tuning.first_loss == pytest.approx(taps.tuning.first_loss, abs=1e-4)
    for a, b in zip(taps.tuning.epochs, images.tuning.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-4)
    # Here the frozen layers were in the network.
    file = str(tmp_path / "images" / images.head.weights)
    assert changed(load_weights(file, layers("vgg16"), backbone="vgg16")) == set(images.plan.trained)


def test_half_precision_and_other_layers(made, tmp_path, always):
    """Taps of another OUT, in float16, below what is trained; photos in a tar. The head's layers aren't in its hash."""
    write_tar(tmp_path / "photos.tar", photos())
    features = ("low=block2_pool:avg", "tap=block3_pool:flatten")
    out = extract(tmp_path / "photos.tar", tmp_path / "out", features=features, dtype="float16")
    # Of VGG16's 18 layers, 7 reach down to block4_conv2: block4_conv1 is frozen, and lies above the tap.
    taps = tuned(made, tmp_path / "taps", unfreeze="7", features=out)
    assert (taps.plan.column, taps.plan.trained[0]) == ("tap", "block4_conv2")
    images = tuned(made, tmp_path / "images", unfreeze="7", features=out, source="images")
    # The start, too, is fitted on what comes of the rounded taps.
    assert images.tuning.first_loss == pytest.approx(taps.tuning.first_loss, abs=1e-2)
    everything = tuned(made, tmp_path / "all", unfreeze="all", features=out, epochs=1)
    assert (everything.plan.start, everything.record["frozen"]) == (0, [])
    # What was random is trained, and nothing is left to be called unchanged.
    assert not everything.head.weights_are_random
    text = finetuned_text(everything)
    assert "13 layers with weights trained\n" in text
    assert "unchanged" not in text
    assert "warning" not in everything.facts


@pytest.mark.parametrize("backbone", ["vgg16", "vgg19"])
def test_layers_are_counted_as_in_keras(backbone):
    applications = import_keras().applications
    base = {"vgg16": applications.VGG16, "vgg19": applications.VGG19}[backbone](weights=None, include_top=False)
    table = layers(backbone)
    for count in range(2, len(table) + 1):
        recipe = next(layer.name for layer in base.layers[-count:] if layer.weights)
        assert table[first_unfrozen(backbone, str(count))].name == recipe
    assert [table[first_unfrozen(backbone, part)].name for part in ("block5", "block3", "all")] == [
        "block5_conv1",
        "block3_conv1",
        "block1_conv1",
    ]


def small_network(made, batch_size, dropout=0.0, transform=NONE, warm_up=1, class_weights=None):
    spec = open_features(str(made / "out")).spec
    table = layers("vgg16")
    plan = plan_tuning(table, spec, ["embedding"], "block5", spec.features)
    weights = load_weights("random:0", table, backbone="vgg16").arrays
    random = np.random.default_rng(0)
    dense = [(random.normal(size=shape) / shape[0] ** 0.5, np.zeros(shape[1])) for shape in ((512, 16), (16, 3))]
    network = TuningNetwork(plan, weights, batch_size=batch_size)
    more = {"dropout": dropout, "learning_rate": 1e-4, "warm_up": warm_up, "class_weights": class_weights}
    network.put_head(dense, transform, **more, seed=0)
    return network


def test_the_first_steps_are_short(made):
    inputs, codes = np.random.default_rng(1).random((3, 2, 2, 512), np.float32), np.array([0, 2, 1], np.int32)
    moved = []
    for warm_up in (1, 100):
        network = small_network(made, 3, warm_up=warm_up)
        before = network.logits(inputs)
        network.step(inputs, codes)
        moved.append(np.abs(network.logits(inputs) - before).max())
    # A hundredth of the rate; what it does isn't a straight line.
    assert moved[1] < moved[0] / 20


def log_loss(logits, codes):
    powers = np.exp(logits.astype(np.float64))
    return -np.log(powers[np.arange(len(codes)), codes] / powers.sum(axis=1)).mean()


def test_a_padded_batch_trains_as_if_it_were_full(made):
    inputs, codes = np.random.default_rng(1).random((3, 2, 2, 512), np.float32), np.array([0, 2, 1], np.int32)
    padded, full = small_network(made, 8), small_network(made, 3)
    np.testing.assert_allclose(padded.logits(inputs), full.logits(inputs), rtol=1e-4, atol=1e-5)
    first = log_loss(full.logits(inputs), codes)
    losses = [(padded.step(inputs, codes), full.step(inputs, codes)) for _ in range(5)]
    assert losses[0] == pytest.approx((first, first), rel=1e-4)
    for one, other in losses:
        assert one == pytest.approx(other, rel=1e-3)
    assert losses[-1][0] < losses[0][0]


def test_class_weights_train_as_in_plain_keras(made):
    """Of a batch that isn't full; what is trained is built anew, layer by layer."""
    keras = import_keras()
    inputs, codes = np.random.default_rng(1).random((3, 2, 2, 512), np.float32), np.array([0, 2, 2], np.int32)
    weights = np.array([3.0, 1.0, 0.5])
    network = small_network(made, 8, class_weights=weights)
    convolutions = [keras.layers.Conv2D(512, 3, padding="same", activation="relu") for _ in range(3)]
    dense = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    pools = [keras.layers.MaxPooling2D(2), keras.layers.GlobalAveragePooling2D()]
    plain = keras.Sequential([keras.Input((2, 2, 512)), *convolutions, *pools, *dense])
    arrays = network.weights()
    for number, layer in enumerate(convolutions, 1):
        layer.set_weights(arrays[f"block5_conv{number}"])
    for layer, pair in zip(dense, network.dense(), strict=True):
        layer.set_weights(pair)
    plain.compile(keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(3):
        plain.reset_metrics()
        expected = plain.train_on_batch(inputs, codes, class_weight=dict(enumerate(weights)))
        assert network.step(inputs, codes) == pytest.approx(float(expected), rel=1e-3)
    np.testing.assert_allclose(network.logits(inputs), plain.predict_on_batch(inputs), rtol=1e-3, atol=1e-4)


def test_dropout_is_there_in_training_only(made):
    inputs, codes = np.random.default_rng(1).random((3, 2, 2, 512), np.float32), np.array([0, 2, 1], np.int32)
    network, other = small_network(made, 3, dropout=0.5), small_network(made, 3, dropout=0.5)
    logits = network.logits(inputs)
    np.testing.assert_array_equal(logits, network.logits(inputs))
    loss = network.step(inputs, codes)
    assert loss != pytest.approx(log_loss(logits, codes), rel=1e-3)
    # Of the same seed.
    assert loss == pytest.approx(other.step(inputs, codes), rel=1e-5)


@dataclass
class Scripted:
    """A network whose only weight counts its epochs."""

    epoch: int = 0

    def step(self, inputs, codes):
        self.epoch += 1
        return 1.0

    def state(self):
        return self.epoch

    def restore(self, state):
        self.epoch = state


@pytest.mark.parametrize(
    ("losses", "ran", "best"),
    [([3, 2, 1, 4], 4, 3), ([3, 1, 2, 2, 0], 4, 2), ([1, 1, 1, 1], 3, 1), ([6, 5, 5, 7], 2, 0)],
    ids=["runs out", "stops", "no better", "never better than the start"],
)
def test_early_stopping(losses, ran, best):
    network, script = Scripted(), iter(losses)
    done = tune(
        network,
        train=lambda epoch: iter([(np.array([0]), np.zeros((1, 2)))]),
        validate=lambda: float(next(script)),
        start_loss=5.0,
        codes=np.zeros(1, np.int32),
        epochs=len(losses),
        patience=2,
        say=lambda line: None,
    )
    assert (len(done.epochs), done.best_epoch, network.epoch) == (ran, best, best)


def test_a_loss_that_is_no_number(made):
    with pytest.raises(FeaturemillError, match="--learning-rate"):
        tune(
            Scripted(),
            train=lambda epoch: iter([(np.array([0]), np.zeros((1, 2)))]),
            validate=lambda: float("nan"),
            start_loss=1.0,
            codes=np.zeros(1, np.int32),
            epochs=2,
            patience=2,
            say=lambda line: None,
        )


@dataclass
class Numbered:
    """Row groups in memory: a row holds its own number. They are read in batches of any size."""

    first: dict[str, int]
    size: int
    shape: tuple[int, ...] = (1,)

    def read(self, part, group, wanted):
        start = sum(part.group_rows[:group])
        rows = np.arange(start, start + part.group_rows[group])
        rows = rows[wanted[rows]]
        for at in range(0, len(rows), self.size):
            chosen = rows[at : at + self.size]
            yield chosen, (self.first[part.uri] + chosen)[:, None].astype(np.float32)


@examples(150)
@given(st.data())
def test_every_row_comes_once_and_in_the_same_order_from_any_reader(data):
    groups = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
    parts = tuple(StoredPart(str(i), tuple(rows)) for i, rows in enumerate(groups))
    firsts = np.cumsum([0, *map(sum, groups)])
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=int(firsts[-1]), max_size=int(firsts[-1]))))
    size, held = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    seed = data.draw(st.none() | st.integers(0, 100))
    orders = []
    for step in (1, 4):
        reader = Numbered(dict(zip(map(str, range(len(parts))), firsts, strict=False)), step)
        rows = TuningRows(reader, parts, np.zeros(len(wanted), np.int32), tuning_rows.BUFFER_BYTES // held)
        batches = list(rows.batches(wanted, size, seed=seed))
        assert all(len(numbers) == size for numbers, _ in batches[:-1])
        for numbers, inputs in batches:
            np.testing.assert_array_equal(numbers, inputs[:, 0])
        orders.append([int(number) for numbers, _ in batches for number in numbers])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == np.flatnonzero(wanted).tolist()
    if seed is None:
        assert orders[0] == sorted(orders[0])


def test_epochs_come_in_other_orders():
    rows = TuningRows(Numbered({"0": 0}, 8), (StoredPart("0", (100,)),), np.zeros(100, np.int32), 1)
    first, again, other = (
        np.concatenate([numbers for numbers, _ in rows.batches(np.ones(100, bool), 10, seed=seed)])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    # Rows of a batch come from all over the row group.
    assert max(first[:10]) - min(first[:10]) > 30


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"unfreeze": "blok5"}, ["blok5", "block5"]),
        ({"unfreeze": "19"}, ["18"]),
        ({"unfreeze": "0"}, ["18"]),
        ({"unfreeze": "1"}, ["no convolution"]),
        ({"source": "disk"}, ["taps"]),
        ({"source": "taps", "mirror": True}, ["--mirror", "--source taps"]),
        ({"epochs": 0}, ["--epochs"]),
        ({"learning_rate": float("nan")}, ["--learning-rate"]),
        ({"seed": -1}, ["--seed"]),
    ],
)
def test_wrong_options(made, tmp_path, more, words):
    with pytest.raises(UsageError) as caught:
        tuned(made, tmp_path / "new", **more)
    assert all(word in str(caught.value) for word in words)
    assert not list(tmp_path.iterdir())


def refuses(made, tmp_path, *words, **more):
    """Checks that it fails in one line with these words, and leaves nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FeaturemillError) as caught:
        tuned(made, tmp_path / "new", **more)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message
    assert sorted(tmp_path.iterdir()) == before


def test_the_head_has_to_fit(made, tmp_path):
    train_head(made / "out", tmp_path / "knn", "knn")
    refuses(made, tmp_path, "knn", "ridge", head=tmp_path / "knn")
    head = load_head(str(made / "ridge"))
    save_head(replace(head, spec=None), str(tmp_path / "plain"))
    refuses(made, tmp_path, "unknown origin", head=tmp_path / "plain")
    save_head(replace(head, spec=replace(head.spec, precision="bfloat16")), str(tmp_path / "coarse"))
    refuses(made, tmp_path, "bfloat16", head=tmp_path / "coarse")
    save_head(replace(head, classes=("cat", "dog")), str(tmp_path / "other"))
    refuses(made, tmp_path, "cat", head=tmp_path / "other")
    refuses(made, tmp_path, "no head", head=tmp_path / "nothing")


def test_features_and_weights_have_to_be_the_heads(made, tmp_path):
    refuses(made, tmp_path, "--weights", weights="random:1")
    extract(made / "photos", tmp_path / "larger", image_size=48, features=("embedding=block5_pool:avg",))
    refuses(made, tmp_path, "image_size 32 | 48", features=tmp_path / "larger")
    extract(made / "photos", tmp_path / "weights", weights="random:1")
    refuses(made, tmp_path, "other weights", features=tmp_path / "weights")
    refuses(made, tmp_path, "holds no features", features=made / "photos")
    extract(made / "photos", tmp_path / "untapped", features=("embedding=block5_pool:avg",))
    cure = "extract --feature tap=block4_pool:flatten"
    refuses(made, tmp_path, cure, features=tmp_path / "untapped", source="taps")
    refuses(made, tmp_path, "block1_conv1", "fewer", unfreeze="all", source="taps")


def test_what_a_head_takes_has_to_be_trained(made, tmp_path):
    extract(made / "photos", tmp_path / "out", features=("embedding=block4_pool:avg", "tap=block3_pool:flatten"))
    train_head(tmp_path / "out", tmp_path / "low")
    refuses(made, tmp_path, "block4_pool", "unfreeze more", head=tmp_path / "low", features=tmp_path / "out")


def test_sources_that_are_gone_or_changed_are_named(made, tmp_path):
    shutil.copytree(made / "photos", tmp_path / "photos")
    out = extract(tmp_path / "photos", tmp_path / "out")
    photos = sorted(Path(tmp_path / "photos").rglob("*.jpg"))
    shutil.copyfile(photos[1], photos[0])
    refuses(made, tmp_path, photos[0].name, "changed", features=out, source="images")
    photos[2].unlink()
    refuses(made, tmp_path, photos[2].name, "1 sources", features=out, source="images")
    # A tap needs no images.
    assert tuned(made, tmp_path / "new", features=out, epochs=1).record["from"] == "tap"


def test_a_head_that_is_there_stays(made, tmp_path):
    shutil.copytree(made / "ridge", tmp_path / "new")
    before = (tmp_path / "new/head.json").read_bytes()
    refuses(made, tmp_path, "--overwrite")
    assert (tmp_path / "new/head.json").read_bytes() == before


def test_scores_of_many_rows_and_classes_are_not_held(monkeypatch):
    """1,000 classes of 12,000 rows are 48 MB; what is judged is what it is by all of them at once."""
    count, classes, random = 12_000, 1000, np.random.default_rng(0)
    codes, cells = random.integers(0, classes, count), (np.arange(count) % 3).astype(np.int32)
    base = random.normal(size=classes).astype(np.float32)

    def logits(numbers):
        found = np.repeat(base[None], len(numbers), axis=0)
        found[np.arange(len(numbers)), codes[numbers]] += numbers % 5
        return found

    def batches(wanted, size):
        for part in np.array_split(np.flatnonzero(wanted), count // 100):
            yield part, part

    data = SimpleNamespace(
        rows=SimpleNamespace(batches=batches, codes=codes),
        fit=Fit((0,), (1,), (2,)),
        wanted=lambda *some: np.isin(cells, some),
        classes=tuple(map(str, range(classes))),
        table=SimpleNamespace(keys=pa.array(map(str, range(count)))),
        parts=SimpleNamespace(components=np.arange(count)),
    )
    network = SimpleNamespace(logits=logits, batch_size=100)
    monkeypatch.setattr(spooled, "_MEMORY_BYTES", 2**20)
    monkeypatch.setattr(heads_model, "_SCORES_AT_ONCE", 2**17)
    options = FinetuneOptions(head="head", features="features", output="new")
    tracemalloc.start()
    try:
        scored = finetune_module._scored(network, data)
        figures = finetune_module._figures(scored, 1.5, data)
        judged = finetune_module._judge(scored, 1.5, data, options)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20 < 4 * classes * count * 2 / 3
    finally:
        tracemalloc.stop()
    for side, cell in (("validation", 1), ("test", 2)):
        numbers = np.flatnonzero(cells == cell)
        assert figures[side]["rows"] == len(numbers)
        assert figures[side]["accuracy"] == (logits(numbers).argmax(axis=1) == codes[numbers]).mean()
        losses = log_losses(logits(numbers) / np.float32(1.5), codes[numbers])
        assert figures[side]["log_loss"] == pytest.approx(losses.mean(), abs=1e-9)
    assert judged["rows"] == figures["test"]["rows"]
    assert judged["metrics"]["accuracy"]["value"] == pytest.approx(figures["test"]["accuracy"])


def test_a_head_that_was_split_otherwise_is_cautioned_about(made, tmp_path):
    """By an earlier version, which put other rows on the sides."""
    head = load_head(str(made / "ridge"))
    # Such a record doesn't know how it was fitted either.
    options = {name: value for name, value in head.split["options"].items() if name not in ("dealing", "settings")}
    save_head(replace(head, split={**head.split, "options": options}), str(tmp_path / "old"))
    old = tuned(made, tmp_path / "new", str(tmp_path / "old"), epochs=1)
    assert "caution" not in old.facts, "the start is fitted anew, whatever the old one was trained on"
    assert old.head.model.settings["penalty"] == head.model.settings["penalty"]
    tuned_once = replace(head.model, settings={**head.model.settings, "finetuned": {}})
    save_head(replace(head, model=tuned_once, split={**head.split, "options": options}), str(tmp_path / "once"))
    caution = tuned(made, tmp_path / "newer", str(tmp_path / "once"), epochs=1).facts["caution"]
    assert "its network may know rows that judge it here; begin again" in caution


def test_class_weights_of_the_head_are_those_of_the_tuning(made, tmp_path):
    """Loss, stop and choice by the formula, of a rare class; steps are so short that the head stays as it starts."""
    table = open_table(str(made / "out"))
    keys = table.keys.to_pylist()
    matrix = np.concatenate([batch for _, batch in table.vectors.batches()])
    rare = (np.arange(len(keys)) % 4 == 0).astype(int)
    side = np.array(["train", "validation", "test"])[np.arange(len(keys)) // 4 % 3]
    lines = [f"{key},{'ab'[code]},{on}" for key, code, on in zip(keys, rare, side, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label,side", *lines]))
    asked = {"labels": str(tmp_path / "labels.csv"), "split_column": "side", "test": 0.0}
    settings = FitSettings(class_weights=True, penalties=(1e-2,), transform="none")
    head = train_head(made / "out", tmp_path / "head", "logistic", settings=settings, **asked)
    summary = tuned(made, tmp_path / "new", head, learning_rate=1e-12, epochs=1)
    new = load_head(str(tmp_path / "new"))
    losses = -np.log(new.probabilities(matrix)[np.arange(len(keys)), rare])
    train = side == "train"
    weights = (train.sum() / 2 / np.bincount(rare[train]))[rare]
    chosen = np.average(losses[side == "validation"], weights=weights[side == "validation"])
    assert chosen != pytest.approx(losses[side == "validation"].mean(), rel=1e-2)
    assert (weights * losses)[train].mean() != pytest.approx(losses[train].mean(), rel=1e-2)
    epoch = summary.tuning.epochs[0]
    assert summary.tuning.start_loss == pytest.approx(chosen, rel=1e-3)
    assert epoch["validation_loss"] == pytest.approx(chosen, rel=1e-3)
    # The network gives the probabilities of the start's temperature, which is HEAD's.
    assert epoch["loss"] == pytest.approx((weights * losses)[train].mean(), rel=1e-3)
    assert summary.runs[0]["choice"] == {"metric": "weighted_log_loss", "value": summary.tuning.start_loss}
    assert "each class counts as much, as for the head (--class-weights)" in summary.facts["training"]
    assert summary.record["class_weights"]
    assert new.split["options"]["settings"]["class_weights"], "for whoever tunes it again"


@pytest.mark.parametrize("features", [FEATURES, FEATURES[1:]], ids=["stored", "computed"])
def test_rows_that_judge_are_known_to_nobody(made, tmp_path, features):
    """Labels are drawn by lot: a head that has seen the judged rows knows them by heart, one that hasn't guesses.

    What the head takes is stored in the one case, and computed again in the other.
    """
    out = made / "out" if features == FEATURES else extract(made / "photos", tmp_path / "taps", features=features)
    keys = open_table(str(made / "out")).keys.to_pylist()
    drawn = np.random.default_rng(1).permutation(np.arange(len(keys)) % 2)
    lines = [f"{key},{'ab'[code]}" for key, code in zip(keys, drawn, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *lines]))
    labels = str(tmp_path / "labels.csv")
    asked = {
        "labels": labels,
        "settings": FitSettings(transform="l2", penalties=(1e-4,)),
        "validation": 0.2,
        "test": 0.0,
    }
    head = train_head(made / "out", tmp_path / "head", folds=4, **asked)
    summary = tuned(made, tmp_path / "new", head, features=out, learning_rate=1e-12, epochs=1)
    by_heart = judged_all(load_head(str(head)), made / "out", labels)
    assert by_heart > 0.9
    first, last = summary.record["before"], summary.record["after"]
    assert all(first[side]["accuracy"] < 0.85 for side in ("validation", "test"))
    assert last["test"]["rows"] == 12
    for side in first:
        assert last[side] == pytest.approx(first[side], abs=1e-3)
    if not summary.tuning.best_epoch:
        assert "no epoch was better than the start on the validation rows" in finetuned_text(summary)
        assert summary.runs[-1]["kind"] == "ridge"
    # Of folds, the first judges and the second chooses.
    assert sides(tmp_path / "new") == {"train": 24, "validation": 12, "test": 12}
    assert "CAUTION: training was stopped by the limit of 1 epoch; more --epochs" in finetuned_text(summary)


def test_what_is_tuned_on_noise_is_not_above_chance(made, tmp_path):
    """A third of the rows each trains, chooses and judges; on each side half of the labels are of one class, by lot."""
    keys, random = open_table(str(made / "out")).keys.to_pylist(), np.random.default_rng(0)
    sides = np.repeat(["train", "validation", "test"], len(keys) // 3)
    asked = {"labels": str(tmp_path / "labels.csv"), "split_column": "side", "validation": 0.2, "test": 0.0}
    right = {"before": 0.0, "after": 0.0}
    for seed in range(3):
        labels = np.concatenate([random.permutation(["a", "b"] * (len(keys) // 6)) for _ in range(3)])
        lines = map(",".join, zip(random.permutation(keys), labels, sides, strict=True))
        (tmp_path / "labels.csv").write_text("\n".join(["key,label,side", *lines]))
        if not seed:
            # One that learns by heart, if it may.
            settings = FitSettings(transform="l2", penalties=(1e-4,))
            train_head(made / "out", tmp_path / "head", settings=settings, **asked)
        summary = tuned(made, tmp_path / f"new{seed}", tmp_path / "head", labels=asked["labels"], learning_rate=1e-3)
        for when in right:
            right[when] += summary.record[when]["test"]["accuracy"] / 3
    for accuracy in right.values():
        assert abs(accuracy - 0.5) < 3 * np.sqrt(0.25 / len(keys))


def sides(head):
    counts = read_rows(str(head))["side"].value_counts().to_pylist()
    return {found["values"]: found["counts"] for found in counts}


def test_who_judged_a_head_judges_all_that_is_tuned_from_it(made, tmp_path):
    train_head(made / "out", tmp_path / "other", test_of=str(made / "ridge"), test=0.0)
    tuned(made, tmp_path / "once", str(tmp_path / "other"), epochs=1)
    again = extract(made / "photos", tmp_path / "again", weights=str(tmp_path / "once" / "base.weights.h5"))
    tuned(made, tmp_path / "twice", str(tmp_path / "once"), features=again, epochs=1)
    heads = [read_rows(str(folder)) for folder in (made / "ridge", tmp_path / "once", tmp_path / "twice")]
    tests = [{row["key"] for row in rows.to_pylist() if row["side"] == "test"} for rows in heads]
    assert tests[0]
    assert tests[0] == tests[1] == tests[2]


def test_a_row_stays_on_its_side_when_labels_are_corrected(made, tmp_path):
    """Of a head that was tuned: its network knows the rows that trained it. Two rows had no label then."""
    rows = read_rows(str(made / "ridge"))
    first, second = open_table(str(made / "out")).labels.unique().to_pylist()
    # Every test row is of one class, as no split drawn from these labels would have it.
    labels = {row["key"]: first if row["side"] == "test" or i % 2 else second for i, row in enumerate(rows.to_pylist())}
    new = rows["key"].to_pylist()[:2]
    data = io.BytesIO()
    pq.write_table(rows.filter(pc.invert(pc.is_in(rows["key"], pa.array(new)))), data)
    head = load_head(str(made / "ridge"))
    tuned_once = replace(head.model, settings={**head.model.settings, "finetuned": {}})
    save_head(replace(head, model=tuned_once), str(tmp_path / "once"), files={"rows.parquet": data.getvalue()})
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *(f"{key},{labels[key]}" for key in labels)]))
    more = {"labels": str(tmp_path / "labels.csv"), "epochs": 1}
    again = tuned(made, tmp_path / "again", str(tmp_path / "once"), **more)
    before, after = (
        dict(zip(*rows.select(["key", "side"]).to_pydict().values(), strict=True))
        for rows in (rows, read_rows(str(tmp_path / "again")))
    )
    assert after == {**before, **dict.fromkeys(new, "train")}
    assert again.facts["sides"].endswith("whatever its label is now; 2 rows that the head didn't have to train")
    anew = tuned(made, tmp_path / "anew", **more)
    assert {row["key"]: row["side"] for row in read_rows(anew.output).to_pylist()} != before
    assert "sides" not in anew.facts


@pytest.mark.parametrize(
    ("kept", "now", "said"),
    [
        (["train", "validation"], [0, 1, 0, -1], "label is now; 1 row that the head didn't have to train"),
        (["train", "validation"], [0, 1, 2, 1], "now; 2 rows that it didn't have beside the rows that they belong to"),
        (["test", "validation"], [0, 1, -1, -1], "label is now, but for 1 row beside others of another side"),
        (["train", "train"], [0, 0, 0, -1], "train; no row is here that chose for it, so that some of those that"),
        ([], [0, 1, 0, -1], "drawn anew: the head was tuned on other rows"),
    ],
    ids=["others", "groups", "moved", "none that chose", "none"],
)
def test_what_becomes_of_the_sides_is_said(kept, now, said):
    table = SimpleNamespace(keys=pa.chunked_array([["a", "b", "c", "d"]]), sha256=None)
    rows = pa.table({"key": pa.array(["a", "b"][: len(kept)], pa.string()), "side": pa.array(kept, pa.string())})
    # -1 is a row without a label.
    assert said in data_module._sides_fact(table, rows, SimpleNamespace(sides=np.array(now)))


def judged_all(head, out, labels):
    """Accuracy on all rows, most of which the stored head was trained on."""
    table = open_table(str(out), columns=head.columns)
    true = dict(line.rsplit(",", 1) for line in Path(labels).read_text().splitlines()[1:])
    predicted = np.concatenate([head.probabilities(batch) for _, batch in table.vectors.batches()]).argmax(axis=1)
    return np.mean(
        [head.classes[code] == true[key] for code, key in zip(predicted, table.keys.to_pylist(), strict=True)]
    )


class Killed(BaseException):
    """Stands for kill -9: nothing after it is written."""


def cut_off(monkeypatch, epoch, error):
    """Lets the training end right after the checkpoint of an epoch, as the next one begins."""
    write = finetune_module.write_checkpoint

    def written(uri, checkpoint, asked):
        write(uri, checkpoint, asked)
        if len(checkpoint.tuning.epochs) == epoch:
            raise error

    monkeypatch.setattr(finetune_module, "write_checkpoint", written)


def of(folder):
    """What a training gives: the head's arrays, the network's, and the losses of its epochs."""
    head = load_head(str(folder))
    arrays = load_weights(str(folder / head.weights), layers("vgg16"), backbone="vgg16").arrays
    losses = [(point["loss"], point["validation_loss"]) for point in head.model.curve]
    network = {f"{name} {i}": array for name, pair in arrays.items() for i, array in enumerate(pair)}
    return {**head.model.arrays, **network}, losses, head.temperature


def test_cut_off_and_resumed_it_is_as_if_it_had_never_stopped(made, tmp_path, monkeypatch, always):
    """Killed after the first epoch, by Ctrl-C after the second: dropout, mirrors, order, Adam and rate go on."""
    asked = {"head": "dense256", "mirror": True, "epochs": 3, "learning_rate": 1e-3}
    whole = tuned(made, tmp_path / "whole", **asked)
    assert (whole.plan.start, whole.tuning.best_epoch > 0) == (0, True)
    assert "mirrored by a draw (stored taps aren't used)" in whole.facts["training"]
    refuses(made, tmp_path, "nothing to go on with", "without --resume", **asked, resume=True)

    cut_off(monkeypatch, 1, Killed())
    with pytest.raises(Killed):
        tuned(made, tmp_path / "new", **asked)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new.checkpoint", "whole"]
    refuses(made, tmp_path, "--resume", "--overwrite", **asked)
    refuses(made, tmp_path, "--learning-rate 0.001 | 0.01", **{**asked, "learning_rate": 1e-2}, resume=True)
    (tmp_path / "labels.csv").write_text("key,label\n" + labels_turned(made))
    refuses(made, tmp_path, "rows, labels and split", **asked, labels=str(tmp_path / "labels.csv"), resume=True)

    monkeypatch.undo()
    start_is_never_kept(monkeypatch)
    cut_off(monkeypatch, 2, KeyboardInterrupt())
    stopped = tuned(made, tmp_path / "new", **asked, resume=True)
    message = (
        f"interrupted: this is epoch {stopped.tuning.best_epoch}, of 2 epochs; the same command with --resume goes on"
    )
    assert message in finetuned_text(stopped)
    assert message in stopped.facts["CAUTION"]
    assert load_head(str(tmp_path / "new")).model.settings["finetuned"]["best_epoch"] == stopped.tuning.best_epoch
    assert len(of(tmp_path / "new")[1]) == 2

    monkeypatch.undo()
    start_is_never_kept(monkeypatch)
    tuned(made, tmp_path / "new", **asked, resume=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["labels.csv", "new", "whole"]
    for theirs, ours in zip(of(tmp_path / "whole"), of(tmp_path / "new"), strict=True):
        np.testing.assert_equal(ours, theirs)
    assert "interrupted" not in load_head(str(tmp_path / "new")).model.settings["finetuned"]


def test_a_checkpoint_that_is_left_beside_its_head_is_removed(made, tmp_path, monkeypatch):
    """Killed when the head was saved, and the checkpoint not yet removed. One of another training stays."""
    saved = finetune_module.save_head

    def killed(*given, **more):
        saved(*given, **more)
        raise Killed

    monkeypatch.setattr(finetune_module, "save_head", killed)
    with pytest.raises(Killed):
        tuned(made, tmp_path / "new", epochs=1)
    monkeypatch.undo()
    assert (tmp_path / "new.checkpoint").exists()
    with pytest.raises(FeaturemillError, match=r"new holds a head already"):
        tuned(made, tmp_path / "new", epochs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
    # The same epoch, of a training that was to have more.
    cut_off(monkeypatch, 1, Killed())
    with pytest.raises(Killed):
        tuned(made, tmp_path / "new", epochs=2, overwrite=True)
    refuses(made, tmp_path, "go on with it by --resume", epochs=2)


def labels_turned(made):
    table = open_table(str(made / "out"))
    turned = np.roll(table.labels.to_pylist(), 1)
    return "\n".join(f"{key},{label}" for key, label in zip(table.keys.to_pylist(), turned, strict=True))


def test_ctrl_c_before_an_epoch_is_done_leaves_nothing(made, tmp_path, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(TuningNetwork, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(made, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ((0.9, 0.2), ""),
        ((0.8, 0.2), "accuracy 0.8000 after 0.9000; "),
        ((0.8, 0.4), "accuracy 0.8000 after 0.9000 and log loss 0.4000 after 0.3000; "),
        ((0.95, 0.4), "log loss 0.4000 after 0.3000; "),
    ],
    ids=["better", "accuracy", "both", "log loss"],
)
def test_worse_than_the_start_is_reported(after, message):
    start, end = (
        {
            "rows": 1200,
            "judged_on": "test",
            "metrics": {"accuracy": {"value": accuracy}, "log_loss": {"value": loss}},
        }
        for accuracy, loss in ((0.9, 0.3), after)
    )
    tuning = Tuning(({"epoch": 1},), 1.0, 1.0, 1)
    cautions = finetune_module._doubts(tuning, ({"judged": start}, {"judged": end}), weighted=False)
    assert len(cautions) == bool(message)
    assert all(f"worse than the start on the 1,200 test rows: {message}" in caution for caution in cautions)
