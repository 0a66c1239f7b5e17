"""Inspect: what a folder of features holds, and whether its parts, footers and manifest agree."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.extraction.summary import skipped_text
from pipeline.maintenance.agreement import check_files, check_parts
from transforms import storage
from transforms.records import UnitReport
from transforms.shards.names import count_by_ending
from transforms.storage import readable
from transforms.store.features import Features, open_features
from transforms.store.manifest import Manifest, Totals
from transforms.store.output import Output
from transforms.store.repeats import Repeats, find_repeats
from transforms.store.reports import add_notes, add_up, note_lines
from transforms.store.schema import matrix_of
from transforms.text import counted, short, shown_within, size_text


@dataclass(frozen=True)
class VectorStatistics:
    """Statistics of one feature: D, N, the vectors' lengths, the share of zeros, the count of NaN."""

    size: int
    rows: int
    norm_min: float
    norm_mean: float
    norm_max: float
    zero_share: float
    zero_rows: int
    nan_count: int


@dataclass(frozen=True)
class Inspection:
    """The content of OUT, and whether it agrees with itself.

    Attributes:
        manifest: As it is on disk.
        reports: Of all units that have a part.
        features: OUT's, as far as it is there.
        labels: {label: rows}, None for unknown, the commonest first.
        failures: {`stage: error`: count}.
        notes: {note: records}, see `UnitReport`.
        vectors: {feature: statistics}.
        repeats: Keys and contents seen more than once.
        skipped: Files that were met in folders and are no input.
        skipped_endings: {ending, `no ending` or `hidden`: how many of them}.
        stored_bytes: Bytes of the parts.
        disagreements: Where parts, footers and manifest disagree, a line each.
        added: {added feature: what its own folder holds}.
    """

    output: str
    manifest: Manifest
    reports: tuple[UnitReport, ...]
    features: Features
    labels: dict[str | None, int]
    failures: dict[str, int]
    notes: dict[str, int]
    vectors: dict[str, VectorStatistics]
    repeats: Repeats | None
    skipped: int
    skipped_endings: dict[str, int]
    stored_bytes: int
    disagreements: tuple[str, ...]
    added: dict[str, "Inspection"] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """False after Ctrl-C or a kill: then parts may be missing, and those that are there may agree all the same."""
        return self.manifest.is_complete

    @property
    def problems(self) -> tuple[str, ...]:
        """The disagreements, and that the run is not finished; empty if all is well."""
        unfinished = f"the last run did not finish (status {self.manifest.status}): run {self.manifest.cure} again"
        problems = self.disagreements if self.finished else (*self.disagreements, unfinished)
        return (*problems, *self.features.lacking.values())

    @property
    def parts(self) -> int:
        """The number of parts that hold the units."""
        return len(self.features.parts)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return self.features.rows

    @property
    def totals(self) -> Totals:
        """Over all units that have a part; the manifest's own are of the last run that finished."""
        return add_up(self.reports)


def inspect(output: str | Output, *, deep: bool = False) -> Inspection:
    """Reads the rows of OUT once, a batch at a time, and checks that it adds up.

    Parts that aren't what was written are named, and count as if they weren't there.

    Args:
        output: OUT; its parts are listed anew.
        deep: Read every file whole, and compare it with the hash that it carries.

    Raises:
        FeaturemillError: There are no features in that folder, or it has files that can't be reached.
    """
    out = output if isinstance(output, Output) else Output(output)
    out.keep_parts()
    problems = check_files(out) if deep else []
    found, reports = check_parts(out)
    problems += found
    opened = open_features(out, whole=False)
    # Each added feature is looked at by itself.
    features = replace(opened, added=())
    added = {name: inspect(out.added_feature(name), deep=deep) for name in _there(out)}
    problems += [f"{name}: {problem}" for name, found in added.items() for problem in found.disagreements]
    labels: Counter[str | None] = Counter()
    sums = {name: _VectorSums() for name in features.names}
    for batch in features.batches(["label", *features.names]):
        labels.update(batch.column("label").to_pylist())
        for name, total in sums.items():
            total.add(batch.column(name))
    return Inspection(
        output=out.folder,
        manifest=out.manifest,
        reports=tuple(reports),
        features=opened,
        labels=dict(labels.most_common()),
        failures=dict(out.failures_by_reason([r for r in reports if r.unit_id in out.failed_ids])),
        notes=add_notes(reports),
        vectors={name: total.statistics() for name, total in sums.items()}
        | {name: found.vectors[name] for name, found in added.items()},
        repeats=find_repeats(features),
        skipped=len(out.skipped),
        skipped_endings=count_by_ending(out.skipped),
        stored_bytes=out.stored_bytes([report.unit_id for report in reports]),
        disagreements=tuple(problems + _check_rows(features, labels)),
        added=added,
    )


def _there(output: Output) -> list[str]:
    """Returns the names of those added features that have anything yet."""
    names = output.manifest.added_features
    return [name for name in names if storage.stat(output.added_feature(name).path("manifest.json"))]


def _check_rows(features: Features, labels: Counter) -> list[str]:
    read = labels.total()
    return [] if read == features.rows else [f"{read} rows were read, the footers say {features.rows}"]


