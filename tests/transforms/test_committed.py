"""Files and folders that appear whole or not at all."""

import errno
import os
import signal
import stat

import pytest

from tests.support.commands import finish, killed_before, start
from transforms import committed, storage
from transforms.committed import committed_file, committed_folder, held, recover, write_whole
from transforms.errors import FeaturemillError


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


def test_what_killed_commands_left_goes_with_the_next_and_nothing_else(tmp_path):
    endings = ("0.tmp", "1.tmp.keras", "2.old", "3.tmp")
    ours = [f"x.parquet.{ending[0] * 32}.{ending[2:]}" for ending in endings]
    theirs = [f"y.parquet.{'0' * 32}.tmp", f"x.parquet.{'0' * 31}.tmp", "x.parquet.tmp"]
    for name in (*ours[:3], *theirs):
        (tmp_path / name).touch()
    (tmp_path / ours[3]).mkdir()
    (tmp_path / ours[3] / "head.npz").touch()
    (tmp_path / "x.parquet").touch()
    # A link isn't ours, whatever it is called.
    link = tmp_path / f"x.parquet.{'f' * 32}.tmp"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/photo.jpg").touch()
    link.symlink_to("elsewhere")
    with held(str(tmp_path / "x.parquet")), pytest.raises(FeaturemillError), held(str(tmp_path / "x.parquet")):
        pass
    left = {"x.parquet", *theirs, link.name, "elsewhere"}
    assert set(os.listdir(tmp_path)) == left
    assert os.listdir(tmp_path / "elsewhere") == ["photo.jpg"]


_REPLACES = """
import sys
from transforms import committed
if sys.argv[2] == "no exchange":
    committed._exchange = lambda one, other: False
with committed.held(sys.argv[1]), committed.committed_folder(sys.argv[1]) as new:
    open(new + "/new.txt", "w").write("new")
"""


@pytest.mark.parametrize("how", ["exchange", "no exchange"])
def test_a_folder_whose_replacement_was_killed_is_the_old_or_the_new_one(tmp_path, how):
    seen = set()
    for moment in range(1, 40):
        folder = tmp_path / str(moment) / "head"
        folder.parent.mkdir()
        fill(folder, "old.txt")
        events = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlopen", "shutil.rmtree")
        status, _, err = finish(start(killed_before(moment, _REPLACES, folder, how, events=events)))
        seen.add(tuple(sorted(name[-3:] for name in os.listdir(folder.parent))))
        # Whoever reads it.
        recover(str(folder))
        assert os.listdir(folder) in (["old.txt"], ["new.txt"]), (moment, err)
        # Whoever writes it.
        fill_held(folder)
        assert os.listdir(folder) == ["new.txt"]
        assert os.listdir(folder.parent) == ["head"], moment
        if status == 0:
            break
        assert status == -signal.SIGKILL, err
    assert status == 0
    assert any("head"[-3:] not in names for names in seen) == (how == "no exchange"), "killed between the renames"


def fill_held(folder) -> None:
    with held(str(folder)):
        fill(folder, "new.txt")


def test_a_reader_waits_for_a_folder_that_is_between_its_names(tmp_path):
    os.mkdir(tmp_path / f"head.{'0' * 32}.old")
    with held(str(tmp_path / "elsewhere")):
        recover(str(tmp_path / "head"))
    assert os.listdir(tmp_path) == ["head"]
    # Not one that is written for the first time.
    os.rename(tmp_path / "head", tmp_path / f"head.{'0' * 32}.tmp")
    recover(str(tmp_path / "head"))
    assert os.listdir(tmp_path) == [f"head.{'0' * 32}.tmp"]
