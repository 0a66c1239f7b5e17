"""Parquet: Hugging Face's layout, plain columns, and damage of pages and footers."""

import io
import json
import signal
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import deadly
from tests.support.factories import fake_items, found_shard, raw_shard, rows, write_parquet, write_shard
from transforms import shards
from transforms.errors import FeaturemillError
from transforms.parquet import pages
from transforms.parquet.files import look_at_footer
from transforms.records import Unit
from transforms.shards import Fields, parquet

ID = UUID(int=2**100 + 7)


def write(path, columns, *, schema=None, **options):
    pq.write_table(pa.table(columns, schema=schema), path, **options)
    return path


def test_hugging_face_layout(tmp_path):
    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [{"bytes": b"0", "path": "a.jpg"}, {"bytes": b"1", "path": None}, {"bytes": b"2", "path": ""}]
    images += [{"bytes": b"3", "path": "d.jpg"}, {"bytes": None, "path": "only/a/path.jpg"}, None]
    path = write(tmp_path / "x.parquet", {"image": images, "label": [1, 0, -1, 7, None, 0]}, schema=schema)
    shard = found_shard(path)
    assert (shard.format, shard.image_field, shard.label_field) == ("parquet", "image.bytes", "label")
    found = rows(shard)
    assert [row.key.partition("#")[2] for row in found] == ["a.jpg", "1", "2", "d.jpg", "only/a/path.jpg", "5"]
    assert [row.label for row in found] == ["bee", "ant", None, "7", None, "ant"]
    assert [row.position for row in found] == list(range(6))
    assert [row.data for row in found[:4]] == [b"0", b"1", b"2", b"3"]
    assert [row.error for row in found[4:]] == ["no image", "no image"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [b"x"], "label": ["cat"], "file_name": ["a.jpg"]}, ("image", "cat", "a.jpg")),
        ({"content": [b"x"], "labels": [3], "filename": ["b.jpg"]}, ("content", "3", "b.jpg")),
        ({"image/encoded": [b"x"], "class": [2.0], "path": ["c.jpg"]}, ("image/encoded", "2", "c.jpg")),
        ({"pixels": [b"x"], "category": ["dog"], "key": ["k"]}, ("pixels", "dog", "k")),
        ({"thumb": [b"t"], "jpg": [b"x"], "other": [1]}, ("jpg", None, "0")),
        ({"photo": [{"bytes": b"x", "path": "p.jpg"}]}, ("photo.bytes", None, "p.jpg")),
        ({"image": [b"x"], "label": [float("nan")]}, ("image", None, "0")),
        (
            {"image": pa.array([b"x"], pa.large_binary()), "label": pa.array(["a"]).dictionary_encode()},
            ("image", "a", "0"),
        ),
        ({"image": pa.array([b"x"], pa.binary_view()), "label": [b"raw"]}, ("image", "raw", "0")),
        ({"IMAGE": [b"x"], "Label": ["cat"], "Filename": ["a.jpg"]}, ("IMAGE", "cat", "a.jpg")),
        ({"image": [b"x"], "Label": ["no"], "label": ["yes"]}, ("image", "yes", "0")),
        ({"image": [b"x"], "label": [[1, 2]], "class": ["cat"]}, ("image", "cat", "0")),
        ({"image": [b"x"], "label": pa.array([0.1], pa.float32())}, ("image", "0.1", "0")),
        ({"image": [b"x"], "label": pa.array([0.1], pa.float64())}, ("image", "0.1", "0")),
        ({"image": [b"x"], "label": pa.array([0.1], pa.float32()).dictionary_encode()}, ("image", "0.1", "0")),
        ({"image": [b"x"], "label": pa.array([Decimal(7)], pa.decimal128(38, 0))}, ("image", "7", "0")),
        ({"image": [b"x"], "label": pa.array([Decimal("1.50")], pa.decimal128(5, 2))}, ("image", "1.5", "0")),
        ({"image": [b"x"], "label": [True], "key": pa.array([ID.bytes], pa.uuid())}, ("image", "true", str(ID))),
        ({"image": [b"x"], "label": [" cat "], "key": [[1, 2]]}, ("image", "cat", "0")),
    ],
)
def test_columns_are_detected(tmp_path, columns, expected):
    shard = found_shard(write(tmp_path / "x.parquet", columns))
    [row] = rows(shard)
    assert (shard.image_field, row.label, row.key.partition("#")[2]) == expected
    assert row.data == b"x"


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ([[1, 2], None], "a list"),
        ([{"x": 1, "y": 2}, None], "an object"),
        ([datetime(2026, 1, 2), None], "a time"),
        ([-1, -1], "-1"),
        (pa.array([Decimal(-1), Decimal(-1)], pa.decimal128(38, 0)), "-1"),
        ([float("nan"), float("nan")], "NaN"),
        ([float("inf"), float("-inf")], "infinity"),
    ],
)
def test_labels_that_are_none_are_counted_and_cost_no_image(tmp_path, column, why):
    found = rows(found_shard(write(tmp_path / "x.parquet", {"image": [b"x", b"y"], "label": column})))
    assert [(row.data, row.label, row.unusable) for row in found] == [(b"x", None, why), (b"y", None, why)]


