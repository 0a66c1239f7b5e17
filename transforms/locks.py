"""Locks: while a command works on a folder or a file, others that would write there learn who it is.

They are `flock`'s, so they go with the process. Some network file systems have none; there, as on object stores,
nothing keeps a second command away.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from transforms.errors import FeaturemillError
from transforms.text import printable

# What a lock file begins with: another file of such a name isn't ours.
_SIGN = "featuremill: "
# How long files that are to be removed wait for those who read them.
READ_SECONDS = 30.0


@contextmanager
def locked_folder(folder: str) -> Iterator[None]:
    """Keeps other commands off a local folder. It is made if it isn't there, and removed again if nothing came of that.

    Raises:
        FeaturemillError: Another command is at work there.
    """
    is_new = False

    def opened() -> int:
        nonlocal is_new
        is_new = not os.path.lexists(folder)
        os.makedirs(folder, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    descriptor = _locked(folder, folder, opened)
    try:
        yield
    finally:
        if is_new:
            # Only if it is still empty.
            with suppress(OSError):
                os.rmdir(folder)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def locked_name(path: str, *, parents: bool = False) -> Iterator[bool]:
    """Keeps other commands off a local file or folder that is replaced as a whole, by a lock file beside it.

    What is replaced can't carry the lock itself. The lock file says who works there, on which machine, and goes at the
    end; one that a killed command left is taken over.

    Args:
        path: Its name, absolute.
        parents: Make the folders above, and remove those that are empty again at the end.

    Yields:
        Whether there is a lock: not where nothing can be written, or nothing be locked.

    Raises:
        FeaturemillError: Another command is at work there.
    """
    folder, name = os.path.split(path)
    file = os.path.join(folder, f".{name}.featuremill-lock")
    made, above = [], folder
    while parents and not os.path.lexists(above):
        made.append(above)
        above = os.path.dirname(above)

    def opened() -> int:
        if parents:
            os.makedirs(folder, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    descriptor = _locked(path, file, opened)
    try:
        if descriptor is not None and _is_ours(descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{_SIGN}{_who(os.getpid(), datetime.now())}\n".encode(), 0)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # While it is still locked: whoever has it open then sees that it is another one.
            with suppress(OSError):
                if _is_ours(descriptor):
                    os.remove(file)
            os.close(descriptor)
        for empty in made:
            with suppress(OSError):
                os.rmdir(empty)


def _locked(target: str, held: str, opened: Callable[[], int]) -> int | None:
    """Returns a descriptor that holds the lock on the file or folder `held`; None where there can be none."""
    while True:
        try:
            descriptor = opened()
        except OSError:
            # Where nothing can be written, who writes says so.
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise FeaturemillError(
                f"{target} is in use by another command{holder}; wait for that to end, and run this one again"
            ) from error
        except OSError:
            if held != target and _is_ours(descriptor):
                with suppress(OSError):
                    os.remove(held)
            os.close(descriptor)
            return None
        with suppress(OSError):
            if os.path.samestat(os.stat(held), os.fstat(descriptor)):
                return descriptor
        # Its holder removed it between our two steps.
        os.close(descriptor)


class Reading:
    """A reader of a local folder's files: as long as this lives, `without_readers` waits with removing some.

    A copy, as Beam makes by pickling what a function uses, holds nothing: it would close another's descriptor.
    """

    def __init__(self, folder: str):
        """Waits for the moment that a removal takes. Where nothing can be locked, nobody waits for anybody."""
        self._descriptor = None
        with suppress(OSError):
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __getstate__(self) -> dict[str, None]:
        return {"_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


@contextmanager
def without_readers(folder: str, what: str) -> Iterator[None]:
    """Waits until no `Reading` of the folder is left, and keeps new ones waiting.

    Args:
        folder: Local, absolute.
        what: What to call it in the error.

    Raises:
        FeaturemillError: Somebody goes on reading.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        # Nothing is there to be removed.
        yield
        return
    try:
        with suppress(OSError):
            _wait_for_readers(descriptor, what)
        yield
    finally:
        os.close(descriptor)


def _wait_for_readers(descriptor: int, what: str) -> None:
    deadline = time.monotonic() + READ_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise FeaturemillError(
                    f"{what} is being read{_holder(descriptor)}; nothing is lost: run the same command again when that "
                    "has ended"
                ) from error
            time.sleep(0.01)


def is_locked(folder: str) -> bool:
    """Returns whether a command of this machine holds the lock on a folder; looking takes no lock."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return bool(_holder(descriptor))
        finally:
            os.close(descriptor)
    return False


def _is_ours(descriptor: int) -> bool:
    return os.pread(descriptor, len(_SIGN), 0) in (b"", _SIGN.encode())


def _holder(descriptor: int) -> str:
    """Returns who holds the lock on an open file or folder, such as ` (process 4711 on host, since 2026-11-26 10:31)`.

    A lock file says it itself. Of a folder's only Linux knows, and of this machine's processes alone.
    """
    with suppress(OSError, UnicodeDecodeError):
        content = os.pread(descriptor, 400, 0).decode()
        if content.startswith(_SIGN):
            return f" ({printable(content.removeprefix(_SIGN).strip())})"
    with suppress(OSError, ValueError, IndexError):
        inode = str(os.fstat(descriptor).st_ino)
        with open("/proc/locks") as file:
            rows = [line.split() for line in file]
        pid = next((int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].split(":")[-1] == inode), 0)
        # The folder of a process is as old as the process.
        return f" ({_who(pid, datetime.fromtimestamp(os.stat(f'/proc/{pid}').st_ctime))})"
    return ""


def _who(pid: int, since: datetime) -> str:
    return f"process {_command(pid)} on {socket.gethostname()}, since {since:%Y-%m-%d %H:%M}"


def _command(pid: int) -> int:
    """Returns the process to which signals go: of a command that runs in a child of its own, the parent."""
    with suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{pid}/cmdline", "rb") as own, open(f"/proc/{parent}/cmdline", "rb") as theirs:
            # A child without a program of its own has its parent's.
            return parent if own.read() == theirs.read() else pid
    return pid
