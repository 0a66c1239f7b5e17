"""An exported model against the pieces it was made of: Pillow's pixels, the engine's features, the head's NumPy."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.end_to_end.export import NOTES, ExportOptions, export, export_text
from tests.support.factories import shared_data
from transforms.engines.checks import computed_layers
from transforms.errors import FeaturemillError, UsageError
from transforms.heads.model import Model, dense_arrays
from transforms.heads.transform import Transform
from transforms.images.decode import decode_image
from transforms.network.weights import load_weights
from transforms.predictors.head import Head, save_head
from transforms.spec import Feature, FeatureSpec

MAX_PIXELS = 10**8
SIZES = [(40, 30), (9, 70), (33, 33)]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def draw(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng([height, width])
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def make_spec(*features: str, **changes) -> FeatureSpec:
    spec = FeatureSpec(
        "vgg16", "", tuple(Feature(*text.replace("=", ":").split(":")) for text in features), image_size=32
    )
    spec = replace(spec, **changes)
    return replace(
        spec, weights=load_weights("random:3", computed_layers(spec, include_top=False), backbone="vgg16").sha256
    )


def make_head(spec: FeatureSpec, dims: tuple[int, ...], *, classes: int = 3, kind: str = "dense128") -> Head:
    random = np.random.default_rng(1)
    total = sum(dims)
    if kind == "knn":
        stored = np.abs(random.normal(size=(20, total))).astype(np.float32)
        arrays = {
            "vectors": stored / np.linalg.norm(stored, axis=1, keepdims=True),
            "codes": random.integers(0, classes, 20).astype(np.int32),
            "neighbours": np.array(4),
            "classes": np.array(classes),
            "mean": random.normal(size=total).astype(np.float32),
            "scale": random.uniform(1, 2, total).astype(np.float32),
        }
    else:
        kernels = [random.normal(size=shape) / shape[0] for shape in ((total, 8), (8, classes))]
        arrays = dense_arrays(
            [(k.astype(np.float32), random.normal(size=k.shape[1]).astype(np.float32)) for k in kernels]
        )
    names = tuple(f"class{i}" for i in range(classes))
    columns = tuple(feature.name for feature in spec.features)
    weights = {"weights": "random:3", "weights_are_random": True}
    return Head(Model(kind, arrays), names, 1.7, columns, dims, spec, **weights)


def transformed(head: Head) -> Head:
    """The same head behind a transform of two columns, as several features have it."""
    transform = Transform("sqrt-l2", head.dims, tuple(float(2 + i) for i in range(len(head.dims))))
    return replace(head, model=replace(head.model, transform=transform))


def expected(head: Head, images: list[np.ndarray]) -> np.ndarray:
    """Computes what the head says of images, step by step as extract and predict do."""
    from transforms.engines import load_engine

    spec = head.spec
    pixels = np.stack([decode_image(encode(image), spec, max_pixels=MAX_PIXELS).pixels for image in images])
    engine = load_engine("keras", spec, "random:3", include_top=False, batch_size=len(images), threads=1)
    features = engine.embed(pixels)
    vectors = np.concatenate([features[name].astype(spec.dtype).astype(np.float32) for name in head.columns], axis=1)
    return head.probabilities(vectors)


@dataclass(frozen=True)
class Exported:
    head: Head
    folder: str
    keras: Path
    saved: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    # The head uses its features in another order than they were stored in, and leaves the first out.
    spec = make_spec("first=block1_pool:avg", "a=block2_pool:max", "b=block5_pool:avg", resize="crop")
    head = replace(make_head(spec, (128, 128, 512)), columns=("b", "a"), dims=(512, 128))
    head = replace(head, model=make_head(spec, (640,)).model)
    save_head(head, str(folder / "head"))
    for name in ("model.keras", "saved"):
        export(ExportOptions(str(folder / "head"), str(folder / name)))
    return Exported(head, str(folder / "head"), folder / "model.keras", folder / "saved")


@pytest.mark.parametrize(
    ("resize", "short_side"), [("squash", None), ("crop", None), ("crop", 32), ("crop", 35), ("pad", None)]
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows(resize, short_side, interpolation):
    from transforms.end_to_end.resizing import resize as resize_symbolic
    from transforms.network.keras_import import import_keras

    keras = import_keras()
    fitted = {"resize": resize, "short_side": short_side, "interpolation": interpolation}
    spec = FeatureSpec("vgg16", "", (), image_size=32, **fitted)
    images = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(images, resize_symbolic(images, spec))
    random = np.random.default_rng(0)
    for size in [(1, 1), (1, 50), (37, 5), (32, 32), (64, 64), (33, 91), (320, 48)]:
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        found = np.asarray(model(pixels[None]))[0]
        np.testing.assert_array_equal(found, decode_image(encode(pixels), spec, max_pixels=MAX_PIXELS).pixels)


@pytest.mark.long
def test_keras_file_in_a_bare_process(exported, tmp_path):
    """Nothing of featuremill may be needed, so importing it is made to fail."""
    images = [draw(*size) for size in SIZES]
    np.savez(tmp_path / "images.npz", *images)
    code = """
