"""Tells whether the files of an OUT are those that were written, and its parts, footers and manifest agree."""

import numpy as np
import pyarrow as pa

from pipeline.extraction.plan import incomplete_shards
from transforms import storage
from transforms.errors import FeaturemillError
from transforms.machine import ahead
from transforms.parquet.files import check_whole
from transforms.records import UnitReport
from transforms.store.layout import SKIPPED_FILE
from transforms.store.listing import Footer, try_footers
from transforms.store.output import Output
from transforms.store.reports import add_up, parts_sha256
from transforms.text import clean, one_line

AGAIN = "delete it and run the same extract command again"
FAILURES_AGAIN = "delete it and its part, and run the same extract command again"
# Files that are read whole at once.
_THREADS = 4


def check_files(output: Output) -> list[str]:
    """Reads every file whole; returns which of them aren't what was written, and takes these out of the output."""
    files = {f"features/{name}": AGAIN for name in sorted(output.part_files)}
    files |= {f"failures/{unit_id}.parquet": FAILURES_AGAIN for unit_id in sorted(output.failed_ids)}
    there = storage.list_folder(output.folder)
    cures = dict.fromkeys(("units.parquet", SKIPPED_FILE), "delete it and run extract again")
    cures["plan.parquet"] = "delete it and run extract with all inputs again"
    files |= {name: cure for name, cure in cures.items() if name in there}

    def check(name: str) -> str:
        try:
            check_whole(output.path(name))
        except (OSError, ValueError, pa.ArrowException) as error:
            return one_line(error)
        return ""

    causes = zip(files, ahead(check, files, threads=_THREADS), strict=True)
    broken = {name: cause for name, cause in causes if cause}
    for name, cause in broken.items():
        folder, _, file = name.rpartition("/")
        if folder == "features":
            output.broken[file] = cause
        elif folder == "failures":
            output.failed_ids.discard(file.removesuffix(".parquet"))
        elif name == "plan.parquet":
            output.plan = []
        elif name == SKIPPED_FILE:
            output.skipped = []
        else:
            output.forget_reports()
    return [f"{clean(name)}: {cause}; {files[name]}" for name, cause in broken.items()]


def check_parts(output: Output) -> tuple[list[str], list[UnitReport]]:
    """Returns what doesn't add up, and the reports of the parts that are what was written."""
    problems, reports, manifest = [], [], output.manifest
    names = sorted(name for name in output.part_files.keys() - output.broken.keys() if name.endswith(".parquet"))
    footers = dict(zip(names, try_footers([output.path("features", name) for name in names]), strict=True))
    for name, footer in footers.items():
        if isinstance(footer, str):
            output.broken[name] = footer
            problems.append(f"{clean(name)}: {footer}; {AGAIN}")
    listing = output.listing
    # Beside a compaction that is at work nothing is wrong.
    if listing.leftovers and not output.is_in_use:
        problems.append(
            f"{len(listing.leftovers)} parts are in a merged one as well, such as {listing.leftovers[0]}: a compaction "
            "was cut off; run featuremill compact again"
        )
    for name in listing.names:
        footer = footers[name]
        found = footer.fingerprint
        if found != manifest.fingerprint:
            problems.append(f"{name}: fingerprint {found[:12]}, the manifest says {manifest.fingerprint[:12]}; {AGAIN}")
            output.broken[name] = problems[-1]
            continue
        reports += footer.reports
        problems += _check_part(output, name, footer)
    if output.broken.keys() & set(listing.names):
        output.relist_parts()
    if manifest.is_complete:
        problems += _check_totals(output, reports)
    return problems, reports


def _check_part(output: Output, name: str, footer: Footer) -> list[str]:
    problems = []
    unit_ids = [report.unit_id for report in footer.reports]
    counts = np.bincount(footer.unit_numbers(), minlength=len(unit_ids)).tolist()
    if footer.rows != sum(counts):
        problems.append(f"{name}: {footer.rows} rows, its footer tells the units of {sum(counts)}")
    for report, rows in zip(footer.reports, counts, strict=False):
        if report.rows_read != report.rows_embedded + report.rows_failed:
            problems.append(f"{name}: read {report.rows_read} is not {report.rows_embedded} + {report.rows_failed}")
        if rows != report.rows_embedded:
            problems.append(f"{name}: {rows} rows, its footer says {report.rows_embedded}")
        failed = 0
        if report.unit_id in output.failed_ids:
            try:
                failed = output.count_failures(report)
            except FeaturemillError as error:
                problems.append(f"failures/{report.unit_id}.parquet: {one_line(error.__cause__)}; {FAILURES_AGAIN}")
                output.failed_ids.discard(report.unit_id)
                continue
        if failed != report.rows_failed:
            problems.append(
                f"{name}: {failed} failures listed, its footer says {report.rows_failed}; delete the part and extract "
                "again"
            )
    return problems


def _check_totals(output: Output, reports: list[UnitReport]) -> list[str]:
    problems, units = [], output.plan
    found, stated = add_up(reports), output.manifest.totals
    for name in ("units", "rows_read", "rows_embedded", "rows_failed"):
        there, expected = getattr(found, name), getattr(stated, name)
        if there != expected:
            problems.append(f"{name}: the parts add up to {there}, the manifest says {expected}")
    planned = {unit.unit_id for unit in units}
    there = {report.unit_id for report in reports}
    problems += [f"{unit_id} is planned, but has no part" for unit_id in sorted(planned - there)[:5]]
    problems += [f"{unit_id} has a part, but isn't planned" for unit_id in sorted(there - planned)[:5]]
    if not output.manifest.sample_limit:
        incomplete = sorted(incomplete_shards(unit.unit for unit in units))
        problems += [
            f"{clean(uri)} is in the plan only in part; run featuremill extract with it again" for uri in incomplete
        ]
    if {report.unit_id for report in output.reports} != there:
        problems.append("units.parquet and the parts don't name the same units")
    if output.manifest.parts_sha256 and output.manifest.parts_sha256 != parts_sha256(reports):
        known = {report.unit_id: report for report in output.reports}
        others = sorted(
            r.unit_id for r in reports if r.unit_id in known and parts_sha256([known[r.unit_id]]) != parts_sha256([r])
        )
        problems += [f"{unit_id}: its part isn't the one that OUT was finished with; {AGAIN}" for unit_id in others[:5]]
    if output.manifest.parts_sha256 and output.manifest.parts_sha256 != parts_sha256(output.reports):
        problems.append("units.parquet isn't the one that OUT was finished with; delete it and run extract again")
    return problems
