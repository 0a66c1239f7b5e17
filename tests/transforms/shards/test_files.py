"""Plain image files: slices of a listing, read ahead in order."""

import errno
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.factories import Item, fake_items, write_folder
from transforms import machine, shards, storage
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage, FileInfo, ListedFile
from transforms.shards import files


def listing(folder, items):
    write_folder(folder, items)
    return shards.find([str(folder)]).files


def unit_of(folder, count, **options):
    [unit] = shards.slice_files(listing(folder, fake_items(count, **options)), 1000)
    return unit


def listed(*uris):
    return [ListedFile(FileInfo(uri, 10, "1"), None) for uri in uris]


@pytest.mark.parametrize(
    ("uris", "folder"),
    [
        (["/data/cat/1.jpg", "/data/cat/2.jpg"], "/data/cat"),
        (["/data/cat/1.jpg", "/data/dog/2.jpg"], "/data"),
        (["/data/cat/1.jpg", "/data/cat/deep/2.jpg"], "/data/cat"),
        (["/data/cat/1.jpg", "/data/cats/2.jpg"], "/data"),
        (["/a/1.jpg", "/b/2.jpg"], "/"),
        (["/a.jpg"], "/"),
        (["gs://bucket/x/1.jpg", "gs://bucket/y/2.jpg"], "gs://bucket"),
    ],
)
def test_a_unit_goes_by_the_deepest_common_folder(uris, folder):
    [unit] = shards.slice_files(listed(*uris), 10)
    assert unit.shard.file.uri == folder
    assert (unit.shard.format, unit.shard.file.size, unit.start, unit.stop) == ("files", 10 * len(uris), 0, len(uris))


def test_stores_are_not_mixed_in_a_unit():
    found = listed("/data/1.jpg", "gs://a/1.jpg", "gs://a/2.jpg", "gs://b/1.jpg", "s3://a/1.jpg")
    assert [unit.shard.file.uri for unit in shards.slice_files(found, 10)] == ["/data", "gs://a", "gs://b", "s3://a"]
    assert shards.slice_files([], 10) == []


def test_a_unit_stays_the_same_when_files_are_added_elsewhere():
    before = listed(*(f"/data/{i}.jpg" for i in range(4)))
    first, second = shards.slice_files(before, 2)
    assert shards.slice_files(listed("/data/+.jpg", "/data/-.jpg") + before, 2)[1:] == [first, second]
    changed = [*before[:2], replace(before[2], file=FileInfo("/data/2.jpg", 10, "2")), before[3]]
    assert shards.slice_files(changed, 2)[0] == first
    assert shards.slice_files(changed, 2)[1].shard.file.version != second.shard.file.version


def test_files_are_read_in_order(tmp_path):
    unit = unit_of(tmp_path, 100)
    read = list(shards.read(unit))
    assert [row.key for row in read] == [listed.file.uri for listed in unit.files]
    assert all(row.source == row.key and row.position == 0 for row in read)
    assert {row.key.rsplit("/", 2)[1] for row in read if row.label == "class1"} == {"class1"}


def test_what_cannot_be_read_is_a_failure(tmp_path):
    unit = unit_of(tmp_path, 5)
    paths = [Path(listed.file.uri) for listed in unit.files]
    paths[1].unlink()
    paths[3].unlink()
    paths[3].mkdir()
    paths[4].write_bytes(b"")
    read = list(shards.read(unit))
    assert [getattr(row, "error", None) for row in read] == [None, "vanished", None, "unreadable", None]
    assert (read[1].key, read[1].label, read[1].stage) == (str(paths[1]), unit.files[1].label, "read")
    assert read[4].data == b""


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    unit = unit_of(tmp_path / "disk", 5)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(FeaturemillError, match=r"cannot read .*bring its folder .*disk back.*it resumes"):
        list(shards.read(unit))


def test_too_many_open_files_is_an_error(tmp_path, monkeypatch):
    unit = unit_of(tmp_path, 5)

    def refuse(uri):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(storage, "open_read", refuse)
    with pytest.raises(FeaturemillError, match="Too many open files"):
        list(shards.read(unit))


