"""A user's ONNX file from images to predictions: the file is the base, and every command finds it again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

import featuremill
from pipeline.demo.samples import draw_items, write_folder
from pipeline.describe import DescribeOptions, describe_text, plot
from pipeline.end_to_end.export import ExportOptions, export
from pipeline.end_to_end.finetune import finetune
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
from tests.support import onnx_files
from transforms.declared import shared
from transforms.errors import FeaturemillError, UsageError
from transforms.images.decode import decode_image
from transforms.network.bases import open_file
from transforms.network.normalise import preprocess
from transforms.spec import FeatureSpec
from transforms.store.features import open_features

CONFIG = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 3,
    "size": {"shortest_edge": 37},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "net.onnx").write_bytes(onnx_files.transformer().SerializeToString())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    items = [item for item in draw_items(per_class=6, size=64, seed=2) if item.name.endswith("jpg")]
    write_folder(folder / "photos", items)
    return folder


def options(folder, **more):
    asked = {"backbone": str(folder / "net.onnx"), "normalise": str(folder / "config.json"), "engine": "auto"}
    return ExtractOptions(**{"inputs": (str(folder / "photos"),), "output": str(folder / "out"), **asked, **more})


def test_from_images_to_predictions(folder, tmp_path):
    asked = options(folder, features=("embedding=hidden:cls", "patches=hidden:avg"))
    lines = []
    summary = run(asked, say=lines.append)
    assert summary.engines == (f"onnx (onnxruntime {onnx_files.runtime.__version__}, CPU, 2 threads)",)
    assert "note     hidden gives 17×12 tokens: the class token, 4×4 patches" in lines
    spec = open_features(str(folder / "out")).spec
    assert (spec.backbone, spec.weights) == ("onnx", open_file("onnx", str(folder / "net.onnx")).sha256)
    assert (spec.image_size, spec.resize, spec.interpolation) == (32, "crop", "bicubic")

    # Stored is what ONNX Runtime says of pixels that are normalised as the file wants them.
    [batch] = open_features(str(folder / "out")).batches()
    keys = batch.column("key").to_pylist()
    pixels = [decode_image(Path(key).read_bytes(), spec, max_pixels=10**8).pixels for key in keys]
    given = {"pixels": preprocess(np.stack(pixels), spec.normalise).transpose(0, 3, 1, 2)}
    [hidden] = onnx_files.runtime.InferenceSession(folder / "net.onnx").run(None, given)
    expected = (np.stack(pixels) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(given["pixels"].transpose(0, 2, 3, 1), expected, atol=1e-5)
    for name, values in (("embedding", hidden[:, 0]), ("patches", hidden[:, 1:].mean(axis=1))):
        stored = np.stack(batch.column(name).to_numpy(zero_copy_only=False))
        np.testing.assert_allclose(stored, values, rtol=1e-5, atol=1e-5)

    # Nothing is done again, by whoever names nothing, or the same.
    plain = ExtractOptions(inputs=asked.inputs, output=asked.output)
    for again in (resumed(plain, []), resumed(asked, ["backbone", "normalise"])):
        assert run(again).this_run.units == 0
    with pytest.raises(FeaturemillError, match=r"was made with other settings .*: normalise rgb"):
        run(options(folder, normalise="torch"))

    assert verify(VerifyOptions(str(folder / "out"), sample=4)).ok
    assert query(QueryOptions(output=str(folder / "out"), images=(keys[0],))).queries
    assert estimate(EstimateOptions(**shared(asked, ExtractOptions), images=4, seconds=1)).sampled == 4
    with beam.Pipeline("FnApiRunner") as pipeline:
        images = pipeline | beam.Create([(keys[0], Path(keys[0]).read_bytes())])
        rows = images | featuremill.EmbedImages(spec, weights=str(folder / "net.onnx"))
        stored = batch.column("embedding")[0].as_py()
        assert_that(rows.rows, lambda rows: np.testing.assert_array_equal(rows[0].features["embedding"], stored))

    quick = {"learning_curve": False, "errors": False, "validation": 0.4}
    head = tmp_path / "head"
    train(TrainOptions(features=asked.output, output=str(head), kinds=("ridge",), columns=("patches",), **quick))
    given = {"head": str(head), "inputs": asked.inputs}
    predicted = predict(PredictOptions(**given, output=str(tmp_path / "pred")))
    assert predicted.manifest.totals.predicted == len(keys)
    with pytest.raises(FeaturemillError, match=r"export doesn't take networks from .onnx files; use a"):
        export(ExportOptions(str(head), str(tmp_path / "model.keras")))
    with pytest.raises(FeaturemillError, match=r"finetune doesn't take networks from .onnx files"):
        finetune(FinetuneOptions(head=str(head), features=asked.output, output=str(tmp_path / "new"), unfreeze="1"))

    # The file has moved: only where it is now is said. Another file isn't taken for it.
    shutil.move(folder / "net.onnx", tmp_path / "moved.onnx")
    with pytest.raises(FeaturemillError, match=r"no network file .*net.onnx; pass"):
        verify(VerifyOptions(asked.output, sample=4))
    assert verify(VerifyOptions(asked.output, sample=4, weights=str(tmp_path / "moved.onnx"))).ok
    predict(PredictOptions(**given, output=str(tmp_path / "pred2"), weights=str(tmp_path / "moved.onnx")))
    (folder / "net.onnx").write_bytes(onnx_files.transformer(seed=1).SerializeToString())
    with pytest.raises(FeaturemillError, match="the file was replaced"):
        verify(VerifyOptions(asked.output, sample=4))
    shutil.move(tmp_path / "moved.onnx", folder / "net.onnx")


def test_describe_lists_what_can_be_tapped(folder):
    text = describe_text(DescribeOptions(str(folder / "net.onnx")))
    assert "32×32×3 pixels in, any number at once" in text
    assert "\nhidden " in text
    assert "17×12 tokens: the class token, 4×4 patches" in text
    assert "\nimages " not in text
    assert "Its outputs: --feature embedding=hidden:cls." in text
    for wrong in (str(folder / "net.onnx"), "onnx"):
        with pytest.raises(UsageError, match="a file's network has no table of layers"):
            plot(DescribeOptions(wrong, plot=str(folder / "a.png")))
    with pytest.raises(UsageError, match="describe FILE lists its taps"):
        describe_text(DescribeOptions("onnx"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"normalise": None}, "doesn't say how its pixels are normalised; pass --normalise caffe, tf, torch, none, or"),
        ({"weights": "random:0"}, "holds its own weights; leave --weights random:0 out"),
        ({"include_top": True}, "leave --include-top out"),
        ({"image_size": 64}, "takes images of 32×32 alone, not 64×64"),
        ({"engine": "keras"}, "the engine keras doesn't compute onnx; pass --engine onnx"),
        ({"precision": "bfloat16"}, "no engine computes onnx in 'bfloat16'|computes in float32"),
        ({"features": ("a=hiden:cls",)}, "has no tensor 'hiden'; did you mean hidden"),
        ({"backbone": "net.pt"}, r"no backbone 'net.pt' \(files are .onnx or .keras\); choose from vgg16"),
        ({"features": ("a=embedded:cls",)}, "embedded has no class token"),
        ({"backbone": "vgg16"}, "vgg16 says itself how pixels are normalised; leave --normalise out"),
        (
            {"backbone": "vgg16", "normalise": None, "features": ("a=block1_pool:cls",)},
            "block1_pool has no class token",
        ),
    ],
    ids=["normalise", "weights", "top", "size", "engine", "precision", "tap", "torch", "cls", "named", "vgg"],
)
def test_one_line_says_what_does_not_fit(folder, more, says):
    with pytest.raises(FeaturemillError, match=says) as error:
        options(folder, **more).engine_name  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_crop_of_another_share(folder, tmp_path):
    """It is in the spec where it isn't the usual one, and stays for who names nothing; OUTs of before have none."""
    (tmp_path / "clip.json").write_text(json.dumps({**CONFIG, "size": {"shortest_edge": 32}}))
    asked = options(folder, normalise=str(tmp_path / "clip.json"), output=str(tmp_path / "out"))
    assert (asked.image_size, asked.short_side, len(asked.notes)) == (32, 32, 2)
    run(asked)
    spec = open_features(asked.output).spec
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert (spec.short_side, "short_side" in spec.to_json()) == (32, True)
    again = resumed(ExtractOptions(inputs=asked.inputs, output=asked.output), [])
    assert (again.short_side, run(again).this_run.units) == (32, 0)
    # An OUT of before goes on with its own crop.
    before = options(folder, output=str(tmp_path / "before"))
    assert before.short_side is None
    run(before)
    assert "short_side" not in open_features(before.output).spec.to_json()
    given = {"normalise": asked.normalise, "output": before.output}
    assert run(resumed(replace(asked, **given), ["backbone", "normalise"])).this_run.units == 0
    # Named, the usual one is no other; what fits no crop is refused; at another size the share stays.
    assert options(folder, short_side=37).short_side is None
    assert options(folder, short_side=40).short_side == 40
    for wrong, says in (
        ({"short_side": 31}, "below the image size, 32"),
        ({"short_side": 40, "resize": "pad"}, "is for --resize crop, not pad"),
    ):
        with pytest.raises(UsageError, match=says):
            options(folder, **wrong)
        with pytest.raises(ValueError, match=says):
            FeatureSpec.from_json(replace(spec, **wrong).to_json())
    assert options(folder, normalise=asked.normalise, resize="squash").short_side is None


def test_who_names_nothing_gets_the_first_output(folder):
    assert options(folder).features == ("embedding=hidden:cls",)
    assert options(folder).sizes == {"embedding": 12}
    # A named option goes before what the file says.
    named = options(folder, resize="pad", interpolation="nearest", normalise="none")
    assert (named.resize, named.interpolation, named.normalise) == ("pad", "nearest", "inside")
