"""Files on a disk with odd names, links and limits, and objects whose names look like patterns."""

import os

import pytest

from tests.support import memory_store
from transforms import storage
from transforms.errors import FeaturemillError

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


@pytest.mark.parametrize(
    ("pattern", "error"),
    [("mem://b*", "bucket can't be a pattern"), ("mem://*/x", "bucket"), ("mem://b/x[z-a]", "is not a")],
)
def test_what_is_no_pattern_is_an_error_in_one_line(pattern, error):
    with pytest.raises(FeaturemillError, match=error):
        storage.match(pattern)


@pytest.mark.parametrize("pattern", ["**", "*/*", "a*/**", "[ab]1/?.tar", "[!c]1/*", "b1/[[]y].tar", "**.tar"])
def test_a_pattern_means_on_a_store_what_it_means_on_disk(pattern, tmp_path):
    memory_store.OBJECTS.clear()
    names = ("a1/x.tar", "a1/deep/y.tar", "b1/[y].tar", "b1/z.jpg", "c1/^.tar")
    memory_store.OBJECTS.update({f"mem://b/in/{name}": (b"", 1) for name in names})
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {uri.removeprefix("mem://b/in/") for uri in uris(storage.match(f"mem://b/in/{pattern}"))}
    on_disk = {os.path.relpath(uri, tmp_path) for uri in uris(storage.match(f"{tmp_path}/{pattern}"))}
    # On a disk `**` stands for folders alone, and is a star where it is no whole name.
    assert found == {name for name in names if name.endswith(".tar")} if pattern == "**.tar" else found == on_disk
    assert found


def test_deleting_takes_what_is_named_and_no_more():
    memory_store.OBJECTS.clear()
    memory_store.OBJECTS.update({f"mem://b/{name}/x": (b"", 1) for name in ("out[1]", "out1", "out2")})
    storage.delete(["mem://b/out[1]/x", "mem://b/out2/x", "mem://b/gone/x"])
    assert list(memory_store.OBJECTS) == ["mem://b/out1/x"]


def test_only_what_was_finished_appears_on_a_store():
    memory_store.OBJECTS.clear()
    with pytest.raises(TypeError), storage.open_write("mem://b/x") as file:
        file.writelines([b"half", None])
    file = storage.open_write("mem://b/y")
    file.write(b"half")
    del file
    assert memory_store.OBJECTS == {}
    with storage.open_write("mem://b/x") as file:
        file.write(b"whole")
        assert memory_store.OBJECTS == {}
    assert storage.read_bytes("mem://b/x") == b"whole"


def test_an_unknown_store_is_named_with_those_that_are_known():
    with pytest.raises(FeaturemillError, match=r"cannot reach ftp://host/x: .*ftp://; use s3://"):
        storage.read_bytes("ftp://host/x")


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