def test_a_column_that_is_no_label_is_not_read(tmp_path, reads):
    mask = [{"bytes": bytes(2_000_000), "path": "m.png"}]
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "label": mask}, compression="none", use_dictionary=False)
    [row] = rows(found_shard(path))
    assert (row.data, row.unusable) == (b"x", "an object")
    assert sum(reads) < 200_000


def test_text_that_is_not_utf_8_is_written_out(tmp_path):
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    [row] = rows(found_shard(write(tmp_path / "x.parquet", {"image": [b"x"], "label": bad})))
    assert row.label == r"a\xffb"


def test_a_folder_gives_the_label_where_no_column_does(tmp_path):
    for folder in ("label=cat/day=1", "Class=cat", "species=cat"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "part-0.parquet", {"image": [b"x"], "width": [4]})
    cat, one, other = (tmp_path / name / "part-0.parquet" for name in ("label=cat/day=1", "Class=cat", "species=cat"))
    assert [row.label for path in (cat, one, other) for row in rows(found_shard(path))] == ["cat", "cat", None]
    assert [row.label for row in rows(found_shard(other, label="species"))] == ["cat"]
    assert [row.label for row in rows(found_shard(cat, label=""))] == [None]
    with pytest.raises(FeaturemillError, match=r"no label in .*looked for spcies"):
        found_shard(other, label="spcies")


def test_columns_by_option(tmp_path):
    columns = {
        "front": [{"bytes": b"f", "path": "f.jpg"}],
        "back": [b"b"],
        "meta": [{"species": "wasp", "id": 5}],
        "a.b": ["dotted"],
    }
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(FeaturemillError, match=r"several columns of bytes: back, front\.bytes; pass --image-field"):
        found_shard(path)
    [row] = rows(found_shard(path, image="front", label="meta.species"))
    assert (row.data, row.label, row.key.partition("#")[2]) == (b"f", "wasp", "f.jpg")
    [row] = rows(found_shard(path, image="back", label="a.b", name="meta.id"))
    assert (row.data, row.label, row.key.partition("#")[2]) == (b"b", "dotted", "5")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no image in .*looked for a column of bytes.*found number, title.*--image-field"),
        ({"image": "title"}, "no image in .*looked for title"),
        ({"image": "titel"}, "did you mean title"),
    ],
)
def test_missing_columns_are_refused_by_find(tmp_path, fields, message):
    path = write(tmp_path / "x.parquet", {"title": ["no image here"], "number": [1]})
    with pytest.raises(FeaturemillError, match=message):
        found_shard(path, **fields)


def test_missing_label_and_name_are_refused_by_find(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "species": ["ant"]})
    with pytest.raises(
        FeaturemillError, match=r"no label in .*looked for specie, .*did you mean species.*--label-field"
    ):
        found_shard(path, label="specie")
    with pytest.raises(FeaturemillError, match=r"no name in .*--name-field"):
        found_shard(path, name="id")
    assert found_shard(path, label="").label_field == ""


