"""Duplicates: rows with the same content or nearly the same features, as groups; labels that disagree come first."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.rendering.contact_sheet import Section, row_tile, write_sheet
from pipeline.rendering.tables import row_json, text_table, write_stored_rows
from transforms.rows.lookup import StoredRow, read_rows
from transforms.rows.table import Table
from transforms.rows.thumbnails import thumbnails
from transforms.similarity.copies import Duplicates, Group
from transforms.storage import readable
from transforms.text import counted

# What a page and a terminal show of many groups; --output has all.
PAGE_GROUPS, PAGE_TILES = 200, 24
SHOWN_GROUPS, SHOWN_ROWS = 20, 6
# Groups that are handed on at a time, so that memory doesn't grow with all that is found.
_BATCH_GROUPS = 10_000


def _rows_of(found: Duplicates, groups: Sequence[Group]) -> dict[int, StoredRow]:
    numbers = [row for group in groups for row in group.rows]
    return {row.row: row for row in read_rows(found.table, numbers)}


def _in_turn(table: Table, group: Group) -> tuple[list[int], Counter]:
    """Returns a group's rows, a row of each label in turn, the rarest label first, and how often it has each."""
    labels = table.labels.take(list(group.rows)).to_pylist()
    counts = Counter(label for label in labels if label is not None)
    seen: Counter[str | None] = Counter()
    places = []
    for number, label in enumerate(labels):
        # Those without a label last.
        turn = seen[label] if label is not None else len(labels)
        places.append((turn, counts[label], label or "", number))
        seen[label] += 1
    return [group.rows[number] for *_, number in sorted(places)], counts


def duplicates_json(found: Duplicates) -> dict[str, Any]:
    """Returns the groups for programs."""
    rows = _rows_of(found, found.groups)
    return {
        "output": found.table.location,
        "features": list(found.table.columns),
        "cosine": found.cosine,
        "rows": found.table.vectors.rows,
        "groups": len(found.groups),
        "rows_in_groups": found.rows,
        "groups_with_labels_that_disagree": found.disagreeing,
        "found": [
            {
                "exact": group.exact,
                "labels_disagree": group.labels > 1,
                "rows": [row_json({}, rows[row]) for row in group.rows],
            }
            for group in found.groups
        ],
    }


def duplicates_text(found: Duplicates) -> str:
    """Returns the groups for people; of many, the first."""
    lines = []
    for number, group in enumerate(found.groups[:SHOWN_GROUPS], 1):
        numbers, _ = _in_turn(found.table, group)
        rows = read_rows(found.table, numbers[:SHOWN_ROWS])
        lines.append(f"group {number}: {_what(group)}")
        lines.append(text_table(("label", "key"), [(row.label, row.key) for row in rows]))
        if len(group.rows) > SHOWN_ROWS:
            lines.append(f"… and {len(group.rows) - SHOWN_ROWS:,} more")
        lines.append("")
    if len(found.groups) > SHOWN_GROUPS:
        lines += [f"… and {len(found.groups) - SHOWN_GROUPS:,} more groups; --output FILE.parquet has all", ""]
    return "\n".join([*lines, _headline(found)])


def _what(group: Group) -> str:
    kind = "exact copies" if group.exact else "near copies"
    return f"{len(group.rows):,} {kind}" + (f", {group.labels} labels that disagree" if group.labels > 1 else "")


def _headline(found: Duplicates) -> str:
    return (
        f"{counted(len(found.groups), 'group')} with {found.rows:,} of {counted(found.table.vectors.rows, 'row')}, "
        f"at a cosine of {found.cosine:g} or more; {found.disagreeing:,} with labels that disagree"
    )


def write_duplicates(found: Duplicates, path: str) -> None:
    """Writes the groups as Parquet, a row for each row of a group; groups are numbered from 1, as everywhere.

    Raises:
        FeaturemillError: It can't be written there.
    """
    kinds = {"group": pa.int64(), "rows_in_group": pa.int64(), "exact": pa.bool_(), "labels_disagree": pa.bool_()}

    def rows() -> Iterator[tuple[dict[str, Any], StoredRow]]:
        for first in range(0, len(found.groups), _BATCH_GROUPS):
            some = found.groups[first : first + _BATCH_GROUPS]
            stored = _rows_of(found, some)
            for number, group in enumerate(some, first + 1):
                own = (number, len(group.rows), group.exact, group.labels > 1)
                yield from ((dict(zip(kinds, own, strict=True)), stored[row]) for row in group.rows)

    write_stored_rows(path, kinds.items(), found.table.kept, rows())


def write_duplicates_page(found: Duplicates, path: str) -> None:
    """Writes a contact sheet of the first groups.

    Raises:
        FeaturemillError: It can't be written there.
    """
    shown = found.groups[:PAGE_GROUPS]
    orders = [_in_turn(found.table, group) for group in shown]
    numbers = [row for order, _ in orders for row in order[:PAGE_TILES]]
    rows = {row.row: row for row in read_rows(found.table, numbers)}
    images = thumbnails(found.table.output, rows.values())
    sections = []
    for number, (group, (order, counts)) in enumerate(zip(shown, orders, strict=True), 1):
        # Marked is what is outvoted: where all agree, nothing.
        most = max(counts.values(), default=0)
        tiles = [
            row_tile(rows[row], images, str(place), marked=counts.get(rows[row].label, most) < most)
            for place, row in enumerate(order[:PAGE_TILES], 1)
        ]
        more = f"{PAGE_TILES} of them" if len(order) > PAGE_TILES else ""
        more += ", one of each label in turn, the rarest label first" if more and group.labels > 1 else ""
        sections.append(Section(f"Group {number}: {_what(group)}", more, tuple(tiles)))
    note = f"the first {PAGE_GROUPS} groups are shown" if len(found.groups) > PAGE_GROUPS else "all groups are shown"
    write_sheet(
        path,
        title=f"Duplicates in {readable(found.table.location)}",
        headline=_headline(found),
        facts={
            "features": f"{' + '.join(found.table.columns)} of {found.table.location}",
            "order": f"labels that disagree first, then the largest; {note}",
        },
        sections=sections,
    )
