"""Outliers: the rows farthest from the centre of their class, or from their nearest neighbours."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.rendering.contact_sheet import Section, Tile, row_tile, write_sheet
from pipeline.rendering.tables import row_json, text_table, write_stored_rows
from transforms.rows.thumbnails import Thumbnail, thumbnails
from transforms.similarity.outlying import Outlier, Outliers
from transforms.storage import readable


def _values(rank: int, far: Outlier) -> dict[str, Any]:
    return {"rank": rank, "distance": far.distance, "nearest_class": far.nearest_class}


def outliers_json(found: Outliers) -> dict[str, Any]:
    """Returns the outliers for programs."""
    return {
        "output": found.table.location,
        "features": list(found.table.columns),
        "by": found.by,
        "rows": found.table.vectors.rows,
        "compared": found.rows,
        "found": [row_json(_values(rank, far), far.row) for rank, far in enumerate(found.found, 1)],
    }


def outliers_text(found: Outliers) -> str:
    """Returns the outliers for people."""
    rows = [
        (rank, f"{far.distance:.4f}", far.row.label, *([far.nearest_class] * (found.by == "class")), far.row.key)
        for rank, far in enumerate(found.found, 1)
    ]
    names = ("", "distance", "label", *(["nearest class"] * (found.by == "class")), "key")
    return f"{text_table(names, rows)}\n\n{_headline(found)}"


def _headline(found: Outliers) -> str:
    what = {"class": "the centre of their class", "neighbours": "their nearest rows"}[found.by]
    return f"the {len(found.found):,} rows farthest from {what}, of {found.rows:,} compared"


def write_outliers(found: Outliers, path: str) -> None:
    """Writes the outliers as Parquet.

    Raises:
        FeaturemillError: It can't be written there.
    """
    own = [("rank", pa.int64()), ("distance", pa.float64()), ("nearest_class", pa.string())]
    rows = ((_values(rank, far), far.row) for rank, far in enumerate(found.found, 1))
    write_stored_rows(path, own, found.table.kept, rows)


def write_outliers_page(found: Outliers, path: str) -> None:
    """Writes a contact sheet, class by class where they are by class.

    Raises:
        FeaturemillError: It can't be written there.
    """
    images = thumbnails(found.table.output, [far.row for far in found.found])
    titles: dict[str, list[Outlier]] = {}
    for far in found.found:
        titles.setdefault(f"class {far.row.label}" if found.by == "class" else "all rows", []).append(far)
    sections = [Section(title, "", tuple(_tile(far, images) for far in some)) for title, some in titles.items()]
    write_sheet(
        path,
        title=f"Outliers in {readable(found.table.location)}",
        headline=_headline(found),
        facts={
            "features": f"{' + '.join(found.table.columns)} of {found.table.location}",
            "distance": "1 - cosine; marked: nearer to the centre of another class" * (found.by == "class")
            or "1 - cosine, mean over the nearest rows",
        },
        sections=sections,
    )


def _tile(far: Outlier, images: Mapping[int, Thumbnail]) -> Tile:
    elsewhere = far.nearest_class is not None and far.nearest_class != far.row.label
    score = f"{far.distance:.4f}" + (f", nearest {far.nearest_class}" if elsewhere else "")
    return row_tile(far.row, images, score, marked=elsewhere)
