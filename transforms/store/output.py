"""OUT as an object: what it holds, each read once, and the lock on it."""

import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from transforms import storage
from transforms.committed import write_whole
from transforms.errors import FeaturemillError
from transforms.locks import Reading, is_locked, locked_folder, without_readers
from transforms.machine import ahead
from transforms.parquet.files import open_sealed
from transforms.parquet.seals import Broken, origin_of
from transforms.records import FileInfo, SkippedFile, UnitReport
from transforms.store.layout import (
    ADDED_PREFIX,
    OUTPUT_FILES,
    OUTPUT_FOLDERS,
    SKIPPED_FILE,
    TODO_PREFIX,
    failures_uri,
    is_own,
    part_uri,
    plan_uri,
    write_file,
)
from transforms.store.listing import MERGED_STEM, Listing, is_merged, list_parts, look_at_parts, read_footers
from transforms.store.manifest import Manifest, PredictionsManifest, other_kind, read_manifest, write_manifest
from transforms.store.reports import read_skipped, read_units, skipped_file, units_file
from transforms.store.units import Chunk, PlannedUnit, plan_file, read_plan, relocation_of, write_todo
from transforms.text import one_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_F = TypeVar("_F", bound="Folder")
# The names in _tmp of small files, each there for a moment, and of a run's units. The name of a part that is being
# written begins with its shard's, which may be `plan` too.
_SMALL = re.compile(
    rf"((manifest\.json|plan|units\.parquet|skipped(\.parquet)?)\.|{re.escape(TODO_PREFIX)})[0-9a-f]{{32}}(\.parquet)?"
)
# What helps where nothing can be written at all, and where it no longer can.
ELSEWHERE = "choose another --output or fix the permissions"
SPACE = "free some space or fix the permissions and run again"
# A temporary file of ours lives for seconds. One this old was left behind by a killed run.
LEFTOVER_SECONDS = 3600


class Folder:
    """A folder that a command fills: OUT or PRED. As text it is its name.

    Attributes:
        FOLDERS: {folder in it: pattern of the names of our files there}.
    """

    FOLDERS: Mapping[str, str] = OUTPUT_FOLDERS

    def __init__(self, folder: str):
        self.folder = storage.absolute(folder)

    def __str__(self) -> str:
        return self.folder

    @property
    def is_local(self) -> bool:
        return storage.is_local(self.folder)

    @property
    def has_manifest(self) -> bool:
        """True if it has a manifest.json, whatever that says."""
        return storage.stat(self.path("manifest.json")) is not None

    def path(self, *names: str) -> str:
        """Returns where a file or folder of it is."""
        return storage.join(self.folder, *names)

    @contextmanager
    def locked(self: _F) -> Iterator[_F]:
        """Opens it for work: keeps other commands off the same local folder, as long as this process is.

        The folder is made if it isn't there, so that it is held from the first moment on; if nothing came of that, it
        is removed again. On object stores only the manifest is compared.

        Raises:
            FeaturemillError: Another command is at work there, or a folder in it is a link.
        """
        if not self.is_local:
            yield self
            return
        with locked_folder(self.folder):
            for name in self.FOLDERS:
                if os.path.islink(self.path(name)):
                    raise FeaturemillError(
                        f"{self.path(name)} is a link, and nothing in {self} may lead elsewhere: what is written and "
                        f"removed there might be others'; move all of {self} there, and let that be the link"
                    )
            yield self

    @property
    def is_in_use(self) -> bool:
        """True if a command of this machine is at work there."""
        return self.is_local and is_locked(self.folder)

    @contextmanager
    def writing(self, cure: str = SPACE, *, what: str = "write to") -> Iterator[None]:
        """Turns an OSError of what is written to it into a FeaturemillError with this cure."""
        try:
            yield
        except OSError as error:
            raise FeaturemillError(f"cannot {what} {self}: {one_line(error)}; {cure}") from error

    def write_manifest(self, manifest: Manifest | PredictionsManifest) -> None:
        """Writes manifest.json, stamped with the time."""
        write_manifest(self.folder, manifest)
        self.manifest = manifest

    def say_running(self, manifest: Manifest | PredictionsManifest) -> None:
        """Says in the manifest that a run is under way, or that what is there is being removed."""
        storage.make_folder(self.path("_tmp"))
        self.write_manifest(replace(manifest, status="running"))

    def remove_own(self, names: Iterable[str]) -> None:
        """Removes our files in these folders, and each folder that is empty then."""
        for name in names:
            storage.remove_tree(self.path(name), partial(is_own, self.FOLDERS, name))

    def remove_files(self, names: Iterable[str]) -> None:
        """Removes those of these files that are there, in this order."""
        there = storage.list_folder(self.folder)
        for name in names:
            if name in there:
                storage.delete([self.path(name)])