def test_a_label_that_is_neither_text_nor_number_is_not_accepted(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [b"x", b"y"], "label": [[1, 2], None]})
    assert [row.label for row in rows(found_shard(path))] == [None, None]
    # Named, it is refused before any work.
    with pytest.raises(FeaturemillError, match=r"label in .* is list<.*neither text nor a number"):
        found_shard(path, label="label")


@pytest.fixture
def reads(monkeypatch):
    """The bytes of each request that is made of a Parquet file."""
    counts = []
    real = parquet._Watched.read

    def counted(self, count=-1):
        data = real(self, count)
        counts.append(len(data))
        return data

    monkeypatch.setattr(parquet._Watched, "read", counted)
    return counts


def test_only_the_needed_columns_are_read(tmp_path, reads):
    path = tmp_path / "x.parquet"
    write(path, {"image": [b"x" * 10], "label": ["a"], "huge": [b"y" * 5_000_000]}, compression="none")
    assert len(rows(found_shard(path))) == 1
    assert sum(reads) < 200_000


def test_a_large_row_group_is_not_read_at_once(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 100_000)
    path = tmp_path / "x.parquet"
    columns = {"image": [bytes([i]) * 50_000 for i in range(100)]}
    write(path, columns, compression="none", use_dictionary=False, data_page_size=1, write_batch_size=1)
    assert pq.ParquetFile(path).num_row_groups == 1
    assert [row.data for row in rows(found_shard(path))] == columns["image"]
    assert max(reads) < 500_000


def damaged_row_group(path, group):
    """Overwrites the image pages of one row group."""
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    return bytes(data)


@pytest.mark.parametrize("group", [0, 1, 3])
def test_a_bad_row_group_is_one_failure_and_the_others_are_read(tmp_path, group):
    path = tmp_path / "x.parquet"
    items = fake_items(10)
    write_parquet(path, items, row_group_size=3)
    whole = rows(found_shard(path))
    path.write_bytes(damaged_row_group(path, group))
    shard = found_shard(path)
    found = rows(shard)
    first, stop = group * 3, min(10, group * 3 + 3)
    assert [*found[:first], *found[first + 1 :]] == [*whole[:first], *whole[stop:]]
    failure = found[first]
    assert (failure.error, failure.position, failure.key) == ("bad row group", first, f"{shard.file.uri}#@{first}")
    assert f"row group {group} of" in failure.message
    assert f"{stop - first} of its rows ({first} to {stop - 1}) are lost" in failure.message
    units = shards.split(shard, 200)
    assert len(units) > 2
    assert [row for unit in units for row in shards.read(unit)] == found


def test_a_flipped_bit_is_found_by_the_page_checksum(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"image": [b"first" * 50, b"second" * 50]}
    # Without statistics, the bytes are in the file but once.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write(path, columns, row_group_size=1, write_page_checksum=True, **plain)
    data = bytearray(path.read_bytes())
    data[data.index(b"secondsecond") + 3] ^= 1
    path.write_bytes(data)
    good, bad = rows(found_shard(path))
    assert good.data == b"first" * 50
    assert bad.error == "bad row group"


