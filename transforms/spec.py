"""The feature spec: all that decides the numbers, and its fingerprint."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import get_type_hints

from transforms.declared import AT_LEAST_ONE, Bound, check, declared, wrong_field
from transforms.errors import UsageError
from transforms.pools import POOLS
from transforms.text import did_you_mean

DEFAULT_FEATURE = "embedding=block5_pool:avg"
VGG_NORMALISATION = "caffe"
# What each does says `transforms.network.normalise`.
NORMALISATIONS = (VGG_NORMALISATION, "torch", "tf", "inside")
# Any other: a scale and an offset of red, green and blue.
_NUMBER = "-?[0-9]+(?:[.][0-9]+)?(?:e-?[0-9]{1,2})?"
OWN_NORMALISATION = re.compile(f"rgb[*]({_NUMBER},{_NUMBER},{_NUMBER})[+]({_NUMBER},{_NUMBER},{_NUMBER})")

# Block 1 of a single image of this size takes 1 GiB.
_FITS_IN_MEMORY = Bound(lambda value: value <= 2048, "{flag} {value} is over 2048: one image would take gigabytes")

# Short side of the whole image against the side of the square cut from it: 256 for 224, as VGG was tested.
_CROP_RATIO = 256 / 224

# The version of the rules in `images.modes`: one more whenever an image's pixels become others by them.
PIXEL_RULES = 2

# The columns that every part has before its features; and those between the two that parts of earlier OUTs lack.
ROW_COLUMNS = ("key", "label", "source", "position", "sha256", "width", "height")
ADDED_COLUMNS = ("split",)
OWN_COLUMNS = ROW_COLUMNS + ADDED_COLUMNS


@dataclass(frozen=True)
class Feature:
    """`NAME=TAP:POOL`: the column `name` holds the output of the layer `tap`, pooled by `pool`."""

    name: str
    tap: str
    pool: str

    def __str__(self) -> str:
        return f"{self.name}={self.tap}:{self.pool}"


@dataclass(frozen=True, kw_only=True)
class SpecOptions:
    """The options that decide the numbers, besides the network, its weights and the features.

    Attributes:
        pixel_rules: Version of the rules by which images become 8-bit RGB; not an option of commands. A new OUT has the
            newest; one that is continued, and what is predicted with a head, keep theirs. Specs written before there
            were versions don't name it, and their fingerprint stays what it was: they have 1.
    """

    image_size: int = declared(224, help="Pixels on a side of what the network sees", bounds=(_FITS_IN_MEMORY,))
    resize: str = declared("squash", help="How an image becomes square", choices=("squash", "crop", "pad"))
    interpolation: str = declared(
        "bilinear", help="How pixels are interpolated", choices=("nearest", "bilinear", "bicubic", "lanczos")
    )
    short_side: int | None = declared(
        None,
        help="What --resize crop brings the short side to before it cuts the square",
        bounds=(AT_LEAST_ONE, _FITS_IN_MEMORY),
        unset="256/224 of the image size",
    )
    decode: str = declared(
        "exact", help="How JPEGs are decoded, fast being large ones at reduced scale", choices=("exact", "fast")
    )
    exif: bool = declared(True, help="Turn images as their EXIF orientation says")
    precision: str = declared(
        "float32", help="Type of the arithmetic", choices=("float32", "tf32", "bfloat16", "float16", "int16")
    )
    dtype: str = declared("float32", help="Type of the stored numbers", choices=("float32", "float16"))
    pixel_rules: int = field(default=PIXEL_RULES, metadata={"internal": True})

    @property
    def whole_side(self) -> int:
        """Returns what `crop` brings the short side to."""
        return self.short_side or usual_short_side(self.image_size)

    def check_crop(self) -> None:
        """Raises UsageError for a short side that can't be."""
        if self.short_side is None:
            return
        if self.resize != "crop":
            raise UsageError(f"--short-side is for --resize crop, not {self.resize}; leave it out")
        if self.short_side < self.image_size:
            raise UsageError(
                f"--short-side {self.short_side} is below the image size, {self.image_size}, and no square of that can "
                "be cut; choose a larger one"
            )


