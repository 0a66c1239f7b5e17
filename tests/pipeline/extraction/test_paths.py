"""`--path-field`: tables of paths as inputs."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.extraction.test_kept import kept, png
from tests.pipeline.extraction.test_run import extract
from transforms import storage
from transforms.errors import FeaturemillError
from transforms.rows.lookup import read_rows
from transforms.rows.table import open_table
from transforms.rows.thumbnails import thumbnails
from transforms.shards import Fields, find
from transforms.store.features import open_features
from transforms.store.manifest import read_manifest
from transforms.store.output import Output


@pytest.fixture
def folder(tmp_path):
    for n in range(4):
        path = tmp_path / "photos" / f"s{n % 2}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return tmp_path


FIELDS = Fields(path="file")
TABLE = {
    "file": ["photos/s0/0.png", "photos/s1/1.png", "photos/s0/2.png", "photos/s1/gone.png", "nowhere/at/all.png"],
    "label": ["a", "b", None, "a", "b"],
    "price": [1.5, 2.5, None, 4.5, 5.5],
    "n": [1, 2, 3, 4, 5],
}


def written(folder, kind):
    path = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(TABLE), path)
    else:
        lines = zip(*([name, *map(as_cell, values)] for name, values in TABLE.items()), strict=True)
        path.write_text("".join({"csv": ",", "tsv": "\t"}[kind].join(line) + "\r\n" for line in lines), "utf-8-sig")
    return path


def as_cell(value):
    return "" if value is None else f'"{value}"'


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
def test_a_table_of_paths(folder, tmp_path, kind):
    out = tmp_path / "out"
    keep = ("price", "n") if kind == "parquet" else ("price:double", "n:int64")
    summary = extract(written(folder, kind), out, fields=FIELDS, keep=keep)
    assert (summary.totals.rows_read, summary.totals.rows_embedded, summary.totals.rows_failed) == (5, 3, 2)
    assert kept(out, "label", "price", "n").to_pylist() == [
        {"label": "a", "price": 1.5, "n": 1},
        {"label": None, "price": None, "n": 3},
        {"label": "b", "price": 2.5, "n": 2},
    ]
    features = open_features(str(out))
    assert set(features.keys) == {str(folder / "photos" / name) for name in ("s0/0.png", "s0/2.png", "s1/1.png")}
    [failed] = (out / "failures").iterdir()
    names = {(os.path.basename(row["key"]), row["error"], row["label"]) for row in pq.read_table(failed).to_pylist()}
    assert names == {("gone.png", "vanished", "a"), ("all.png", "vanished", "b")}
    # Nothing is new, also where the table isn't named again.
    assert extract(folder / "table.*", out, fields=FIELDS, keep=keep).this_run.units == 0
    summary = extract(
        folder / "photos" / "s1" / "3.png", out, keep=[f"{n}:{k}" for n, k in read_manifest(str(out)).kept.items()]
    )
    assert (summary.this_run.units, summary.totals.rows_embedded, summary.totals.rows_failed) == (1, 4, 2)


def test_a_folder_that_is_not_there_is_a_failure_for_each_row(tmp_path):
    (tmp_path / "t.csv").write_text("file\nnowhere/a.png\nnowhere/b.png\n")
    totals = extract(tmp_path / "t.csv", tmp_path / "out", fields=FIELDS).totals
    assert (totals.rows_read, totals.rows_embedded, totals.rows_failed) == (2, 0, 2)


def test_images_are_found_again(folder, tmp_path):
    out = str(tmp_path / "out")
    extract(written(folder, "parquet"), out, fields=FIELDS)
    found = thumbnails(Output(out), read_rows(open_table(out), [0, 1, 2]))
    assert [thumbnail.problem for thumbnail in found.values()] == [""] * 3


def test_a_change_of_the_table_is_named(folder, tmp_path):
    path, out = written(folder, "parquet"), tmp_path / "out"
    extract(path, out, fields=FIELDS, keep=("n",))
    pq.write_table(pa.table(TABLE | {"n": [9, 2, 3, 4, 5]}), path)
    with pytest.raises(FeaturemillError, match=r"0\.png has other values to keep now"):
        extract(path, out, fields=FIELDS, keep=("n",))
    (folder / "photos/s1/gone.png").write_bytes(png(7))
    summary = extract(path, out, fields=FIELDS, keep=("n",), prune=True)
    assert (summary.totals.rows_embedded, summary.totals.rows_failed) == (4, 1)
    assert sorted(kept(out, "n")["n"].to_pylist()) == [2, 3, 4, 9]


def test_no_request_for_each_image(folder, monkeypatch):
    path, asked = written(folder, "csv"), []
    listed = storage.list_infos
    monkeypatch.setattr(storage, "list_infos", lambda uri: asked.append(uri) or listed(uri))
    monkeypatch.setattr(
        storage, "open_read", lambda uri, open_read=storage.open_read: asked.append(uri) or open_read(uri)
    )
    assert len(find([str(path)], FIELDS).files) == 5
    # The table, for its header and its rows, and the three folders.
    assert sorted(asked) == sorted(
        [str(path)] * 2 + [str(folder / name) for name in ("nowhere/at", "photos/s0", "photos/s1")]
    )


@pytest.mark.parametrize(
    ("text", "fields", "error"),
    [
        ("path,label\na.png,x\n", {}, "no column of paths in .*looked for file"),
        ("file\na.png\n", {"label": "kind"}, "no label in .*looked for kind"),
        ("file,label\na.png\n", {}, "row 0 of .* has 1 values, and its header 2 names"),
        ("file,label\n,x\n", {}, "row 0 of .* has no path"),
        ("file,label\na.png,x\na.png,y\n", {}, "a.png is in the tables twice, with other values"),
        ("file,label\n", {}, "has no row"),
        ("", {}, "no column of paths"),
        ('file\n"a.png\n', {}, "save it as CSV in UTF-8"),
        (b"file\n\xff\xfe.png\n", {}, "save it as CSV in UTF-8"),
    ],
)
def test_what_is_no_table_of_paths(tmp_path, text, fields, error):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FeaturemillError, match=error):
        find([str(tmp_path / "t.csv")], Fields(path="file", **fields))


def test_a_damaged_parquet_is_one_line(folder):
    path = written(folder, "parquet")
    path.write_bytes(path.read_bytes()[:-20] + b"PAR1")
    with pytest.raises(FeaturemillError, match=r"cannot read .*table\.parquet: .*; write it again"):
        find([str(path)], FIELDS)


def test_equal_rows_count_once_and_a_table_wins_over_its_folder(folder):
    path = folder / "photos" / "t.csv"
    path.write_text("file,label,n\ns0/0.png,x,1\ns0/0.png,x,1\n")
    found = find([str(folder / "photos")], Fields(path="file", keep=("n",)))
    assert [(os.path.basename(f.file.uri), f.label) for f in found.files if f.label == "x"] == [("0.png", "x")]
    assert [json.loads(f.kept) for f in found.files if f.kept] == [{"n": "1"}]
    assert (len(found.files), found.skipped) == (4, ())
