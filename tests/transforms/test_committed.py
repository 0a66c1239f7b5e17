"""Files and folders that appear whole or not at all."""

import errno
import os
import stat

import pytest

from transforms import committed, storage
from transforms.committed import committed_file, committed_folder, write_whole


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
            write_whole(file, b"data")
    else:
        write_whole(file, b"data")
        assert storage.read_bytes(file) == b"data"


def fill(folder, name: str) -> None:
    with committed_folder(str(folder)) as new, open(os.path.join(new, name), "w") as file:
        file.write("new")


@pytest.mark.parametrize("old", [(), ("old.txt",)])
def test_a_folder_that_is_a_link_is_replaced_behind_it(tmp_path, old):
    (tmp_path / "real").mkdir()
    for name in old:
        (tmp_path / "real" / name).write_text("")
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", "new.txt")
    assert os.listdir(tmp_path / "real") == ["new.txt"]
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_that_is_there_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(committed, "_exchange", lambda one, other: False)
    fill(tmp_path / "head", "old.txt")
    fill(tmp_path / "head", "new.txt")
    assert os.listdir(tmp_path) == ["head"]
    assert os.listdir(tmp_path / "head") == ["new.txt"]


def test_the_name_is_never_free_while_a_folder_is_replaced(tmp_path, monkeypatch):
    fill(tmp_path / "head", "old.txt")
    monkeypatch.setattr(committed.os, "rename", pytest.fail)
    fill(tmp_path / "head", "new.txt")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_was_there_stays_after_an_error(tmp_path, monkeypatch, can_exchange):
    fill(tmp_path / "head", "old.txt")
    with pytest.raises(ZeroDivisionError), committed_folder(str(tmp_path / "head")):
        raise ZeroDivisionError
    if not can_exchange:

        def full(*names):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(committed, "_exchange", lambda one, other: False)
        monkeypatch.setattr(storage, "rename", full)
        with pytest.raises(OSError, match="No space"):
            fill(tmp_path / "head", "new.txt")
    assert os.listdir(tmp_path) == ["head"]
    assert os.listdir(tmp_path / "head") == ["old.txt"]


def test_a_file_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(storage.os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    with committed_file(str(tmp_path / "x")) as file:
        file.write(b"data")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_is_flushed_with_all_that_is_in_it(tmp_path, monkeypatch):
    flushed, real = [], os.fsync
    monkeypatch.setattr(
        storage.os, "fsync", lambda number: (flushed.append(os.readlink(f"/proc/self/fd/{number}")), real(number))
    )
    with committed_folder(str(tmp_path / "new")) as new:
        os.mkdir(os.path.join(new, "deep"))
        with open(os.path.join(new, "deep", "x"), "w") as file:
            file.write("data")
    names = {os.path.relpath(path, new) for path in flushed}
    assert {".", "deep", os.path.join("deep", "x")} <= names


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    write_whole(str(tmp_path / "x"), b"old")
    with pytest.raises(TypeError), committed_file(str(tmp_path / "x")) as file:
        file.writelines([b"new", "no bytes"])
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
