"""Compact: merges the small parts of a complete OUT into larger ones, sorted by key."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.extraction.output import locked, remove_leftovers
from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.storage import readable
from transforms.store.listing import MERGED_STEM, Listing, list_parts
from transforms.store.manifest import read_manifest
from transforms.store.merging import MOST_UNITS, PartFacts, merge_parts, part_facts
from transforms.store.reports import stored_bytes
from transforms.text import counted, size_text

TARGET_BYTES = 256 * 10**6


@dataclass(frozen=True)
class CompactSummary:
    """What a compaction came to.

    Attributes:
        output: OUT.
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


def compact(
    output: str, *, target_bytes: int = TARGET_BYTES, say: Callable[[str], None] = lambda line: None
) -> CompactSummary:
    """Merges parts that are at most half as large as wanted. Rows, reports and fingerprint stay what they are.

    Parts are put in the order of their smallest keys and merged in groups of neighbours; within a merged part all rows
    are sorted by key. A group's merged part is committed before its parts are removed, and where both are there
    the merged one counts: this can be cut off anywhere, and run again.

    Args:
        output: OUT, complete.
        target_bytes: What a merged part has at most, by its compressed columns.
        say: Is called with a line for each merged part.

    Raises:
        UsageError: A size that can't be.
        FeaturemillError: OUT isn't complete, somebody else is at work on it, or a part can't be read or written.
    """
    started = time.perf_counter()
    output = storage.absolute(output)
    if target_bytes < 1:
        raise UsageError(f"--target-bytes must be at least 1, not {target_bytes}")
    manifest = _complete_manifest(output)
    with locked(output, alone=True):
        before = _tidy(output)
        bytes_before = _stored_bytes(output, before)
        facts = _read_facts(output, before)
        _check_whole(output, facts, manifest)
        groups = _groups(facts, target_bytes)
        for number, group in enumerate(groups, 1):
            names = [part.name for part in group]
            merged = merge_parts(output, names, before_commit=lambda: _check_unchanged(output, manifest))
            # Once more: an extract that began since may have taken the merged part apart again.
            _check_unchanged(output, manifest)
            if storage.stat(storage.join(output, "features", merged)):
                storage.delete(storage.join(output, "features", name) for name in names)
            say(f"{number} of {len(groups)} merged, from {len(names)} parts ({size_text(_sum_bytes(group))})")
        after = list_parts(output)
    return CompactSummary(
        output=output,
        target_bytes=target_bytes,
        rows=manifest["totals"]["rows_embedded"],
        merged=sum(map(len, groups)),
        written=len(groups),
        parts_before=len(before.names),
        parts_after=len(after.names),
        bytes_before=bytes_before,
        bytes_after=_stored_bytes(output, after),
        wall_seconds=time.perf_counter() - started,
    )


def _complete_manifest(output: str) -> dict[str, Any]:
    manifest = read_manifest(output)
    if manifest["status"] != "complete":
        raise FeaturemillError(
            f"{output} is not finished (status {manifest['status']}); finish it with the same extract command first"
        )
    return manifest


def _check_whole(output: str, parts: list[PartFacts], manifest: dict[str, Any]) -> None:
    units = sum(facts.units for facts in parts)
    if units != manifest["totals"]["units"]:
        raise FeaturemillError(
            f"{output} holds {counted(units, 'unit')}, but its manifest says {manifest['totals']['units']:,}: "
            "a part is missing; run the same extract command again"
        )


def _check_unchanged(output: str, manifest: dict[str, Any]) -> None:
    if read_manifest(output) != manifest:
        raise FeaturemillError(
            f"extract began on {output} while it was compacted; what is merged stays merged: run compact again when "
            "extract has finished"
        )


def _tidy(output: str) -> Listing:
    """Removes what a compaction that was cut off left behind, and lists the parts."""
    names = storage.list_folder(storage.join(output, "_tmp"))
    storage.delete(storage.join(output, "_tmp", name) for name in names if MERGED_STEM.match(name))
    return remove_leftovers(output)


def _stored_bytes(output: str, listing: Listing) -> int:
    return stored_bytes(output, listing.unit_ids())


def _read_facts(output: str, listing: Listing) -> list[PartFacts]:
    units = {name: len(footer.reports) for name, footer in listing.merged.items()}
    found = []
    with ThreadPoolExecutor(16) as pool:
        for first in range(0, len(listing.names), 1000):
            names = listing.names[first : first + 1000]
            found += pool.map(lambda name: part_facts(output, name, units.get(name, 1)), names)
    return found


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


def compact_json(summary: CompactSummary) -> dict[str, Any]:
    """Returns the summary for programs."""
    return asdict(summary)


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
