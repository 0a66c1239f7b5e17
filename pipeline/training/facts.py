"""Facts about the data, shown before any metric."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from transforms.evaluation.split import Split
from transforms.heads.cells import Rows
from transforms.labels.cautions import cautions
from transforms.rows.labels import Joined
from transforms.rows.table import Table
from transforms.text import counted, printable

# Layers named of those that are still random.
_NAMED = 3
# A side whose share of the rows differs by more than this part of what was asked for is reported.
_FAR_OFF = 0.25
NO_FINGERPRINT = "no fingerprint: this Parquet doesn't say what made its vectors; using the head on others is on trust"


def never_trained_text(layers: Sequence[str]) -> str:
    """Returns "the layers block1_conv1, block1_conv2, block2_conv1 and 9 more were never trained"."""
    *others, last = layers[:_NAMED]
    if len(layers) > _NAMED:
        others, last = layers[:_NAMED], f"{len(layers) - _NAMED} more"
    names = f"{', '.join(others)} and {last}" if others else last
    return f"the layer{'s' * (len(layers) > 1)} {names} {'were' if len(layers) > 1 else 'was'} never trained"


def describe_data(table: Table, joined: Joined | None, parts: Split, rows: Rows) -> dict[str, str]:
    """Returns {name: fact}: where the vectors come from, which rows are used, how they are split."""
    columns = ", ".join(f"{name} ({dims:,} numbers)" for name, dims in zip(table.columns, table.dims, strict=True))
    facts = {"features": f"{table.location}: {table.vectors.rows:,} rows, {columns}"}
    if table.fingerprint:
        facts["spec"] = f"fingerprint {table.fingerprint[:12]}, weights {table.weights}"
    elif table.fingerprints:
        facts["spec"] = f"fingerprints {', '.join(one[:12] for one in table.fingerprints)}, weights {table.weights}"
    else:
        facts["spec"] = NO_FINGERPRINT
    if table.weights_are_random:
        facts["warning"] = "the weights are RANDOM: the network was never trained, and these figures are only a try"
    unlabelled = parts.report["unlabelled"]
    facts["labels"] = f"{counted(len(rows.codes) - unlabelled, 'row')} of {len(rows.classes):,} classes"
    if unlabelled:
        facts["labels"] += f"; {counted(unlabelled, 'row')} without a label left out"
    if joined:
        facts["joined"] = joined_text(joined)
    doubts = [*cautions(_counts(table.labels)), *_split_cautions(parts)]
    if doubts:
        facts["CAUTION"] = "; ".join(doubts)
    facts["split"] = _split_text(parts)
    return facts


def _counts(labels: pa.ChunkedArray) -> dict[str | None, int]:
    counted_labels = labels.value_counts()
    return dict(zip(*(counted_labels.field(at).to_pylist() for at in range(2)), strict=True))


def label_origin(table: Table, joined: Joined | None) -> dict[str, Any]:
    """Returns where the labels came from, as JSON values for the head."""
    labelled = len(table.labels) - table.labels.null_count
    if not joined:
        return {"stored": labelled, "from_file": 0}
    return {
        "stored": joined.stored,
        "from_file": labelled - joined.stored,
        "file": joined.file.path,
        "columns": dict(joined.file.columns),
        "rule": joined.rule,
        "unmatched": joined.unmatched,
    }


def joined_text(joined: Joined) -> str:
    """Returns how many rows have their label from where, by which rule, and which have none."""
    file = joined.file
    text = (
        f"from column {file.columns['label']!r} of {file.path}, by {joined.rule} in column {file.columns['key']!r}: "
        f"{counted(joined.matched, 'row')} found in the file"
    )
    if joined.stored:
        text += f"; {counted(joined.stored, 'row')} not in it kept the stored label"
    if file.stripped:
        text += f"; blanks around {counted(file.stripped, 'label')} left out"
    for count, keys, what in (
        (joined.unlabelled, joined.unlabelled_keys, "row"),
        (joined.unmatched, joined.unmatched_keys, "label"),
    ):
        if count:
            text += f"; {counted(count, what)} without a {'label' if what == 'row' else 'row'}, such as "
            text += printable(keys[0])
    return text


def _split_cautions(parts: Split) -> list[str]:
    """Returns where the split isn't what was asked for, because rows belong together."""
    report, found = parts.report, []
    used = sum(sum(rows.values()) for rows in report["rows"].values())
    together = "a group, or copies" if report["by_group"] else "copies"
    if report["near_duplicates"] is not None:
        together += " or near copies"
    if report["largest"] > used / 2 and report["components"] > 1:
        found.append(f"{report['largest']:,} of {counted(used, 'row')} belong together ({together})")
    if report["moved_rows"]:
        moves = ", ".join(f"{rows:,} from {move}" for move, rows in report["moves"].items())
        found.append(
            f"{counted(report['moved_rows'], 'row')} moved from the given side, because they belong to rows there "
            f"({together}): {moves}; such as {printable(report['moved_key'])}"
        )
    if not report["by_column"] and not report["folds"]:
        for name in ("validation", "test"):
            asked, got = report[name], sum(report["rows"][name].values()) / used
            if abs(got - asked) > max(_FAR_OFF * asked, 1 / used):
                found.append(
                    f"{name} is {got:.0%} of the rows, not {asked:.0%}: rows that belong together can't be divided, "
                    "and each class is to be on both sides"
                )
    return found


def _split_text(parts: Split) -> str:
    report = parts.report
    text = ", ".join(f"{name} {sum(rows.values()):,}" for name, rows in report["rows"].items() if any(rows.values()))
    text += f"; seed {report['seed']}"
    if report["by_group"]:
        text += f"; {counted(report['components'], 'group')}"
    if report["equal_rows"]:
        text += f"; {report['equal_rows']:,} rows with equal content kept together"
    if report["near_rows"]:
        text += f"; {report['near_rows']:,} near copies kept together"
    conflicts = report["label_conflicts"]
    if conflicts["sets"]:
        sets = counted(conflicts["sets"], "set")
        text += f"; {sets} of copies with several labels, such as {conflicts['keys'][0][0]}"
    return text
