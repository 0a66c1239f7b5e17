"""OUT under a run: whether the run may continue it, what beginning and closing it mean."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace

from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.plan import Plan
from transforms import storage
from transforms.engines.versions import library_versions
from transforms.errors import FeaturemillError
from transforms.labels.kept import type_name
from transforms.network.weights import Weights
from transforms.parquet.files import open_sealed
from transforms.records import FileInfo, Kept, SkippedFile
from transforms.shards import Found
from transforms.spec import ADDED_COLUMNS, ROW_COLUMNS, FeatureSpec
from transforms.store.features import Features
from transforms.store.layout import OUTPUT_FOLDERS, failures_uri, part_uri
from transforms.store.manifest import Manifest, new_manifest
from transforms.store.merging import split_part
from transforms.store.output import ELSEWHERE, Output
from transforms.store.repeats import REPEATS_UP_TO_ROWS, find_repeats
from transforms.store.reports import add_notes, add_up, parts_sha256
from transforms.text import clean


def check_output(
    output: Output, options: ExtractOptions, spec: FeatureSpec, weights: Weights, kept: tuple[Kept, ...]
) -> Manifest:
    """Returns OUT's manifest, or that of a new OUT.

    Raises:
        FeaturemillError: OUT holds something that this run can't continue.
    """
    if output.is_local and os.path.lexists(output.folder) and not os.path.isdir(output.folder):
        raise FeaturemillError(f"{output} is not a folder; choose another --output")
    new = new_manifest(
        spec,
        weights=weights.origin,
        weights_are_random=weights.is_random,
        limit=options.limit,
        versions=library_versions(),
        kept=kept,
    )
    if not output.holds_features:
        return new
    manifest = output.manifest
    if manifest.relocation:
        raise FeaturemillError(f"{output} is relocated only in part; finish that with {manifest.cure} first")
    if manifest.fingerprint != spec.fingerprint:
        differences = _differences(manifest, spec, weights)
        raise FeaturemillError(
            f"{output} was made with other settings (there | now): {'; '.join(differences)}. "
            "Choose another --output, the old settings, or --overwrite"
        )
    if manifest.kept != new.kept:
        there, now = (" ".join(f"--keep {n}:{k}" for n, k in each.kept.items()) or "none" for each in (manifest, new))
        raise FeaturemillError(
            f"{output} was made with other columns kept (there | now): {there} | {now}. Choose another --output, "
            "the old ones, or --overwrite"
        )
    if not manifest.is_complete and manifest.sample_limit and manifest.sample_limit == options.limit:
        # An unfinished sample isn't continued: it is made anew.
        output.clear()
        return new
    if manifest.sample_limit or options.limit:
        what = f"is a sample of {manifest.sample_limit} images" if manifest.sample_limit else "is not a sample"
        raise FeaturemillError(
            f"{output} {what}, and --limit makes samples that no run continues; use --overwrite or another --output"
        )
    return manifest


def restore_manifest(output: Output, weights: Weights) -> None:
    """Gives OUT the manifest that it has lost, of an unfinished run; its spec is that in the footer of a part.

    Whether it may go on, with that spec and these weights, is asked afterwards, as of any.

    Raises:
        FeaturemillError: No part says what made it, or it was a sample, which no run continues.
    """
    lost = f"{output} has lost its manifest.json"
    if any(planned.unit.limit for planned in output.plan):
        raise FeaturemillError(f"{lost}, and is a sample, which no run continues; remove it, and make it again")
    for name in sorted(output.part_files):
        try:
            with open_sealed(output.path("features", name), cure="") as parquet:
                spec = FeatureSpec.from_json(parquet.metadata.metadata[b"featuremill.spec"].decode())
                columns = parquet.schema_arrow
        except (FeaturemillError, KeyError, TypeError, ValueError):
            continue
        manifest = new_manifest(
            spec, weights=weights.origin, weights_are_random=weights.is_random, limit=None, versions=library_versions()
        )
        own = {*ROW_COLUMNS, *ADDED_COLUMNS, *(feature.name for feature in spec.features)}
        output.manifest = replace(
            manifest,
            added_columns=[name for name in ADDED_COLUMNS if name in columns.names],
            kept={column.name: type_name(column.type) for column in columns if column.name not in own},
        )
        return
    raise FeaturemillError(
        f"{lost}, and no part in its folder features says how it was made; remove it, or choose another --output"
    )


def _differences(manifest: Manifest, spec: FeatureSpec, weights: Weights) -> list[str]:
    there = manifest.spec
    lines = [
        f"{name} {getattr(there, name)} | {value}"
        for name, value in asdict(spec).items()
        if name not in ("features", "weights") and getattr(there, name) != value
    ]
    if there.features != spec.features:
        old, new = (" ".join(map(str, features)) for features in (there.features, spec.features))
        lines.append(f"features {old} | {new}")
    if there.weights != spec.weights:
        lines.append(f"weights {manifest.weights} ({there.weights[:12]}) | {weights.origin} ({spec.weights[:12]})")
    return lines


def keep_touched(output: Output, plan: Plan) -> None:
    """Writes the new times of touched inputs into OUT's plan, so that they aren't compared again, whatever comes next.

    Their units keep their ids, so that their parts go on to count.
    """
    now = {planned.unit_id: planned for planned in plan.touched}
    with output.writing():
        storage.make_folder(output.path("_tmp"))
        output.write_plan([now.get(planned.unit_id, planned) for planned in output.plan])


def begin_output(output: Output, manifest: Manifest, plan: Plan) -> None:
    """Makes OUT's folders, says in the manifest that a run is under way, removes what is redone, writes the plan.

    In this order: a run that is cut off here leaves an unfinished OUT, never one that says "complete" and isn't.
    """
    with output.writing(ELSEWHERE):
        # The manifest is written before there is a place for parts.
        output.say_running(manifest)
        for name in OUTPUT_FOLDERS:
            storage.make_folder(output.path(name))
    with output.writing():
        # What units.parquet says of units that are done again must not outlive them.
        kept = {planned.unit_id for planned in plan.done}
        if any(report.unit_id not in kept for report in output.reports):
            output.write_reports([report for report in output.reports if report.unit_id in kept])
        output.remove_broken()
        _remove_parts(output, plan)
        output.write_plan(plan.units)


def list_skipped(output: Output, found: Found, inputs: Sequence[str]) -> None:
    """Brings the list of skipped files up to date: what this run met, and what earlier runs met elsewhere."""
    folders = tuple(f"{storage.absolute(given)}/" for given in inputs)
    inputs_now = {clean(item.file.uri) for item in (*found.shards, *found.files)}
    listed = {
        each.file.uri: each
        for each in output.skipped
        if not each.file.uri.startswith(folders) and each.file.uri not in inputs_now
    }
    for each in found.skipped:
        uri = clean(each.file.uri)
        listed[uri] = SkippedFile(FileInfo(uri, each.file.size, ""), clean(each.reason))
    skipped = [listed[uri] for uri in sorted(listed)]
    if skipped != output.skipped:
        with output.writing():
            output.write_skipped(skipped)


def _remove_parts(output: Output, plan: Plan) -> None:
    """Removes stale and left over parts, and takes merged ones apart that hold a unit which is removed or redone."""
    taken = {*plan.remove, *(planned.unit_id for planned in plan.todo)}
    if output.listing.leftovers or taken & output.listing.unit_ids():
        # Where there are no locks, a compaction may have ended since the parts were listed. From here on it sees that
        # a run is under way, so what is listed now stays.
        output.relist()
    output.remove_leftovers()
    for side in output.added if taken else ():
        # First of all: an added feature never has a row that its part doesn't have.
        lost = tuple(taken & side.listing.unit_ids())
        if lost:
            side.say_running(side.manifest)
            _remove_parts(side, replace(plan, todo=(), remove=lost))
    # A part can only be replaced or removed where it is the unit's own.
    for name in output.listing.merged_with(taken):
        split_part(output, name)
    # The parts first: a part without its failures would leave totals that don't balance.
    storage.delete(part_uri(output.folder, unit_id) for unit_id in plan.remove)
    listed = output.failed_ids if plan.remove else set()
    storage.delete(failures_uri(output.folder, unit_id) for unit_id in plan.remove if unit_id in listed)


def close_output(output: Output, manifest: Manifest, plan: Plan, *, began: float) -> None:
    """Compares plan with parts, writes units.parquet, and says "complete".

    Args:
        output: OUT; its manifest and reports are then those of this run.
        manifest: As `check_output` returned it.
        plan: What was to be done.
        began: When this run did, in seconds since 1970.

    Raises:
        FeaturemillError: A planned unit has no part, or a part is there that nobody planned.
    """
    output.relist()
    unit_ids = [planned.unit_id for planned in plan.units]
    _check_parts(output, unit_ids)
    fresh = {planned.unit_id for planned in plan.todo}
    reports = output.collect_reports(unit_ids, fresh=fresh)
    # A writer that was killed between its failures and its part may have listed what a second one then embedded.
    failed = {report.unit_id for report in reports if report.rows_failed}
    storage.delete(failures_uri(output.folder, unit_id) for unit_id in output.failed_ids - failed)
    output.write_reports(reports)
    totals, repeats = add_up(reports), None
    if totals.rows_embedded <= REPEATS_UP_TO_ROWS:
        # The footers were read for the reports; `open_features` would read them all again.
        parts = tuple(output.path("features", name) for name in output.listing.names)
        rows = totals.rows_embedded
        features = Features(output, manifest.spec, manifest.fingerprint, True, parts, rows, manifest.between)
        repeats = find_repeats(features)
    manifest = replace(
        manifest,
        status="complete",
        totals=totals,
        parts_sha256=parts_sha256(reports),
        failures=dict(output.failures_by_reason(reports)),
        notes=add_notes(reports),
        engines=sorted({report.engine for report in reports}),
        repeats=asdict(repeats) if repeats else None,
    )
    output.write_manifest(manifest)
    output.tidy(set(unit_ids), began=began)


def _check_parts(output: Output, unit_ids: Sequence[str]) -> None:
    """Checks that there is a part for each planned unit, and no other."""
    there = output.listing.unit_ids()
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
