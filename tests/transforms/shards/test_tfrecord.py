"""TFRecord: our framing against TensorFlow's, and every way in which a shard can be damaged."""

import gzip
import struct

import pytest

from tests.support.factories import cuts, fake_items, found_shard, raw_shard, rows, write_shard, write_tfrecord
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage, Failure
from transforms.shards import MAX_ENCODED_BYTES, example, tfrecord


def shard_bytes(tmp_path, count):
    write_tfrecord(tmp_path / "whole", fake_items(count, size=40))
    return (tmp_path / "whole").read_bytes()


def examples(tmp_path, *values, **fields):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(tfrecord.frame(example.serialize(value)) for value in values))
    return found_shard(path, **fields)


def test_what_tensorflow_writes_is_read_and_the_other_way_round(tmp_path):
    # In one process with TensorFlow, whose own Example descriptors are registered by its import.
    tf = pytest.importorskip("tensorflow")

    def feature(kind, value):
        return tf.train.Feature(**{kind: type(getattr(tf.train.Feature(), kind))(value=[value])})

    theirs = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image/encoded": feature("bytes_list", b"\xff\xd8 data"),
                "image/class/label": feature("int64_list", 7),
                "image/filename": feature("bytes_list", "käfer.jpg".encode()),
                "image/height": feature("int64_list", 5),
            }
        )
    )
    for compression in ("", "GZIP"):
        path = tmp_path / f"theirs.tfrecord{compression}"
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type=compression)) as writer:
            writer.write(theirs.SerializeToString())
            writer.write(theirs.SerializeToString())
        shard = found_shard(path)
        assert shard.compression == compression.lower()
        first, second = rows(shard)
        assert (first.key, first.label, first.data) == (f"{path}#käfer.jpg", "7", b"\xff\xd8 data")
        assert second.position == len(tfrecord.frame(theirs.SerializeToString()))
    ours = tmp_path / "ours.tfrecord"
    write_tfrecord(ours, fake_items(3))
    parsed = [tf.train.Example.FromString(data.numpy()) for data in tf.data.TFRecordDataset(str(ours))]
    assert [e.features.feature["image/encoded"].bytes_list.value[0] for e in parsed] == [i.data for i in fake_items(3)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image/encoded": b"x", "image/class/text": "cat", "image/class/label": 3}, ("0", "cat")),
        ({"image/encoded": b"x", "image/class/label": 3, "image/filename": "a.jpg"}, ("a.jpg", "3")),
        ({"image": b"x", "label": 0, "file_name": "b.jpg"}, ("b.jpg", "0")),  # TensorFlow Datasets
        ({"image": b"x", "label": 4, "filename": b"\xff.jpg"}, (r"\xff.jpg", "4")),
        ({"image": b"x", "label": "", "filename": ""}, ("0", None)),
        ({"image": b"x"}, ("0", None)),
        ({"image": b"x", "class": 3, "id": "f"}, ("0", "3")),  # Kaggle's flowers
        ({"IMAGE": b"x", "Label": "cat"}, ("0", "cat")),
        ({"image/encoded": b"x", "image/class/text": "", "image/class/label": 3}, ("0", "3")),
        ({"image/encoded": b"x", "image/class/text": "crane", "image/class/synset": "n02012849"}, ("0", "n02012849")),
        ({"image": b"x", "label": 0.1}, ("0", "0.1")),
        ({"image": b"x", "label": 2.0}, ("0", "2")),
        ({"image": b"x", "label": "-1"}, ("0", "-1")),
        ({"image": b"x", "label": " cat\n"}, ("0", "cat")),
    ],
)
def test_usual_layouts(tmp_path, values, expected):
    shard = examples(tmp_path, values)
    [row] = rows(shard)
    key, label = expected
    assert row == EncodedImage(f"{shard.file.uri}#{key}", label, shard.file.uri, 0, b"x")


@pytest.mark.parametrize(
    ("label", "why"), [(-1, "-1"), (float("nan"), "NaN"), (float("-inf"), "infinity"), ([0, 1, 0], "a list")]
)
def test_labels_that_are_none_are_counted_and_cost_no_image(tmp_path, label, why):
    [row, other] = rows(examples(tmp_path, {"image": b"x", "label": label}, {"image": b"y", "label": 1}))
    assert (row.data, row.label, row.unusable) == (b"x", None, why)
    assert (other.label, other.unusable) == ("1", "")


def test_a_name_that_is_none_costs_no_image(tmp_path):
    [row] = rows(examples(tmp_path, {"image": b"x", "filename": [1, 2]}))
    assert row.key.endswith("#0")


