"""The feature spec: all that decides the numbers, and its fingerprint."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import get_type_hints

from transforms.declared import Bound, check, declared, wrong_field
from transforms.errors import UsageError
from transforms.pools import POOLS
from transforms.text import did_you_mean

DEFAULT_FEATURE = "embedding=block5_pool:avg"

# Block 1 of a single image of this size takes 1 GiB.
_FITS_IN_MEMORY = Bound(lambda value: value <= 2048, "{flag} {value} is over 2048: one image would take gigabytes")

# The version of the rules in `images.modes`: one more whenever an image's pixels become others by them.
PIXEL_RULES = 2

# The columns that every part has before its features; and those between the two that parts of earlier OUTs lack.
ROW_COLUMNS = ("key", "label", "source", "position", "sha256", "width", "height")
ADDED_COLUMNS = ("split",)


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
    decode: str = declared(
        "exact", help="How JPEGs are decoded, fast being large ones at reduced scale", choices=("exact", "fast")
    )
    exif: bool = declared(True, help="Turn images as their EXIF orientation says")
    precision: str = declared(
        "float32", help="Type of the arithmetic", choices=("float32", "tf32", "bfloat16", "float16")
    )
    dtype: str = declared("float32", help="Type of the stored numbers", choices=("float32", "float16"))
    pixel_rules: int = field(default=PIXEL_RULES, metadata={"internal": True})


@dataclass(frozen=True)
class Computed:
    """The network, its weights and what is taken from it; a base of `FeatureSpec`, whose first fields these are."""

    backbone: str
    weights: str
    features: tuple[Feature, ...]


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
        backbone: `vgg19` or `vgg16`.
        weights: SHA-256 (hex) of the arrays used, see `transforms.network.weights.Weights`.
        features: What is stored, in the order of the columns; all computed in one pass.
    """

    def to_json(self) -> str:
        """Returns the canonical JSON: keys sorted, no blanks."""
        values = asdict(self)
        if self.pixel_rules == 1:
            del values["pixel_rules"]
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
        try:
            check(spec)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return spec

    @property
    def layer_dtype(self) -> str:
        """Keras's dtype of the layers: TF32 is a way to multiply float32."""
        return "float32" if self.precision == "tf32" else self.precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def parse_feature(text: str) -> Feature:
    """Reads `NAME=TAP:POOL`; whether the backbone has the tap is checked by `network.vgg.check_feature`.

    Raises:
        UsageError: Not of that form, a pooling that isn't known, or a name that can't be a column.
    """
    match = re.fullmatch(r"([^=:]+)=([^=:]+):([^=:]+)", text.strip())
    if not match:
        raise UsageError(f"feature {text!r} is not of the form NAME=TAP:POOL, such as {DEFAULT_FEATURE}")
    name, tap, pool = match.groups()
    if pool not in POOLS:
        raise UsageError(f"feature {text!r}: no pooling {pool!r}{did_you_mean(pool, POOLS)}")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.lower() in ROW_COLUMNS + ADDED_COLUMNS:
        raise UsageError(
            f"feature {text!r}: {name!r} can't be its column; use letters, digits and _, "
            f"and none of {', '.join(ROW_COLUMNS + ADDED_COLUMNS)}"
        )
    return Feature(name, tap, pool)
