"""The contact sheet of a query: each query beside its neighbours."""

from pipeline.query import Found
from pipeline.query_inputs import Query
from pipeline.rendering.contact_sheet import Section, Tile, row_tile, write_sheet
from transforms.rows.lookup import read_rows
from transforms.rows.thumbnails import Thumbnail, thumbnail, thumbnails
from transforms.storage import readable
from transforms.text import counted


def write_query_page(found: Found, path: str) -> None:
    """Writes the sheet; the sources of the rows on it are opened, and nothing else.

    Raises:
        FeaturemillError: It can't be written there.
    """
    table = found.table
    asked_rows = {row.row: row for row in read_rows(table, [q.row for q in found.queries if q.row >= 0])}
    rows = [*asked_rows.values(), *(near.row for some in found.neighbours for near in some)]
    images = thumbnails(table.location, rows)

    def tile(asked: Query) -> Tile:
        if asked.row >= 0:
            return row_tile(asked_rows[asked.row], images, "query", marked=True)
        shown = thumbnail(asked.image) if asked.image is not None else Thumbnail(problem="a vector, no image")
        return Tile(shown, "query", marked=True)

    sections = [
        Section(
            f"{asked.kind} {asked.name}",
            "",
            (tile(asked), *(row_tile(near.row, images, f"{found.metric} {near.score:.4f}") for near in some)),
        )
        for asked, some in zip(found.queries, found.neighbours, strict=True)
    ]
    count = len(found.queries)
    write_sheet(
        path,
        title=f"Nearest in {readable(table.location)}",
        headline=f"{count:,} {'query' if count == 1 else 'queries'}, {counted(found.searched, 'row')} compared",
        facts={
            "features": f"{' + '.join(table.columns)} of {table.location}",
            "nearest by": found.metric,
            "rows": f"{found.searched:,} of {table.vectors.rows:,}",
        },
        sections=sections,
    )
