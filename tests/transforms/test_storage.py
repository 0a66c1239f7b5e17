"""Files on a disk with odd names, links and limits, and objects whose names look like patterns."""

import errno
import os
import stat
import warnings

import pytest

from tests.support import memory_store
from transforms import object_stores, storage

# Where a process begins, it is told not to say this; pytest makes it forget.
pytestmark = pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")

# What a name on a store may hold, and what it would match as a pattern.
ODD = {"cats [2019]": "cats 2", "run?": "run1", "all*": "alley", "[!a]": "b"}


def uris(infos):
    return sorted(info.uri for info in infos)


@pytest.fixture(params=sorted(ODD))
def folder(request):
    memory_store.OBJECTS.clear()
    for name in (request.param, ODD[request.param]):
        for file in ("x.tar", "deep/y.tar", "[y].tar"):
            memory_store.OBJECTS[f"mem://b/{name}/{file}"] = b"data", 1
    return f"mem://b/{request.param}"


def test_a_name_that_looks_like_a_pattern_is_none(folder):
    files = [f"{folder}/[y].tar", f"{folder}/x.tar"]
    assert storage.list_folder(folder) == {"x.tar", "[y].tar"}
    assert uris(storage.list_infos(folder)) == files
    assert uris(storage.walk(folder)) == sorted([*files, f"{folder}/deep/y.tar"])
    assert storage.is_folder(folder)
    assert [storage.stat(file).uri for file in files] == files
    storage.remove_tree(folder)
    assert not storage.is_folder(folder)
    assert storage.stat(files[0]) is None
    assert len(memory_store.OBJECTS) == 3


def test_a_pattern_stays_one():
    memory_store.OBJECTS.clear()
    memory_store.OBJECTS.update({f"mem://b/{name}": (b"", 1) for name in ("a1", "a2", "b1")})
    assert uris(storage.match("mem://b/[a]?")) == ["mem://b/a1", "mem://b/a2"]


def test_brackets_in_a_name_are_no_warning():
    memory_store.OBJECTS.clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        # As in a new process; pytest forgets filters with each test.
        object_stores._settle_once.__wrapped__("mem")
        storage.stat("mem://bucket/never seen before [1]")
    assert [warning for warning in seen if "nested set" in str(warning.message)] == []


def test_google_deletes_what_is_named_and_no_more(monkeypatch):
    pytest.importorskip("google.cloud.storage", reason="pip install 'featuremill[gcp]'")
    from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem

    there = {f"gs://b/{name}/x": (1, 0.0) for name in ("out[1]", "out1")}

    class Client:
        def list_files(self, prefix, **_):
            return iter([item for item in there.items() if item[0].startswith(prefix)])

        def delete_batch(self, paths):
            for path in paths:
                del there[path]
            return [(path, None) for path in paths]

    monkeypatch.setattr(GCSFileSystem, "_gcsIO", lambda self: Client())
    storage.delete(["gs://b/out[1]/x"])
    assert list(there) == ["gs://b/out1/x"]


def test_a_link_to_itself_is_listed_as_one_that_leads_nowhere(tmp_path):
    for name in ("loop.jpg", "dead.jpg"):
        (tmp_path / name).symlink_to("loop.jpg" if name == "loop.jpg" else "gone")
    (tmp_path / "x.jpg").write_bytes(b"")
    for infos in (storage.walk(str(tmp_path)), storage.list_infos(str(tmp_path))):
        versions = {os.path.basename(info.uri): info.version for info in infos}
        assert set(versions) == {"loop.jpg", "dead.jpg", "x.jpg"}
        assert (versions["loop.jpg"], versions["dead.jpg"]) == ("link to loop.jpg", "link to gone")
    assert storage.stat(str(tmp_path / "loop.jpg")) is None
    assert storage.list_folder(str(tmp_path)) == {"x.jpg"}


def test_there_is_no_file_with_too_long_a_name(tmp_path):
    assert storage.stat(str(tmp_path / ("x" * 300))) is None


def test_the_root_is_a_folder(monkeypatch):
    # A file's path before its last slash says the root by nothing.
    monkeypatch.setattr(storage.os, "listdir", {"/": ["etc/passwd"]}.__getitem__)
    assert uris(storage.list_infos("/etc".rpartition("/")[0])) == ["/etc/passwd"]


@pytest.mark.parametrize("kind", [stat.S_ISREG, stat.S_ISDIR])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_cannot_flush(tmp_path, monkeypatch, kind, code):
    real = os.fsync

    def fsync(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    file = str(tmp_path / "x")
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            storage.write_atomic(file, b"data", f"{file}.tmp")
    else:
        storage.write_atomic(file, b"data", f"{file}.tmp")
        assert storage.read_bytes(file) == b"data"


@pytest.mark.parametrize("old", [(), ("old.txt",)])
def test_a_folder_that_is_a_link_is_replaced_behind_it(tmp_path, old):
    for name, files in {"real": old, "new": ("new.txt",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    (tmp_path / "link").symlink_to("real")
    storage.replace_folder(str(tmp_path / "new"), str(tmp_path / "link"))
    assert os.listdir(tmp_path / "real") == ["new.txt"]
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()


def test_a_tree_is_removed_with_its_links_but_not_what_they_lead_to(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/x").write_text("")
    (tmp_path / "ours/deep").mkdir(parents=True)
    (tmp_path / "ours/deep/x").write_text("")
    (tmp_path / "ours/link").symlink_to(tmp_path / "theirs")
    (tmp_path / "link").symlink_to("theirs")
    for name in ("ours", "link", "never there"):
        storage.remove_tree(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["theirs"]
    assert os.listdir(tmp_path / "theirs") == ["x"]
