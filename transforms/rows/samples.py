"""Finds the rows of a tar that are images of one sample, by their keys alone."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.rows.labels import encode

_IN_TAR = r"(?is)\.(tar|tar\.gz|tgz)#"
# A member whose name has one dot.
_PLAIN = rf"{_IN_TAR}(.*/)?[^./]*\.[^./]*$"
# The shard, a member's folder and name up to its first dot, and the rest: see `transforms.shards.tar`.
_KEY = r"(?s)^(?P<base>(?P<shard>.*\.(?i:tar|tar\.gz|tgz))#(?:.*/)?[^./]*)\.(?P<ending>[^/]*)$"


def sample_numbers(keys: pa.ChunkedArray) -> np.ndarray:
    """Returns N int64: rows of one number, not -1, are images of one sample.

    Members of one base name are, if one of them has no further dots (`7.jpg` beside `7.seg.png`), or if their endings
    are kinds of images: such as recur with other base names, in a tar of fewer kinds than base names (`7.left.jpg` and
    `7.right.jpg`, but not `cat.0.jpg` and `cat.1.jpg`).
    """
    numbers = np.full(len(keys), -1, np.int64)
    rows = np.flatnonzero(pc.match_substring_regex(keys, _IN_TAR))
    if not len(rows):
        return numbers
    keys = keys.take(pa.array(rows))
    if pc.all(pc.match_substring_regex(keys, _PLAIN)).as_py():
        # The usual tar, in a fifth of the time.
        numbers[rows], _ = encode(pc.replace_substring_regex(keys, r"\.[^.]*$", ""))
        return numbers
    parts = pc.extract_regex(keys, _KEY).combine_chunks()
    is_named = parts.is_valid()
    rows, parts = rows[is_named], parts.filter(is_named)
    if not len(rows):
        return numbers
    endings = pc.utf8_lower(parts.field("ending"))
    shard, base, ending = (encode(texts)[0] for texts in (parts.field("shard"), parts.field("base"), endings))
    _, ending = np.unique(shard * len(rows) + ending, return_inverse=True)
    is_plain = ~np.asarray(pc.match_substring(endings, "."))
    # Each pair of an ending and a base name once: keys may repeat.
    _, first = np.unique(ending * len(rows) + base, return_index=True)
    recurs = np.bincount(ending[first]) > 1
    kinds, bases = (_count(numbers, shard) for numbers in (np.where(recurs[ending], ending, -1), base))
    has_plain = np.zeros(len(rows), bool)
    has_plain[base[is_plain]] = True
    is_one = has_plain[base] | (recurs[ending] & (kinds <= bases)[shard])
    numbers[rows[is_one]] = base[is_one]
    return numbers


def _count(numbers: np.ndarray, shard: np.ndarray) -> np.ndarray:
    """Returns how many different numbers, not -1, each shard has."""
    _, first = np.unique(numbers, return_index=True)
    return np.bincount(shard[first[numbers[first] >= 0]], minlength=int(shard.max()) + 1)
