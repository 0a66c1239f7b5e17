"""Thumbnails and contact sheets: the right images by content, from every format; tiles that say what is missing."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo.samples import draw_items, write_folder, write_parquet, write_tar, write_tfrecord
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.rendering.contact_sheet import Section, Tile, write_sheet
from tests.pipeline.training.test_report import Page
from tests.support import deadly
from tests.support.fakes import WEIGHTS, load_fake
from transforms import shards
from transforms.rows import thumbnails as module
from transforms.rows.lookup import read_rows
from transforms.rows.table import open_table
from transforms.rows.thumbnails import SIDE, Thumbnail, thumbnail, thumbnails
from transforms.shards import stream
from transforms.store.output import Output

WRITERS = {"folder": write_folder, "tfrecord": write_tfrecord, "tar": write_tar, "parquet": write_parquet}
HOSTILE = ("<script>alert(1)</script>", "\u202egnp.exe", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "x" * 4096)


def extract(source, output, **more):
    options = ExtractOptions(
        inputs=(str(source),), output=str(output), image_size=32, unit_bytes=20_000, batch_size=4, **more
    )
    run(options, load=load_fake, weights=WEIGHTS)


def stored(folder):
    table = open_table(str(folder / "out"))
    return read_rows(table, list(range(table.vectors.rows)))


def pixels(found):
    head, data = found.uri.split(",", 1)
    assert head == "data:image/webp;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "WEBP"
    assert image.size == (found.width, found.height)
    return np.asarray(image.convert("RGB"), np.float64)


@pytest.fixture(params=[*WRITERS, "tar.gz"])
def made(tmp_path, request):
    """An input of some images in one of the formats, and its features."""
    kind = request.param
    WRITERS[kind.removesuffix(".gz")](tmp_path / "photos", draw_items(per_class=6, size=48, seed=1))
    if kind == "tar.gz":
        import gzip

        data = (tmp_path / "photos").read_bytes()
        (tmp_path / "photos").write_bytes(gzip.compress(data))
    if kind != "folder":
        (tmp_path / "photos").rename(tmp_path / f"photos.{kind}")
    extract(next(tmp_path.glob("photos*")), tmp_path / "out")
    return tmp_path


def test_they_are_the_rows_own(made):
    """Against the bytes that reading everything gives, found by their hash."""
    rows = stored(made)
    found = thumbnails(Output(str(made / "out")), rows)
    by_hash = contents(made)
    assert len(rows) > 8
    for row in rows:
        expected = Image.open(io.BytesIO(by_hash[row.sha256])).convert("RGB")
        shown = pixels(found[row.row])
        assert max(shown.shape[:2]) == SIDE
        assert shown.shape[1] / shown.shape[0] == pytest.approx(row.width / row.height, rel=0.02)
        resized = np.asarray(expected.resize(shown.shape[1::-1], Image.Resampling.BILINEAR), np.float64)
        assert np.abs(shown - resized).mean() < 12


def test_one_by_one_or_in_stretches_they_are_the_same(made, monkeypatch):
    rows = stored(made)
    found = thumbnails(Output(str(made / "out")), rows)
    monkeypatch.setattr(stream, "GAP_BYTES", 0)
    monkeypatch.setattr(module, "_FILES", 2)
    assert thumbnails(Output(str(made / "out")), rows) == found
    some = rows[::3]
    assert thumbnails(Output(str(made / "out")), some) == {row.row: found[row.row] for row in some}


def test_a_parquet_that_became_shorter_says_so(tmp_path):
    WRITERS["parquet"](tmp_path / "photos.parquet", draw_items(per_class=4, size=48, seed=1))
    extract(tmp_path / "photos.parquet", tmp_path / "out")
    rows = stored(tmp_path)
    table = pq.read_table(tmp_path / "photos.parquet")
    pq.write_table(table.slice(0, rows[3].position), tmp_path / "photos.parquet")
    found = thumbnails(Output(str(tmp_path / "out")), rows)
    assert [bool(found[row.row].data) for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    assert {found[row.row].problem for row in rows[3:]} == {"its source no longer holds it"}


def contents(folder):
    import hashlib

    records = [
        record
        for shard in shards.find([str(next(folder.glob("photos*")))], shards.Fields()).shards
        for unit in (shards.split(shard, 10**9) if shard.format != "files" else [])
        for record in shards.read(unit)
    ]
    data = [record.data for record in records if hasattr(record, "data")]
    data += [path.read_bytes() for path in folder.glob("photos/**/*") if path.is_file()]
    return {hashlib.sha256(some).digest(): some for some in data}


def test_merged_parts_know_their_sources(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, kind in enumerate(("tar", "tfrecord", "parquet")):
        WRITERS[kind](tmp_path / f"photos/{number}.{kind}", draw_items(per_class=4, size=48, seed=number))
    extract(f"{tmp_path}/photos/*", tmp_path / "out")
    before = {row.key: found for row, found in shown(tmp_path).items()}
    compact(CompactOptions(str(tmp_path / "out")))
    after = shown(tmp_path)
    assert {row.part.rsplit("/", 1)[1].split("-")[0] for row in after} == {"compact"}
    assert all(found.uri for found in after.values())
    assert {row.key: found for row, found in after.items()} == before


def shown(folder):
    rows = stored(folder)
    found = thumbnails(Output(str(folder / "out")), rows)
    return {row: found[row.row] for row in rows}


def test_sources_that_are_gone_or_changed_say_so(tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=4, size=48, seed=1))
    extract(tmp_path / "photos", tmp_path / "out")
    rows = stored(tmp_path)
    before = thumbnails(Output(str(tmp_path / "out")), rows)
    (tmp_path / rows[0].key).unlink()
    Image.new("RGB", (40, 40), "red").save(rows[1].key)
    found = thumbnails(Output(str(tmp_path / "out")), rows)
    assert "No such file" in found[0].problem
    assert found[1].problem == "its content changed since it was embedded"
    assert not found[0].uri
    assert not found[1].uri
    assert {number: found[number] for number in before if number > 1} == {n: t for n, t in before.items() if n > 1}
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert all(some.problem and not some.uri for some in thumbnails(Output(str(tmp_path / "out")), rows).values())
    (tmp_path / "out/plan.parquet").unlink()
    assert all("isn't known" in some.problem for some in thumbnails(Output(str(tmp_path / "out")), rows).values())


@pytest.mark.parametrize("kind", ["tfrecord", "tar", "parquet"])
def test_shards_that_are_gone_or_cut_say_so(tmp_path, kind):
    path = tmp_path / f"photos.{kind}"
    WRITERS[kind](path, draw_items(per_class=4, size=48, seed=1))
    extract(path, tmp_path / "out")
    rows = stored(tmp_path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 3], b"", bytes(len(data)), data[:-1] if kind == "parquet" else None, None):
        if damaged is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(damaged)
        found = thumbnails(Output(str(tmp_path / "out")), rows)
        assert len(found) == len(rows)
        for some in found.values():
            assert bool(some.uri) != bool(some.problem)
            assert "\n" not in some.problem
        assert found[rows[-1].row].problem


def test_what_is_no_image_says_so():
    assert "can't be decoded" in thumbnail(b"junk").problem
    assert "can't be decoded" in thumbnail(b"").problem


def test_deadly_images_have_none(tmp_path, monkeypatch):
    """Their pages are made all the same: what was embedded before is decoded again, at reduced size."""
    (tmp_path / "photos").mkdir()
    for deed in ("abort", "memory", "loop"):
        (tmp_path / f"photos/{deed}.bmp").write_bytes(deadly.image(deed))
    (tmp_path / "photos/red.png").write_bytes(png())
    extract(tmp_path / "photos", tmp_path / "out")
    for name, value in deadly.codecs(tmp_path / "codecs").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "SECONDS", 0.5)
    monkeypatch.setattr(module, "MEMORY", 300 << 20)
    found = {row.key.rsplit("/", 1)[1]: some for row, some in shown(tmp_path).items()}
    assert found["abort.bmp"].problem == "can't be decoded: crashed (signal 6)"
    assert found["loop.bmp"].problem == "can't be decoded: too slow (over 0.5 s)"
    assert "memory" in found["memory.bmp"].problem
    assert found["red.png"].data


def test_long_images_stay_inside():
    target = io.BytesIO()
    Image.new("RGB", (4000, 3), "red").save(target, "PNG")
    found = thumbnail(target.getvalue())
    assert (found.width, found.height) == (SIDE, 1)
    assert pixels(found).mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=6)


def test_sheet_is_escaped_whole_and_needs_nothing_else(tmp_path):
    good = thumbnail(png())
    tiles = [Tile(good, "0.5", key=text, label=text, source=text, marked=True) for text in HOSTILE]
    tiles += [Tile(Thumbnail(problem=text), "0.1") for text in HOSTILE]
    sections = [Section(text, text, tuple(tiles)) for text in HOSTILE]
    path = tmp_path / "page.html"
    write_sheet(str(path), title=HOSTILE[0], headline=HOSTILE[2], facts={"fact": HOSTILE[3]}, sections=sections)
    text = path.read_text()
    page = Page(text)
    # Ours, which saves labels; no text got in as one.
    assert page.count("script") == 1
    assert page.count("img") == len(HOSTILE) ** 2
    # Its bar is one more.
    assert len(page.ids) == len(set(page.ids)) == len(HOSTILE) + 1
    assert {link.split(",")[0] for link in page.links} == {"data:image/webp;base64"}
    assert HOSTILE[0] in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in text
    # What is shown is short; a tile knows its whole key, for the file of labels.
    assert "x" * 601 not in page.text
    assert not re.search(r"https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert not list(tmp_path.glob("*.tmp"))


def png():
    target = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(target, "PNG")
    return target.getvalue()


def test_rows_without_a_source_have_grey_tiles(tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=2, size=48, seed=1))
    extract(tmp_path / "photos", tmp_path / "out")
    row = replace(stored(tmp_path)[0], sha256=None, position=None)
    assert "isn't known" in thumbnails(Output(str(tmp_path / "out")), [row])[row.row].problem
