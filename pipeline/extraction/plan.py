"""The plan of a run: compares the inputs with what OUT already holds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from transforms import shards, storage
from transforms.records import FileInfo, ListedFile, Shard, Unit
from transforms.store.output import Output
from transforms.store.units import PlannedUnit, unit_id
from transforms.text import clean

# A listing is cut into units of at most this many files: small enough to lose little, large enough to cost little.
FILES_PER_UNIT = 1024
# Fewer per unit where there are few: every worker should get several, or one of them works alone at the end.
UNITS_PER_WORKER = 4
SMALLEST_UNIT = 32


@dataclass(frozen=True)
class Stale:
    """A part that no longer belongs: its input isn't what it was, or nobody planned it."""

    unit_id: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The units that a run will do, and those that it leaves.

    Attributes:
        todo: Units without a part, of the given inputs and of those that an earlier run was asked for.
        done: Units whose part is there and whose input, given or not, is unchanged.
        stale: Parts whose input changed or vanished.
        dropped: Units without a part whose input changed or vanished; what is left of it is planned anew.
        unnamed: How many of `todo` are of inputs that this run doesn't name.
        remove: Ids of the units whose part is removed before the work begins: stale ones, and those done again.
    """

    todo: tuple[PlannedUnit, ...]
    done: tuple[PlannedUnit, ...]
    stale: tuple[Stale, ...]
    dropped: tuple[PlannedUnit, ...]
    unnamed: int = 0
    remove: tuple[str, ...] = ()

    @cached_property
    def units(self) -> tuple[PlannedUnit, ...]:
        """All that OUT holds when this run is complete."""
        return tuple(sorted((*self.done, *self.todo), key=lambda planned: planned.unit_id))


def make_plan(output: Output, found: shards.Found, *, fingerprint: str, unit_bytes: int, workers: int) -> Plan:
    """Plans the inputs against what OUT knows.

    A unit that OUT knows is kept as it was cut, whatever the settings are now. So adding files to a folder, or
    another `unit_bytes`, only plans what is new, and nothing that is done is done again. What was asked for once and
    isn't done stays to be done, also by a run that doesn't name it: else OUT would be complete without it.

    Args:
        output: OUT.
        found: The inputs.
        fingerprint: Of the run's spec.
        unit_bytes: Shards larger than this are split.
        workers: Processes, to size the units of a small listing.
    """
    given = {shard.file.uri: shard for shard in found.shards}
    files = {listed.file.uri: listed for listed in found.files}
    known, parts = output.plan, output.listing.unit_ids()
    elsewhere = _look_up(known, given, files)
    incomplete = incomplete_shards(planned.unit for planned in known)
    # Planned anew as a whole: parts of units that are cut the same way again count.
    again = [planned.unit for planned in known if planned.unit.shard.file.uri in incomplete]
    known = [planned for planned in known if planned.unit.shard.file.uri not in incomplete]
    todo, done, stale, dropped = [], [], [], []
    for planned in known:
        reason = _why_stale(planned.unit, given, files, elsewhere=elsewhere)
        if not reason:
            (done if planned.unit_id in parts else todo).append(planned)
            continue
        again.append(planned.unit)
        if planned.unit_id in parts:
            stale.append(Stale(planned.unit_id, reason))
        else:
            dropped.append(planned)
    found = _with_survivors(found, again, elsewhere)
    covered = {p.unit.shard.file.uri for p in (*todo, *done)} | {
        listed.file.uri for p in (*todo, *done) for listed in p.unit.files
    }
    new = _new_units(found, covered, fingerprint=fingerprint, unit_bytes=unit_bytes, workers=workers)
    # A part that was made under a plan that is lost counts, if the same unit is planned again.
    done += [planned for planned in new if planned.unit_id in parts]
    todo += [planned for planned in new if planned.unit_id not in parts]
    unknown = parts - {planned.unit_id for planned in (*known, *new)}
    stale += [Stale(name, f"part {name} is in no plan") for name in sorted(unknown)]
    unnamed = sum(not _is_named(planned.unit, given, files) for planned in todo)
    return Plan(tuple(todo), tuple(done), tuple(stale), tuple(dropped), unnamed)


def _is_named(unit: Unit, given: dict[str, Shard], files: dict[str, ListedFile]) -> bool:
    return unit.shard.file.uri in given or any(listed.file.uri in files for listed in unit.files)


def incomplete_shards(units: Iterable[Unit]) -> set[str]:
    """Returns the URIs of shards of which the units are only a part: there is a gap, or an end is missing.

    Two runs at once may leave such a plan; complete, it would be an OUT with rows that nobody misses.
    """
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for unit in units:
        if not unit.shard.is_listing:
            ranges[unit.shard.file.uri].append((unit.start, unit.stop))
    incomplete = set()
    for uri, some in ranges.items():
        some.sort()
        starts, stops = [start for start, _ in some], [stop for _, stop in some]
        if starts[0] != 0 or stops[-1] != -1 or starts[1:] != stops[:-1]:
            incomplete.add(uri)
    return incomplete


def _with_survivors(found: shards.Found, units: Sequence[Unit], elsewhere: dict[str, FileInfo]) -> shards.Found:
    """Adds the inputs of these units that still exist, but weren't given."""
    files = {
        listed.file.uri: replace(listed, file=elsewhere[listed.file.uri])
        for unit in units
        for listed in unit.files
        if listed.file.uri in elsewhere
    }
    more = {
        unit.shard.file.uri: replace(unit.shard, file=elsewhere[unit.shard.file.uri])
        for unit in units
        if unit.shard.file.uri in elsewhere
    }
    return replace(
        found,
        shards=tuple(sorted((*found.shards, *more.values()), key=lambda shard: shard.file.uri)),
        files=tuple(sorted((*found.files, *files.values()), key=lambda listed: listed.file.uri)),
    )


