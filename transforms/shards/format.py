"""The record in which a module of shards describes its format; `transforms.shards.detect` lists them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transforms.records import EncodedImage, Failure, Shard, Unit
from transforms.shards.fields import Fields


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of shard: how to know it, cut it and read it.

    Attributes:
        name: As plans and tables store it.
        title: As messages call it.
        sign: What `matches` looks at, in words.
        ending: What the names of such files end in. Only that makes a file in a folder worth a look inside.
        gzip: Whether it may be packed with gzip as a whole; `matches` is given the unpacked bytes then.
        matches: Takes the first bytes of a file (none of an empty one) and whether its name has the ending.
        resolve: Returns the names of the image, label and name fields, empty for what there isn't. Raises
            FeaturemillError for a field that was asked for and isn't there.
        split: Cuts a shard into units of at most so many bytes, at record boundaries.
        read: Yields the images of a unit. What is wrong with the data is a Failure; only a disk or store raises.
        narrow: Yields parts of a unit that hold records at these positions, which are sorted, and how many of them,
            in order. Positions that are no longer there count to a part too.
        look: Returns the labels of the first records, at most so many, and whether these are all, without reading
            images; None where only `read` tells.
        count: Returns how many records a shard has where its own index says so, None where only reading tells.
        is_native: Whether it is read by native code, which damaged data may crash.
        columns: Returns {what of a record can come along: the name of its type as `labels.kept` has them, empty if it
            has none}, as far as a look at the shard tells. `read` gives the values of those in `Shard.keep`.
    """

    name: str
    title: str
    sign: str
    ending: re.Pattern[str]
    gzip: bool
    matches: Callable[[bytes, bool], bool]
    resolve: Callable[[Shard, Fields], tuple[str, str, str]]
    split: Callable[[Shard, int], list[Unit]]
    read: Callable[[Unit], Iterator[EncodedImage | Failure]]
    narrow: Callable[[Unit, Sequence[int]], Iterator[tuple[Unit, int]]]
    look: Callable[[Shard, int], tuple[list[str | None], bool]] | None = None
    count: Callable[[Shard], int | None] = lambda shard: None
    is_native: bool = False
    columns: Callable[[Shard], dict[str, str]] = lambda shard: {}