class _VectorSums:
    """Adds up one feature's statistics, batch by batch."""

    def __init__(self) -> None:
        self.size = self.rows = self.zeros = self.zero_rows = self.nans = 0
        self.norm_sum, self.norm_min, self.norm_max = 0.0, float("inf"), 0.0

    def add(self, column: pa.FixedSizeListArray) -> None:
        """Counts the rows of a column of N vectors of D numbers."""
        if not len(column):
            return
        vectors = matrix_of(column).astype(np.float64)
        self.size = vectors.shape[1]
        self.rows += len(vectors)
        self.zeros += int((vectors == 0).sum())
        self.nans += int(np.isnan(vectors).sum())
        norms = np.linalg.norm(vectors, axis=1)
        self.zero_rows += int((norms == 0).sum())
        self.norm_sum += float(norms.sum())
        self.norm_min, self.norm_max = min(self.norm_min, float(norms.min())), max(self.norm_max, float(norms.max()))

    def statistics(self) -> VectorStatistics:
        numbers = self.rows * self.size
        return VectorStatistics(
            size=self.size,
            rows=self.rows,
            norm_min=self.norm_min if self.rows else 0.0,
            norm_mean=self.norm_sum / self.rows if self.rows else 0.0,
            norm_max=self.norm_max,
            zero_share=self.zeros / numbers if numbers else 0.0,
            zero_rows=self.zero_rows,
            nan_count=self.nans,
        )


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """Returns the inspection for programs; `labels` are the classes, `unlabelled` counts the rows without a label."""
    labels = {label: count for label, count in inspection.labels.items() if label is not None}
    # The reports are in units.parquet, and may be a million, as may be the parts' names.
    values = asdict(replace(inspection, manifest=None, reports=(), features=None, added={}))
    del values["reports"], values["features"]
    return {
        **values,
        "manifest": inspection.manifest.to_json(),
        "parts": inspection.parts,
        "rows": inspection.rows,
        "problems": inspection.problems,
        "totals": asdict(inspection.totals),
        "labels": labels,
        "unlabelled": inspection.labels.get(None, 0),
        "added": {name: inspection_json(found) for name, found in inspection.added.items()},
    }


def inspection_text(inspection: Inspection) -> str:
    """Returns the inspection for people."""
    manifest = inspection.manifest
    spec = manifest.to_json()["spec"]
    totals = inspection.totals
    lines = [
        f"{readable(inspection.output)}: {manifest.status}"
        + (f", a sample of {counted(manifest.sample_limit, 'image')}" if manifest.sample_limit else ""),
        f"fingerprint  {manifest.fingerprint}",
        f"features     {' '.join(map(str, manifest.spec.features))}",
        f"spec         {', '.join(f'{n} {value}' for n, value in spec.items() if n not in ('features', 'weights'))}",
        f"weights      {manifest.weights} ({manifest.spec.weights[:12]})"
        + (", never trained: these features mean nothing" if manifest.weights_are_random else ""),
        f"totals       read {totals.rows_read} = embedded {totals.rows_embedded} + failed {totals.rows_failed}, "
        f"{counted(totals.units, 'unit')} in {counted(inspection.parts, 'part')}, {size_text(inspection.stored_bytes)}",
        "failures     " + (", ".join(f"{n} × {reason}" for reason, n in inspection.failures.items()) or "none"),
        f"labels       {_label_text(inspection.labels)}",
    ]
    if inspection.skipped:
        lines.append(f"skipped      {skipped_text(inspection.skipped, inspection.skipped_endings)}")
    lines += [f"note         {line}" for line in note_lines(inspection.notes)]
    lines += [_vector_line(name, v) for name, v in inspection.vectors.items() if v.rows]
    lines += _repeat_lines(inspection.repeats)
    for found in inspection.added.values():
        failed = ", ".join(f"{count} × {reason}" for reason, count in found.failures.items())
        lines.append(
            f"added        {' '.join(map(str, found.manifest.spec.features))} of {found.manifest.spec.backbone}, "
            f"{found.rows} of {inspection.rows} rows, {size_text(found.stored_bytes)}"
            + (f", failed: {failed}" if failed else "")
        )
    lacking, agree = inspection.features.lacking.values(), inspection.finished and not inspection.disagreements
    # Where all else is well, the last line says them.
    lines += [] if agree else [f"unfinished   {why}" for why in lacking]
    lines += [f"PROBLEM      {problem}" for problem in inspection.disagreements]
    if not inspection.finished:
        lines.append(inspection.problems[len(inspection.disagreements)])
    if inspection.disagreements:
        lines.append("parts, footers and manifest disagree")
    elif inspection.finished:
        lines.append(f"parts, footers and manifest agree{', but ' if lacking else ''}{'; '.join(lacking)}")
    return "\n".join(lines)


def _vector_line(name: str, v: VectorStatistics) -> str:
    return (
        f"{name:12} {v.rows} × {v.size}, norm {v.norm_min:.4g} to {v.norm_max:.4g} (mean {v.norm_mean:.4g}), "
        f"{v.zero_share:.1%} zeros, {counted(v.zero_rows, 'zero row')}, {v.nan_count} NaN"
    )


def _label_text(labels: dict[str | None, int]) -> str:
    shown = [f"{'(none)' if label is None else short(label)} {count}" for label, count in list(labels.items())[:20]]
    return (", ".join(shown) or "none") + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _repeat_lines(repeats: Repeats | None) -> list[str]:
    if repeats is None:
        return ["seen twice   not counted"]
    lines = [f"seen twice   {counted(repeats.keys, 'key')}, {counted(repeats.contents, 'content')}"]
    lines += [f"  key        {shown_within(key)}" for key in repeats.named_keys]
    return lines + [f"  content    {' = '.join(map(shown_within, group))}" for group in repeats.named_contents]
