"""The report on a run: what OUT holds, as one page. Everything comes from OUT; no source is opened."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.maintenance import plots
from pipeline.maintenance.inspect import Inspection, inspect
from pipeline.rendering.html import render, write_page
from pipeline.rendering.targets import check_targets
from transforms.committed import held
from transforms.declared import declared
from transforms.records import UnitReport
from transforms.similarity.projection import principal_components
from transforms.storage import readable
from transforms.store.features import Features, choose_feature
from transforms.store.manifest import Totals
from transforms.store.output import Output
from transforms.store.predictions import output_behind
from transforms.store.schema import matrix_of
from transforms.text import counted, printable, size_text

STAGES = ("read", "decode", "embed", "write")
# Rows of the small map: as many as can be distinguished in a picture of that size.
MAP_ROWS = 2000
# Their vectors are held in memory.
_MAP_BYTES = 256 * 2**20
_MOST_LABELS = 50
_MOST_SIZES = 1000
_EXAMPLES = 3
_SLOWEST = 5


@dataclass
class Rows:
    """The figures that one pass over the rows gathers for the page.

    Attributes:
        sizes: {(width, height): rows}, in pixels.
        norms: {feature: lengths of N vectors, float32}.
        sample: Vectors of the rows that the small map shows, n×D float32; a row with NaN or infinity has no place.
        sample_labels: Their labels.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    sample: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    sample_labels: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class ReportOptions:
    """The options of `report`, on OUT, finished or not."""

    output: str
    page: str = declared(help="The page, one file", flags=("--html",), metavar="PAGE")
    # Or the first one.
    feature: str | None = declared(
        None, help="Column of vectors that the small map shows", metavar="NAME", unset="embedding"
    )
    overwrite: bool = declared(False, help="Replace files that are there")


def run_report(options: ReportOptions) -> str:
    """Writes the page on OUT.

    Returns:
        What there is to say, a line.

    Raises:
        UsageError: The page is there already, or can't be one.
        FeaturemillError: OUT holds no features or unreadable ones, or the page can't be written.
    """
    page = options.page
    check_targets([options.output], page=page, overwrite=options.overwrite)
    with held(page):
        inspection = inspect(output_behind(options.output))
        name = choose_feature(inspection.features, options.feature)
        rows = gather_rows(inspection.features, name)
        text = run_report_html(inspection, rows, mapped=name)
        write_page(page, text)
    failures = counted(sum(inspection.failures.values()), "failure")
    return f"{page}: {counted(inspection.rows, 'row')}, {failures}, {size_text(len(text))}"


