"""`--keep`: columns of the input that come along into OUT, typed and counted."""

import io
import json
from dataclasses import replace
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.exploration.query import QueryOptions, query
from pipeline.exploration.sql import sql
from pipeline.extraction.resumed import resumed
from pipeline.maintenance.compact import compact
from pipeline.maintenance.convert import convert
from tests.pipeline.extraction.test_run import extract, options
from tests.support.factories import tar_bytes
from transforms.errors import FeaturemillError, UsageError
from transforms.records import FileInfo, Kept, Shard, Unit
from transforms.shards import example, tfrecord
from transforms.store.features import open_features
from transforms.store.manifest import read_manifest
from transforms.store.units import unit_id


@pytest.fixture(scope="module")
def images():
    return [png(n) for n in range(4)]


def png(shade):
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (shade + 1, 9, 9)).save(target, "png")
    return target.getvalue()


def kept(output, *names):
    return pa.Table.from_batches(open_features(str(output)).batches(["key", *names])).sort_by("key").drop("key")


@pytest.fixture
def table(images, tmp_path):
    columns = {
        "image": images,
        "label": ["a", "b", "a", "b"],
        "caption": pa.array(["one\ntwo", "", None, "ünï"], pa.large_string()),
        "price": pa.array([1.5, 2.25, None, 0.1], pa.float32()),
        "tags": [["x", "y"], [], None, ["z"]],
        "day": pa.array([date(2020, 1, 2)] * 4),
        "at": pa.array([datetime(2020, 1, 2, 3, 4, 5, 678901)] * 4, pa.timestamp("us")),
        "zone": pa.array([datetime(2020, 1, 2)] * 4, pa.timestamp("ns", tz="UTC")),
        "meta": [{"id": n} for n in range(4)],
        "mixed": ["1", "2.5", "true", None],
        "long": ["x" * (1 << 18), "x" * (1 << 18) + "x", "x", "x"],
    }
    pq.write_table(pa.table(columns), tmp_path / "photos.parquet", row_group_size=2)
    return tmp_path / "photos.parquet"


def test_parquet_columns_come_along_in_their_own_type_and_everywhere(table, tmp_path):
    keep = ("caption", "price", "tags", "day", "at", "meta.id", "zone:string", "mixed:int64", "long")
    summary = extract(table, tmp_path / "out", keep=keep, unit_bytes=1)
    stored = pq.read_table(table)
    found = kept(tmp_path / "out", "caption", "price", "tags", "day", "at", "meta.id", "mixed", "zone", "long")
    for name in ("price", "tags", "day", "at"):
        assert found[name].type.equals(stored[name].type) or name == "tags"
        assert found[name].to_pylist() == stored[name].to_pylist()
    assert found["tags"].type == pa.list_(pa.string())
    assert found["caption"].to_pylist() == ["one\ntwo", "", None, "ünï"]
    assert found["meta.id"].to_pylist() == [0, 1, 2, 3]
    assert found["mixed"].to_pylist() == [1, None, None, None]
    assert found["zone"].to_pylist()[0].startswith("2020-01-02 00:00:00")
    assert [len(text or "") for text in found["long"].to_pylist()] == [1 << 18, 0, 1, 1]
    assert summary.notes["whose mixed can't be kept as int64: other text"] == 2
    assert summary.notes["whose long can't be kept as string: over 256 KiB"] == 1
    assert [summary.notes[f"without {name}"] for name in ("caption", "price", "tags", "mixed")] == [1, 1, 1, 1]

    out = str(tmp_path / "out")
    manifest = read_manifest(out)
    assert (manifest.kept["price"], manifest.kept["tags"]) == ("float", "list<string>")
    extract(table, tmp_path / "plain")
    assert manifest.fingerprint == read_manifest(str(tmp_path / "plain")).fingerprint
    assert "kept" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())

    compact(out, target_bytes=2**20)
    assert kept(out, "price", "tags") == found.select(["price", "tags"])
    convert(out, str(tmp_path / "copy.parquet"))
    assert pq.read_table(tmp_path / "copy.parquet").sort_by("key")["tags"].to_pylist() == stored["tags"].to_pylist()
    with sql(out, "SELECT sum(price) AS total, max(day) AS day FROM features") as answer:
        assert list(answer.rows()) == [(pytest.approx(3.85), date(2020, 1, 2))]
    key = open_features(out).keys[0]
    [near] = query(QueryOptions(output=out, keys=(key,), where="price > 2 AND caption = ''")).neighbours
    assert [neighbour.row.key.endswith("#1") for neighbour in near] == [True]


