"""Labels and sides from the names of the folders that image files lie in."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from transforms.declared import Bound
from transforms.text import clean

# What a split column may say, in any case, and what folders of sides are called.
SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# `train2017`, `test_set`, `val-images` too.
_SIDE = re.compile(rf"({'|'.join(SIDES)})(?:[_ -]?(?:set|data|images|imgs))?(?:20\d\d|\d)?")
# Folders in which data sets keep the images of a class or a side.
HOLDERS = frozenset(["image", "images", "img", "imgs", "data", "dataset", "jpg", "jpeg", "jpegs", "jpegimages", "png"])
# Columns that hold a label, and the folders of a partitioned data set: `label=cat`.
LABEL_NAMES = ("label", "labels", "class", "category")
_NO_VALUE = ("", "__HIVE_DEFAULT_PARTITION__")
REGEX = "regex:"
RULES = ("folder", "parent", "grandparent", "none")


@dataclass(frozen=True)
class Place:
    """A folder with image files, as an input led there.

    Attributes:
        folder: Where they lie, absolute and without a slash at its end.
        root: The folder that was given and walked; None where the files themselves were named, or matched a pattern.
    """

    folder: str
    root: str | None

    @property
    def below(self) -> list[str]:
        """The names of the folders between the given one and the files."""
        if self.root is None:
            return []
        inside = self.folder.removeprefix(self.root).strip("/")
        return inside.split("/") if inside else []


@dataclass(frozen=True)
class Stated:
    """Class and side (of SIDES) of an image as its folders state them; None where they don't."""

    label: str | None = None
    split: str | None = None


def side_of(folder: str) -> str | None:
    """Returns train, validation or test for a folder called like that, else None."""
    match = _SIDE.fullmatch(folder.strip().casefold())
    return SIDES[match.group(1)] if match else None


def partition_value(path: str, column: str) -> str | None:
    """Returns `cat` where a folder of a path is called `label=cat` and the column is `label`, else None."""
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name.casefold() == column.casefold() and value not in _NO_VALUE:
            # Spark and pandas write what a path can't hold as %3A.
            return unquote(value)
    return None


def partition_label(path: str) -> str | None:
    """Returns the value of the folder in a path that is called like a column of labels, such as `label=cat`."""
    return next(filter(None, (partition_value(path, name) for name in LABEL_NAMES)), None)


def _is_rule(text: str) -> bool:
    if not text.startswith(REGEX):
        return text in RULES
    try:
        return bool(text.removeprefix(REGEX)) and re.compile(text.removeprefix(REGEX)) is not None
    except re.error:
        return False


RULE = Bound(_is_rule, "{flag} {value}: choose from folder, parent, grandparent, none, or regex: and a valid pattern")


def by_pattern(rule: str, uri: str) -> str | None:
    """Returns what `regex:PATTERN` finds in a path: the group `label`, else the first, else all of the match."""
    match = re.search(rule.removeprefix(REGEX), clean(uri))
    if not match:
        return None
    named = match.re.groupindex
    return (match.group("label") if "label" in named else match.group(1) if match.re.groups else match.group()) or None


def read_folders(rule: str, places: Collection[Place]) -> dict[Place, Stated]:
    """Returns what the folders say, by one of `RULES`; with a pattern, their sides only.

    The rule `folder`: the first folder below the given one that isn't called like a side (train, val, test …) or like
    what holds images (`images`, `data` …), unless it lies beside folders of other names. A folder given by itself,
    whose images lie directly in it, gives its own name if there are several such folders side by side: so
    `photos/train/*`, as a shell expands it, labels as `photos/train` does. Named files get the folder they lie in.
    """
    if rule == "folder":
        return _by_folder(places)
    up = {"parent": 1, "grandparent": 2}.get(rule)
    return {place: _by_depth(place, up) for place in places}


def _by_depth(place: Place, up: int | None) -> Stated:
    names = _names(place.folder)
    label = names[-up] if up is not None and len(names) >= up else None
    above = names[:-up] if up is not None else names
    # No further up than the given folder's own name: who keeps photos in /test/me/photos means no side.
    most = len(place.below) + 1 if place.root is not None else 2
    sides = (side_of(name) for name in reversed(above[-most:]))
    return Stated(_text(label), next(filter(None, sides), None))