import sys
sys.modules["transforms"] = sys.modules["pipeline"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
images = np.load("images.npz")
results = [np.asarray(model(images[name][None]))[0] for name in images]
twice = np.asarray(model(np.repeat(images["arr_0"][None], 2, axis=0)))
np.savez("results.npz", alone=np.stack(results), twice=twice)
"""
    subprocess.run([sys.executable, "-c", code, str(exported.keras)], cwd=tmp_path, check=True)
    results = np.load(tmp_path / "results.npz")
    np.testing.assert_allclose(results["alone"], expected(exported.head, images), atol=1e-5)
    np.testing.assert_allclose(results["twice"], results["alone"][[0, 0]], atol=1e-6)
    assert np.ptp(results["alone"], axis=0).max() > 1e-3, "the images are told apart"


def test_notes_travel_inside(exported):
    with zipfile.ZipFile(exported.keras) as archive:
        assert archive.testzip() is None
        inside = json.loads(archive.read(NOTES))
    assert inside == json.loads((exported.saved / "assets" / NOTES).read_text())
    assert inside["classes"] == ["class0", "class1", "class2"]
    assert inside["weights_are_random"]
    assert inside["fingerprint"] == exported.head.fingerprint


def test_signatures(exported):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(exported.saved)).signatures
    images = [draw(*size) for size in SIZES]
    wanted = expected(exported.head, images)
    names = [f"class{i}".encode() for i in wanted.argmax(axis=1)]
    encoded = signatures["encoded"](encoded=tf.constant([encode(image) for image in images]))
    np.testing.assert_allclose(encoded["probabilities"], wanted, atol=1e-5)
    assert encoded["label"].numpy().tolist() == names
    np.testing.assert_allclose(encoded["score"], wanted.max(axis=1), atol=1e-5)
    served = signatures["serving_default"](images=tf.constant(images[0][None]))
    np.testing.assert_allclose(served["probabilities"], wanted[:1], atol=1e-5)
    assert served["label"].numpy().tolist() == names[:1]
    jpegs = [encode(image, "JPEG") for image in images]
    decoded = [np.array(Image.open(io.BytesIO(data))) for data in jpegs]
    found = signatures["encoded"](encoded=tf.constant(jpegs))["probabilities"]
    np.testing.assert_allclose(found, expected(exported.head, decoded), atol=1e-5)
    grey = signatures["encoded"](encoded=tf.constant([encode(images[0][..., 0])]))["probabilities"]
    np.testing.assert_allclose(grey, expected(exported.head, [images[0][..., 0]]), atol=1e-5)


@pytest.mark.parametrize(
    ("features", "dims", "changes", "kind"),
    [
        (("embedding=block4_pool:flatten",), (2048,), {"dtype": "float16"}, "dense128"),
        (("embedding=block3_pool:gem",), (256,), {"resize": "pad", "interpolation": "bicubic"}, "dense128"),
        (("embedding=block2_pool:avg",), (128,), {"precision": "bfloat16"}, "dense128"),
        (("embedding=block2_pool:avg",), (128,), {}, "knn"),
    ],
)
def test_other_heads(features, dims, changes, kind):
    from transforms.end_to_end.assembly import assemble

    head = make_head(make_spec(*features, **changes), dims, kind=kind)
    arrays = load_weights("random:3", computed_layers(head.spec, include_top=False), backbone="vgg16").arrays
    model = assemble(head, arrays)
    image = draw(40, 50)
    found = np.asarray(model(image[None]))
    np.testing.assert_allclose(found, expected(head, [image]), atol=1e-3 if "precision" in changes else 1e-5)


def test_a_transform_is_in_the_model():
    from transforms.end_to_end.assembly import assemble

    head = transformed(make_head(make_spec("a=block1_pool:avg", "b=block2_pool:max"), (64, 128)))
    arrays = load_weights("random:3", computed_layers(head.spec, include_top=False), backbone="vgg16").arrays
    found = np.asarray(assemble(head, arrays)(draw(40, 50)[None]))
    np.testing.assert_allclose(found, expected(head, [draw(40, 50)]), atol=1e-5)
    plain = replace(head, model=replace(head.model, transform=Transform()))
    assert np.abs(found - expected(plain, [draw(40, 50)])).max() > 1e-3


def test_random_weights_and_the_result_are_reported(exported, tmp_path):
    lines = []
    result = export(ExportOptions(exported.folder, str(tmp_path / "new" / "m.keras")), say=lines.append)
    assert any("RANDOM" in line for line in lines)
    assert "class0, class1, class2" in export_text(result)
    assert "m.keras" in export_text(result)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.keras"], "no temporary files are left"


def test_nothing_is_replaced_unasked(exported):
    before = exported.keras.read_bytes()
    for path in (exported.keras, exported.saved):
        with pytest.raises(FeaturemillError, match="--overwrite"):
            export(ExportOptions(exported.folder, str(path)))
    assert exported.keras.read_bytes() == before


def test_what_is_no_model_is_never_replaced(exported, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "folder.keras", "file"):
        with pytest.raises(FeaturemillError, match="is no model"):
            export(ExportOptions(exported.folder, str(tmp_path / name), overwrite=True))
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"


def test_overwriting_and_failing_halfway(exported, tmp_path, monkeypatch):
    from transforms.end_to_end import signatures

    target = tmp_path / "saved"
    target.mkdir()
    (target / "saved_model.pb").write_bytes(b"old")

    def fail(model, classes, folder, *, notes):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "half").write_bytes(b"x")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(signatures, "save_signatures", fail)
        with pytest.raises(FeaturemillError, match="No space left"):
            export(ExportOptions(exported.folder, str(target), overwrite=True))
    assert (target / "saved_model.pb").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    export(ExportOptions(exported.folder, str(target), overwrite=True))
    assert (target / "saved_model.pb").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_wrong_weights_and_heads_that_cannot(exported, tmp_path):
    with pytest.raises(FeaturemillError, match="aren't those"):
        export(ExportOptions(exported.folder, str(tmp_path / "m.keras"), weights="random:4"))
    for name in ("model.h5", "model.ONNX"):
        with pytest.raises(UsageError, match=r"written as a \.keras file, or"):
            export(ExportOptions(exported.folder, str(tmp_path / name)))
    with pytest.raises(UsageError, match="local path"):
        export(ExportOptions(exported.folder, "gs://bucket/m.keras"))
    save_head(replace(exported.head, spec=None), str(tmp_path / "plain"))
    with pytest.raises(FeaturemillError, match="unknown origin"):
        export(ExportOptions(str(tmp_path / "plain"), str(tmp_path / "m.keras")))
    save_head(replace(exported.head, weights=""), str(tmp_path / "lost"))
    with pytest.raises(FeaturemillError, match="pass --weights"):
        export(ExportOptions(str(tmp_path / "lost"), str(tmp_path / "m.keras")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost", "plain"]


def test_real_photos(exported):
    """JPEGs of a camera, decoded by TensorFlow, come to what Pillow's come to."""
    import tensorflow as tf

    paths = sorted((shared_data() / "hymenoptera" / "val").glob("*/*.jpg"))[::10]
    signature = tf.saved_model.load(str(exported.saved)).signatures["encoded"]
    found = signature(encoded=tf.constant([path.read_bytes() for path in paths]))["probabilities"]
    wanted = expected(exported.head, [np.array(Image.open(path).convert("RGB")) for path in paths])
    np.testing.assert_allclose(found, wanted, atol=1e-3)
