"""Contact sheets: stored rows as thumbnails with score, label, key and path, on one page that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.rendering.html import render, write_page
from transforms.rows.lookup import StoredRow
from transforms.rows.thumbnails import Thumbnail


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        thumbnail: The image, or why there is none.
        score: What is said of it in the first line, such as its cosine.
        key: Empty for what isn't a stored row.
        label: None if unknown.
        source: Where it lies, None if unknown.
        marked: Whether it stands out: the query, or a label that disagrees.
    """

    thumbnail: Thumbnail
    score: str
    key: str = ""
    label: str | None = None
    source: str | None = None
    marked: bool = False

    @property
    def name(self) -> str:
        """The end of the key: the file's name, and the record's inside it."""
        return self.key.rpartition("/")[2] or self.key

    @property
    def folder(self) -> str:
        """The part of the key before `name`, or the row's source if the key doesn't name it."""
        lies = self.source is None or self.key.startswith(self.source)
        return self.key.removesuffix(self.name).rstrip("/") if lies else self.source


@dataclass(frozen=True)
class Section:
    """Tiles that belong together, under a title and a note."""

    title: str
    note: str
    tiles: tuple[Tile, ...]


def row_tile(row: StoredRow, thumbnails: Mapping[int, Thumbnail], score: str, *, marked: bool = False) -> Tile:
    """Returns a stored row's tile."""
    return Tile(thumbnails[row.row], score, row.key, row.label, row.source, marked)


def write_sheet(path: str, *, title: str, headline: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Writes a sheet: whole or not at all, all text escaped, images inside.

    Raises:
        FeaturemillError: It can't be written there.
    """
    write_page(path, render("contact_sheet.html", title=title, headline=headline, facts=facts, sections=sections))