def check_failures(metadata: "pq.FileMetaData", report: UnitReport) -> None:
    """Checks by its footer that a failures file is the one that was committed with a unit's part.

    Raises:
        OSError: It isn't.
    """
    if report.failures_sha256 and origin_of(metadata) != report.failures_sha256:
        raise Broken("it isn't the one that its part was committed with")


class Output(Folder):
    """An OUT. What it holds is read when it is first asked for, and once; `relist` after others may have added.

    Attributes:
        reading: What keeps the parts where they are; None before `keep_parts`, and on object stores.
    """

    reading: Reading | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """Read from manifest.json; raises FeaturemillError where there is none, or it can't be read."""
        return read_manifest(self.folder)

    def added_feature(self, name: str) -> "Output":
        """Returns an added feature: an OUT of its own in this one, with the same units and the same rows.

        Raises:
            FeaturemillError: It is a link.
        """
        side = Output(self.path(f"{ADDED_PREFIX}{name}"))
        if side.is_local and os.path.islink(side.folder):
            raise FeaturemillError(f"{side} is a link, and nothing in {self} may lead elsewhere; move it here")
        return side

    @property
    def added(self) -> "list[Output]":
        """The added features."""
        return [self.added_feature(name) for name in self.manifest.added_features]

    @cached_property
    def listing(self) -> Listing:
        """The parts; raises FeaturemillError for a merged one that can't be read."""
        return list_parts(self.folder, self.part_files.keys() - self.broken.keys())

    @cached_property
    def part_files(self) -> dict[str, FileInfo]:
        """{file name: what is known of it} of what lies in the folder of parts."""
        return {os.path.basename(info.uri): info for info in storage.list_infos(self.path("features"))}

    @cached_property
    def broken(self) -> dict[str, str]:
        """{file name: why} of the parts that `look_at_parts` found not to be what units committed; they don't count."""
        return {}

    @cached_property
    def _opened(self) -> dict[str, UnitReport]:
        """The reports in the footers that `look_at_parts` read."""
        return {}

    def look_at_parts(self) -> None:
        """Looks for parts that were cut off, emptied, or put there from elsewhere; see `broken`.

        Raises:
            FeaturemillError: A part can't be reached, or may not be read.
        """
        known = {report.unit_id: report.part_bytes for report in self.reports}
        planned = {planned.unit_id for planned in self.plan}
        sizes = {name: info.size for name, info in self.part_files.items()}
        looked = look_at_parts(self.folder, sizes, known, self.manifest.fingerprint, planned)
        self.broken, self._opened = dict(looked.broken), dict(looked.reports)
        self._forget("listing")

    def remove_broken(self) -> None:
        """Removes the parts that aren't what a unit committed, so that their units are done again."""
        storage.delete(self.path("features", name) for name in self.broken)
        self._forget("broken", "part_files")

    @cached_property
    def plan(self) -> list[PlannedUnit]:
        """The units that it knows, none if it has no plan yet."""
        return read_plan(plan_uri(self.folder))

    def write_plan(self, planned: Sequence[PlannedUnit], *, relocation: str = "") -> None:
        """Writes the plan, whole and at once; if a relocation changed it, with the token of that."""
        temporary = self.path("_tmp", f"plan.{uuid.uuid4().hex}")
        write_whole(plan_uri(self.folder), plan_file(planned, relocation), temporary)
        self.plan = list(planned)

    @property
    def relocation(self) -> str:
        """The token of the relocation that wrote the plan; empty if none did."""
        return relocation_of(plan_uri(self.folder))

    def write_todo(self, planned: Sequence[PlannedUnit]) -> list[Chunk]:
        """Writes what a run is to do; returns where, see `transforms.store.units.write_todo`."""
        return write_todo(self.path("_tmp", f"{TODO_PREFIX}{uuid.uuid4().hex}.parquet"), planned)

    @cached_property
    def failed_ids(self) -> set[str]:
        """Ids of the units that have a failures file."""
        names = storage.list_folder(self.path("failures"))
        return {name.removesuffix(".parquet") for name in names if is_own(self.FOLDERS, "failures", name)}

    @cached_property
    def skipped(self) -> list[SkippedFile]:
        """The files that were met in folders and are no input."""
        return read_skipped(self.path(SKIPPED_FILE))

    def write_skipped(self, skipped: list[SkippedFile]) -> None:
        """Writes the list of skipped files; no files, no list."""
        storage.make_folder(self.path("_tmp"))
        if skipped:
            write_file(self.folder, SKIPPED_FILE, skipped_file(skipped))
        else:
            storage.delete([self.path(SKIPPED_FILE)])
        self.skipped = skipped

    @property
    def reports(self) -> list[UnitReport]:
        """The rows of units.parquet, none if it isn't there yet; read again if another run wrote it since."""
        version = storage.stat(self._units)
        if version != self._reports[0]:
            self._reports = version, read_units(self._units)
        return self._reports[1]

    @property
    def _units(self) -> str:
        return self.path("units.parquet")

    @cached_property
    def _reports(self) -> tuple[FileInfo | None, list[UnitReport]]:
        return None, []

    def write_reports(self, reports: list[UnitReport]) -> None:
        """Writes units.parquet, one row per unit."""
        write_file(self.folder, "units.parquet", units_file(reports))
        self._reports = storage.stat(self._units), reports

    def relist(self) -> None:
        """Forgets which parts and failures there were."""
        self._forget("listing", "failed_ids", "part_files", "reading")

    def relist_parts(self) -> None:
        """Forgets which parts count: `broken` has more now."""
        self._forget("listing")

    def forget_reports(self) -> None:
        """Counts as if there were no units.parquet, which can't be read."""
        self._reports = storage.stat(self._units), []

    def keep_parts(self) -> None:
        """Lists the parts anew, and keeps a compaction from removing them for as long as this or its features live.

        So a reader sees them as they were at one moment. On object stores nothing keeps anybody from anything.
        """
        if self.is_local and self.reading is None:
            reading = Reading(self.path("features"))
            self.relist()
            self.reading = reading

    @contextmanager
    def removing_parts(self) -> Iterator[None]:
        """Waits until nobody reads the parts, and keeps readers waiting for as long as some are being removed.

        Raises:
            FeaturemillError: Somebody goes on reading.
        """
        with without_readers(self.path("features"), self.folder) if self.is_local else nullcontext():
            yield

    def _forget(self, *names: str) -> None:
        for name in names:
            vars(self).pop(name, None)

    @property
    def holds_features(self) -> bool:
        """True if it has files under names that a run writes or reads; others and empty folders don't concern us."""
        if storage.list_folder(self.folder) & set(OUTPUT_FILES):
            return True
        if any(name.endswith(".parquet") for name in storage.list_folder(self.path("features"))):
            return True
        return bool(self.failed_ids)

    @property
    def has_lost_manifest(self) -> bool:
        """True if it has parts or a plan, and no manifest."""
        names = storage.list_folder(self.folder)
        if "manifest.json" in names or other_kind(self.folder):
            return False
        return "plan.parquet" in names or bool(self.part_files)

    @property
    def is_whole(self) -> bool:
        """True if the last run finished, nobody removed its files since, and no compaction was cut off."""
        # Where no file was skipped, and in an OUT of an earlier version, there is no list of them.
        there = set(OUTPUT_FILES) - {SKIPPED_FILE} <= storage.list_folder(self.folder)
        return there and self.manifest.is_complete and not self.listing.leftovers

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else.

        Raises:
            FeaturemillError: It has such names but no manifest: they aren't ours to remove.
        """
        if not self.holds_features:
            return
        try:
            manifest = self.manifest
        except FeaturemillError as error:
            raise FeaturemillError(
                f"{error}; --overwrite only removes what has a manifest: remove {self} yourself"
            ) from None
        # First of all it must no longer say "complete": this may be cut off halfway.
        self.say_running(manifest)
        for added in self.added:
            added.clear()
            storage.remove_tree(added.folder, lambda name: False)
        self.remove_all()

    def remove_all(self) -> None:
        """Removes what runs wrote, whatever the manifest says, and leaves everything else."""
        self.remove_own(self.FOLDERS)
        self.remove_files(reversed(OUTPUT_FILES))
        self._forget("manifest", "plan", "_reports", "listing", "failed_ids", "skipped", "part_files", "broken")

    def remove_leftovers(self) -> None:
        """Removes the parts whose rows are in a merged one as well: a compaction was cut off."""
        if self.listing.leftovers:
            with self.removing_parts():
                storage.delete(self.path("features", name) for name in self.listing.leftovers)
        self.listing = replace(self.listing, leftovers=())

    def collect_reports(self, unit_ids: Collection[str], *, fresh: Collection[str]) -> list[UnitReport]:
        """Returns the reports of the units, from units.parquet where it has them, else from the parts' footers.

        Args:
            unit_ids: All units that it should hold.
            fresh: Those of this run: what units.parquet says of them is of an earlier time.
        """
        known = {report.unit_id: report for report in self.reports if report.unit_id not in fresh}
        merged = {report.unit_id: report for footer in self.listing.merged.values() for report in footer.reports}
        for found in (merged, {name: report for name, report in self._opened.items() if name not in fresh}):
            known.update((unit_id, found[unit_id]) for unit_id in unit_ids if unit_id in found and unit_id not in known)
        missing = [unit_id for unit_id in unit_ids if unit_id not in known]
        for footer in read_footers([part_uri(self.folder, unit_id) for unit_id in missing]):
            known.update((report.unit_id, report) for report in footer.reports)
        # Of a part of an earlier version the size stays unknown: nobody compares it.
        sizes = {name.removesuffix(".parquet"): info.size for name, info in self.part_files.items()}
        reports = (known[unit_id] for unit_id in sorted(unit_ids))
        return [replace(r, part_bytes=sizes.get(r.unit_id, r.part_bytes)) if r.part_sha256 else r for r in reports]

    def failures_by_reason(self, reports: Iterable[UnitReport]) -> Counter[str]:
        """Returns {`stage: error`: count}, the commonest first."""
        total: Counter[str] = Counter()
        for of_unit in ahead(self._count_failures, (report for report in reports if report.rows_failed)):
            total.update(of_unit)
        return Counter(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))))

    def _count_failures(self, report: UnitReport) -> Counter[str]:
        return Counter(f"{row['stage']}: {row['error']}" for row in self.failures(report, ["stage", "error"]))

    def failures(self, report: UnitReport, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yields the failures of a unit that has some.

        Raises:
            FeaturemillError: They can't be read, or aren't those that were committed with its part.
        """
        uri = failures_uri(self.folder, report.unit_id)
        with open_sealed(uri, cure="delete it and its part, and run extract again") as parquet:
            check_failures(parquet.metadata, report)
            for batch in parquet.iter_batches(columns=columns):
                yield from batch.to_pylist()

    def count_failures(self, report: UnitReport) -> int:
        """Returns how many failures a unit that has some lists; raises FeaturemillError as `failures` does."""
        with open_sealed(failures_uri(self.folder, report.unit_id), cure="see featuremill inspect --deep") as parquet:
            check_failures(parquet.metadata, report)
            return parquet.metadata.num_rows

    def stored_bytes(self, unit_ids: Iterable[str]) -> int:
        """Returns the bytes of the units' parts; 0 where it isn't local (a listing there costs requests)."""
        if not self.is_local:
            return 0
        names = {f"{unit_id}.parquet" for unit_id in unit_ids}
        return sum(info.size for name, info in self.part_files.items() if name in names or is_merged(name))

    def tidy(self, unit_ids: set[str], *, began: float) -> None:
        """Removes what killed writers left in _tmp, but not what another run on the same OUT may be writing.

        Args:
            unit_ids: Of the units that are done.
            began: When this run did, in seconds since 1970.
        """
        for info in storage.list_infos(self.path("_tmp")):
            name = info.uri.rsplit("/", 1)[-1]
            if not is_own(self.FOLDERS, "_tmp", name):
                continue
            # A unit's id, or what the file was going to be.
            unit_id = re.sub(r"\.[0-9a-f]{32}\..*$", "", name)
            # The version of a local file is its time in nanoseconds; a store's is in seconds, by the store's own clock.
            seconds = int(info.version) / 1e9 if self.is_local else float(info.version)
            is_small = _SMALL.fullmatch(name) or MERGED_STEM.fullmatch(unit_id)
            is_old = time.time() - seconds > LEFTOVER_SECONDS or (is_small and seconds < began)
            if unit_id in unit_ids or is_old:
                storage.delete([info.uri])
