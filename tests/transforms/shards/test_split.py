"""Whatever a shard is cut into, its units together read what the whole shard reads."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.factories import Item, fake_items, found_shard, rows, tar_bytes, write_folder, write_shard
from tests.support.properties import examples
from transforms import shards, storage
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage, Unit
from transforms.shards import parquet

ITEMS = st.lists(
    st.tuples(st.binary(max_size=1500), st.sampled_from(["a", "b", None])),
    min_size=1,
    max_size=12,
).map(lambda drawn: [Item(f"{i:02}.jpg", label, data) for i, (data, label) in enumerate(drawn)])


def assert_same_in_units(shard, unit_bytes):
    """Returns the units, after a check that they read what the whole shard reads, each once and in order."""
    whole = rows(shard)
    units = shards.split(shard, unit_bytes)
    assert [row for unit in units for row in shards.read(unit)] == whole
    assert units[0].start == 0
    assert units[-1].stop == -1
    assert [unit.stop for unit in units[:-1]] == [unit.start for unit in units[1:]]
    assert [unit.first_index for unit in units] == sorted({unit.first_index for unit in units})
    return units


@pytest.mark.parametrize("kind", ["tfrecord", "tar", "parquet"])
@examples(60)
@given(items=ITEMS, unit_bytes=st.integers(1, 20_000), group=st.integers(1, 5))
def test_any_split_loses_and_doubles_nothing(kind, items, unit_bytes, group):
    options = {"row_group_size": group} if kind == "parquet" else {}
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder), kind, items, **options)
        assert [(row.label, row.data) for row in rows(shard)] == [(item.label, item.data) for item in items]
        units = assert_same_in_units(shard, unit_bytes)
        if kind != "parquet":
            assert sum(unit.input_bytes for unit in units) == shard.file.size


# Names that run together, repeat or not, folders, hidden files, and samples without an image.
NAMES = st.sampled_from(["a.jpg", "a.cls", "a.txt", "b.png", "d/a.jpg", "._a.jpg", "d/", "c", "x" * 150 + ".jpg"])


@examples(80)
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=600)), min_size=1, max_size=12),
    unit_bytes=st.integers(1, 6000),
    format=st.sampled_from([0, 1, 2]),
)
def test_any_split_of_a_messy_tar_loses_and_doubles_nothing(members, unit_bytes, format):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shard.tar")
        try:
            # A tar without any image is none of our shards.
            path.write_bytes(tar_bytes([*members, ("last.jpg", b"x")], format=format))
        except ValueError:  # ustar can't hold the long name
            return
        assert_same_in_units(found_shard(path), unit_bytes)


@pytest.mark.parametrize("kind", ["tfrecord", "tar", "parquet"])
def test_units_come_close_to_the_size_asked_for(tmp_path, kind):
    options = {"row_group_size": 1} if kind == "parquet" else {}
    shard = write_shard(tmp_path, kind, fake_items(100, size=2000), **options)
    unit_bytes = 20_000
    units = assert_same_in_units(shard, unit_bytes)
    assert len(units) > 5
    for unit in units[:-1]:
        assert unit_bytes - shard.file.size / 100 < unit.input_bytes <= unit_bytes


@pytest.mark.parametrize("kind", ["tfrecord", "tar", "parquet"])
def test_a_record_larger_than_a_unit_gets_one_of_its_own(tmp_path, kind):
    items = [Item(f"{i}.jpg", "a", os.urandom(size)) for i, size in enumerate([10, 9000, 10, 10])]
    options = {"row_group_size": 1} if kind == "parquet" else {}
    units = assert_same_in_units(write_shard(tmp_path, kind, items, **options), 5000)
    assert [len(list(shards.read(unit))) for unit in units] == [1, 1, 2]


def test_members_of_one_sample_stay_together(tmp_path):
    names = ["a.jpg", "a.cls", "a.mask.png", "b.jpg", "b.cls"]
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([(name, name.encode()) for name in names]))
    units = shards.split(found_shard(path), 1)
    read = [[(row.key.partition("#")[2], row.label) for row in shards.read(unit)] for unit in units]
    assert read == [[("a.jpg", "a.cls"), ("a.mask.png", "a.cls")], [("b.jpg", "b.cls")]]


def test_small_and_gzip_shards_stay_whole(tmp_path):
    small = write_shard(tmp_path, "tfrecord", fake_items(5))
    assert shards.split(small, small.file.size) == [Unit(small, input_bytes=small.file.size)]
    packed = write_shard(tmp_path, "tar", fake_items(50), gzip=True)
    assert packed.compression == "gzip"
    assert shards.split(packed, 10) == [Unit(packed, input_bytes=packed.file.size)]


@pytest.mark.parametrize("kind", ["tfrecord", "tar"])
def test_damage_ends_the_scan_and_the_last_reader_reports_it(tmp_path, kind):
    shard = write_shard(tmp_path, kind, fake_items(20, size=600))
    data = bytearray(Path(shard.file.uri).read_bytes())
    damaged_at = rows(shard)[12].position
    data[damaged_at : damaged_at + 200] = b"\xff" * 200
    Path(shard.file.uri).write_bytes(data)
    units = assert_same_in_units(shard, 2500)
    *good, last = [row for unit in units for row in shards.read(unit)]
    assert len(good) == 12
    assert last.position == damaged_at


def test_a_unit_read_with_a_limit_stops_there(tmp_path):
    for kind in ("tfrecord", "tar", "parquet"):
        shard = write_shard(tmp_path, kind, fake_items(10))
        assert list(shards.read(Unit(shard, limit=3))) == rows(shard)[:3]


def test_a_shard_that_vanished_is_an_error_and_no_failure(tmp_path):
    for kind in ("tfrecord", "tar", "parquet"):
        shard = write_shard(tmp_path, kind, fake_items(10))
        Path(shard.file.uri).unlink()
        with pytest.raises(FeaturemillError, match=r"cannot read .*shard\..*No such file"):
            rows(shard)
        # What a footer says is remembered for a plan.
        parquet._footers.clear()
        with pytest.raises(FeaturemillError, match="No such file"):
            shards.split(shard, 10)


class FailingFile:
    """A file whose disk fails behind the byte `good`."""

    def __init__(self, uri, good):
        self._file, self._good = io.FileIO(uri), good

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, count=-1):
        if self._file.tell() >= self._good:
            raise OSError(5, "Input/output error")
        return self._file.read(count)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize(("kind", "options"), [("tfrecord", {}), ("tar", {}), ("parquet", {}), ("tar", {"gzip": True})])
def test_a_failing_disk_is_an_error_and_no_failure(tmp_path, monkeypatch, kind, options):
    shard = write_shard(tmp_path, kind, fake_items(10, size=3000), **options)
    monkeypatch.setattr("transforms.storage.open_read", lambda uri, **_: FailingFile(uri, 100))
    with pytest.raises(FeaturemillError, match="Input/output error"):
        rows(shard)


@pytest.mark.parametrize("kind", ["tfrecord", "tar"])
def test_a_unit_is_read_in_large_pieces(tmp_path, monkeypatch, kind):
    shard = write_shard(tmp_path, kind, fake_items(100, size=3000))
    opened, open_read = [], storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda uri, **how: opened.append(open_read(uri, **how)) or opened[-1])
    read = shards.read(Unit(shard))
    assert next(read).data
    # Where the system stands: several images on.
    assert opened[-1].raw.tell() > 100_000
    read.close()


def test_a_unit_whose_shard_became_shorter_says_so(tmp_path):
    for kind in ("tfrecord", "tar"):
        shard = write_shard(tmp_path, kind, fake_items(20, size=600))
        boundary = rows(shard)[4].position
        first = shards.split(shard, 20_000 if kind == "tar" else 10_000)[0]
        path = Path(shard.file.uri)
        path.write_bytes(path.read_bytes()[:boundary])
        *good, last = shards.read(first)
        assert len(good) == 4
        assert (last.error, last.position) == ("truncated", boundary)


@examples(40)
@given(count=st.integers(1, 30), per_unit=st.integers(1, 12))
def test_slices_of_a_listing_lose_and_double_nothing(count, per_unit):
    with tempfile.TemporaryDirectory() as folder:
        items = [Item(f"{i:03}.jpg", f"class{i % 3}", b"%d" % i) for i in range(count)]
        write_folder(folder, items)
        files = shards.find([folder]).files
        units = shards.slice_files(files, per_unit)
        read = [row for unit in units for row in shards.read(unit)]
        assert [(row.key, row.label) for row in read] == [(listed.file.uri, listed.label) for listed in files]
        assert sorted(row.data for row in read) == sorted(item.data for item in items)
        assert all(isinstance(row, EncodedImage) and len(unit.files) <= per_unit for unit in units for row in read)
        assert sum(unit.input_bytes for unit in units) == sum(len(item.data) for item in items)
