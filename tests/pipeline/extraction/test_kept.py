"""`--keep`: columns of the input that come along into OUT, typed and counted."""

import io
import json
from dataclasses import replace
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.exploration.duplicates import write_duplicates
from pipeline.exploration.outliers import write_outliers
from pipeline.exploration.query import QueryOptions, found_json, found_text, query, write_found, write_query_page
from pipeline.exploration.sql import sql
from pipeline.extraction.resumed import resumed
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.convert import ConvertOptions, convert
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.prediction.summary import summary_json
from tests.pipeline.extraction import test_added as te
from tests.pipeline.extraction.test_run import extract, options
from tests.pipeline.prediction.test_run import draw_head
from tests.support.factories import tar_bytes
from transforms.errors import FeaturemillError, UsageError
from transforms.predictors.head import save_head
from transforms.records import FileInfo, Kept, Shard, Unit
from transforms.shards import example, tfrecord
from transforms.similarity.copies import find_duplicates
from transforms.similarity.outlying import find_outliers
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

    compact(CompactOptions(out, target_bytes=2**20))
    assert kept(out, "price", "tags") == found.select(["price", "tags"])
    convert(ConvertOptions(out, str(tmp_path / "copy.parquet")))
    assert pq.read_table(tmp_path / "copy.parquet").sort_by("key")["tags"].to_pylist() == stored["tags"].to_pylist()
    with sql(out, "SELECT sum(price) AS total, max(day) AS day FROM features") as answer:
        assert list(answer.rows()) == [(pytest.approx(3.85), date(2020, 1, 2))]
    key = open_features(out).keys[0]
    [near] = query(QueryOptions(output=out, keys=(key,), where="price > 2 AND caption = ''")).neighbours
    assert [neighbour.row.key.endswith("#1") for neighbour in near] == [True]


def test_found_rows_bring_them_along(images, tmp_path):
    """Under names of their own: `score`, `kind` and `wnid` are query's and PRED's."""
    columns = {
        "image": images,
        "label": ["a", "b", "a", "b"],
        "caption": ["one\ntwo", "x" * 500, None, "</span>"],
        "score": [1, 2, 3, 4],
        "Kind": ["k", "l", "m", "n"],
        "wnid": [date(2020, 1, 2)] * 4,
        "tags": [["p", "q"], [], None, ["r"]],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in/photos.parquet")
    keep = ("caption", "score", "Kind", "wnid", "tags")
    extract(tmp_path / "in/photos.parquet", tmp_path / "out", keep=keep)
    out = str(tmp_path / "out")
    keys = open_features(out).keys
    # The same rows merged, and by a feature that lies beside them.
    compact(CompactOptions(out, target_bytes=2**20))
    te.add(tmp_path)
    expected = {name: columns[name][1:] for name in keep}
    for feature in (None, "deep"):
        found = query(QueryOptions(output=out, keys=(keys[0],), feature=feature, where="score > 1"))
        neighbours = sorted(found.neighbours[0], key=lambda near: near.row.key)
        assert {name: [near.row.kept[name] for near in neighbours] for name in keep} == expected
        header, *rows = found_text(found).splitlines()[1:5]
        assert header.split() == ["cosine", "label", *keep, "key"]
        assert any("2020-01-02" in row and "['r']" in row for row in rows)
        assert all(len(row) < 400 for row in rows)
        [asked] = found_json(found)["queries"]
        assert {each["kept_score"] for each in asked["neighbours"]} == {2, 3, 4}
        assert {each["score"] for each in asked["neighbours"]} == {near.score for near in neighbours}
        assert asked["neighbours"][0]["wnid"] == "2020-01-02"
    write_found(found, str(tmp_path / "near.parquet"))
    stored = pq.read_table(tmp_path / "near.parquet").sort_by("key")
    assert stored.select(["caption", "kept_score", "kept_Kind", "wnid", "tags"]).to_pydict() == {
        "kept_score" if name == "score" else "kept_Kind" if name == "Kind" else name: values
        for name, values in expected.items()
    }
    assert set(stored["kind"].to_pylist()) == {"key"}
    write_found(found, str(tmp_path / "near.csv"))
    assert "kept_Kind" in (tmp_path / "near.csv").read_text().splitlines()[0]
    write_query_page(found, str(tmp_path / "near.html"))
    page = (tmp_path / "near.html").read_text()
    assert ">tags</bdi>: <bdi>[&#39;r&#39;]<" in page
    assert ">caption</bdi>: <bdi>&lt;/span&gt;<" in page
    write_outliers(find_outliers(out, by="neighbours"), str(tmp_path / "far.parquet"))
    write_duplicates(find_duplicates(out, cosine=1e-9), str(tmp_path / "copies.parquet"))
    for name in ("far", "copies"):
        stored = pq.read_table(tmp_path / f"{name}.parquet").sort_by("key")
        assert stored["score"].to_pylist() == columns["score"]

    spec = open_features(out).spec
    save_head(draw_head(("a", "b"), spec=spec), str(tmp_path / "HEAD"))
    # The other one has more rows, lacks columns, and has one in another type.
    more = pa.table({"image": images * 2, "score": ["7"] * 8, "tags": [["t"]] * 8})
    pq.write_table(more, tmp_path / "more.parquet")
    extract(tmp_path / "more.parquet", tmp_path / "other", keep=("score", "tags"))
    both = PredictOptions(inputs=(out, str(tmp_path / "other")), head=str(tmp_path / "HEAD"), output=f"{tmp_path}/PRED")
    assert predict(both).manifest.notes == [
        "score:int64, score:string: of several types, and so not in the predictions"
    ]
    predicted = pq.read_table(tmp_path / "PRED/predictions")
    assert predicted.schema.names[-5:] == ["agrees", "caption", "Kind", "kept_wnid", "tags"]
    assert predicted["tags"].to_pylist() == [*columns["tags"], *[["t"]] * 8]
    assert predicted["Kind"].to_pylist() == [*columns["Kind"], *[None] * 8]
    predict(replace(both, inputs=(out,), output=str(tmp_path / "one.jsonl")))
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [(line["kept_score"], line["kept_wnid"], line["caption"]) for line in lines] == [
        (number, "2020-01-02", caption) for number, caption in enumerate(columns["caption"], 1)
    ]
    json.dumps(summary_json(predict(replace(both, inputs=(out,), output=None))))


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