def test_a_folder_gives_the_label_where_no_field_does(tmp_path):
    folder = tmp_path / "label=cat%2Fsmall"
    folder.mkdir()
    assert [row.label for row in rows(examples(folder, {"image": b"x"}))] == ["cat/small"]
    assert [row.label for row in rows(examples(folder, {"image": b"x", "label": "dog"}))] == ["dog"]
    assert [row.label for row in rows(examples(folder, {"image": b"x"}, label=""))] == [None]


def test_fields_by_option(tmp_path):
    values = {"image/encoded": b"no", "jpeg": b"yes", "species": "wasp", "id": 12, "label": 1}
    [row] = rows(examples(tmp_path, values, image="jpeg", label="species", name="id"))
    assert (row.data, row.label, row.key.partition("#")[2]) == (b"yes", "wasp", "12")
    [row] = rows(examples(tmp_path, values, label=""))
    assert row.label is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "jpg"}, "no image in .*looked for jpg, found jpeg, label.* did you mean jpeg.*--image-field"),
        ({"image": "label"}, "no image in .*looked for label"),
        ({}, "no image in .*looked for image/encoded or image, found jpeg, label"),
        ({"image": "jpeg", "label": "lable"}, "no label in .*did you mean label.*--label-field"),
        ({"image": "jpeg", "name": "id"}, "no name in .*looked for id, found jpeg, label.*--name-field"),
    ],
)
def test_missing_fields_are_refused_by_find(tmp_path, fields, message):
    with pytest.raises(FeaturemillError, match=message):
        examples(tmp_path, {"jpeg": b"x", "label": 1}, **fields)


def test_records_unlike_the_first_are_failures(tmp_path):
    good = {"image": b"x", "label": 1}
    shard = examples(tmp_path, good, {"label": 1}, {"image": 5, "label": 1}, {"image": b"y"}, good)
    found = rows(shard)
    assert [getattr(row, "error", None) for row in found] == [None, "no image", "wrong field type", None, None]
    assert [row.label for row in found] == ["1", "1", "1", None, "1"]
    assert [row.key for row in found] == [f"{shard.file.uri}#{i}" for i in range(5)]


def test_a_record_that_is_no_example_is_a_failure(tmp_path):
    records = [b"\xff\xff\xff no protobuf", example.serialize({"image/encoded": b"x"})]
    bad, good = rows(raw_shard(tmp_path / "x", "tfrecord", b"".join(map(tfrecord.frame, records))))
    assert (bad.error, bad.position, bad.stage) == ("bad example", 0, "read")
    assert good.data == b"x"


def test_several_labels_are_none_and_reported(tmp_path):
    # Two messages strung together are one with both values: protobuf merges them.
    one = example.serialize({"image/encoded": b"x", "image/class/text": "a"})
    two = one[:1] + bytes([one[1]]) + one[2:]
    feature = b"\n\x01l\x12\x06\x1a\x04\n\x02\x01\x02"  # "l": int64_list [1, 2]
    data = two + b"\n" + bytes([len(feature) + 2]) + b"\n" + bytes([len(feature)]) + feature
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord.frame(data))
    [row] = rows(found_shard(path, label="l"))
    assert (row.data, row.label, row.unusable) == (b"x", None, "a list")


def test_cut_at_every_byte(tmp_path):
    data = shard_bytes(tmp_path, 4)
    shard = raw_shard(tmp_path / "x", "tfrecord", data)
    whole = rows(shard)
    starts = [row.position for row in whole]
    for length, found in cuts(shard):
        complete = sum(1 for start in [*starts[1:], len(data)] if start <= length)
        assert found[:complete] == whole[:complete]
        if length in starts:
            assert len(found) == complete
            continue
        [failure] = found[complete:]
        assert (failure.error, failure.position) == ("truncated", starts[complete])
        assert failure.key == f"{shard.file.uri}#@{starts[complete]}"
        assert str(starts[complete]) in failure.message


def test_a_bad_checksum_of_the_data_loses_one_record(tmp_path):
    data = bytearray(shard_bytes(tmp_path, 5))
    whole = rows(raw_shard(tmp_path / "x", "tfrecord", bytes(data)))
    data[whole[2].position + 20] ^= 1
    shard = raw_shard(tmp_path / "x", "tfrecord", bytes(data))
    found = rows(shard)
    assert [*found[:2], *found[3:]] == [*whole[:2], *whole[3:]]
    assert (found[2].error, found[2].position, found[2].key) == ("bad crc", whole[2].position, f"{shard.file.uri}#2")


@pytest.mark.parametrize("byte", range(12))
def test_a_bad_length_ends_the_shard(tmp_path, byte):
    data = bytearray(shard_bytes(tmp_path, 5))
    whole = rows(raw_shard(tmp_path / "x", "tfrecord", bytes(data)))
    data[whole[2].position + byte] ^= 0x40
    *kept, failure = rows(raw_shard(tmp_path / "x", "tfrecord", bytes(data)))
    assert kept == whole[:2]
    assert (failure.error, failure.position) == ("bad length", whole[2].position)


