"""Matches rows of a label file to rows of features, by the first rule under which that is certain.

Keys are compared in one Unicode form (NFC) and with `/` for Windows's separators. All is done on Arrow's and NumPy's
arrays: both sides may have a million rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.shards.names import common_folder

# The ending of a file's name in a label file. An id such as `cat.1` has none.
_ENDING = r"\.[A-Za-z][A-Za-z0-9]{1,4}$"


@dataclass(frozen=True)
class Match:
    """A rule under which every row of the file is one row of the features, or none.

    Attributes:
        rule: Its name, in words.
        found: N int64: the file's row for each row of the features, -1 for none.
    """

    rule: str
    found: np.ndarray


@dataclass(frozen=True)
class Ambiguity:
    """The reason against a rule under which something is found.

    Attributes:
        rule: Its name, in words.
        file_rows: Rows of the file that could be several rows of the features, or that are the same as another.
        file_keys: The keys of one such set, in the file: one, or two that are the same.
        keys: And in the features.
    """

    rule: str
    file_rows: int
    file_keys: tuple[str, ...]
    keys: tuple[str, ...]


def match_rows(
    keys: pa.ChunkedArray,
    sha256: pa.ChunkedArray | None,
    file_keys: pa.ChunkedArray,
    file_sha256: pa.ChunkedArray | None,
) -> Match | Ambiguity | None:
    """Finds the rows of features that the rows of a label file are.

    The rules, of which the first is taken that finds a row and is certain: no row of the file is found for two keys of
    the features, and no key for two rows of the file. Rows that the rule doesn't find count for nothing.

    1. full key: they are equal.
    2. path suffix: one is the end of the other, from the start of a folder's or a file's name on. A shard's members
       are as if they lay in a folder of the shard's name. Where it is the name alone, the rule is called file name.
    3. relative path: the file's is what the features' is below the folder that all of them share.
    4. path suffix, other folder: as 2, when what all keys of the file share in front is left out.
    5. file name: the last parts are equal.
    6. stem: the last parts are equal without the ending.
    7. sha256: of the content.

    Args:
        keys: N, of the features; a key may be there several times.
        sha256: N digests of the features, if they have some.
        file_keys: M, each once.
        file_sha256: M, if the file has a column of that name; else keys that look like it are taken.

    Returns:
        The rule and what it finds; what speaks against the first rule that finds something; or None if none does.
    """
    distinct = pa.array(pc.unique(keys))
    file = _Paths(file_keys.combine_chunks())
    features = _Paths(distinct)
    problem = None
    for find, narrower in _RULES:
        if narrower and not problem:
            # It finds no more than the rule before it, which found nothing.
            continue
        rule, pairs = find(features, file)
        if not len(pairs[0]):
            continue
        unclear = _unclear(*pairs, len(file.keys))
        if unclear.any():
            problem = problem or _ambiguity(rule, pairs, unclear, features, file)
        else:
            found = np.full(len(distinct), -1, np.int64)
            found[pairs[0]] = pairs[1]
            return Match(rule, found if len(distinct) == len(keys) else found[_places(keys, distinct)])
    return _by_content(sha256, file_sha256, file) or problem


class _Paths:
    """Keys of one side, and what the rules make of them, each when it is first asked for."""

    def __init__(self, keys: pa.Array):
        self.keys = keys
        normal = pc.utf8_normalize(pc.utf8_trim_whitespace(keys), form="NFC")
        self.normal = pc.replace_substring(normal, "\\", "/")

    @cached_property
    def paths(self) -> pa.Array:
        """The keys with `/` before each part, members of shards being parts too."""
        paths = self.normal
        if pc.any(pc.match_substring(paths, "#")).as_py():
            # A number behind # is a row's place in its shard, and no name: a file's ids may be numbers too.
            is_place = pc.match_substring_regex(paths, r"#\d+$")
            paths = pc.if_else(is_place, paths, pc.replace_substring(paths, "#", "/"))
        paths = pc.replace_substring_regex(paths, r"^(\./|/)*", "")
        return pc.binary_join_element_wise("/", paths, "")

    @cached_property
    def names(self) -> pa.Array:
        """The last parts, each with `/` before it."""
        return _last(self.paths, 1)


_Pairs = tuple[np.ndarray, np.ndarray]
_NONE = np.empty(0, np.int64), np.empty(0, np.int64)


def _by_key(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    return "full key", _equal(features.normal, file.normal)


def _by_bytes(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    """Matches keys that only differ by their Unicode form."""
    return "full key, letter by letter", _equal(features.keys, file.keys)


def _by_suffix(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    are_names = pc.max(_depths(file.paths)).as_py() == 1
    return "file name" if are_names else "path suffix", _suffixes(features.paths, file.paths)


def _by_relative_path(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    ours = features.paths
    return "relative path", _equal(pc.utf8_slice_codeunits(ours, len(_common_folder(ours))), file.paths)


def _by_other_folder(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    folder = _common_folder(file.paths)
    if not folder:
        return "path suffix", _NONE
    rest = pc.utf8_slice_codeunits(file.paths, len(folder))
    return f"path suffix, below {folder[1:]} of the file", _suffixes(features.paths, rest)


def _by_name(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    return "file name", _equal(features.names, file.names)


def _by_stem(features: _Paths, file: _Paths) -> tuple[str, _Pairs]:
    stems = pc.list_element(pc.split_pattern(features.names, ".", max_splits=1, reverse=True), 0)
    # An id with a dot in it is whole as it is.
    pairs = _equal(stems, file.names)
    if not len(pairs[0]):
        pairs = _equal(stems, pc.replace_substring_regex(file.names, _ENDING, ""))
    return "stem", pairs


# Each with whether it only tells apart what the rule before it finds.
_RULES: tuple[tuple[Callable[[_Paths, _Paths], tuple[str, _Pairs]], bool], ...] = (
    (_by_key, False),
    (_by_bytes, True),
    (_by_suffix, False),
    (_by_relative_path, True),
    (_by_other_folder, False),
    (_by_name, False),
    (_by_stem, False),
)


def _by_content(
    sha256: pa.ChunkedArray | None, file_sha256: pa.ChunkedArray | None, file: _Paths
) -> Match | Ambiguity | None:
    ours, theirs = _digests(sha256), _digests(file.keys if file_sha256 is None else file_sha256)
    if ours is None or theirs is None:
        return None
    found = _places(ours, theirs)
    if not (found >= 0).any():
        return None
    pairs = np.flatnonzero(found >= 0), found[found >= 0]
    # One content is one thing, however often the features have it; but not if the file has it twice.
    own = _places(theirs, theirs)
    twice = np.zeros(len(theirs), bool)
    later = np.flatnonzero((own != np.arange(len(own))) & (own >= 0))
    twice[later] = twice[own[later]] = True
    wrong = later[np.isin(own[later], pairs[1])]
    if len(wrong):
        names = file.keys[int(own[wrong[0]])].as_py(), file.keys[int(wrong[0])].as_py()
        return Ambiguity("sha256", int(np.isin(own, own[wrong]).sum()), names, ())
    return Match("sha256", found)


def _equal(left: pa.Array, right: pa.Array) -> _Pairs:
    """Returns (rows of left, rows of right) of all that are equal; of three that are, not every pair."""
    found = _places(left, right)
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        return _NONE
    own = _places(right, right)
    again = np.flatnonzero(own != np.arange(len(own)))
    left_of = np.full(len(right), -1, np.int64)
    left_of[found[rows]] = rows
    again = again[left_of[own[again]] >= 0]
    return np.concatenate([rows, left_of[own[again]]]), np.concatenate([found[rows], again])


def _suffixes(left: pa.Array, right: pa.Array) -> _Pairs:
    """Returns (rows of left, rows of right) of paths of which one is the end of the other."""
    depths, right_depths = (_depths(paths).to_numpy() for paths in (left, right))
    pairs = []
    rights_end = ((depth, depths >= depth, right_depths == depth) for depth in np.unique(right_depths).tolist())
    lefts_end = ((depth, depths == depth, right_depths > depth) for depth in np.unique(depths).tolist())
    for depth, *of_depth in chain(rights_end, lefts_end):
        ours, theirs = map(np.flatnonzero, of_depth)
        of_ours, of_theirs = _equal(_last(left.take(pa.array(ours)), depth), _last(right.take(pa.array(theirs)), depth))
        pairs.append((ours[of_ours], theirs[of_theirs]))
    return np.concatenate([p[0] for p in [_NONE, *pairs]]), np.concatenate([p[1] for p in [_NONE, *pairs]])


def _unclear(ours: np.ndarray, theirs: np.ndarray, rows: int) -> np.ndarray:
    """Returns M booleans: the file's rows that are several keys, or one of several rows that are the same key."""
    unclear = np.bincount(theirs, minlength=rows) > 1
    unclear[theirs[np.bincount(ours)[ours] > 1]] = True
    return unclear


