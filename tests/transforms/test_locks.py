"""One command at a time on each target; the others are told who it is, and no lock outlives its process."""

import contextlib
import copy
import errno
import os
import pickle
import signal
import socket
import sys

import pytest

from tests.support.commands import start
from transforms import locks
from transforms.committed import held
from transforms.errors import FeaturemillError
from transforms.locks import Reading, locked_folder, locked_name, without_readers

_HOLDS = """
import sys
import time
from transforms.locks import locked_folder, locked_name
with (locked_folder if sys.argv[1] == "folder" else locked_name)(sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(kind: str, path):
    """Another process that holds a target until it is killed."""
    process = start([sys.executable, "-c", _HOLDS, kind, str(path)])
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("kind", "locked"), [("folder", locked_folder), ("name", locked_name)])
def test_the_second_learns_who_holds_it_and_a_killed_one_holds_nothing(tmp_path, kind, locked):
    path = str(tmp_path / "target")
    with holder(kind, path) as process:
        message = rf"target is in use by another command \(process {process.pid} on {socket.gethostname()}, since 20"
        with pytest.raises(FeaturemillError, match=message), locked(path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(path):
            pass
    assert os.listdir(tmp_path) == (["target"] if kind == "folder" else [])


@pytest.mark.parametrize("kind", ["folder", "name"])
def test_a_lock_that_was_removed_by_its_holder_is_not_taken(tmp_path, monkeypatch, kind):
    """Its holder ends, and removes it, between our opening it and our locking it."""
    path = str(tmp_path / "target")
    locked = locked_folder if kind == "folder" else locked_name
    first = contextlib.ExitStack()
    first.enter_context(locked(path))
    real, calls = locks.fcntl.flock, []

    def flock(*args):
        calls.append(args)
        if len(calls) == 1:
            first.close()
        real(*args)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(path):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(FeaturemillError, match="in use by another command"), locked(path):
            pass
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_locked_work_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    leftover = tmp_path / f"x.{'0' * 32}.tmp"
    leftover.touch()
    with held(str(tmp_path / "x")):
        assert os.listdir(tmp_path) == [leftover.name], "it may be a living command's"


@pytest.mark.parametrize("content", ["somebody's own", None])
def test_a_file_of_somebody_else_stays_what_it_is(tmp_path, content):
    (tmp_path / "theirs").write_text("theirs")
    file = tmp_path / ".x.featuremill-lock"
    if content:
        file.write_text(content)
    else:
        file.symlink_to("theirs")
    with locked_name(str(tmp_path / "x")) as is_locked:
        assert is_locked == (content is not None)
    assert file.read_text() == (content or "theirs")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_two_names_of_a_target_are_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "head").symlink_to("real/head")
    with held(str(tmp_path / "link/head"), str(tmp_path / "link/head"), None, "s3://bucket/head"):
        for name in ("real/head", "link/head", "head"):
            with pytest.raises(FeaturemillError, match="in use"), held(str(tmp_path / name)):
                pass
    assert sorted(os.listdir(tmp_path)) == ["head", "link", "real"]
    assert os.listdir(tmp_path / "real") == []


def test_folders_above_are_made_and_go_if_nothing_came_of_them(tmp_path):
    with held(str(tmp_path / "a/b/head"), parents=True):
        assert (tmp_path / "a/b").is_dir()
    assert os.listdir(tmp_path) == []
    with held(str(tmp_path / "a/b/head"), parents=True):
        (tmp_path / "a/mine").touch()
    assert os.listdir(tmp_path / "a") == ["mine"]
    with held(str(tmp_path / "gone/copy.parquet")):
        assert not (tmp_path / "gone").exists()


def test_a_copy_of_a_reader_closes_no_descriptor(tmp_path):
    reading = Reading(str(tmp_path))
    for copied in (copy.copy(reading), pickle.loads(pickle.dumps(reading))):
        del copied
    os.fstat(reading._descriptor)
    del reading
    with without_readers(str(tmp_path), "OUT"):
        pass