def _names(folder: str) -> list[str]:
    return [name for name in folder.split("/") if name]


def _text(name: str | None) -> str | None:
    if name is None:
        return None
    return clean(partition_label(f"{name}/") or name)


def _by_folder(places: Iterable[Place]) -> dict[Place, Stated]:
    by_root: dict[str | None, list[Place]] = defaultdict(list)
    for place in places:
        by_root[place.root].append(place)
    named = by_root.pop(None, [])
    stated: dict[Place, Stated] = {}
    for root, some in by_root.items():
        names = _names(root)
        _descend([(place, place.below) for place in some], side_of(names[-1]) if names else None, stated)
    own, parents = _own_names(stated)
    stated |= own
    return stated | _of_named(named, parents)


def _descend(places: Sequence[tuple[Place, list[str]]], split: str | None, stated: dict[Place, Stated]) -> None:
    """Fills in what is stated about places below a folder, given the names of the folders that are left of each."""
    branches: dict[str, list[tuple[Place, list[str]]]] = defaultdict(list)
    for place, names in places:
        if names:
            branches[names[0]].append((place, names[1:]))
        else:
            stated[place] = Stated(None, split)
    # `train` beside `bus` and `car` is a class.
    none_is_a_class = all(is_no_class(name) for name in branches)
    for name, branch in branches.items():
        if none_is_a_class:
            _descend(branch, side_of(name) or split, stated)
        else:
            stated |= {place: Stated(_text(name), split) for place, _ in branch}


def is_no_class(name: str) -> bool:
    """Returns whether a folder is called like a side, or like what holds images of all classes."""
    return name in ("", ".", "..") or side_of(name) is not None or _is_holder(name)


def _is_holder(name: str) -> bool:
    return name.casefold() in HOLDERS


def _own_names(stated: dict[Place, Stated]) -> tuple[dict[Place, Stated], set[str]]:
    """Returns what is stated about folders given by themselves, side by side; and the folders that these lie in."""
    labelled = {place.root for place in stated if stated[place].label is not None}
    groups: dict[str, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for place in stated:
        # The images lie in it, or in `images` in it; in a side of it there is no class.
        if place.root and place.root not in labelled and not any(map(side_of, place.below)):
            # Of `n01/images` and `n02/images` the class is what differs.
            folder = _parent(place.root) if _is_holder(_last(place.root)) else place.root
            if side_of(_last(folder)) is None:
                above = _parent(folder)
                groups[_parent(above) if side_of(_last(above)) else above][folder].append(place)
    own: dict[Place, Stated] = {}
    parents = set()
    for folders in groups.values():
        for folder, some in folders.items() if len(folders) > 1 else ():
            parents.add(_parent(folder))
            own |= {place: Stated(_text(_last(folder)), side_of(_last(_parent(folder)))) for place in some}
    return own, parents


def _of_named(places: Sequence[Place], parents: set[str]) -> dict[Place, Stated]:
    """Returns what is stated about files that were named.

    Args:
        places: Where they lie.
        parents: Folders of which class folders were given beside the files, as `photos/*` does: these have no label.
    """
    stated = {}
    # `tiny/*/images/*`: the class is what differs.
    holders = {place.folder for place in places if _is_holder(_last(place.folder))}
    above = {_parent(folder) for folder in holders}
    classes = {place: _parent(place.folder) if place.folder in holders else place.folder for place in places}
    names = {_last(folder) for place, folder in classes.items() if place.folder not in parents}
    only_sides = all(is_no_class(name) for name in names)
    for place, folder in classes.items():
        name = _last(folder)
        if only_sides or place.folder in parents or (place.folder in holders and len(above) < 2):
            split = next(filter(None, map(side_of, (_last(place.folder), name))), None)
            stated[place] = Stated(None, split)
        else:
            stated[place] = Stated(_text(name) or None, side_of(_last(_parent(folder))))
    return stated


def _last(folder: str) -> str:
    return folder.rpartition("/")[2]


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]