def _ambiguity(rule: str, pairs: _Pairs, unclear: np.ndarray, features: _Paths, file: _Paths) -> Ambiguity:
    ours, theirs = pairs
    first = int(np.flatnonzero(unclear)[0])
    own = np.unique(ours[theirs == first])
    same = np.unique(theirs[np.isin(ours, own)]) if len(own) == 1 else np.array([first])
    return Ambiguity(
        rule,
        int(unclear.sum()),
        tuple(file.keys[int(row)].as_py() for row in same[:2]),
        tuple(features.keys[int(row)].as_py() for row in own[:2]),
    )


def _places(values: pa.Array | pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """Returns int64 places of values in others, -1 for those that aren't there or are null."""
    found = pc.index_in(values, value_set=among, skip_nulls=True)
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _depths(paths: pa.Array) -> pa.Array:
    return pc.count_substring(paths, "/")


def _last(paths: pa.Array, depth: int) -> pa.Array:
    """Returns the last parts of paths, each with `/` before it; they have so many at least."""
    if not len(paths):
        return paths
    split = pc.split_pattern(paths, "/", max_splits=depth, reverse=True)
    return pc.binary_join_element_wise("", pc.binary_join(pc.list_slice(split, 1, depth + 1), "/"), "/")


def _common_folder(paths: pa.Array) -> str:
    """Returns the folders that all paths begin with, such as `/data/train`."""
    if not len(paths):
        return ""
    ends = pc.min_max(paths)
    return common_folder(ends["min"].as_py(), ends["max"].as_py())


def _digests(column: pa.Array | pa.ChunkedArray | None) -> pa.Array | None:
    """Returns digests, as bytes or as 64 hexadecimal digits, as binary of 32 bytes; None if none is one."""
    if column is None:
        return None
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(column):
        return None
    raw = column.cast(pa.binary())
    if pc.all(pc.equal(pc.binary_length(raw), 32)).as_py():
        return raw
    try:
        is_hex = pc.fill_null(pc.match_substring_regex(raw.cast(pa.string()), "^[0-9a-fA-F]{64}$"), False)
    except pa.ArrowInvalid:
        return None
    digits = raw.filter(is_hex)
    if not len(digits):
        return None
    data = bytes.fromhex(digits.buffers()[2].to_pybytes()[: 64 * len(digits)].decode())
    found = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digits), [None, pa.py_buffer(data)])
    # Back to the rows that they are of.
    numbers = np.cumsum(np.asarray(is_hex)) - 1
    return found.cast(pa.binary()).take(pa.array(numbers, mask=~np.asarray(is_hex)))
