"""The labels of a run, before it and after it: their classes with counts, where they come from, what looks wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.extraction.options import ExtractOptions
from transforms import shards
from transforms.errors import FeaturemillError
from transforms.labels.cautions import cautions
from transforms.machine import ahead
from transforms.parquet.files import open_sealed
from transforms.records import Shard
from transforms.shards import FORMATS
from transforms.store.output import Output
from transforms.text import counted, short

# A look at shards reads no more than this: at so many of them, evenly drawn, and at the first images of each.
_SHARDS = 8
_RECORDS = 250
_BYTES = 2 * 2**20
_NAMED = 10
_NAME_LENGTH = 24
_THREADS = 16
# The summary reads the labels of so many parts at most: of more it would take many seconds, each time.
_COUNTED_PARTS = 10_000
_RULES = {"folder": "folder names", "parent": "parent folders", "grandparent": "parents' parent folders"}


@dataclass(frozen=True)
class LabelLook:
    """The labels that a look at the inputs found.

    Attributes:
        counts: {label: images}, None for those without one.
        whole: Whether these are all; else the first images of some shards.
        origins: Where they come from, in words.
    """

    counts: Mapping[str | None, int]
    whole: bool
    origins: tuple[str, ...]


def look_at_labels(found: shards.Found, fields: shards.Fields) -> LabelLook:
    """Looks at the labels of the inputs: all of image files, which are known, and some of a few shards."""
    counts: Counter[str | None] = Counter(listed.label for listed in found.files)
    labelled = [listed for listed in found.files if listed.label is not None]
    of_files = _RULES.get(fields.file_labels, fields.file_labels)
    origins = [of_files if listed.kept is None else "tables of paths" for listed in labelled]
    step = -(-len(found.shards) // _SHARDS) or 1
    looked = found.shards[::step]
    whole = len(looked) == len(found.shards)
    for shard in looked:
        try:
            labels, all_of_it = shards.look_at_labels(shard, records=_RECORDS, most_bytes=_BYTES)
        except FeaturemillError:
            # Whoever reads it says so.
            labels, all_of_it = [], False
        counts.update(labels)
        whole = whole and all_of_it
        if any(label is not None for label in labels):
            origins.append(_of_shard(shard))
    return LabelLook(counts, whole, tuple(dict.fromkeys(origins)))


def _of_shard(shard: Shard) -> str:
    title = FORMATS[shard.format].title
    if shard.label_field.endswith("="):
        return f"folders {short(shard.label_field)}… of {title}"
    return f"field {short(shard.label_field)} of {title}" if shard.label_field else title


def describe_labels(look: LabelLook, options: ExtractOptions, found: shards.Found) -> list[str]:
    """Returns the lines of a plan about labels, cautions last."""
    known = {label: count for label, count in look.counts.items() if label is not None}
    lines = [f"labels   {_classes(known)}"] if known else []
    if known:
        lines[0] += f"; from {', '.join(look.origins)}"
    if not look.whole:
        seen = f"a look at the first {sum(look.counts.values()):,} images"
        lines = [f"{lines[0]} ({seen})"] if lines else [f"labels   none in {seen}"]
    lines += [f"CAUTION  {caution}" for caution in cautions(look.counts, whole=look.whole)]
    if options.fields.label != "" and options.fields.label_from != "none":
        lines += _unlabelled_files(found)
    return lines


def _unlabelled_files(found: shards.Found) -> list[str]:
    """Returns that no image file has a label, where that may be a surprise."""
    if not found.files or any(listed.label is not None for listed in found.files):
        return []
    sides = dict.fromkeys(listed.split for listed in found.files if listed.split)
    folders = {listed.file.uri.rpartition("/")[0] for listed in found.files}
    cure = "for labels, name the folder above a folder per class, or pass --label-from"
    if len(folders) > 1:
        why = f"they lie in {counted(len(folders), 'folder')}, called like sides or like what holds images"
        return [f"CAUTION  no image file has a label, though {why}; {cure}"]
    lines = [f"note     no image file has a label; {cure}"]
    return [*lines, f"note     their folder is taken for a side: split is {', '.join(sides)}"] if sides else lines


def count_labels(output: Output) -> Counter[str | None] | None:
    """Returns {label: rows} of an OUT; its column of labels is read, and nothing else.

    None on object stores, where that would be requests for each part, and where there are very many parts: a run that
    has nothing to do must end at once.

    Raises:
        FeaturemillError: A part can't be read.
    """
    parts = [output.path("features", name) for name in output.listing.names]
    if not output.is_local or len(parts) > _COUNTED_PARTS:
        return None
    counts: Counter[str | None] = Counter()
    for of_part in ahead(_count_part, parts, threads=_THREADS):
        counts.update(of_part)
    return counts


def _count_part(part: str) -> Counter[str | None]:
    counts: Counter[str | None] = Counter()
    with open_sealed(part, cure="delete it and run extract again", read_dictionary=["label"]) as parquet:
        for batch in parquet.iter_batches(columns=["label"], use_threads=False):
            column = batch.column(0)
            # By NumPy: pyarrow.compute takes longer to import than nearly every OUT to count.
            numbers = column.indices.to_numpy(zero_copy_only=False)
            if column.null_count:
                counts[None] += column.null_count
                numbers = numbers[~np.isnan(numbers)].astype(np.int64)
            found = np.bincount(numbers, minlength=len(column.dictionary)).tolist()
            counts.update({label: n for label, n in zip(column.dictionary.to_pylist(), found, strict=True) if n})
    return counts


def summarise_labels(counts: Mapping[str | None, int] | None) -> list[str]:
    """Returns the lines of a summary about labels, given what `count_labels` counted."""
    if counts is None:
        return ["labels   not counted; featuremill sql OUT 'SELECT label, count(*) FROM features GROUP BY label' does"]
    known = {label: count for label, count in counts.items() if label is not None}
    without = counts.get(None, 0)
    lines = [f"labels   {_classes(known)}"] if known else []
    if without and known:
        lines.append(f"note     {counted(without, 'row')} without a label")
    return lines + [f"CAUTION  {caution}" for caution in cautions(counts)]


def _classes(known: Mapping[str, int]) -> str:
    shown = ", ".join(f"{short(label, _NAME_LENGTH)} {known[label]:,}" for label in sorted(known)[:_NAMED])
    more = ", …" if len(known) > _NAMED else ""
    return f"{len(known):,} class{'es' * (len(known) != 1)}: {shown}{more}"