# As pyarrow words them.
S3_ERROR = (
    "When reading information for key 'in/1.jpg' in bucket 'bucket': AWS Error {} during HeadObject operation: {}"
)
REFUSED = S3_ERROR.format("ACCESS_DENIED", "Access Denied")
GOOGLE_REFUSED = "google::cloud::Status(PERMISSION_DENIED: Permanent error in GetObjectMetadata: Access Denied)"


@pytest.fixture
def bucket(monkeypatch):
    """Three images on a store, and what happens when one of them is opened."""
    from tests.support import memory_store

    memory_store.OBJECTS.clear()
    memory_store.OBJECTS.update({f"mem://bucket/in/{i}.jpg": (b"image", 1) for i in range(3)})
    real = memory_store.MemoryStore.open_input_file
    errors = {}

    def open_or_fail(self, path):
        if f"mem://{path}" in errors:
            raise errors[f"mem://{path}"]
        return real(self, path)

    monkeypatch.setattr(memory_store.MemoryStore, "open_input_file", open_or_fail)
    [unit] = shards.slice_files(shards.find(["mem://bucket/in"]).files, 10)
    return memory_store, unit, errors


@pytest.mark.parametrize("refused", [REFUSED, GOOGLE_REFUSED])
def test_what_a_store_refuses_or_lacks_is_a_failure(bucket, refused):
    store, unit, errors = bucket
    errors["mem://bucket/in/0.jpg"] = OSError(refused)
    del store.OBJECTS["mem://bucket/in/1.jpg"]
    assert [getattr(row, "error", None) for row in shards.read(unit)] == ["unreadable", "vanished", None]


@pytest.mark.parametrize(
    "error",
    [
        OSError(S3_ERROR.format("UNKNOWN (HTTP status 503)", "Slow Down")),
        OSError(S3_ERROR.format("UNKNOWN (HTTP status 429)", "Too many")),
        OSError(S3_ERROR.format("SLOW_DOWN", "Reduce your request rate")),
        OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)"),
        ConnectionError("closed"),
        TimeoutError(),
    ],
)
def test_a_store_in_trouble_is_an_error(bucket, error):
    _, unit, errors = bucket
    errors["mem://bucket/in/1.jpg"] = error
    with pytest.raises(FeaturemillError, match=r"cannot read mem://.*1\.jpg: .*see that mem://bucket/in .*it resumes"):
        list(shards.read(unit))


def test_a_store_that_cannot_be_listed_is_an_error(bucket, monkeypatch):
    store, unit, errors = bucket
    errors["mem://bucket/in/1.jpg"] = OSError(REFUSED)

    def refuse(self, paths):
        raise OSError(REFUSED)

    monkeypatch.setattr(store.MemoryStore, "get_file_info", refuse)
    with pytest.raises(FeaturemillError, match=r"Access Denied; see that mem://bucket/in .*it resumes"):
        list(shards.read(unit))


def test_a_file_over_the_limit_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ENCODED_BYTES", 100)
    [unit] = shards.slice_files(listing(tmp_path, [Item("a.jpg", None, b"x" * 101), Item("b.jpg", None, b"y")]), 10)
    first, second = shards.read(unit)
    assert first.error == "too large"
    assert second.data == b"y"


class AtOnce(Executor):
    """A pool that does its work when it is handed in, so that what was read ahead can be counted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize(("size", "at_most"), [(10, 3 + 32), (20_000, 3 + 10)])
def test_reading_ahead_is_bounded_in_files_and_bytes(tmp_path, monkeypatch, size, at_most):
    monkeypatch.setattr(files, "_AHEAD_BYTES", 10 * 20_000)
    monkeypatch.setattr(machine, "ThreadPoolExecutor", AtOnce)
    unit = unit_of(tmp_path, 100, size=size)
    opened = []
    real = storage.open_read

    def counted(uri):
        opened.append(uri)
        return real(uri)

    monkeypatch.setattr(storage, "open_read", counted)
    rows = shards.read(unit)
    for _ in range(3):
        assert isinstance(next(rows), EncodedImage)
    rows.close()
    assert 10 <= len(opened) <= at_most


def test_a_limit_reads_no_more(tmp_path):
    unit = replace(unit_of(tmp_path, 50), limit=7)
    assert len(list(shards.read(unit))) == 7