def usual_short_side(image_size: int) -> int:
    """Returns what `crop` brings the short side to where nobody says, for a square of `image_size` pixels."""
    return round(image_size * _CROP_RATIO)


@dataclass(frozen=True)
class Computed:
    """The base, its weights and what is taken from it; `FeatureSpec` inherits these as its first fields."""

    backbone: str
    weights: str
    features: tuple[Feature, ...]
    normalise: str = field(default=VGG_NORMALISATION, kw_only=True)


@dataclass(frozen=True)
class FeatureSpec(SpecOptions, Computed):
    """All that decides the numbers.

    Example:
        >>> spec = featuremill.open_features("features").spec
        >>> spec.backbone, spec.image_size, str(spec.features[0])
        ('vgg19', 32, 'embedding=block5_pool:avg')
        >>> featuremill.FeatureSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
        True

    Attributes:
        backbone: One of `transforms.network.bases.BASES` or FILES.
        weights: SHA-256 (hex) of the arrays used, see `transforms.network.weights.Weights`; of a file, of its network.
        features: What is stored, in the order of the columns; all computed in one pass.
        normalise: How 8-bit RGB becomes what the base takes, one of NORMALISATIONS or as OWN_NORMALISATION has it.
            Specs written when VGG was the only base don't name it, and its fingerprints stay what they were.
    """

    def to_json(self) -> str:
        """Returns the canonical JSON: keys sorted, no blanks."""
        values = asdict(self)
        if self.pixel_rules == 1:
            del values["pixel_rules"]
        if self.normalise == VGG_NORMALISATION:
            del values["normalise"]
        if self.short_side is None:
            del values["short_side"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "FeatureSpec":
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: It isn't such.
        """
        values = json.loads(text)
        values["features"] = tuple(Feature(**feature) for feature in values["features"])
        spec = cls(**{"pixel_rules": 1, **values})
        for part in (*spec.features, spec):
            problem = wrong_field(vars(part), get_type_hints(type(part)))
            if problem:
                raise ValueError(problem)
        if spec.normalise not in NORMALISATIONS and not OWN_NORMALISATION.fullmatch(spec.normalise):
            raise ValueError(f"no way to normalise is called {spec.normalise!r}")
        try:
            check(spec)
            spec.check_crop()
        except UsageError as error:
            raise ValueError(str(error)) from error
        return spec

    @property
    def layer_dtype(self) -> str:
        """Keras's dtype of the layers: TF32 and int16 are ways to multiply float32."""
        return "float32" if self.precision in ("tf32", "int16") else self.precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def source_of(origin: str) -> str:
    """Returns the `source` by which weights of this origin, as the manifest has it, are loaded again."""
    # For the published file, the origin adds its name in brackets.
    return "imagenet" if origin.startswith("imagenet ") else origin


def is_feature_name(name: str) -> bool:
    """Returns whether a feature's column can be called so."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and name.lower() not in OWN_COLUMNS


def parse_feature(text: str) -> Feature:
    """Reads `NAME=TAP:POOL`; whether the base has the tap is checked by `network.bases.check_feature`.

    Raises:
        UsageError: Not of that form, a pooling that isn't known, or a name that can't be a column.
    """
    match = re.fullmatch(r"([^=:]+)=([^=]+):([^=:]+)", text.strip())
    if not match:
        raise UsageError(f"feature {text!r} is not of the form NAME=TAP:POOL, such as {DEFAULT_FEATURE}")
    name, tap, pool = match.groups()
    if pool not in POOLS:
        raise UsageError(f"feature {text!r}: no pooling {pool!r}{did_you_mean(pool, POOLS)}")
    if not is_feature_name(name):
        raise UsageError(
            f"feature {text!r}: {name!r} can't be its column; use letters, digits and _, "
            f"and none of {', '.join(OWN_COLUMNS)}"
        )
    return Feature(name, tap, pool)