def _new_units(
    found: shards.Found, covered: set[str], *, fingerprint: str, unit_bytes: int, workers: int
) -> list[PlannedUnit]:
    files = [listed for listed in found.files if listed.file.uri not in covered]
    per_unit = min(FILES_PER_UNIT, max(SMALLEST_UNIT, -(-len(files) // (UNITS_PER_WORKER * workers))))
    units = [unit for s in found.shards if s.file.uri not in covered for unit in shards.split(s, unit_bytes)]
    units += shards.slice_files(files, per_unit)
    return [PlannedUnit(unit_id(unit, fingerprint), unit) for unit in units]


def _why_stale(
    unit: Unit, given: dict[str, Shard], files: dict[str, ListedFile], *, elsewhere: dict[str, FileInfo]
) -> str:
    """Returns why a unit's input is no longer what it was, empty if it still is."""
    shard = unit.shard
    if shard.is_listing:
        changes = (_file_change(listed, files.get(listed.file.uri), elsewhere) for listed in unit.files)
        return next(filter(None, changes), "")
    if shard.file.uri in given:
        return _shard_change(shard, given[shard.file.uri])
    return _info_change(shard.file, elsewhere.get(shard.file.uri))


def _file_change(old: ListedFile, new: ListedFile | None, elsewhere: dict[str, FileInfo]) -> str:
    if new is None:
        return _info_change(old.file, elsewhere.get(old.file.uri))
    if old.label != new.label:
        return f"{clean(old.file.uri)} had label {old.label!r}, now {new.label!r}"
    if old.split != new.split:
        return f"{clean(old.file.uri)} was on side {old.split!r}, now on {new.split!r}"
    return _info_change(old.file, new.file)


def _shard_change(old: Shard, new: Shard) -> str:
    change = _info_change(old.file, new.file)
    for name in ("format", "compression", "image_field", "label_field", "name_field"):
        before, now = getattr(old, name), getattr(new, name)
        if not change and before != now:
            change = f"{clean(old.file.uri)} was read with {name} {before!r}, now {now!r}"
    return change


def _info_change(old: FileInfo, new: FileInfo | None) -> str:
    if new is None:
        return f"{clean(old.uri)} is gone"
    if old.size != new.size:
        return f"{clean(old.uri)} had {old.size} bytes, now {new.size}"
    return "" if old.version == new.version else f"{clean(old.uri)} was written again since"


def _look_up(
    known: Sequence[PlannedUnit], given: dict[str, Shard], files: dict[str, ListedFile]
) -> dict[str, FileInfo]:
    """Returns the known inputs that weren't given and still exist, by one listing per folder: no request per file."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    for planned in known:
        for file in [listed.file for listed in planned.unit.files] or [planned.unit.shard.file]:
            if file.uri not in given and file.uri not in files:
                by_folder[file.uri.rsplit("/", 1)[0]].add(file.uri)
    found = {}
    for folder, wanted in by_folder.items():
        found.update({info.uri: info for info in storage.list_infos(folder) if info.uri in wanted})
    return found


def take_sample(units: Iterable[Unit], limit: int) -> list[Unit]:
    """Returns units that hold the first `limit` records and no more.

    Records are counted by reading them, which for a sample costs less than any index would.
    """
    taken: list[Unit] = []
    for unit in units:
        left = limit - sum(unit.limit or 0 for unit in taken)
        if left <= 0:
            break
        if unit.files:
            chosen = unit.files[:left]
            taken.append(replace(unit, files=chosen, stop=unit.start + len(chosen), limit=len(chosen)))
        else:
            count = sum(1 for _ in islice(shards.read(unit), left))
            taken.append(replace(unit, limit=count))
    return [unit for unit in taken if unit.limit]


def input_bytes(units: Iterable[PlannedUnit]) -> int:
    return sum(planned.unit.input_bytes for planned in units)