@pytest.mark.parametrize("length", [MAX_ENCODED_BYTES + 1, 2**63, 2**64 - 1])
def test_a_huge_length_is_neither_allocated_nor_sought(tmp_path, length):
    data = shard_bytes(tmp_path, 2)
    header = struct.pack("<Q", length)
    data += header + struct.pack("<I", tfrecord.masked_crc(header)) + b"little"
    for compression, packed in (("", data), ("gzip", gzip.compress(data))):
        *kept, failure = rows(raw_shard(tmp_path / "x", "tfrecord", packed, compression=compression))
        assert len(kept) == 2
        assert failure.error == "truncated"


def test_a_record_over_the_limit_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "MAX_ENCODED_BYTES", 500)
    shard = examples(tmp_path, {"image": b"a"}, {"image": b"b" * 600}, {"image": b"c"})
    first, failure, last = rows(shard)
    assert (first.data, last.data, failure.error) == (b"a", b"c", "too large")
    assert failure.key == f"{shard.file.uri}#1"


def test_gzip_cut_at_every_byte(tmp_path):
    data = shard_bytes(tmp_path, 6)
    packed = gzip.compress(data, mtime=0)
    whole = rows(raw_shard(tmp_path / "x", "tfrecord", data))
    kept = set()
    for length, found in cuts(raw_shard(tmp_path / "x", "tfrecord", packed, compression="gzip")):
        if length < 2:
            break
        *good, failure = found
        assert good == whole[: len(good)]
        assert isinstance(failure, Failure)
        assert failure.error == "truncated"
        kept.add(len(good))
    assert kept == set(range(7))


def test_damaged_gzip_keeps_what_came_before(tmp_path):
    data = shard_bytes(tmp_path, 6)
    packed = bytearray(gzip.compress(data, mtime=0))
    packed[-6] ^= 1  # the checksum of the whole
    *good, failure = rows(raw_shard(tmp_path / "x", "tfrecord", bytes(packed), compression="gzip"))
    assert len(good) == 6
    assert (failure.error, failure.position) == ("bad gzip", len(data))
    packed[15] ^= 0xFF
    [*_, failure] = rows(raw_shard(tmp_path / "x", "tfrecord", bytes(packed), compression="gzip"))
    assert failure.error in ("bad gzip", "bad length", "truncated")


def test_a_gzip_bomb_is_not_unpacked_at_once(tmp_path):
    import tracemalloc

    header = struct.pack("<Q", 2**40)
    bomb = gzip.compress(header + struct.pack("<I", tfrecord.masked_crc(header)) + bytes(200 << 20), 1)
    shard = raw_shard(tmp_path / "x", "tfrecord", bomb, compression="gzip")
    tracemalloc.start()
    try:
        [failure] = rows(shard)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert failure.error == "truncated"
    assert peak < 20 << 20


def test_an_empty_shard_is_fine(tmp_path):
    for name, data in (("x.tfrecord", b""), ("x.tfrecord-00000-of-00001", b""), ("x.tfrecords.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(data)
        shard = found_shard(tmp_path / name)
        assert shard.format == "tfrecord"
        assert rows(shard) == []


def test_a_broken_first_record_is_left_to_the_reader(tmp_path):
    data = bytearray(shard_bytes(tmp_path, 2))
    data[30] ^= 1
    path = tmp_path / "x.tfrecord"
    path.write_bytes(data)
    bad, good = rows(found_shard(path))
    assert bad.error == "bad crc"
    assert good.data == fake_items(2, size=40)[1].data


def test_written_shards_read_back(tmp_path):
    shard = write_shard(tmp_path, "tfrecord", fake_items(3), gzip=True)
    assert [row.key.partition("#")[2] for row in rows(shard)] == ["0000.jpg", "0001.jpg", "0002.jpg"]


def test_records_that_would_take_many_times_their_size(tmp_path, monkeypatch):
    """Whole numbers of a byte each, values without a byte, features by the thousand; not large bytes and floats."""
    monkeypatch.setattr(example, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(example, "_PARSED_BYTES", 20_000)
    image = {"image/encoded": b"x" * 50_000}
    records = [
        {**image, "label": 1, "other": b"y" * 50_000, "floats": [0.5] * 9000, "frames": [b"z" * 900] * 90},
        {**image, "label": [1] * 9000},
        {**image, "empty": [b""] * 9000},
        {**image, **{f"f{i}": 1 for i in range(300)}},
    ]
    (tmp_path / "x.tfrecord").write_bytes(b"".join(tfrecord.frame(example.serialize(record)) for record in records))
    good, *others = rows(found_shard(tmp_path / "x.tfrecord"))
    assert (good.label, good.data) == ("1", image["image/encoded"])
    assert [failure.error for failure in others] == ["bad example"] * 3
    assert "would take too much memory" in others[0].message
