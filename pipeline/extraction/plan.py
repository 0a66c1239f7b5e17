"""The plan of a run: compares the inputs with what OUT already holds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from transforms import shards, storage
from transforms.records import FileInfo, ListedFile, Shard, Unit
from transforms.store.output import Output
from transforms.store.units import PlannedUnit, unit_id
from transforms.text import clean, counted, size_text

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
        done: Units whose part is there and whose input, given or not, is unchanged; touched ones (another time, the
            same bytes) among them, with the time that they have now.
        stale: Parts whose input changed or vanished.
        dropped: Units without a part whose input changed or vanished; what is left of it is planned anew.
        unnamed: How many of `todo` are of inputs that this run doesn't name.
        remove: Ids of the units whose part is removed before the work begins: stale ones, and those done again.
        touched: The touched units among `done`.
        recognised: How many images these hold.
    """

    todo: tuple[PlannedUnit, ...]
    done: tuple[PlannedUnit, ...]
    stale: tuple[Stale, ...]
    dropped: tuple[PlannedUnit, ...]
    unnamed: int = 0
    remove: tuple[str, ...] = ()
    touched: tuple[PlannedUnit, ...] = ()
    recognised: int = 0

    @cached_property
    def units(self) -> tuple[PlannedUnit, ...]:
        """All that OUT holds when this run is complete."""
        return tuple(sorted((*self.done, *self.todo), key=lambda planned: planned.unit_id))


