"""Which rows of a tar are images of one sample, told by their keys alone."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The shard, a member's folder and name up to its first dot, and the rest: see `transforms.shards.tar`.
_KEY = r"(?s)^(?P<shard>.*\.(?i:tar|tar\.gz|tgz))#(?P<base>(?:.*/)?[^./]*)\.(?P<ending>[^/]*)$"


def sample_numbers(keys: pa.ChunkedArray) -> np.ndarray:
    """Returns N int64: rows of one number, not -1, are images of one sample.

    Members of one base name are, if one of them has no further dots (`7.jpg` beside `7.seg.png`), or if their endings
    are kinds of images: such as recur with other base names, in a tar of fewer kinds than base names (`7.left.jpg` and
    `7.right.jpg`, but not `cat.0.jpg` and `cat.1.jpg`).
    """
    parts = pc.extract_regex(keys, _KEY).combine_chunks()
    rows = np.flatnonzero(parts.is_valid().to_numpy(zero_copy_only=False))
    numbers = np.full(len(keys), -1, np.int64)
    if not len(rows):
        return numbers
    parts = parts.take(pa.array(rows))
    shard = _codes(parts.field("shard"))
    base = _pairs(shard, _codes(parts.field("base")))
    endings = pc.utf8_lower(parts.field("ending"))
    ending = _pairs(shard, _codes(endings))
    is_plain = pc.invert(pc.match_substring(endings, ".")).to_numpy(zero_copy_only=False)
    # Each pair of an ending and a base name once: keys may repeat.
    pairs = np.unique(np.column_stack([ending, base, shard]), axis=0)
    recurs = np.bincount(pairs[:, 0]) > 1
    kinds = np.unique(pairs[recurs[pairs[:, 0]]][:, [0, 2]], axis=0)[:, 1]
    shards = int(shard.max()) + 1
    bases = np.unique(pairs[:, [1, 2]], axis=0)[:, 1]
    is_of_samples = np.bincount(kinds, minlength=shards) <= np.bincount(bases, minlength=shards)
    has_plain = np.zeros(int(base.max()) + 1, bool)
    has_plain[base[is_plain]] = True
    is_one = has_plain[base] | (recurs[ending] & is_of_samples[shard])
    numbers[rows[is_one]] = base[is_one]
    return numbers


def _codes(texts: pa.Array) -> np.ndarray:
    return texts.dictionary_encode().indices.to_numpy().astype(np.int64)


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns a number for each pair of numbers, from 0."""
    return np.unique(first * (int(second.max()) + 1) + second, return_inverse=True)[1].astype(np.int64)
