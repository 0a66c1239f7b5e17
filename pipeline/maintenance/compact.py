"""Compact: merges the small parts of a complete OUT into larger ones, sorted by key."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from transforms import storage
from transforms.declared import AT_LEAST_ONE, check, declared, parse_bytes
from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.storage import readable
from transforms.store.listing import MERGED_STEM
from transforms.store.manifest import read_manifest
from transforms.store.merging import MOST_UNITS, PartFacts, merge_as, merge_parts, part_facts
from transforms.store.output import Output
from transforms.text import counted, size_text

_UNFINISHED = re.compile(rf"{MERGED_STEM.pattern}\.[0-9a-f]{{32}}\.parquet")


@dataclass(frozen=True)
class CompactOptions:
    """The options of `compact`, on an OUT that is complete."""

    output: str
    target_bytes: int = declared(
        256 * 10**6, help="Size of a merged part", bounds=(AT_LEAST_ONE,), parse=parse_bytes, unset="256MB"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class CompactSummary:
    """The result of a compaction.

    Attributes:
        target_bytes: What merged parts were to have at most.
        rows: Rows of OUT; as many as before.
        merged: Parts that were merged.
        written: Parts that they became.
        parts_before: Files under OUT/features.
        parts_after: The same, now.
        bytes_before: Of these files; 0 where OUT isn't local.
        bytes_after: The same, now.
        wall_seconds: All in all.
    """

    output: str
    target_bytes: int
    rows: int
    merged: int
    written: int
    parts_before: int
    parts_after: int
    bytes_before: int
    bytes_after: int
    wall_seconds: float


def compact(options: CompactOptions, *, say: Callable[[str], None] = lambda line: None) -> CompactSummary:
    """Merges parts that are at most half as large as wanted. Rows, reports and fingerprint stay what they are.

    Parts are put in the order of their smallest keys and merged in groups of neighbours; within a merged part all rows
    are sorted by key. A group's merged part is committed before its parts are removed, and where both are there
    the merged one counts: this can be cut off anywhere, and run again.

    Args:
        options: What was asked for; the size counts a part's compressed columns.
        say: Is called with a line for each merged part.

    Raises:
        FeaturemillError: OUT isn't complete, somebody else is at work on it, or a part can't be read or written.
    """
    started = time.perf_counter()
    with _complete(Output(options.output)).locked() as out:
        _tidy(out)
        before, bytes_before = out.listing.names, out.stored_bytes(out.listing.unit_ids())
        facts = _read_facts(out)
        _check_whole(out, facts)
        groups = _groups(facts, options.target_bytes)
        for number, group in enumerate(groups, 1):
            names = [part.name for part in group]
            merged = merge_parts(out, names, before_commit=lambda: _check_unchanged(out))
            # Once more: an extract that began since may have taken the merged part apart again.
            _check_unchanged(out)
            if storage.stat(out.path("features", merged)):
                with out.removing_parts():
                    storage.delete(out.path("features", name) for name in names)
            say(f"{number} of {len(groups)} merged, from {len(names)} parts ({size_text(_sum_bytes(group))})")
        out.relist()
        for side in out.added:
            # As far as it has the units; adding the rest goes on with this.
            with side.locked(), side.writing():
                _tidy(side)
                merge_as(out, side)
    return CompactSummary(
        output=out.folder,
        target_bytes=options.target_bytes,
        rows=out.manifest.totals.rows_embedded,
        merged=sum(map(len, groups)),
        written=len(groups),
        parts_before=len(before),
        parts_after=len(out.listing.names),
        bytes_before=bytes_before,
        bytes_after=out.stored_bytes(out.listing.unit_ids()),
        wall_seconds=time.perf_counter() - started,
    )


def _complete(output: Output) -> Output:
    if not output.manifest.is_complete:
        raise FeaturemillError(
            f"{output} is not finished (status {output.manifest.status}); finish it with {output.manifest.cure} first"
        )
    return output


def _check_whole(output: Output, parts: list[PartFacts]) -> None:
    units, expected = sum(facts.units for facts in parts), output.manifest.totals.units
    if units != expected:
        raise FeaturemillError(
            f"{output} holds {counted(units, 'unit')}, but its manifest says {expected:,}: "
            "a part is missing; run the same extract command again"
        )


def _check_unchanged(output: Output) -> None:
    if read_manifest(output.folder) != output.manifest:
        raise FeaturemillError(
            f"extract began on {output} while it was compacted; what is merged stays merged: run compact again when "
            "extract has finished"
        )


def _tidy(output: Output) -> None:
    """Removes what a compaction that was cut off left behind."""
    names = storage.list_folder(output.path("_tmp"))
    storage.delete(output.path("_tmp", name) for name in names if _UNFINISHED.fullmatch(name))
    output.remove_leftovers()


def _read_facts(output: Output) -> list[PartFacts]:
    listing = output.listing
    units = {name: len(footer.reports) for name, footer in listing.merged.items()}
    return list(ahead(lambda name: part_facts(output, name, units.get(name, 1)), listing.names))


def _groups(parts: list[PartFacts], target_bytes: int) -> list[list[PartFacts]]:
    """Returns what is to be merged: neighbours by key, as many as fit."""
    small = [p for p in parts if p.data_bytes <= target_bytes / 2 and p.units <= MOST_UNITS / 2]
    groups: list[list[PartFacts]] = []
    for facts in sorted(small, key=lambda facts: (facts.first_key, facts.name)):
        fits = (
            groups
            and _sum_bytes(groups[-1]) + facts.data_bytes <= target_bytes
            and sum(f.units for f in groups[-1]) + facts.units <= MOST_UNITS
        )
        if fits:
            groups[-1].append(facts)
        else:
            groups.append([facts])
    return [group for group in groups if len(group) > 1]


def _sum_bytes(parts: list[PartFacts]) -> int:
    return sum(facts.data_bytes for facts in parts)


def compact_text(summary: CompactSummary) -> str:
    """Returns the summary for people."""
    s = summary
    if not s.merged:
        what = f"no two parts fit into one of {size_text(s.target_bytes)}" if s.parts_before > 1 else "that takes two"
        return f"{readable(s.output)}: nothing to merge, {counted(s.parts_before, 'part')}: {what}"
    sizes = f", {size_text(s.bytes_before)} → {size_text(s.bytes_after)}" if s.bytes_after else ""
    return (
        f"{readable(s.output)}: {s.parts_before} → {counted(s.parts_after, 'part')}{sizes}, {s.wall_seconds:.1f} s\n"
        f"{s.merged} parts became {s.written}, sorted by key; {counted(s.rows, 'row')} as before"
    )
