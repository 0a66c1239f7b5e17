"""OUT as a whole: whether a run may continue it, what opening, closing, clearing and tidying it mean."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.plan import Plan
from transforms import storage
from transforms.errors import FeaturemillError
from transforms.network.weights import Weights
from transforms.spec import FeatureSpec
from transforms.store.features import Features
from transforms.store.layout import OUTPUT_FILES, OUTPUT_FOLDERS, TODO_PREFIX, failures_uri, part_uri
from transforms.store.listing import MERGED_STEM, Listing, list_parts
from transforms.store.manifest import new_manifest, read_manifest, write_manifest
from transforms.store.merging import split_part
from transforms.store.reports import (
    REPEATS_UP_TO_ROWS,
    add_up,
    collect_reports,
    failures_by_reason,
    find_repeats,
    read_units,
    write_units,
)
from transforms.store.units import write_plan
from transforms.text import one_line

# What the temporary names of small files in _tmp begin with; each lies there for a moment.
_SMALL = ("manifest.json.", "plan.", "units.parquet.")
# A temporary file of ours lives for seconds. One this old was left behind by a killed run.
LEFTOVER_SECONDS = 3600


@contextmanager
def locked(output: str, *, alone: bool, other: str = "command") -> Iterator[None]:
    """Keeps a compaction and extracts off the same local OUT; the system ends it with the process, however that ends.

    Args:
        output: OUT, or PRED.
        alone: For who takes parts away that an extract may count on, a compaction or --overwrite; else extracts don't
            mind each other.
        other: What may be at work there.

    Raises:
        FeaturemillError: Another process is at work there.
    """
    if not storage.is_local(output) or not os.path.isdir(output):
        yield
        return
    import fcntl

    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "in use" if alone else "being compacted or overwritten"
            raise FeaturemillError(
                f"{output} is {what} by another {other}; wait for that to end, and run this one again"
            ) from error
        except OSError:
            # Some network file systems have no locks; there, as on stores, only the manifest is compared.
            pass
        yield
    finally:
        os.close(folder)


def holds_features(output: str) -> bool:
    """True if OUT has files under the names that a run writes; others and empty folders are no concern of ours."""
    if storage.list_folder(output) & set(OUTPUT_FILES):
        return True
    return any(storage.list_folder(storage.join(output, name)) for name in ("features", "failures"))


def failed_ids(output: str) -> set[str]:
    """Returns the ids of the units that have a failures file."""
    names = storage.list_folder(storage.join(output, "failures"))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def is_complete(output: str, manifest: dict[str, Any], listing: Listing) -> bool:
    """True if the last run closed the books, nobody removed them since, and no compaction was cut off."""
    return (
        manifest["status"] == "complete" and not listing.leftovers and set(OUTPUT_FILES) <= storage.list_folder(output)
    )


def clear(output: str) -> None:
    """Removes what a run wrote to OUT, and nothing else.

    Raises:
        FeaturemillError: OUT has such names but no manifest: they aren't ours to remove.
    """
    if not holds_features(output):
        return
    try:
        manifest = read_manifest(output)
    except FeaturemillError as error:
        raise FeaturemillError(
            f"{error}; --overwrite only removes what has a manifest: remove {output} yourself"
        ) from None
    # First of all it must no longer say "complete": this may be cut off halfway.
    storage.make_folder(storage.join(output, "_tmp"))
    write_manifest(output, {**manifest, "status": "running"})
    for folder in OUTPUT_FOLDERS:
        storage.remove_tree(storage.join(output, folder))
    there = storage.list_folder(output)
    storage.delete(storage.join(output, name) for name in reversed(OUTPUT_FILES) if name in there)


def check_output(options: ExtractOptions, spec: FeatureSpec, weights: Weights) -> dict[str, Any]:
    """Returns OUT's manifest, or that of a new OUT.

    Raises:
        FeaturemillError: OUT holds something that this run can't continue.
    """
    output = options.output
    if storage.is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
        raise FeaturemillError(f"{output} is not a folder; choose another --output")
    new = new_manifest(spec, weights=weights.origin, weights_are_random=weights.is_random, limit=options.limit)
    if not holds_features(output):
        return new
    manifest = read_manifest(output)
    if manifest["fingerprint"] != spec.fingerprint:
        differences = _differences(manifest, spec, weights)
        raise FeaturemillError(
            f"{output} was made with other settings (there | now): {'; '.join(differences)}. "
            "Choose another --output, the old settings, or --overwrite"
        )
    if manifest["status"] != "complete" and manifest["sample_limit"] and manifest["sample_limit"] == options.limit:
        # An unfinished sample is a sample: it is made anew.
        clear(output)
        return new
    if manifest["sample_limit"] or options.limit:
        what = f"is a sample of {manifest['sample_limit']} images" if manifest["sample_limit"] else "is not a sample"
        raise FeaturemillError(
            f"{output} {what}, and --limit makes samples that no run continues; use --overwrite or another --output"
        )
    return manifest


def _differences(manifest: dict[str, Any], spec: FeatureSpec, weights: Weights) -> list[str]:
    there = FeatureSpec(**{**manifest["spec"], "features": ()})
    lines = [
        f"{name} {getattr(there, name)} | {value}"
        for name, value in asdict(spec).items()
        if name not in ("features", "weights") and getattr(there, name) != value
    ]
    old_features = [f"{f['name']}={f['tap']}:{f['pool']}" for f in manifest["spec"]["features"]]
    new_features = [str(feature) for feature in spec.features]
    if old_features != new_features:
        lines.append(f"features {' '.join(old_features)} | {' '.join(new_features)}")
    if there.weights != spec.weights:
        lines.append(f"weights {manifest['weights']} ({there.weights[:12]}) | {weights.origin} ({spec.weights[:12]})")
    return lines


def open_output(output: str, manifest: dict[str, Any], plan: Plan) -> None:
    """Makes OUT's folders, says in the manifest that a run is under way, removes what is redone, writes the plan.

    In this order: a run that is cut off here leaves an unfinished OUT, never one that says "complete" and isn't.
    """
    try:
        # The manifest is written before there is a place for parts.
        storage.make_folder(storage.join(output, "_tmp"))
        write_manifest(output, {**manifest, "status": "running"})
        for folder in OUTPUT_FOLDERS:
            storage.make_folder(storage.join(output, folder))
    except OSError as error:
        raise FeaturemillError(
            f"cannot write to {output}: {one_line(error)}; choose another --output or fix the permissions"
        ) from error
    try:
        # What units.parquet says of units that are done again must not outlive them.
        kept = {planned.unit_id for planned in plan.done}
        reports = read_units(output)
        if any(report.unit_id not in kept for report in reports):
            write_units(output, [report for report in reports if report.unit_id in kept])
        listing = remove_leftovers(output)
        # A part can only be replaced or removed where it is the unit's own.
        for name in listing.merged_with({*plan.remove, *(planned.unit_id for planned in plan.todo)}):
            split_part(output, name)
        # The parts first: a part without its failures would be a book that doesn't balance.
        storage.delete(part_uri(output, unit_id) for unit_id in plan.remove)
        listed = failed_ids(output) if plan.remove else set()
        storage.delete(failures_uri(output, unit_id) for unit_id in plan.remove if unit_id in listed)
        write_plan(output, plan.units)
    except OSError as error:
        raise FeaturemillError(
            f"cannot write to {output}: {one_line(error)}; free some space or fix the permissions and run again"
        ) from error


def remove_leftovers(output: str) -> Listing:
    """Removes the parts whose rows are in a merged one as well (a compaction was cut off), and lists the others."""
    listing = list_parts(output)
    storage.delete(storage.join(output, "features", name) for name in listing.leftovers)
    return replace(listing, leftovers=())


def close_output(output: str, manifest: dict[str, Any], plan: Plan, *, began: float) -> dict[str, Any]:
    """Compares plan with parts, writes units.parquet, and says "complete".

    Args:
        output: OUT.
        manifest: As `check_output` returned it.
        plan: What was to be done.
        began: When this run did, in seconds since 1970.

    Raises:
        FeaturemillError: A planned unit has no part, or a part is there that nobody planned.
    """
    listing = list_parts(output)
    there = listing.unit_ids()
    unit_ids = [planned.unit_id for planned in plan.units]
    missing = [name for name in unit_ids if name not in there]
    if missing:
        raise FeaturemillError(
            f"{len(missing)} of {len(unit_ids)} units have no part in {output}, such as {missing[0]}; "
            "run the same command again"
        )
    extra = sorted(there - set(unit_ids))
    if extra:
        raise FeaturemillError(
            f"{output} holds {len(extra)} parts that this run didn't plan, such as {extra[0]}: another run was at work "
            "with other inputs or another --unit-bytes; run one command with all inputs"
        )
    fresh = {planned.unit_id for planned in plan.todo}
    reports = collect_reports(output, unit_ids, listing=listing, fresh=fresh)
    # A writer that was killed between its failures and its part may have listed what a second one then embedded.
    failed = {report.unit_id for report in reports if report.rows_failed}
    storage.delete(failures_uri(output, unit_id) for unit_id in failed_ids(output) - failed)
    write_units(output, reports)
    totals = add_up(reports)
    manifest = {
        **manifest,
        "status": "complete",
        "totals": asdict(totals),
        "failures": dict(failures_by_reason(output, reports)),
        "engines": sorted({report.engine for report in reports}),
        "repeats": None,
    }
    if totals.rows_embedded <= REPEATS_UP_TO_ROWS:
        # The footers were read for the books; `open_features` would read them all again.
        parts = tuple(storage.join(output, "features", name) for name in listing.names)
        spec = FeatureSpec.from_json(json.dumps(manifest["spec"]))
        features = Features(output, spec, manifest["fingerprint"], True, parts, totals.rows_embedded)
        repeats = find_repeats(features)
        manifest["repeats"] = asdict(repeats) if repeats else None
    write_manifest(output, manifest)
    _tidy(output, set(unit_ids), began=began)
    return manifest


def _tidy(output: str, unit_ids: set[str], *, began: float) -> None:
    """Removes what killed writers left in _tmp, but not what another run on the same OUT may be writing."""
    folder = storage.join(output, "_tmp")
    for info in storage.list_infos(folder):
        name = info.uri.rsplit("/", 1)[-1]
        # A unit's id, or what the file was going to be.
        unit_id = re.sub(r"\.[0-9a-f]{32}\..*$", "", name)
        # The version of a local file is its time in nanoseconds; a store's is in seconds, by the store's own clock.
        seconds = int(info.version) / 1e9 if storage.is_local(output) else float(info.version)
        is_ours = name.startswith((TODO_PREFIX, *_SMALL)) or MERGED_STEM.fullmatch(unit_id)
        is_old = time.time() - seconds > LEFTOVER_SECONDS or (is_ours and seconds < began)
        if unit_id in unit_ids or is_old:
            storage.delete([info.uri])