def test_rows_before_the_damage_in_a_row_group_are_kept(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"image": [b"%03d" % i * 100 for i in range(300)]}
    # One page per few rows, and the last one damaged.
    write(path, columns, data_page_size=1000, write_batch_size=10, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    at = data.index(b"299299") - 10 * 300 - 100
    data[at : at + 100] = b"\xff" * 100
    path.write_bytes(data)
    *good, bad = rows(found_shard(path))
    assert [row.position for row in good] == list(range(len(good)))
    assert 64 <= len(good) < 300
    assert bad.position == len(good)
    assert f"{300 - len(good)} of its rows" in bad.message


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_cut_footer_is_one_failure(tmp_path, cut):
    write_parquet(tmp_path / "whole.parquet", fake_items(10))
    data = (tmp_path / "whole.parquet").read_bytes()[:-cut]
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    shard = found_shard(path)
    [failure] = rows(shard)
    assert (failure.error, failure.position) == ("bad footer", len(data))
    assert len(shards.split(shard, 10)) == 1


def test_any_cut_is_one_failure(tmp_path):
    target = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"]}), target)
    data = target.getvalue()
    for length in range(0, len(data), 7):
        [failure] = rows(raw_shard(tmp_path / "x", "parquet", data[:length]))
        assert failure.error == "bad footer"


def test_empty_shards(tmp_path):
    schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
    shard = found_shard(write(tmp_path / "x.parquet", {"image": [], "label": []}, schema=schema))
    assert rows(shard) == []
    assert [row for unit in shards.split(shard, 1) for row in shards.read(unit)] == []


def test_large_rows_come_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 10_000)
    shard = write_shard(tmp_path, "parquet", fake_items(30, size=3000), row_group_size=30)
    with open(shard.file.uri, "rb") as file:
        watched = parquet._Watched(file)
        assert parquet._batch_rows(parquet._open(watched)[0], watched, [0], ["image"]) < 5
    assert len(rows(shard)) == 30