def gather_rows(features: Features, mapped: str) -> Rows:
    """Reads all rows once, a batch at a time.

    Args:
        features: OUT's.
        mapped: Of which feature the sample is.
    """
    rows = Rows()
    norms: dict[str, list[np.ndarray]] = {name: [] for name in features.names}
    sampled: list[np.ndarray] = []
    wanted, first = None, 0
    for batch in features.batches(["label", "width", "height", *features.names]):
        sizes = zip(batch.column("width").to_pylist(), batch.column("height").to_pylist(), strict=True)
        rows.sizes.update(sizes)
        for name in features.names:
            vectors = matrix_of(batch.column(name)).astype(np.float32, copy=False)
            norms[name].append(np.linalg.norm(vectors, axis=1))
            if name == mapped:
                if wanted is None:
                    count = min(features.rows, MAP_ROWS, max(2, _MAP_BYTES // (4 * max(1, vectors.shape[1]))))
                    wanted = np.unique(np.linspace(0, features.rows - 1, count).astype(np.int64))
                here = wanted[(wanted >= first) & (wanted < first + len(batch))] - first
                here = here[np.isfinite(vectors[here]).all(axis=1)]
                sampled.append(vectors[here])
                labels = batch.column("label")
                rows.sample_labels += [labels[int(i)].as_py() for i in here]
        first += len(batch)
    rows.norms = {name: np.concatenate(parts) for name, parts in norms.items() if parts}
    if sampled:
        rows.sample = np.concatenate(sampled)
    return rows


def run_report_html(inspection: Inspection, rows: Rows, *, mapped: str) -> str:
    """Returns the page.

    Args:
        inspection: From `inspect`.
        rows: From `gather_rows`.
        mapped: Of which feature the sample is.
    """
    totals = inspection.totals
    # Of a unit without rows there is no speed.
    reports = [report for report in inspection.reports if report.rows_read]
    manifest = inspection.manifest
    spec = {name: value for name, value in manifest.to_json()["spec"].items() if name != "features"}
    features = " ".join(map(str, manifest.spec.features))
    return render(
        "run_report.html",
        title=f"Run {printable(readable(inspection.output))}",
        headline=f"Read {totals.rows_read:,} = embedded {totals.rows_embedded:,} + failed {totals.rows_failed:,}",
        facts=_facts(inspection, totals),
        disagreements=inspection.disagreements,
        finished=inspection.finished,
        failures=_failures(inspection),
        stages=_stages(totals),
        slowest=sorted(reports, key=_rate)[:_SLOWEST] if len(reports) > _SLOWEST else [],
        rate=_rate,
        labels=list(inspection.labels.items())[:_MOST_LABELS],
        label_count=len(inspection.labels),
        most_rows=max(inspection.labels.values(), default=0),
        rows=inspection.rows,
        sizes=_sizes(rows.sizes),
        vectors={name: v for name, v in inspection.vectors.items() if v.rows},
        repeats=inspection.repeats,
        spec={"features": features, **spec, "fingerprint": manifest.fingerprint},
        versions={name: version for name, version in manifest.versions.items() if version},
        plots=_plots(rows, inspection, mapped),
    )


def _facts(inspection: Inspection, totals: Totals) -> dict[str, str]:
    manifest = inspection.manifest
    facts = {
        "folder": printable(readable(inspection.output)),
        "status": manifest.status if manifest.is_complete else f"{manifest.status}: not finished",
        "written": manifest.updated or "unknown",
        "input": f"{size_text(totals.input_bytes)} in {counted(totals.units, 'unit')}",
        "stored": size_text(inspection.stored_bytes) if inspection.stored_bytes else "not counted",
        "engine": ", ".join(sorted({report.engine for report in inspection.reports if report.engine})) or "none",
        "weights": printable(manifest.weights),
    }
    if manifest.weights_are_random:
        facts["caution"] = "the weights were never trained: these features mean nothing"
    if manifest.sample_limit:
        facts["sample"] = f"of {counted(manifest.sample_limit, 'image')}"
    return facts


def _failures(inspection: Inspection) -> list[dict[str, Any]]:
    """Returns the reasons, the commonest first, each with some of the rows that failed for it."""
    examples: dict[str, list[dict[str, str]]] = {reason: [] for reason in inspection.failures}
    missing = {reason: min(count, _EXAMPLES) for reason, count in inspection.failures.items()}
    output = inspection.features.opened
    for report in sorted(inspection.reports, key=lambda report: report.unit_id):
        if not any(missing.values()):
            break
        if report.unit_id not in output.failed_ids:
            continue
        for row in output.failures(report, ["key", "stage", "error", "message"]):
            reason = f"{row['stage']}: {row['error']}"
            if missing.get(reason):
                missing[reason] -= 1
                examples[reason].append(row)
    return [
        {"reason": reason, "count": count, "examples": examples[reason]}
        for reason, count in inspection.failures.items()
    ]


def _stages(totals: Totals) -> list[dict[str, Any]]:
    seconds = {stage: getattr(totals, f"{stage}_seconds") for stage in STAGES}
    sum_seconds = sum(seconds.values())
    return [
        {
            "name": stage,
            "seconds": value,
            "share": value / sum_seconds if sum_seconds else 0.0,
            "milliseconds": 1000 * value / totals.rows_read if totals.rows_read else 0.0,
        }
        for stage, value in seconds.items()
    ]


def _rate(report: UnitReport) -> float:
    return report.rows_read / report.wall_seconds if report.wall_seconds > 0 else 0.0


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {}
    pixels = np.array([width * height for width, height in sizes], np.float64) / 1e6
    order = np.argsort(pixels)
    half = np.searchsorted(np.cumsum(np.array(list(sizes.values()))[order]), sum(sizes.values()) / 2)
    return {
        "different": len(sizes),
        "commonest": [
            {"width": width, "height": height, "rows": count} for (width, height), count in sizes.most_common(5)
        ],
        "smallest": pixels.min(),
        "median": pixels[order][min(half, len(order) - 1)],
        "largest": pixels.max(),
    }


def _plots(rows: Rows, inspection: Inspection, mapped: str) -> dict[str, list[dict]]:
    shown: dict[str, list[dict]] = {"units": [], "sizes": [], "norms": [], "map": []}
    done, order = _in_order(inspection.features.opened, [report for report in inspection.reports if report.rows_read])
    if len(done) > 1:
        caption = f"Images per second of each unit, {order}; many units are drawn as means of some."
        shown["units"].append({"svg": plots.rate_plot(done, "rate"), "caption": caption})
    if rows.sizes:
        caption = "Widths and heights; a larger disc is more images of that size."
        if len(rows.sizes) > _MOST_SIZES:
            caption += f" Only the {_MOST_SIZES:,} commonest of {len(rows.sizes):,} sizes."
        svg = plots.size_plot(dict(rows.sizes.most_common(_MOST_SIZES)), "sizes")
        shown["sizes"].append({"svg": svg, "caption": caption})
    for number, (name, norms) in enumerate(rows.norms.items()):
        if np.isfinite(norms).any():
            svg = plots.norm_plot(norms, f"norm{number}", name)
            shown["norms"].append({"svg": svg, "caption": f"Lengths of the vectors of {name}."})
    if len(rows.sample) > 2:
        places = principal_components(rows.sample, 2)
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
        caption = (
            f"The two directions in which {mapped} varies most, for {len(places):,} of {inspection.rows:,} rows, "
            "evenly drawn. featuremill map draws one to walk about in."
        )
        shown["map"].append({"svg": plots.map_plot(places, rows.sample_labels, "map"), "caption": caption})
    return shown


def _in_order(output: Output, reports: Sequence[UnitReport]) -> tuple[list[UnitReport], str]:
    """Returns the reports in the order of their commits where the disk knows it, and what order it is."""
    if output.is_local:
        written = {name.removesuffix(".parquet"): int(info.version) for name, info in output.part_files.items()}
        if all(report.unit_id in written for report in reports):
            ordered = sorted(reports, key=lambda report: (written[report.unit_id], report.unit_id))
            last = time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(written.values(), default=0) / 1e9))
            return ordered, f"in the order in which their files were written (the last at {last} UTC)"
    return sorted(reports, key=lambda report: report.unit_id), "in the order of their names"
