"""Names the feature, column or member that holds the image, the label and the name."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from transforms.declared import declared
from transforms.errors import FeaturemillError
from transforms.labels.folders import LABEL_NAMES, RULE, partition_value
from transforms.labels.values import WrongFieldError as WrongFieldError
from transforms.labels.values import as_text as as_text
from transforms.records import Shard
from transforms.text import clean

# What follows a shard's URI in a key has at most as many bytes, twice Linux's longest path: without the URI, so that
# moving a shard makes no row a failure.
NAME_BYTES = 8_192
OPTIONS = {"keep": "--keep"} | {role: f"--{role}-field" for role in ("image", "label", "name", "path")}


@dataclass(frozen=True)
class Fields:
    """The names that the user gave; None means: detect. An empty label or name means: there is none.

    Attributes:
        image: TFRecord feature or Parquet column with the encoded image (`--image-field`); for tar the ending of the
            members that are images.
        label: The same for the label; for tar a member's extension or a key of the `.json` member (`--label-field`).
        name: The same for the image's own name (`--name-field`). Tar has no such field.
        label_from: What gives image files their label (`--label-from`); see `transforms.labels.folders`.
        path: Column of paths, which makes Parquet and CSV inputs tables of image files (`--path-field`).
        keep: Columns of these tables that come along.
    """

    image: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the image; for tar the ending of its members, such as jpg or seg.png",
        flags=("--image-field",),
        unset="detected",
    )
    label: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the label; for tar a member's ending or a key of .json; '' for no "
        "labels, also of image files",
        flags=("--label-field",),
        unset="detected",
    )
    name: str | None = declared(
        None,
        help="TFRecord key or Parquet column of the image's name, which goes into the key",
        flags=("--name-field",),
        unset="detected",
    )
    label_from: str = declared(
        "folder",
        help="What labels image files: folder (the first below INPUT that isn't called like a side or `images`), "
        "parent, grandparent, none, or regex:PATTERN for its first group in the path",
        flags=("--label-from",),
        metavar="RULE",
        bounds=(RULE,),
    )
    path: str | None = declared(
        None,
        help="Column of paths: Parquet, CSV and TSV inputs are then tables of image files, one a row",
        flags=("--path-field",),
        unset="shards hold the images themselves",
    )
    keep: tuple[str, ...] = field(default=(), metadata={"internal": True})

    @property
    def file_labels(self) -> str:
        """The rule for image files: without a label field there are no labels at all."""
        return "none" if self.label == "" else self.label_from


class NoImageError(FeaturemillError):
    """A shard of a known format without an image: metadata that lies beside the images, most likely."""


def missing(uri: str, *, role: str, wanted: str, present: Collection[str]) -> FeaturemillError:
    """Returns the error for a field that isn't in a shard.

    Args:
        uri: The shard.
        role: `image`, `label`, `name`, `keep` or `path`.
        wanted: What was looked for.
        present: What is there.
    """
    near = difflib.get_close_matches(wanted, present, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    there = ", ".join(sorted(map(clean, present))) or "nothing"
    kind = NoImageError if role == "image" else FeaturemillError
    what = {"keep": "column to keep", "path": "column of paths"}.get(role, role)
    return kind(f"no {what} in {clean(uri)}: looked for {wanted}, found {there}{hint}; pass {OPTIONS[role]} NAME")


def usual(names: Sequence[str], present: Collection[str]) -> str:
    """Returns the first of the usual names that is there, in its own spelling: `Label` passes for `label`."""
    spelt = {name.casefold(): name for name in sorted(present)}
    return next((name if name in present else spelt[name] for name in names if name in spelt), "")


def choose(
    shard: Shard,
    role: str,
    *,
    asked: str | None,
    names: Sequence[str],
    present: Collection[str],
    usable: Collection[str],
) -> str:
    """Returns the field of a label or an image's name, empty for none.

    Where no field holds the label, a folder of the shard's path may: `COLUMN=` stands for one called `COLUMN=VALUE`.

    Args:
        shard: Where it is looked for.
        role: `label` or `name`.
        asked: What the user named; None: detect.
        names: The usual ones.
        present: What is there.
        usable: What of it has values that can be used.

    Raises:
        FeaturemillError: What was asked for isn't there.
    """
    if asked == "" or (asked and asked in present):
        return asked
    columns = (asked,) if asked else LABEL_NAMES
    found = "" if asked else usual(names, usable)
    if not found and role == "label":
        found = next((f"{name}=" for name in columns if partition_value(shard.file.uri, name) is not None), "")
    if not found and not asked and role == "label":
        # Its values are counted as labels that can't be used.
        found = usual(names, present)
    if asked and not found:
        raise missing(shard.file.uri, role=role, wanted=asked, present=present)
    return found


def name_or(value: object, other: str) -> str:
    """Returns an image's own name as text, and the other one where that is missing or neither text nor a number.

    Of one that is longer than a key may be, as much as shows that.
    """
    if isinstance(value, (bytes, str)):
        value = value[: NAME_BYTES + 1]
    try:
        return as_text(value) or other
    except WrongFieldError:
        return other
