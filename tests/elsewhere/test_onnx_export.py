"""A network that Keras exports by tf2onnx, as a user does: it gives what the engine keras gives."""

import numpy as np
import pytest

from pipeline.demo.samples import draw_items, write_folder
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from transforms.network.bases import layers, open_file
from transforms.network.files import Tap
from transforms.network.keras_import import import_keras
from transforms.network.weights import load_weights
from transforms.store.features import open_features

pytest.importorskip("tf2onnx")
WEIGHTS = "random:4"


@pytest.fixture(autouse=True)
def _there():
    """There are no snippets here, and no OUT for them."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_folder(folder, [item for item in draw_items(per_class=2, size=300, seed=3) if item.data])
    return folder


def exported(path, side, batch):
    """Exports Keras's own VGG19 at an image size; where no batch is given, for any number of images."""
    keras = import_keras()
    network = keras.applications.VGG19(weights=None, include_top=False, input_shape=(side, side, 3))
    for name, arrays in load_weights(WEIGHTS, layers("vgg19"), backbone="vgg19").arrays.items():
        network.get_layer(name).set_weights(arrays)
    signature = [keras.InputSpec("float32", (batch, side, side, 3))]
    network.export(path, format="onnx", verbose=False, input_signature=signature)
    return network


def extracted(photos, output, **more):
    asked = {"inputs": (str(photos),), "output": str(output), "resize": "squash", "batch_size": 4, **more}
    run(ExtractOptions(**asked))
    features = open_features(str(output))
    pairs = ((name, zip(features.keys, features.to_numpy(name), strict=True)) for name in features.names)
    return {(name, key): vector for name, rows in pairs for key, vector in rows}


@pytest.mark.parametrize(("side", "batch"), [(64, None), (64, 2), (224, None)], ids=["any", "two", "full"])
def test_vgg19_is_what_keras_computes(photos, tmp_path, side, batch):
    path = str(tmp_path / "vgg19.onnx")
    network, file = exported(path, side, batch), open_file("onnx", path)
    [output] = file.outputs
    assert (file.batch, file.side, file.channels_last) == (batch or 0, side, True)
    assert file.parameters == network.count_params()
    assert file.taps([output], side)[output] == Tap(output, (side // 32, side // 32, 512), 2)
    middle = next(tap.name for tap in file.tappable(side) if "block4_pool" in tap.name)
    theirs = (f"a={output}:avg", f"b={output}:flatten", f"c={middle}:gem")
    ours = ("a=block5_pool:avg", "b=block5_pool:flatten", "c=block4_pool:gem")
    found = extracted(photos, tmp_path / "onnx", backbone=path, normalise="caffe", features=theirs)
    asked = {"backbone": "vgg19", "engine": "keras", "weights": WEIGHTS, "image_size": side}
    expected = extracted(photos, tmp_path / "keras", features=ours, **asked)
    assert found.keys() == expected.keys()
    assert len(found) == 3 * 4
    for key, vector in expected.items():
        assert np.abs(found[key] - vector).max() <= 1e-5 * np.abs(vector).max(), key