@pytest.mark.parametrize("column", ["image", "label"])
def test_what_a_dictionary_repeats_is_never_held_many_times(tmp_path, column, monkeypatch):
    """A file of a few kB, whose every row has the same megabyte."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**23)
    large = {"image": b"x" * 2**20, "label": "y" * 2**20}[column]
    columns = {"image": [b"x"] * 300, "label": ["y"] * 300, column: pa.array([large] * 300).dictionary_encode()}
    path = write(tmp_path / "x.parquet", columns, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    most, read = 0, 0
    for row in shards.read(Unit(found_shard(path))):
        most = max(most, pa.total_allocated_bytes() - before)
        assert row.unusable == ("" if column == "image" else "over 1,000 letters")
        read += 1
    assert read == 300
    assert most < 2 * parquet._BATCH_BYTES < 64 * 2**20


def test_a_footer_that_lies_about_sizes_is_not_believed(tmp_path, monkeypatch):
    """Whatever it says, a page is unpacked to what its own header says."""
    columns = {"image": pa.array([b"x" * 2**20] * 9).dictionary_encode()}
    path = write(tmp_path / "x.parquet", columns, compression="zstd", store_schema=False)
    watched = parquet._Watched(path.open("rb"))
    real = parquet._open(watched)[0].metadata.row_group(0).column(0)

    class Liar:
        total_uncompressed_size, path_in_schema, has_dictionary_page = 1, "image", True
        data_page_offset, dictionary_page_offset = real.data_page_offset, real.dictionary_page_offset
        total_compressed_size, num_values = real.total_compressed_size, real.num_values

    assert parquet._dictionary_bytes(Liar, watched) > 2**20
    monkeypatch.setattr(pages, "_PAGE_BYTES", 2**19)
    [failure] = rows(found_shard(path))
    assert failure.error == "bad row group"
    assert "would unpack to" in failure.message


def test_a_value_over_the_limit_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ENCODED_BYTES", 100)
    first, second = rows(found_shard(write(tmp_path / "x.parquet", {"image": [b"x" * 101, b"y"]})))
    assert first.error == "too large"
    assert second.data == b"y"


@pytest.mark.parametrize(
    ("column", "holds"),
    [
        (pa.array([[b"x"]]), r"lists \(list<.*binary>\), .*; write a row for each image"),
        (pa.array([[1, 2]]), r"lists \(list<.*int64>\)"),
        (pa.array(["photos/a.jpg"]), r"text, .*; of paths make a list and pass it as @FILE; base64 must be decoded"),
        (pa.array([b"x"]).dictionary_encode(), r"a dictionary \(.*; write the images' bytes into a plain column"),
        (pa.array([{"path": "a.jpg"}]), r"a struct of image\.path, .*; write the images' bytes into its field bytes"),
        (pa.array([1]), "int64, .*; pass --image-field NAME"),
    ],
)
def test_what_an_image_column_holds_instead_is_reported(tmp_path, column, holds):
    write(tmp_path / "a.parquet", {"image": column, "label": pa.array([1])})
    with pytest.raises(
        FeaturemillError, match=rf"no image in .*a\.parquet: looked for image, found that it holds {holds}"
    ):
        shards.find((str(tmp_path / "a.parquet"),), shards.Fields())


def test_names_that_are_too_long_for_a_key(tmp_path):
    columns = {"image": [b"1", b"2", b"3"], "file_name": ["a.jpg", "é" * 4096, "é" * 40_000]}
    first, second, third = rows(found_shard(write(tmp_path / "x.parquet", columns)))
    assert (first.data, second.data) == (b"1", b"2")
    assert (third.error, third.position) == ("key too long", 2)


def test_columns_that_are_not_named_in_utf8(tmp_path):
    data = write(tmp_path / "x.parquet", {"image": [b"1"], "läbel": ["a"]}, store_schema=False).read_bytes()
    (tmp_path / "x.parquet").write_bytes(data.replace("läbel".encode(), b"l\xff\xffbel"))
    [failure] = rows(found_shard(tmp_path / "x.parquet"))
    assert failure.error == "bad footer"


def test_a_footer_that_ends_the_process_is_a_damaged_one(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, {"image": [b"x" * 50] * 6}, row_group_size=3)
    data = bytearray(path.read_bytes())
    # The column's repetition becomes none that there is: Arrow aborts when it is asked for the column.
    data[data.rindex(b"\x15\x0c\x25\x02\x18\x05image") + 3] = 69
    path.write_bytes(data)
    code = f"import pyarrow.parquet as pq; pq.read_metadata({str(path)!r}).row_group(0).column(0)"
    if subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode != -signal.SIGABRT:
        pytest.skip("this version of Arrow survives it")
    shard = found_shard(path, image="image")
    assert shard.image_field == "image"
    [unit] = shards.split(shard, 60)
    assert (unit.start, unit.stop) == (0, -1)
    assert parquet._count(shard) is None
    with pytest.raises(FeaturemillError, match="signal 6"):
        list(parquet.narrow(unit, [1]))


def test_a_footer_is_looked_at_once_for_a_plan_and_again_when_the_file_is_another(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(parquet, "look_at_footer", lambda file: looked.append(1) or look_at_footer(file))
    path = tmp_path / "x.parquet"
    write(path, {"image": [b"1" * 100, b"2" * 100]}, row_group_size=1)
    [shard] = shards.find([str(path)], Fields()).shards
    assert len(shards.split(shard, 10)) == parquet._count(shard) == 2
    assert len(looked) == 1
    write(path, {"image": [b"1" * 100, b"2" * 100, b"3" * 100]}, row_group_size=1)
    [shard] = shards.find([str(path)], Fields()).shards
    assert len(shards.split(shard, 10)) == 3
    assert len(looked) == 2
    monkeypatch.setattr(parquet, "_FOOTERS", 1)
    for name in "abc":
        write(tmp_path / f"{name}.parquet", {"image": [b"1"]})
        shards.find([str(tmp_path / f"{name}.parquet")], Fields())
    assert len(parquet._footers) == 1


@pytest.mark.parametrize(
    ("deed", "error", "how"),
    [
        ("abort", "crashed the reader", "crashed the reader (signal 6); write it again"),
        ("hold", "too slow", "it takes over 1 s; write it again, or raise --record-seconds"),
    ],
)
def test_where_the_reader_crashes_nothing_more_is_read(tmp_path, monkeypatch, deed, error, how):
    path = tmp_path / "x.parquet"
    write(path, {"image": [b"1", b"2", b"3", b"4", b"5"]}, row_group_size=2)
    for name, value in deadly.codecs(tmp_path / "codecs", DEADLY_ROW_GROUP="1", DEADLY_DEED=deed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shards, "_RECORD_SECONDS", 1.0)
    with shards.reading_child() as child:
        *read, failure = shards.read(Unit(found_shard(path)), apart=child)
    assert [record.data for record in read] == [b"1", b"2"]
    assert (failure.stage, failure.error, failure.position) == ("read", error, 2)
    assert f"beyond record 2: {how}" in failure.message