def make_plan(
    output: Output,
    found: shards.Found,
    *,
    fingerprint: str,
    unit_bytes: int,
    workers: int,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plans the inputs against what OUT knows.

    A unit that OUT knows is kept as it was cut, whatever the settings are now. So adding files to a folder, or
    another `unit_bytes`, only plans what is new, and nothing that is done is done again. What was asked for once and
    isn't done stays to be done, also by a run that doesn't name it: else OUT would be complete without it.

    Where only the time of an input changed, its bytes are read and compared with the stored hashes. If they are the
    same, the unit stays, under its id, and has the new time in the plan. So does a unit that was relocated: an id is
    made when a unit is first planned, and afterwards it is a name.

    Args:
        fingerprint: Of the run's spec.
        unit_bytes: Shards larger than this are split.
        workers: Processes, to size the units of a small listing.
        say: Is called with a line before much is read.
    """
    given = {shard.file.uri: shard for shard in found.shards}
    files = {listed.file.uri: listed for listed in found.files}
    known, parts = output.plan, output.listing.unit_ids()
    elsewhere = storage.look_up(
        file.uri for planned in known for file in planned.unit.inputs if file.uri not in given and file.uri not in files
    )
    incomplete = incomplete_shards(planned.unit for planned in known)
    # Planned anew as a whole: parts of units that are cut the same way again count.
    ids = {planned.unit: planned.unit_id for planned in known if planned.unit.shard.file.uri in incomplete}
    known = [planned for planned in known if planned.unit.shard.file.uri not in incomplete]
    reasons = {planned.unit_id: _why_stale(planned.unit, given, files, elsewhere=elsewhere) for planned in known}
    suspects = [planned for planned in known if reasons[planned.unit_id] and planned.unit_id in parts]
    touched, recognised = _compare_touched(output, suspects, reasons, given, files, elsewhere=elsewhere, say=say)
    same = [touched.get(p.unit_id, p) for p in known if p.unit_id in touched or not reasons[p.unit_id]]
    changed = [p for p in known if p.unit_id not in touched and reasons[p.unit_id]]
    stale = [Stale(p.unit_id, reasons[p.unit_id]) for p in changed if p.unit_id in parts]
    found = _with_survivors(found, [*ids, *(p.unit for p in changed)], elsewhere)
    covered = {file.uri for p in same for file in p.unit.inputs}
    units = _new_units(found, covered, unit_bytes=unit_bytes, workers=workers)
    taken = {planned.unit_id for planned in known}
    new = [PlannedUnit(ids.get(unit) or _free_id(unit, fingerprint, taken), unit) for unit in units]
    todo = tuple(p for p in (*same, *new) if p.unit_id not in parts)
    unknown = parts - {planned.unit_id for planned in (*known, *new)}
    stale += [Stale(name, f"part {name} is in no plan") for name in sorted(unknown)]
    named = given.keys() | files.keys()
    return Plan(
        todo=todo,
        # New ones too: a part that was made under a plan that is lost counts, if the same unit is planned again.
        done=tuple(p for p in (*same, *new) if p.unit_id in parts),
        stale=tuple(stale),
        dropped=tuple(p for p in changed if p.unit_id not in parts),
        unnamed=sum(not any(file.uri in named for file in p.unit.inputs) for p in todo),
        touched=tuple(touched.values()),
        recognised=recognised,
    )


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


def _new_units(found: shards.Found, covered: set[str], *, unit_bytes: int, workers: int) -> list[Unit]:
    files = [listed for listed in found.files if listed.file.uri not in covered]
    per_unit = min(FILES_PER_UNIT, max(SMALLEST_UNIT, -(-len(files) // (UNITS_PER_WORKER * workers))))
    units = [unit for s in found.shards if s.file.uri not in covered for unit in shards.split(s, unit_bytes)]
    return units + shards.slice_files(files, per_unit)


def _free_id(unit: Unit, fingerprint: str, taken: set[str]) -> str:
    """Returns the unit's id, or another one where a unit that has moved away since has kept it."""
    name = unit_id(unit, fingerprint)
    while name in taken:
        name = unit_id(unit, name)
    return name


def _compare_touched(
    output: Output,
    suspects: Sequence[PlannedUnit],
    reasons: dict[str, str],
    given: dict[str, Shard],
    files: dict[str, ListedFile],
    *,
    elsewhere: dict[str, FileInfo],
    say: Callable[[str], None],
) -> tuple[dict[str, PlannedUnit], int]:
    """Finds the units of which nothing but the time changed.

    Reading them costs less than embedding them, for which they would be read as well.

    Returns:
        {id: the unit as it is now}, and how many images these hold. The reasons of the others are made more precise.
    """
    renewed = {planned.unit_id: (planned.unit, _renewed(planned.unit, given, files, elsewhere)) for planned in suspects}
    pairs = {unit_id: (old, new) for unit_id, (old, new) in renewed.items() if new}
    if not pairs:
        return {}, 0
    # Rarely needed, and what reads rows takes long to import.
    from transforms.rows.contents import compare_contents

    read = size_text(sum(old.input_bytes for old, _ in pairs.values()))
    say(f"inputs of {counted(len(pairs), 'unit')} were written again: comparing their bytes ({read})")
    touched, images = {}, 0
    for compared in compare_contents(output, pairs):
        if compared.difference:
            reasons[compared.unit_id] = compared.difference
        else:
            touched[compared.unit_id] = PlannedUnit(compared.unit_id, pairs[compared.unit_id][1])
            images += compared.records
    return touched, images


def _renewed(
    unit: Unit, given: dict[str, Shard], files: dict[str, ListedFile], elsewhere: dict[str, FileInfo]
) -> Unit | None:
    """Returns the unit with the versions that its inputs have now; None if anything else changed, or they are gone."""
    if unit.shard.is_listing:
        now = []
        for listed in unit.files:
            uri = listed.file.uri
            there = files[uri] if uri in files else replace(listed, file=elsewhere.get(uri))
            if there.file is None or replace(there, file=replace(there.file, version=listed.file.version)) != listed:
                return None
            now.append(there)
        return shards.slice_files(now, len(now))[0]
    old = unit.shard
    file = given[old.file.uri].file if old.file.uri in given else elsewhere.get(old.file.uri)
    if file is None or replace(file, version=old.file.version) != old.file:
        return None
    shard = given.get(old.file.uri, replace(old, file=file))
    return replace(unit, shard=shard) if replace(shard, file=old.file) == old else None


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
    if old.kept != new.kept:
        return f"{clean(old.file.uri)} has other values to keep now"
    return _info_change(old.file, new.file)


def _shard_change(old: Shard, new: Shard) -> str:
    change = _info_change(old.file, new.file)
    for name in ("format", "compression", "image_field", "label_field", "name_field"):
        before, now = getattr(old, name), getattr(new, name)
        if not change and before != now:
            change = f"{clean(old.file.uri)} was read with {name} {before!r}, now {now!r}"
    return change


def _info_change(old: FileInfo, new: FileInfo | None) -> str:
    if new is None and ListedFile(old, None).is_missing:
        return ""
    if new is None:
        return f"{clean(old.uri)} is gone"
    if old.size != new.size:
        return f"{clean(old.uri)} had {old.size} bytes, now {new.size}"
    return "" if old.version == new.version else f"{clean(old.uri)} was written again since"


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
            with shards.reading_child() as child:
                count = sum(1 for _ in islice(shards.read(unit, apart=child), left))
            taken.append(replace(unit, limit=count))
    return [unit for unit in taken if unit.limit]


def input_bytes(units: Iterable[PlannedUnit]) -> int:
    return sum(planned.unit.input_bytes for planned in units)
