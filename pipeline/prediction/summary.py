"""The result of a prediction, in words and numbers."""

from dataclasses import dataclass
from typing import Any

from pipeline.rendering.tables import as_json
from pipeline.training.facts import never_trained_text
from pipeline.training.report import abstaining_text, interval, judged_cautions, metric_table
from transforms import storage
from transforms.storage import readable
from transforms.store.layout import ERRORS_FILE
from transforms.store.manifest import PredictionsManifest
from transforms.text import counted, short, shown, shown_within

# Labels are listed up to this many, the commonest first.
_LABELS_SHOWN = 10


@dataclass(frozen=True)
class PredictSummary:
    """The totals of PRED, or the rows that are shown if there is none.

    Attributes:
        output: PRED, or None.
        manifest: PRED's manifest: settings, head, totals, failures, labels, accuracy, notes.
        metrics: As `transforms.evaluation.metrics.judge` returns them, None unless asked for.
        shown: Rows of predictions, for a run without PRED.
        wall_seconds: Of this run.
        done_before: Whether all was there already.
    """

    output: str | None
    manifest: PredictionsManifest
    metrics: dict[str, Any] | None
    shown: tuple[dict[str, Any], ...]
    wall_seconds: float
    done_before: bool = False

    def __repr__(self) -> str:
        return shown(summary_text(self))

    @property
    def failure_rate(self) -> float:
        totals = self.manifest.totals
        return totals.failed / totals.read if totals.read else 0.0


def summary_json(summary: PredictSummary) -> dict[str, Any]:
    """Returns the summary for programs."""
    return {
        "output": summary.output,
        **{name: value for name, value in summary.manifest.to_json().items() if name != "classes"},
        "failure_rate": summary.failure_rate,
        "metrics": summary.metrics,
        "shown": as_json(summary.shown),
        "wall_seconds": summary.wall_seconds,
        "done_before": summary.done_before,
    }


def summary_text(summary: PredictSummary) -> str:
    """Returns the summary for people."""
    manifest = summary.manifest
    totals, truth = manifest.totals, manifest.true_labels
    lines = _shown_lines(summary.shown)
    lines += [
        f"read {totals.read} = predicted {totals.predicted} + failed {totals.failed}",
        *(f"  failed  {count:6d}  {reason}" for reason, count in manifest.failures.items()),
    ]
    if summary.output:
        counts = list(manifest.predicted_labels.items())
        lines += [f"  {count:6d}  {short(label)}" for label, count in counts[:_LABELS_SHOWN]]
        if len(counts) > _LABELS_SHOWN:
            rest = [count for _, count in counts[_LABELS_SHOWN:]]
            lines.append(f"  {sum(rest):6d}  in {len(rest)} more class{'es' * (len(rest) != 1)}")
    if totals.abstained is not None:
        below = f"the head is less sure of them than {manifest.settings.threshold:.3f}"
        lines.append(f"unknown  {totals.abstained} of {totals.predicted} rows: {below}")
    if totals.far is not None:
        lines.append(f"far      {totals.far} of {totals.predicted} rows are far from all that the head was trained on")
    if truth["known"]:
        lines.append(f"agrees   {truth['agreed']} of {truth['known']} true labels ({truth['accuracy']:.2%})")
    if truth["no_class"]:
        are = "is" if truth["no_class"] == 1 else "are"
        lines.append(f"note     {counted(truth['no_class'], 'true label')} {are} no class of the head")
    if summary.metrics:
        lines.append(metric_table(summary.metrics["metrics"]))
        if "abstaining" in summary.metrics:
            lines.append(f"unknown  {abstaining_text(summary.metrics['abstaining'])}")
        lines += [f"CAUTION  {caution}" for caution in judged_cautions(summary.metrics)]
        if "seen" in summary.metrics:
            lines.append(f"CAUTION  {seen_text(summary.metrics['seen'])}")
        if ERRORS_FILE in (manifest.files or {}):
            lines.append(f"errors   {readable(storage.join(summary.output, ERRORS_FILE))}")
    if manifest.weights_are_random:
        weights = manifest.weights or "of the features"
        layers = manifest.never_trained
        lines.append(
            f"CAUTION  weights {weights}: {never_trained_text(layers)}, so these predictions mean little"
            if layers
            else f"CAUTION  weights {weights} were never trained: these predictions mean nothing"
        )
    lines += [f"note     {shown_within(note)}" for note in manifest.notes]
    if summary.output:
        what = "unchanged, nothing to do" if summary.done_before else f"{summary.wall_seconds:.1f} s"
        lines.append(f"output   {readable(summary.output)} ({what})")
    return "\n".join(lines)


def seen_text(seen: dict[str, Any]) -> str:
    """Returns what is to be known of judged rows that the head was made from.

    Args:
        seen: As the metrics have it: `rows`, `accuracy`, and whether they are kept `apart` from the judged ones.
    """
    rows, accuracy = counted(seen["rows"], "row"), interval(seen["accuracy"])
    if seen["apart"]:
        return f"{rows} trained the head or chose its settings, and are left out above; accuracy on these {accuracy}"
    return f"all {rows} trained the head or chose its settings: on new rows it is worse than that"


def _shown_lines(shown: tuple[dict[str, Any], ...]) -> list[str]:
    """Returns a table: an image's name and what it shows, the likeliest first."""
    lines = []
    for row in shown:
        true = "" if row["true_label"] is None else f"  (true label: {short(row['true_label'])})"
        unknown = "  unknown, perhaps:" if row["label"] is None else ""
        lines.append(f"{readable(row['key'])}{true}{unknown}")
        wnids = row.get("top_wnids") or [""] * len(row["top_labels"])
        for label, wnid, score in zip(row["top_labels"], wnids, row["top_scores"], strict=True):
            lines.append(f"  {score:8.4f}  {wnid}{'  ' if wnid else ''}{short(label)}")
    return lines
