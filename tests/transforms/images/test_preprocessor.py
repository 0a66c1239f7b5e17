"""`--normalise`: names, Hugging Face's and timm's files, and what they say that can't be done."""

import json

import numpy as np
import pytest

from transforms.errors import FeaturemillError
from transforms.images.preprocessor import read_prepared
from transforms.network.normalise import preprocess
from transforms.spec import Feature, FeatureSpec

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]
PIXELS = np.arange(256 * 3, dtype=np.float32).reshape(256, 1, 3) % 256
# As DINOv2's, ViT's and CLIP's files and timm's say it.
DINO = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
VIT = {"image_mean": HALF, "image_std": HALF, "size": 384, "resample": 2}
CLIP = {**DINO, "size": 224, "crop_size": 224}
# As ResNet's and ConvNeXt's have it, PoolFormer's, and those of newer versions.
SHARE = {**DINO, "size": 224, "do_center_crop": None, "crop_size": None, "crop_pct": 0.875, "rescale_factor": None}
POOLFORMER = {**CLIP, "crop_pct": 0.875}
PLAIN = {"do_normalize": False, "do_rescale": False, "do_resize": False}
TIMM = {"pretrained_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "input_size": [3, 224, 224]}}


def written(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(tmp_path / "config.json")


def sized(side, resize, interpolation, **more):
    return {"image_size": side, "resize": resize, "interpolation": interpolation, **more}


@pytest.mark.parametrize(
    ("config", "mean", "std", "image", "notes"),
    [
        (DINO, MEAN, STD, sized(224, "crop", "bicubic"), 0),
        (VIT, HALF, HALF, sized(384, "squash", "bilinear"), 0),
        (CLIP, MEAN, STD, sized(224, "crop", "bicubic", short_side=224), 0),
        # Of which the rest would be black.
        ({**CLIP, "size": 192}, MEAN, STD, sized(224, "crop", "bicubic"), 1),
        (SHARE, MEAN, STD, sized(224, "crop", "bicubic"), 0),
        ({**SHARE, "size": {"shortest_edge": 384}}, MEAN, STD, sized(384, "squash", "bicubic"), 0),
        (POOLFORMER, MEAN, STD, sized(224, "crop", "bicubic"), 0),
        ({**VIT, "include_top": True}, HALF, [0.25] * 3, sized(384, "squash", "bilinear"), 0),
        (PLAIN, [0, 0, 0], [1 / 255] * 3, {}, 0),
        (TIMM, MEAN, STD, sized(224, "crop", "bicubic"), 0),
        ({**TIMM["pretrained_cfg"], "crop_pct": 1.0}, MEAN, STD, sized(224, "crop", "bicubic", short_side=224), 0),
        ({**TIMM["pretrained_cfg"], "crop_pct": 0.9}, MEAN, STD, sized(224, "crop", "bicubic", short_side=248), 0),
        ({**TIMM["pretrained_cfg"], "crop_mode": "squash"}, MEAN, STD, sized(224, "squash", "bicubic"), 0),
        (
            {**DINO, "size": {"height": 64, "width": 64}, "do_center_crop": False},
            MEAN,
            STD,
            sized(64, "squash", "bicubic"),
            0,
        ),
    ],
    ids=[
        "dino",
        "vit",
        "clip",
        "small",
        "share",
        "large",
        "poolformer",
        "twice",
        "plain",
        "timm",
        "whole",
        "most",
        "squashed",
        "exact",
    ],
)
def test_what_files_say(tmp_path, config, mean, std, image, notes):
    prepared = read_prepared(written(tmp_path, config))
    assert prepared.image == image
    assert len(prepared.notes) == notes
    expected = (PIXELS / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(preprocess(PIXELS, prepared.normalise), expected, rtol=1e-5, atol=1e-5)
    # It is in the spec, which is read again, and takes it again.
    spec = FeatureSpec("onnx", "", (Feature("a", "t", "avg"),), normalise=prepared.normalise)
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert read_prepared(prepared.normalise).normalise == prepared.normalise


def test_names():
    pixels = PIXELS.astype(np.uint8)
    np.testing.assert_array_equal(preprocess(pixels, read_prepared("none").normalise), PIXELS)
    np.testing.assert_allclose(preprocess(pixels, read_prepared("tf").normalise), PIXELS / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(preprocess(pixels, read_prepared("caffe").normalise), preprocess(pixels, "caffe"))
    with pytest.raises(FeaturemillError, match="'tosh' is no file, nor one of caffe, tf, torch, none"):
        read_prepared("tosh")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "that can be followed"),
        ("[]", "that can be followed"),
        ("[" * 100_000, "that can be followed"),
        ("x" * 2**20 + "x", "far too large"),
        ({}, "image_mean"),
        ({**DINO, "image_std": [0, 0, 0]}, "division"),
        ({**DINO, "image_std": ["a", 1, 1]}, "unsupported operand"),
        ({**DINO, "image_mean": [0.5]}, "shorter|longer"),
        ({**DINO, "image_mean": [0.5] * 2, "image_std": [0.5] * 2}, "means and deviations"),
        ({**DINO, "image_mean": [1e300, 0, 0]}, "means and deviations"),
        ({**DINO, "resample": 5}, "5"),
        ({**DINO, "rescale_offset": True}, "rescale_offset"),
        ({**DINO, "crop_size": {"height": 224, "width": 192}}, "224×192, and only squares"),
        ({**DINO, "crop_size": "large"}, "image size is 'large'"),
        ({**TIMM["pretrained_cfg"], "input_size": [3, 224, 192]}, "only squares"),
        ({**TIMM["pretrained_cfg"], "crop_mode": "odd"}, "odd"),
    ],
    ids=[str(number) for number in range(16)],
)
def test_one_line_says_what_is_wrong_with_a_file(tmp_path, config, says):
    with pytest.raises(FeaturemillError, match=says) as error:
        read_prepared(written(tmp_path, config))
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)
