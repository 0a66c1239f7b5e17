"""Reads `--normalise`: a way by its name, or a file that says how a network's pixels were prepared.

The files are Hugging Face's `preprocessor_config.json` and timm's `config.json`, as their models come with.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.spec import NORMALISATIONS, OWN_NORMALISATION, usual_short_side
from transforms.text import one_line

# Networks that take pixels from 0 to 255 need nothing, as those do that normalise them inside.
_NAMES = {"caffe": "caffe", "tf": "tf", "torch": "torch", "none": "inside"}
CHOICES = f"{', '.join(_NAMES)}, or a preprocessor_config.json"
# Pillow's numbers.
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_FITS = {"center": "crop", "squash": "squash", "border": "pad"}
# Of this size on, ConvNeXt's processor, which takes a share and no crop, warps images.
_UNCROPPED = 384
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Prepared:
    """A network's way of preparing pixels.

    Attributes:
        normalise: As the feature spec has it.
        image: {field of `SpecOptions`: its value}, of image size, resize, interpolation and short side those that are
            stated; the last where it isn't the usual one.
        notes: Lines about what is stated and can't be done exactly so.
    """

    normalise: str
    image: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_prepared(given: str) -> Prepared:
    """Returns what a name, a file, or the text in a feature spec says.

    Raises:
        UsageError: It is none of these.
        FeaturemillError: The file can't be read, or says what can't be done.
    """
    if given in _NAMES or given in NORMALISATIONS or OWN_NORMALISATION.fullmatch(given):
        return Prepared(_NAMES.get(given, given))
    path = storage.absolute(given)
    try:
        if (info := storage.stat(path)) is None:
            raise UsageError(f"--normalise {given!r} is no file, nor one of {', '.join(_NAMES)}")
        if info.size > _MOST_BYTES:
            raise ValueError("it is far too large")
        config = json.loads(storage.read_bytes(path))
        config = config.get("pretrained_cfg", config)
        return (_timm if "input_size" in config else _hugging_face)(config, path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, ZeroDivisionError) as error:
        raise FeaturemillError(
            f"{path} isn't a preprocessor_config.json or timm's config.json that can be followed: {one_line(error)}; "
            f"pass another, or --normalise {', '.join(_NAMES)}"
        ) from error


def _timm(config: dict[str, Any], path: str) -> Prepared:
    _, height, side = config["input_size"]
    mode = config.get("crop_mode", "center")
    share = 1 if mode == "squash" else config.get("crop_pct", 0.875)
    image = {"image_size": _square(height, side), "resize": _FITS[mode], "interpolation": config["interpolation"]}
    return _prepared(config["mean"], config["std"], 1 / 255, image, math.floor(side / share), path)


def _hugging_face(config: dict[str, Any], path: str) -> Prepared:
    # What isn't set is written as null by newer versions.
    config = {name: value for name, value in config.items() if value is not None}
    if config.get("rescale_offset"):
        raise ValueError("rescale_offset moves the pixels before they are normalised")
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    normalises = config.get("do_normalize", True)
    mean, std = (config["image_mean"], config["image_std"]) if normalises else ([0, 0, 0], [1, 1, 1])
    if config.get("include_top"):
        # EfficientNet's processor divides once more.
        std = [first * second for first, second in zip(std, config["image_std"], strict=True)]
    image: dict[str, Any] = {}
    whole = 0
    if config.get("do_resize", True):
        image["interpolation"] = _RESAMPLING[config.get("resample", 2)]
        size, cuts, share = config["size"], config.get("do_center_crop", False), config.get("crop_pct")
        if not isinstance(size, dict):
            size = {"shortest_edge": size} if cuts or share else {"height": size, "width": size}
        whole = size["shortest_edge"] if "shortest_edge" in size else _square(size["height"], size["width"])
        side, image["resize"] = whole, "crop" if "shortest_edge" in size else "squash"
        if cuts:
            side = config["crop_size"]
            side = _square(side["height"], side["width"]) if isinstance(side, dict) else side
        elif share and whole >= _UNCROPPED:
            image["resize"] = "squash"
        if share and image["resize"] == "crop":
            whole = math.floor(whole / share)
        image["image_size"] = side
    return _prepared(mean, std, scale, image, whole, path)


def _square(height: int, width: int) -> int:
    if height != width:
        raise ValueError(f"its images are {height}×{width}, and only squares can be made")
    return height


def _prepared(
    mean: list[float], std: list[float], rescale: float, image: dict[str, Any], whole: int, path: str
) -> Prepared:
    """Returns it; `whole` is the short side of which a square is cut, or the side that it is squashed to."""
    scale = [rescale / deviation for deviation in std]
    offset = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    text = f"rgb*{','.join(str(float(each)) for each in scale)}+{','.join(str(float(each)) for each in offset)}"
    if not OWN_NORMALISATION.fullmatch(text):
        raise ValueError(f"its means and deviations come to {text}")
    if not image:
        return Prepared(text)
    side, fit = image["image_size"], image["resize"]
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"its image size is {side!r}")
    if fit == "crop" and whole >= side:
        return Prepared(text, image if whole == usual_short_side(side) else {**image, "short_side": whole})
    ours = usual_short_side(side) if fit == "crop" else side
    if whole == ours:
        return Prepared(text, image)
    return Prepared(
        text, image, (f"{path} brings images to {whole} pixels and takes {side}; --resize {fit} brings them to {ours}",)
    )
