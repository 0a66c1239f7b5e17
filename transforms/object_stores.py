"""Object stores and HDFS by pyarrow's file systems: which one a URL means, timeouts, errors in one line.

pyarrow has limits for S3 (seconds, tries) and for how long Google's store is asked again, but none for a Google, Azure
or HDFS server that takes a request and says nothing. So each request is made in a thread of its own, and waited for so
long and no longer; a thread for which nobody waits any more ends with its connection, or with the process.
"""

import ctypes
import errno
import io
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, TypeVar

from transforms.errors import FeaturemillError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

T = TypeVar("T")

# Read from the store at once where a reader asks for less; twice as much each time it reads on, up to the second.
READ_BYTES, _MOST_BYTES = 1 << 20, 16 << 20
# A request is waited for so long, its tries and pauses included; and longer by its bytes, which may come slowly.
_SECONDS, _BYTES_PER_SECOND = 24.0, 1 << 20
# S3: a server that is silent for so long is asked again, this often in all.
_CONNECT_SECONDS, _SILENT_SECONDS, _TRIES = 5, 7, 3
# Google's client counts seconds instead.
_GCS_SECONDS = 20
# A store that was once waited for in vain is waited for no longer than this by those who tidy up after the error.
_SHORT_SECONDS, _SHORT_WAIT = 2, 3.0
# What is written stays in memory up to so much, and on the local disk from there on, until it is uploaded.
_SPOOL_BYTES = 64 << 20
# What stores say of one object or of who asks, as pyarrow words it. 408 and 429 say "later": trouble, and no answer.
_ANSWERS = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|NO_SUCH_|RESOURCE_NOT_FOUND"
    "|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|HTTP status (?!408|429)4[0-9][0-9]"
)
# Google's client wraps what the store said.
_GOOGLES = re.compile(r"google::cloud::Status\((\w+): .*?last message of (.*?)( error_info=.*)?\)$", re.DOTALL)
# Of no use to who reads an error.
_NOISE = re.compile(r" \(Request ID: [^)]*\)|^\[Errno \d+\] |\. Detail: \[.*$|; Details: .*$", re.DOTALL)


class StoreError(OSError):
    """An error of a store in one line."""

    def __init__(self, text: str, is_answer: bool):
        super().__init__(text)
        self.is_answer = is_answer


class _Timeout:
    """Decides between the full timeout and a short one, which holds from the first wait in vain to the next answer.

    Without it, an error of half a minute would take minutes to come out, as files are closed and removed on the way.
    """

    def __init__(self) -> None:
        self.is_silent = False
        self.answered = -math.inf
        # Of this thread: it can do without what it asks for.
        self.is_optional = ContextVar("is_optional", default=False)

    @property
    def is_short(self) -> bool:
        return self.is_silent or self.is_optional.get()

    def note(self, is_answer: bool) -> None:
        if is_answer:
            self.is_silent, self.answered = False, time.monotonic()
        elif not self.is_optional.get():
            self.is_silent = True


_TIMEOUT = _Timeout()


@contextmanager
def short_timeout() -> Iterator[None]:
    """Shortens the timeout of requests that the caller can do without; others wait as long as ever."""
    token = _TIMEOUT.is_optional.set(True)
    try:
        yield
    finally:
        _TIMEOUT.is_optional.reset(token)


def is_answer(error: OSError) -> bool:
    """Returns whether a store says this of one object (it isn't there, it may not be read), and isn't in trouble."""
    return isinstance(error, FileNotFoundError) or getattr(error, "is_answer", False)


def has_answered() -> bool:
    """Returns whether a store answered in the last minute."""
    return time.monotonic() - _TIMEOUT.answered < 2 * _SECONDS


def ask(call: Callable[[], T], *, more: float = 0, is_answered: bool = True) -> T:
    """Returns what a request returns.

    Args:
        call: The request.
        more: Seconds to wait beyond the usual, where much is to come or go.
        is_answered: False where success says nothing of the store, as when bytes only go into a buffer.

    Raises:
        OSError: The store's error in one line, a FileNotFoundError where something isn't there; or it was silent.
    """
    try:
        result = _within(_SHORT_WAIT if _TIMEOUT.is_short else _SECONDS * _tries() / _TRIES + more, call)
    except MemoryError:
        raise
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        is_reply = is_missing or _ANSWERS.search(str(error)) is not None
        _TIMEOUT.note(is_reply)
        text = " ".join(_GOOGLES.sub(r"\1: \2", _NOISE.sub("", str(error))).split()) or type(error).__name__
        raise (FileNotFoundError(errno.ENOENT, text) if is_missing else StoreError(text, is_reply)) from error
    if is_answered:
        _TIMEOUT.note(True)
    return result


