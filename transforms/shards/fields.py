"""Names the feature, column or member that holds the image, the label and the name; and their values as text."""

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass

from transforms.declared import declared
from transforms.errors import FeaturemillError
from transforms.text import clean

OPTIONS = {"image": "--image-field", "label": "--label-field", "name": "--name-field"}


@dataclass(frozen=True)
class Fields:
    """Names that the user gave; None means: detect. An empty label or name means: there is none.

    Attributes:
        image: TFRecord feature or Parquet column with the encoded image (`--image-field`); for tar the ending of the
            members that are images.
        label: The same for the label; for tar a member's extension or a key of the `.json` member (`--label-field`).
        name: The same for the image's own name (`--name-field`). Tar has no such field.
    """

    image: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the image; for tar the ending of its members, such as jpg or seg.png",
        flags=("--image-field",),
        unset="detected",
    )
    label: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the label; for tar a member's ending or a key of .json",
        flags=("--label-field",),
        unset="detected",
    )
    name: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the image's name, which goes into the key",
        flags=("--name-field",),
        unset="detected",
    )


class NoImageError(FeaturemillError):
    """A shard of a known format without an image: metadata that lies beside the images, most likely."""


class WrongFieldError(Exception):
    """A value of a kind that is neither text nor number."""


def missing(uri: str, *, role: str, wanted: str, present: Collection[str]) -> FeaturemillError:
    """Returns the error for a field that isn't in a shard.

    Args:
        uri: The shard.
        role: `image`, `label` or `name`.
        wanted: What was looked for.
        present: What is there.
    """
    near = difflib.get_close_matches(wanted, present, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    there = ", ".join(sorted(map(clean, present))) or "nothing"
    kind = NoImageError if role == "image" else FeaturemillError
    return kind(f"no {role} in {clean(uri)}: looked for {wanted}, found {there}{hint}; pass {OPTIONS[role]} NAME")


def as_text(value: object) -> str | None:
    """Returns a label or name as text; None for a missing or empty value.

    Whole floats become integers in text: pandas turns an integer column with one gap into floats, and `3.0` in one
    shard must not become another class than `3` in the next.

    Raises:
        WrongFieldError: The value is neither text nor a number.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return clean(value) or None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, (bool, int)):
        return str(value)
    raise WrongFieldError(f"{type(value).__name__} is neither text nor a number")