def test_tar_members_and_json_keys(images, tmp_path):
    texts = [
        {"txt": b"a cat", "json": b'{"label": "cat", "n": 3, "score": 0.5, "ok": true, "tags": ["p", "q"]}'},
        {"txt": b"\xff", "json": b'{"n": 3.5, "score": 1, "ok": "yes", "tags": "p"}'},
        {"json": b"broken"},
        {"cls": b"dog", "txt": b"late"},
    ]
    members = [
        (f"{n}.{ending}", data)
        for n, (image, beside) in enumerate(zip(images, texts, strict=True))
        for ending, data in [("png", image), *beside.items()]
    ]
    # A text without an image is no label without one.
    (tmp_path / "photos.tar").write_bytes(tar_bytes([*members, ("9.txt", b"alone")]))
    keep = ("txt", "n", "score", "ok", "tags")
    summary = extract(tmp_path / "photos.tar", tmp_path / "out", keep=keep)
    assert kept(tmp_path / "out", *keep).to_pydict() == {
        "txt": ["a cat", None, None, "late"],
        "n": [3, None, None, None],
        "score": [0.5, 1.0, None, None],
        "ok": [True, None, None, None],
        "tags": [["p", "q"], ["p"], None, None],
    }
    assert open_features(str(tmp_path / "out")).labels == ["cat", None, None, "dog"]
    assert (summary.totals.rows_embedded, summary.totals.rows_failed) == (4, 0)
    assert summary.notes["whose txt can't be kept as string: text that isn't UTF-8"] == 1
    assert summary.notes["whose n can't be kept as int64: a number with a fraction"] == 1
    assert (summary.notes["without n"], summary.notes["without txt"]) == (2, 1)


def test_tfrecord_features(images, tmp_path):
    values = [
        {"image/encoded": image, "id": n, "text": f"t{n}", "w": [0.5, float(n)]} for n, image in enumerate(images)
    ]
    (tmp_path / "photos.tfrecord").write_bytes(b"".join(tfrecord.frame(example.serialize(each)) for each in values))
    extract(tmp_path / "photos.tfrecord", tmp_path / "out", keep=("id", "text", "w", "id2:int64"))
    assert kept(tmp_path / "out", "id", "text", "w").to_pylist() == [
        {"id": n, "text": f"t{n}", "w": [0.5, float(n)]} for n in range(4)
    ]
    assert kept(tmp_path / "out", "id2")["id2"].null_count == 4


def test_another_keep_is_refused_and_none_is_the_old_one(table, tmp_path):
    out = tmp_path / "out"
    extract(table, out, keep=("price", "tags"))
    assert extract(table, out, keep=("price", "tags")).this_run.units == 0
    again = resumed(options(table, out), [])
    assert again.keep == ("price:float", "tags:list<string>")
    assert extract(table, out, keep=again.keep).this_run.units == 0
    with pytest.raises(FeaturemillError, match=r"other columns kept .*: --keep price:float .* \| --keep price:string"):
        extract(table, out, keep=("price:string",))
    # In another order, with one more shard that has the same columns in other types, and lacks none.
    more = pa.table({"image": pq.read_table(table)["image"], "tags": ["t"] * 4, "price": ["7", "x", None, "8"]})
    pq.write_table(more, table.with_name("more.parquet"))
    summary = extract(table.with_name("more.parquet"), out, keep=("tags", "price"))
    assert kept(out, "price")["price"].to_pylist()[:4] == [7.0, None, None, 8.0]
    assert kept(out, "tags")["tags"].to_pylist()[:4] == [["t"]] * 4
    assert summary.notes["whose price can't be kept as float: other text"] == 1
    # A run that was cut off and lost its manifest finds them in a part.
    (out / "manifest.json").unlink()
    extract(table, out, keep=again.keep)
    assert read_manifest(str(out)).kept == {"price": "float", "tags": "list<string>"}


def test_what_is_kept_changes_no_id():
    shard = Shard(FileInfo("/a.tar", 1, "v"), "tar")
    keeping = replace(shard, keep=(Kept("n", "int64"),))
    assert unit_id(Unit(shard), "f") == unit_id(Unit(keeping), "f")
    # Which predictions are known by.
    assert repr(shard) == repr(keeping)


@pytest.mark.parametrize(
    ("keep", "error"),
    [
        (("Label",), "--keep Label: OUT has a column label already"),
        (("embedding:string",), "OUT has a column embedding already"),
        (("price", "Price"), "OUT has a column price already"),
        (("price:decimal",), "COLUMN or COLUMN:TYPE"),
        (("prize",), "no column to keep in .*looked for prize.*did you mean price"),
        (("meta",), "pass --keep meta:string"),
        (("zone",), "pass --keep zone:string"),
    ],
)
def test_what_cannot_be_kept(table, tmp_path, keep, error):
    with pytest.raises((UsageError, FeaturemillError), match=error):
        extract(table, tmp_path / "out", keep=keep)


def test_files_have_nothing_to_keep(images, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(images[0])
    with pytest.raises(FeaturemillError, match="image files, and these have no columns"):
        extract(tmp_path / "photos", tmp_path / "out", keep=("price",))
