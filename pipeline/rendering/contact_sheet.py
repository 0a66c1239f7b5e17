"""Contact sheets: stored rows as thumbnails with score, label, key and path, on one page that needs nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.rendering.html import render, write_page
from pipeline.rendering.tables import cell
from transforms.rows.lookup import StoredRow
from transforms.rows.thumbnails import Thumbnail
from transforms.text import printable


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        thumbnail: The image, or why there is none.
        score: First line of its caption, such as its cosine.
        key: Empty for what isn't a stored row.
        label: None if unknown.
        source: Where it lies, None if unknown.
        marked: Whether it stands out: the query, or a label that disagrees.
        suggested: The label that it should rather have, None where none is known.
        kept: What came along with the image and is known, by its column.
    """

    thumbnail: Thumbnail
    score: str
    key: str = ""
    label: str | None = None
    source: str | None = None
    marked: bool = False
    suggested: str | None = None
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The end of the key: the file's name, and the record's inside it."""
        return self.key.rpartition("/")[2] or self.key

    @property
    def photo(self) -> str:
        """`file:` URI of the image, where it is a file on this machine by itself; else empty."""
        is_file = self.key == self.source and self.key.startswith("/")
        return Path(self.key).as_uri() if is_file else ""

    @property
    def folder(self) -> str:
        """The part of the key before `name`, or the row's source if the key doesn't name it."""
        lies = self.source is None or self.key.startswith(self.source)
        return self.key.removesuffix(self.name).rstrip("/") if lies else self.source


@dataclass(frozen=True)
class Section:
    """Tiles that belong together, under a title and a note; `anchor` is what links on the page call it."""

    title: str
    note: str
    tiles: tuple[Tile, ...]
    anchor: str = ""


def row_tile(
    row: StoredRow,
    thumbnails: Mapping[int, Thumbnail],
    score: str,
    *,
    marked: bool = False,
    suggested: str | None = None,
) -> Tile:
    """Returns a stored row's tile."""
    kept = {name: cell(value) for name, value in row.kept.items() if value is not None}
    return Tile(thumbnails[row.row], score, row.key, row.label, row.source, marked, suggested, kept)


def _labels(sections: Iterable[Section]) -> list[str]:
    """Returns the labels of tiles to choose from, each once, sorted; without those that can't be shown as they are."""
    tiles = [tile for section in sections for tile in section.tiles]
    found = {tile.label for tile in tiles} | {tile.suggested for tile in tiles}
    return sorted(label for label in found if label is not None and printable(label) == label)


def write_sheet(path: str, *, title: str, headline: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Writes a sheet: whole or not at all, all text escaped, images inside.

    Its tiles open their photos, and can be given labels, which the page saves as a label file.

    Raises:
        FeaturemillError: It can't be written there.
    """
    suggests = any(tile.suggested for section in sections for tile in section.tiles)
    values = {"title": title, "headline": headline, "facts": facts, "sections": sections}
    write_page(path, render("contact_sheet.html", **values, labels=_labels(sections), suggests=suggests))
