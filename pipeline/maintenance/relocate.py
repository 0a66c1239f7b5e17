"""Relocate: OUT's inputs lie elsewhere now; keys, sources and plan say so, and nothing is embedded again."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.maintenance.moves import Moves, continued, lies_in, understood
from transforms import shards, storage
from transforms.declared import check, declared
from transforms.errors import FeaturemillError, UsageError
from transforms.machine import ahead
from transforms.records import Unit
from transforms.rows.contents import compare_contents
from transforms.storage import readable
from transforms.store.layout import SKIPPED_FILE, failures_uri
from transforms.store.manifest import Manifest, Relocation, read_manifest
from transforms.store.merging import rewrite
from transforms.store.output import Output
from transforms.store.reports import parts_sha256
from transforms.store.units import PlannedUnit
from transforms.text import clean, counted, size_text

# Each holds a row group in memory.
_THREADS = 4


@dataclass(frozen=True)
class RelocateOptions:
    """The options of `relocate`.

    Attributes:
        output: OUT, complete or not.
        moves: `OLD=NEW` each: files or folders, or the beginning of their names up to a slash.
    """

    output: str
    moves: Sequence[str]
    check: str = declared(
        "all",
        help="Compare every image with its stored hash, which reads all files, or only the files' sizes",
        choices=("all", "size"),
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.moves:
            raise UsageError("no move was given; write OLD=NEW, such as /old/photos=/new/photos")


@dataclass(frozen=True)
class RelocateSummary:
    """The result of a relocation.

    Attributes:
        moves: (old, new) places.
        files: Input files that moved; 0 where an earlier run had checked them.
        images: Records that were compared by hash.
        rewritten: Parts and failures files that were written anew.
        wall_seconds: All in all.
    """

    output: str
    moves: tuple[tuple[str, str], ...]
    files: int
    images: int
    rewritten: int
    wall_seconds: float


def relocate(options: RelocateOptions, *, say: Callable[[str], None] = lambda line: None) -> RelocateSummary:
    """Writes the new places of OUT's inputs into its rows, failures, totals and plan. No image is decoded or embedded.

    First every file is looked up at its new place and has to have the same size and, unless `--check` is `size`, the
    same images by their hashes. Then the manifest says what is under way; the plan is replaced, and each part, whole
    and under its name. Units keep their ids. A footer says which relocation wrote it, so this can be cut off
    anywhere and run again: no row is ever missing or there twice. A merged part stays in the order that it had.

    Args:
        say: Is called with a line before what takes time.

    Raises:
        UsageError: A move that can't be.
        FeaturemillError: What is at the new place isn't what was embedded, another relocation is unfinished, somebody
            else is at work on OUT, or it can't be read or written.
    """
    started = time.perf_counter()
    moves = options.moves
    with Output(options.output).locked() as out:
        manifest = out.manifest
        if not out.is_local and not storage.written_as(out.folder, ""):
            raise FeaturemillError(f"{out} is on a file system that can't replace a file; copy it to a disk first")
        pairs = continued(manifest, moves) if manifest.relocation else understood(moves, _places(out.plan))
        token = manifest.relocation.token if manifest.relocation else uuid.uuid4().hex
        files = images = 0
        if not manifest.relocation or out.relocation != token:
            plan = _moved_plan(out, pairs)
            files, images = _check(out, plan, options.check, say)
            for side in out.added:
                # They first, one after the other: as long as OUT itself isn't, the same command goes on with the rest.
                to_move = any(p.unit != plan[p.unit_id][1] for p in side.plan if p.unit_id in plan)
                if side.plan and (to_move or side.manifest.relocation):
                    relocate(replace(options, output=side.folder, check="size"), say=say)
            _begin(out, manifest, pairs, plan, token)
        rewritten = _rewrite(out, pairs, token, say)
        _finish(out, pairs)
    return RelocateSummary(out.folder, pairs.pairs, files, images, rewritten, time.perf_counter() - started)


def _places(plan: Iterable[PlannedUnit]) -> set[str]:
    return {file.uri for planned in plan for file in planned.unit.inputs}


def _moved_plan(out: Output, moves: Moves) -> dict[str, tuple[Unit, Unit]]:
    """Returns {id: (a unit, what it is at the new place)} of the units that move.

    Raises:
        FeaturemillError: A file isn't at the new place, or not as large, or there twice.
    """
    moved = {file.uri: file for planned in out.plan for file in planned.unit.inputs if moves(file.uri) != file.uri}
    there = storage.look_up(map(moves, moved))
    wrong = []
    for uri, file in sorted(moved.items()):
        now = there.get(moves(uri))
        if now is None:
            wrong.append(f"{clean(moves(uri))} is not there")
        elif now.size != file.size:
            wrong.append(f"{clean(now.uri)} has {now.size} bytes, and {clean(uri)} had {file.size}")
    _refuse(out, wrong)
    counts = Counter(map(moves, _places(out.plan)))
    _refuse(out, [f"{clean(uri)} would be in it twice" for uri, count in sorted(counts.items()) if count > 1])
    units = {}
    for planned in out.plan:
        unit = planned.unit
        if not any(file.uri in moved for file in unit.inputs):
            continue
        if unit.files:
            files = [
                replace(listed, file=there[moves(listed.file.uri)]) if listed.file.uri in moved else listed
                for listed in unit.files
            ]
            [*sliced] = shards.slice_files(files, len(files))
            if len(sliced) > 1:
                stores = " and ".join(clean(one.shard.file.uri) for one in sliced[:2])
                raise FeaturemillError(f"{out}: a unit's files can't lie in {stores}; move them to one store")
            units[planned.unit_id] = unit, replace(unit, shard=sliced[0].shard, files=sliced[0].files)
        else:
            shard = replace(unit.shard, file=there[moves(unit.shard.file.uri)])
            units[planned.unit_id] = unit, replace(unit, shard=shard)
    return units


def _refuse(out: Output, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise FeaturemillError(
            f"{out} was left as it is, the new place isn't what was embedded: {'; '.join(wrong[:3])}{more}. Bring "
            "these files, or relocate only the folders or files that are the same"
        )


def _check(out: Output, units: dict[str, tuple[Unit, Unit]], check: str, say: Callable[[str], None]) -> tuple[int, int]:
    """Compares the contents; returns how many files move, and how many images were compared."""
    both = (pair for old, new in units.values() for pair in zip(old.inputs, new.inputs, strict=True))
    files = {now.uri for before, now in both if now.uri != before.uri}
    done = out.listing.unit_ids() if check == "all" else set()
    pairs = {unit_id: _only_moved(*pair) for unit_id, pair in units.items() if unit_id in done}
    if not pairs:
        return len(files), 0
    read = size_text(sum(new.input_bytes for _, new in pairs.values()))
    say(f"comparing the images of {counted(len(files), 'file')} with their stored hashes ({read})")
    compared = list(compare_contents(out, pairs, unread_pass=True))
    _refuse(out, sorted(one.difference for one in compared if one.difference))
    return len(files), sum(one.records for one in compared)


def _only_moved(old: Unit, new: Unit) -> tuple[Unit, Unit]:
    """Returns both units with those files of a listing that move."""
    if not old.files:
        return old, new
    kept = [i for i, (before, now) in enumerate(zip(old.files, new.files, strict=True)) if before.file != now.file]
    return tuple(replace(unit, files=tuple(unit.files[i] for i in kept), stop=len(kept)) for unit in (old, new))


def _begin(out: Output, manifest: Manifest, moves: Moves, units: dict[str, tuple[Unit, Unit]], token: str) -> None:
    relocation = Relocation(token, moves.pairs, (manifest.relocation or manifest).status)
    with out.writing():
        out.remove_leftovers()
        out.say_running(replace(manifest, relocation=relocation))
        plan = [replace(p, unit=units[p.unit_id][1]) if p.unit_id in units else p for p in out.plan]
        out.write_plan(plan, relocation=token)


def _rewrite(out: Output, moves: Moves, token: str, say: Callable[[str], None]) -> int:
    """Writes parts, failures, the list of skipped files and units.parquet anew, as far as they aren't.

    Returns:
        How many files that were, without units.parquet.
    """
    texts = moves.cleaned()
    units = {planned.unit_id: planned.unit for planned in out.plan}
    new_places = [new for _, new in moves.pairs]
    # All that moved, and perhaps what lay there before, in which nothing changes.
    concerned = {
        unit_id
        for unit_id, unit in units.items()
        if any(lies_in(file.uri, new) for file in unit.inputs for new in new_places)
    }

    def rows(table: pa.Table) -> pa.Table:
        sources, keys = table["source"].to_pylist(), table["key"].to_pylist()
        moved = [texts(source) for source in sources]
        # A key begins with its source.
        keys = [now + key.removeprefix(old) for key, old, now in zip(keys, sources, moved, strict=True)]
        for name, values in (("source", moved), ("key", keys)):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
        return table

    def skipped(table: pa.Table) -> pa.Table:
        return table.set_column(0, "uri", pa.array(map(texts, table["uri"].to_pylist()), pa.string()))

    def source(unit_id: str, before: str) -> str:
        # Of a listing it is the folder that its files have in common.
        return clean(units[unit_id].shard.file.uri) if unit_id in units else texts(before)

    def report(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "source": source(values["unit_id"], values["source"])}

    unknown = out.listing.unit_ids() - units.keys()
    names = set(out.listing.merged_with(concerned | unknown))
    names |= {f"{unit_id}.parquet" for unit_id in concerned | unknown}.intersection(out.listing.names)
    uris = [out.path("features", name) for name in sorted(names)]
    uris += [failures_uri(out.folder, unit_id) for unit_id in sorted(out.failed_ids & (concerned | unknown))]
    say(f"writing the new places into {counted(len(uris), 'file')} of {readable(out.folder)}")
    write = partial(rewrite, out, token=token, report=report)
    with out.writing():
        written = sum(ahead(partial(write, rows=rows), uris, threads=_THREADS))
        if out.skipped:
            written += write(out.path(SKIPPED_FILE), rows=skipped)
    if out.reports:
        out.write_reports([replace(r, source=source(r.unit_id, r.source)) for r in out.reports])
    return written


def _finish(out: Output, moves: Moves) -> None:
    manifest = out.manifest
    if read_manifest(out.folder).relocation != manifest.relocation:
        raise FeaturemillError(f"another command was at work on {out} meanwhile; run this one again")
    repeats = manifest.repeats and _moved_keys(manifest.repeats, moves.cleaned())
    with out.writing():
        out.tidy({planned.unit_id for planned in out.plan}, began=time.time())
        found = parts_sha256(out.reports) if manifest.parts_sha256 else ""
        done = {"status": manifest.relocation.status, "relocation": None, "repeats": repeats, "parts_sha256": found}
        out.write_manifest(replace(manifest, **done))


def _moved_keys(repeats: Any, moves: Moves) -> Any:
    """Returns the keys that the manifest names, at their new places."""
    if isinstance(repeats, dict):
        return {name: _moved_keys(value, moves) for name, value in repeats.items()}
    if isinstance(repeats, list):
        return [_moved_keys(value, moves) for value in repeats]
    if not isinstance(repeats, str):
        return repeats
    shard, sign, member = repeats.partition("#")
    whole = moves(repeats)
    return whole if whole != repeats else moves(shard) + sign + member


def relocate_text(summary: RelocateSummary) -> str:
    """Returns the summary for people."""
    s = summary
    return (
        f"{readable(s.output)}: {counted(s.files, 'input file')} relocated, {counted(s.images, 'image')} compared, "
        f"{counted(s.rewritten, 'file')} written, {s.wall_seconds:.1f} s"
    )
