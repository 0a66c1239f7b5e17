"""Contact sheets in a real browser: the right thumbnails, beside the right words."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from tests.browser import shown
from tests.support.factories import shared_data
from transforms.text import printable

# Of the same image, made small in two ways; another image is three times as far.
MOST_DISTANCE = 16


def stored_rows(out):
    """Returns the rows of OUT without their vectors."""
    tables = [pq.read_table(part) for part in sorted(Path(out).glob("features/*.parquet"))]
    return [row for table in tables for row in table.select(["key", "label", "sha256"]).to_pylist()]


def by_hash(contents):
    return {hashlib.sha256(data).digest(): data for data in contents}


@pytest.fixture(scope="module")
def contents(made):
    """Returns {what a tile is called: its row's encoded bytes}, None where they are gone; found by their hash."""
    shards = [pq.read_table(path).to_pylist() for path in made.folder.glob("shards/*.parquet")]
    images = [row["image"]["bytes"] for rows in shards for row in rows]
    images += [path.read_bytes() for path in made.folder.glob("shards/plain/*/*")]
    rows, known = stored_rows(made.out), by_hash(images)
    found = {printable(row["key"]): known.get(row["sha256"]) for row in rows}
    assert len(found) == len(rows)
    query = next(made.folder.glob("*.jpg"))
    return {**found, f"image {query}": query.read_bytes()}


@pytest.mark.parametrize("name", ["query", "duplicates", "outliers"])
def test_each_thumbnail_is_its_rows(made, contents, visit, name):
    with visit(made.pages[name]) as page:
        tiles = shown.tiles(page)
    pictures = [tile for tile in tiles if tile.pixels is not None]
    grey = [tile for tile in tiles if tile.pixels is None]
    assert len(pictures) > 15
    assert grey
    right = {name: shown.expected(data) for name, data in contents.items() if data}
    for tile in pictures:
        assert max(tile.size) == 160
        # Copies of an image are as near to it as itself.
        distances = {name: shown.distance(tile.pixels, image) for name, image in right.items()}
        assert distances[tile.name] == min(distances.values()) < MOST_DISTANCE
    for tile in grey:
        assert tile.name.startswith("No image: cannot read its source: No such file"), "read aloud"
        assert "No such file or directory" in tile.text, "and seen"
        assert "gone.parquet" in tile.text
    assert sum("gone.parquet" in tile.text for tile in tiles) == len(grey)


def test_sheets_of_real_photos(tmp_path, visit, keep, capsys):
    """70 photos against 140, by the real commands with random weights: every image on every sheet, by its hash."""
    photos = shared_data() / "hymenoptera"
    asked = sorted(str(path) for path in (photos / "val").glob("*/*"))
    out, found = str(tmp_path / "out"), str(tmp_path / "found.parquet")
    weights = ["--weights", "random:0", "--image-size", "32"]
    assert run_cli(["extract", str(photos / "train"), "--output", out, *weights]) == 0
    sheets = {name: tmp_path / f"{name}.html" for name in ("query", "duplicates", "outliers")}
    images = [part for path in asked for part in ("--image", path)]
    assert run_cli(["query", out, *images, "--top", "3", "--output", found, "--html", str(sheets["query"])]) == 0
    assert run_cli(["duplicates", out, "--cosine", "0.995", "--html", str(sheets["duplicates"])]) == 0
    assert run_cli(["outliers", out, "--html", str(sheets["outliers"])]) == 0
    files = by_hash(path.read_bytes() for path in photos.glob("*/*/*"))
    images = {data_hash: shown.expected(data) for data_hash, data in files.items()}
    hashes = {row["key"]: row["sha256"] for row in stored_rows(out)}
    hashes |= {f"image {path}": hashlib.sha256(Path(path).read_bytes()).digest() for path in asked}
    for name, sheet in sheets.items():
        with visit(sheet) as page:
            tiles = shown.tiles(page)
            keep(page, f"photos-{name}", full_page=name != "query")
        assert tiles
        for tile in tiles:
            distances = {data_hash: shown.distance(tile.pixels, image) for data_hash, image in images.items()}
            assert distances[hashes[tile.name]] == min(distances.values()) < MOST_DISTANCE
        if name == "query":
            rows = pq.read_table(found).to_pylist()
            simple = [(f"image {row['query']}", row["key"], f"cosine {row['score']:.4f}") for row in rows]
            lines = [(tile.section, *tile.text.split("\n")) for tile in tiles if not tile.marked]
            words = [(section, f"{folder}/{name}", score) for section, score, _, name, folder in lines]
            assert words == simple
            assert [tile.name for tile in tiles if tile.marked] == [f"image {path}" for path in asked]