def _within(seconds: float, call: Callable[[], T]) -> T:
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, name="ask-store", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer for {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result


@dataclass(frozen=True)
class Place:
    """A URL as pyarrow wants it.

    Attributes:
        files: The file system.
        path: Bucket and object; on HDFS, the absolute path.
        root: What a URL begins with where a path begins with `base`.
        base: The container, where the root names it, or nothing.
    """

    files: "fs.FileSystem"
    path: str
    root: str
    base: str = ""

    def uri(self, path: str) -> str:
        """Returns the URL of another path there."""
        return self.root + path.removeprefix(self.base)


# By process (a fork can't use its parent's connections), scheme, server and timeout.
_MADE: dict[tuple, "fs.FileSystem"] = {}


def place(uri: str) -> Place:
    """Returns where a URL leads.

    Raises:
        FeaturemillError: There is no such scheme.
    """
    scheme, rest = uri.split("://", 1)
    scheme = scheme.lower()
    if scheme not in FILE_SYSTEMS:
        raise FeaturemillError(
            f"cannot reach {uri}: no store is known as {scheme}://; use s3://, gs://, abfss://, hdfs://"
        )
    server, path, base = "", rest, ""
    if scheme in ("abfs", "abfss"):
        # abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/NAME is CONTAINER/NAME.
        base, _, host_and_name = rest.partition("@")
        server, slash, name = host_and_name.partition("/")
        path = base + slash + name
    elif scheme in ("hdfs", "viewfs"):
        server, slash, name = rest.partition("/")
        path = slash + name
    key = (os.getpid(), scheme, server, _TIMEOUT.is_short)
    if key not in _MADE:
        _MADE[key] = FILE_SYSTEMS[scheme](server, _TIMEOUT.is_short)
    root = uri[: len(uri) - len(rest)] + (f"{base}@" if base else "") + server
    return Place(_MADE[key], path.rstrip("/"), root, base)


def _tries() -> int:
    # Who says otherwise in the environment is obeyed.
    return int(os.environ.get("AWS_MAX_ATTEMPTS") or _TRIES)


def _server(*names: str) -> dict[str, str]:
    """Returns the server that the environment names for a store, as pyarrow wants it; nothing if it names none."""
    url = next((os.environ[name] for name in names if os.environ.get(name)), "")
    scheme, found, host = url.rstrip("/").rpartition("://")
    return {"endpoint_override": host, "scheme": scheme if found else "http"} if host else {}


def _s3(_: str, is_short: bool) -> "fs.FileSystem":
    from pyarrow import fs

    return fs.S3FileSystem(
        **_server("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        connect_timeout=_SHORT_SECONDS if is_short else _CONNECT_SECONDS,
        request_timeout=_SHORT_SECONDS if is_short else _SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1 if is_short else _tries()),
        # What fits into one request is one, and its error comes before anything else is done.
        allow_delayed_open=True,
        background_writes=False,
    )


def _gcs(_: str, is_short: bool) -> "fs.FileSystem":
    from pyarrow import fs

    server = _server("STORAGE_EMULATOR_HOST")
    seconds = _SHORT_SECONDS if is_short else _GCS_SECONDS
    # An emulator is sent no credentials.
    return fs.GcsFileSystem(anonymous=bool(server), **server, retry_time_limit=timedelta(seconds=seconds))


def _azure(server: str, _: bool) -> "fs.FileSystem":
    from pyarrow import fs

    account = server.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    return fs.AzureFileSystem(account, os.environ.get("AZURE_STORAGE_KEY") or None)


def _hdfs(server: str, _: bool) -> "fs.FileSystem":
    from pyarrow import fs

    host, _, port = server.partition(":")
    return fs.HadoopFileSystem(host or "default", int(port or 0))


# How each scheme's file system is made, from the server that the URL names and whether its timeout is short.
FILE_SYSTEMS: "dict[str, Callable[[str, bool], fs.FileSystem]]" = {
    "s3": _s3,
    "gs": _gcs,
    "abfs": _azure,
    "abfss": _azure,
    "hdfs": _hdfs,
    "viewfs": _hdfs,
}


class Reader(io.BufferedIOBase):
    """A store's file for reading: in few and large requests, and none at the end of the file or for its size."""

    def __init__(self, file: "pa.NativeFile", size: int, ahead: int):
        """Takes pyarrow's open file, its size in bytes, and how many to ask for at least."""
        self._file, self._size, self._ahead = file, size, ahead
        self._position = self._start = 0
        self._block = b""

    def read(self, count: int | None = -1) -> bytes:
        end = self._size if count is None or count < 0 else min(self._position + count, self._size)
        pieces = []
        while self._position < end:
            offset = self._position - self._start
            if not 0 <= offset < len(self._block):
                self._fetch(end - self._position)
                offset = 0
            pieces.append(self._block[offset : offset + end - self._position])
            self._position += len(pieces[-1])
        return b"".join(pieces)

    def _fetch(self, count: int) -> None:
        position = self._position
        if self._block and position == self._start + len(self._block):
            self._ahead = min(2 * self._ahead, _MOST_BYTES)
        count = min(max(count, self._ahead), _MOST_BYTES, self._size - position)
        data = ask(lambda: self._file.read_at(count, position), more=count / _BYTES_PER_SECOND)
        if not data:
            raise OSError(f"it ends at byte {position} of {self._size}: it was changed meanwhile")
        self._block, self._start = data, position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Writer(io.BufferedIOBase):
    """A store's file for writing. It is gathered here and uploaded when it is closed; an error's file never is.

    pyarrow's own streams publish what they have when they are closed or forgotten, whatever happened before.
    """

    def __init__(self, uri: str):
        self._uri, self._file = uri, tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 Closed by discard.

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def discard(self) -> None:
        """Closes, and uploads nothing."""
        self._file.close()
        super().close()

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.seek(0)
                _upload(self._file, self._uri)
            finally:
                self.discard()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close() if kind is None else self.discard()

    def __del__(self) -> None:
        # Without a folder for temporary files it has none.
        if hasattr(self, "_file"):
            self.discard()


def _upload(file: IO[bytes], uri: str) -> None:
    there = place(uri)
    # As it is, whatever its name ends with.
    stream = ask(lambda: there.files.open_output_stream(there.path, compression=None), is_answered=False)
    try:
        while data := file.read(_MOST_BYTES):
            ask(partial(stream.write, data), more=len(data) / _BYTES_PER_SECOND, is_answered=False)
        ask(stream.close)
    except BaseException:
        # Kept for ever, also when Python ends: a stream that is forgotten publishes what it has.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise
