"""The real network on real files: one set of numbers whatever the format, Keras as the oracle, nasty files.

Weights are random: they exercise the same arithmetic as trained ones. Where the numbers of pixels don't matter the
images are small; one test uses 224×224, against Keras itself.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests import ROOT
from tests.support.factories import Item, shared_data, write_folder, write_parquet, write_tar, write_tfrecord
from transforms.store.features import open_features

pytestmark = pytest.mark.long

BOTH_ENGINES = pytest.mark.parametrize("engine", ["keras", "ncnn"])


def extract(inputs, output: Path, **more):
    settings = {"weights": "random:0", "image_size": 32, **more}
    return run(ExtractOptions(inputs=tuple(map(str, inputs)), output=str(output), **settings))


def by_name(output: Path) -> dict[str, tuple[str | None, bytes, bytes]]:
    """{file name: (label, content hash, vector)}; the keys differ between formats, the files' names don't."""
    found = {}
    for batch in open_features(str(output)).batches(["key", "label", "sha256", "embedding"]):
        for row in batch.to_pylist():
            vector = np.asarray(row["embedding"], np.float32).tobytes()
            found[row["key"].replace("#", "/").rsplit("/", 1)[1]] = row["label"], row["sha256"], vector
    return found


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return sorted((shared_data() / "hymenoptera").glob("*/*/*.*"))


@BOTH_ENGINES
def test_the_same_photos_give_the_same_vectors_in_every_format(photos, tmp_path, engine):
    # Numbered, because one file name stands in both train and val.
    items = [Item(f"{i:03}-{path.name}", path.parent.name, path.read_bytes()) for i, path in enumerate(photos[::3])]
    assert len(items) == 70
    write_folder(tmp_path / "photos", items)
    write_tfrecord(tmp_path / "photos.tfrecord", items)
    write_tfrecord(tmp_path / "photos.tfrecord.gz", items, gzip=True)
    write_tar(tmp_path / "photos.tar", items)
    write_parquet(tmp_path / "photos.parquet", items, row_group_size=20)
    extract([tmp_path / "photos"], tmp_path / "from-folder", engine=engine)
    expected = by_name(tmp_path / "from-folder")
    assert {name: label for name, (label, _, _) in expected.items()} == {item.name: item.label for item in items}
    assert len({vector for _, _, vector in expected.values()}) == 70
    for name in ("photos.tfrecord", "photos.tfrecord.gz", "photos.tar", "photos.parquet"):
        extract([tmp_path / name], tmp_path / f"from-{name}", unit_bytes=2_000_000, engine=engine)
        assert by_name(tmp_path / f"from-{name}") == expected, name


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the feature's largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_bfloat16_keeps_the_direction_of_every_vector(photos, tmp_path):
    settings = {"engine": "keras", "image_size": 224, "limit": 10}
    extract([photos[0].parents[2]], tmp_path / "exact", **settings)
    extract([photos[0].parents[2]], tmp_path / "rough", **settings, precision="bfloat16")
    exact, rough = (open_features(str(tmp_path / name)).to_numpy().astype(np.float64) for name in ("exact", "rough"))
    assert exact.shape == (10, 512)
    cosines = (exact * rough).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    # Below one: it is another arithmetic, not float32 under another name.
    assert 0.999 <= cosines.min() < 1 - 1e-7
    # The vectors of random weights resemble each other; what tells them apart has to survive as well.
    distances = np.linalg.norm(exact[:, None] - rough[None], axis=2)
    assert (distances.argmin(axis=1) == np.arange(10)).all()


TAPS, POOLS = ("block4_conv3", "block5_pool"), ("avg", "max", "flatten")


@pytest.fixture(scope="module")
def oracle(photos, tmp_path_factory) -> tuple[Path, list[Path], dict[str, np.ndarray]]:
    """A file of weights, twenty photos, and what plain Keras makes of them, {tap: 20×H×W×C}."""
    from transforms.network.keras_import import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(7)
    vgg = keras.applications.VGG19(include_top=False, weights=None)
    for layer in vgg.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * 1.7, bias + np.random.default_rng(1).normal(0, 0.1, bias.shape)])
    weights = tmp_path_factory.mktemp("oracle") / "vgg19.weights.h5"
    vgg.save_weights(weights)
    twenty = photos[:: len(photos) // 20][:20]
    network = keras.Model(vgg.input, [vgg.get_layer(tap).output for tap in TAPS])
    loaded = [keras.utils.load_img(path, target_size=(224, 224), interpolation="bilinear") for path in twenty]
    pixels = np.stack([keras.utils.img_to_array(image) for image in loaded])
    outputs = network.predict(keras.applications.vgg19.preprocess_input(pixels), verbose=0)
    return weights, twenty, dict(zip(TAPS, outputs, strict=True))


@BOTH_ENGINES
def test_twenty_photos_against_plain_keras(oracle, tmp_path, engine):
    weights, twenty, outputs = oracle
    settings = {
        "weights": str(weights),
        "image_size": 224,
        "engine": engine,
        "features": tuple(f"{tap}_{pool}={tap}:{pool}" for tap in TAPS for pool in POOLS),
    }

    def features(name, photos, **more):
        (tmp_path / f"{name}.txt").write_text("\n".join(map(str, photos)))
        extract([f"@{tmp_path}/{name}.txt"], tmp_path / name, **settings, **more)
        found = open_features(str(tmp_path / name))
        assert sorted(found.keys) == sorted(map(str, photos))
        order = [found.keys.index(str(path)) for path in photos]
        return {name: found.to_numpy(name)[order] for name in (f"{tap}_{pool}" for tap in TAPS for pool in POOLS)}

    all_at_once = features("all", twenty)
    # Another order, and batches of another size, the last one not full.
    in_fives = features("fives", twenty[6::-1], batch_size=5)
    pooled = {"avg": lambda x: x.mean((1, 2)), "max": lambda x: x.max((1, 2)), "flatten": lambda x: x.reshape(20, -1)}
    for tap in TAPS:
        for pool in POOLS:
            ours, others = all_at_once[f"{tap}_{pool}"], in_fives[f"{tap}_{pool}"]
            assert relative_difference(ours, pooled[pool](outputs[tap])) <= 1e-5
            assert relative_difference(others[::-1], ours[:7]) <= 1e-6


@BOTH_ENGINES
def test_another_order_changes_nothing(photos, tmp_path, engine):
    twenty = photos[:20]
    write_tar(tmp_path / "a.tar", [Item(path.name, None, path.read_bytes()) for path in twenty])
    write_tar(tmp_path / "b.tar", [Item(path.name, None, path.read_bytes()) for path in reversed(twenty)])
    for name in ("a", "b"):
        extract([tmp_path / f"{name}.tar"], tmp_path / name, image_size=64, engine=engine)
    assert by_name(tmp_path / "a") == by_name(tmp_path / "b")


@BOTH_ENGINES
def test_nasty_files(tmp_path, engine):
    """The whole command, as a user runs it, at 224×224: one row or one failure for each file, in bounded memory."""
    nasty = shared_data() / "nasty"
    with open(shared_data() / "nasty.csv", newline="") as file:
        expected = {row["path"]: row["result"] for row in csv.DictReader(file)}
    assert len(expected) == 70
    # Named one by one: a folder passes over what isn't called like an image, and one of these files isn't.
    (tmp_path / "list.txt").write_text("\n".join(str(nasty / name) for name in expected))
    # Not getrusage: its peak begins with that of the process which started this one.
    code = (
        "import re, sys; from pipeline.cli.app import run_cli; code = run_cli(sys.argv[1:]);"
        "print([code, int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])])"
    )
    args = [
        "extract",
        f"@{tmp_path}/list.txt",
        "-o",
        str(tmp_path / "out"),
        "--weights",
        "random:0",
        "--quiet",
        "--engine",
        engine,
    ]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True)
    exit_code, peak_kib = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == 0, done.stderr
    assert done.stderr == ""
    embedded = {Path(key).name for key in open_features(str(tmp_path / "out")).keys}
    failures = [row for part in (tmp_path / "out/failures").iterdir() for row in pq.read_table(part).to_pylist()]
    failed = {Path(row["key"]).name: row for row in failures}
    assert len(embedded) + len(failures) == 70
    assert embedded | set(failed) == set(expected)
    for name, result in expected.items():
        # Its text is of over a megabyte, its pixels are all right.
        if result == "ok" or name == "png_text_bomb.png":
            assert name in embedded, failed.get(name)
        elif "fails" in result:
            assert failed[name]["stage"] == "decode"
            assert failed[name]["error"]
            assert failed[name]["message"]
            assert failed[name]["sha256"]
    assert peak_kib < 2.5 * 2**20
