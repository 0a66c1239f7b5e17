"""Beam's clients for S3 and Google Cloud Storage: one per process, with patience that ends, and errors that say why.

As they come, each `open` makes a client and a connection of its own, and a store that doesn't answer is asked for ten
minutes (S3: seven times after 5, 10, 20 … 320 s) with a traceback for each try. Beam has no setting for either, so
`settle` replaces what Beam makes its clients with. Of its file systems it replaces only how they tell the time.
"""

import errno
import io
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Read from the store at once where a reader asks for less.
READ_BYTES = 1 << 20
# A store that is silent for so long is asked again, this often in all: 30 s and the pauses between.
_CONNECT_SECONDS, _SILENT_SECONDS, _TRIES = 5, 10, 3
# Google's client counts seconds instead; its own defaults are 120, and 60 of silence.
_GCS_SECONDS = 20.0
# A store that has used up a caller's patience gets no more of it from those who only tidy up after the error.
_HASTY_SECONDS = 2
# Answers that say "later": a request took too long, or there were too many.
_LATER = (408, 429)
# After an answer broke off in the middle.
_PAUSES = (0.5, 1.0, 2.0)
# Of boto3's connections, as many as the readers of a listing have threads, and some for the rest.
_CONNECTIONS = 32


class _Patience:
    """Whether a store that doesn't answer is asked again: until it has once been asked in vain, and after it answers.

    Without it, an error of half a minute would take minutes to come out, as files are closed and removed on the way.
    """

    def __init__(self) -> None:
        self.is_lost = False
        # Of this thread: it asks for what it can do without.
        self.is_spared = ContextVar("is_spared", default=False)
        # Google's retry policies, which are asked for their seconds at each call.
        self.policies: list[Any] = []

    @property
    def is_hasty(self) -> bool:
        return self.is_lost or self.is_spared.get()

    def lose(self) -> None:
        if not self.is_spared.get():
            self._set(True, _HASTY_SECONDS)

    def regain(self) -> None:
        if self.is_lost:
            self._set(False, _GCS_SECONDS)

    def _set(self, is_lost: bool, seconds: float) -> None:
        self.is_lost = is_lost
        for policy in self.policies:
            policy._timeout = policy._deadline = seconds


_PATIENCE = _Patience()
_LOCK = threading.RLock()


@contextmanager
def hastily() -> Iterator[None]:
    """For requests that their caller can do without: no store is waited for, and who needs an answer still waits."""
    token = _PATIENCE.is_spared.set(True)
    try:
        yield
    finally:
        _PATIENCE.is_spared.reset(token)


@contextmanager
def as_os_error(uri: str, *, is_answered: bool = True) -> Iterator[None]:
    """Turns what a store's client raises into an OSError with the cause alone; "not there" into FileNotFoundError.

    Beam wraps errors in dictionaries of errors, and Google's clients have families of their own.

    Args:
        uri: For messages.
        is_answered: False where success says nothing of the store, as when bytes only go into a buffer.
    """
    try:
        yield
        if is_answered:
            _PATIENCE.regain()
    except Exception as error:
        cause = _cause(error)
        status = getattr(cause, "status", getattr(cause, "code", None))
        is_told = isinstance(status, int) and status < 500
        if not is_told and not isinstance(cause, FileNotFoundError):
            _PATIENCE.lose()
        if getattr(cause, "code", None) == 404:
            raise FileNotFoundError(errno.ENOENT, f"not found: {_text(cause)}", uri) from error
        if cause is error and isinstance(error, (OSError, MemoryError)):
            raise
        wrapped = OSError(_text(cause))
        wrapped.status = status
        raise wrapped from error


def is_answer(error: OSError) -> bool:
    """Whether a store said this of the one object (it isn't there, it may not be read), and isn't in trouble itself."""
    status = getattr(error, "status", None)
    is_refusal = isinstance(status, int) and 400 <= status < 500 and status not in _LATER
    return is_refusal or isinstance(error, FileNotFoundError)


def _cause(error: BaseException) -> BaseException:
    details = getattr(error, "exception_details", None)
    if isinstance(details, dict) and details:
        first = next(iter(details.values()))
        # Google's batches leave nothing but the status.
        return _cause(first) if isinstance(first, BaseException) else OSError(f"the store answered {first}")
    return error


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Reader(io.BufferedIOBase):
    """A store's file for reading, whose errors are OSErrors.

    Not io.BufferedReader: that forgets its buffer whenever somebody asks how long the file is, as Arrow does, and reads
    on at the end of a file, which is a request for nothing.
    """

    def __init__(self, file: BinaryIO, uri: str, ahead: int):
        """Args: an open file of Beam's, its name for messages, and the bytes to ask for at least."""
        self._file, self._uri, self._ahead = file, uri, ahead
        # Both stores' clients know the size from opening.
        file.seek(0, 2)
        self._size = file.tell()
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
        with as_os_error(self._uri):
            if self._file.tell() != self._position:
                self._file.seek(self._position)
            data = self._file.read(min(max(count, self._ahead), self._size - self._position))
        if not data:
            raise OSError(f"{self._uri} ends at byte {self._position} of {self._size}: it was changed meanwhile")
        self._block, self._start = data, self._position

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Writer(io.BufferedIOBase):
    """A store's file for writing, whose errors are OSErrors. Closing publishes it."""

    def __init__(self, file: BinaryIO, uri: str):
        self._file, self._uri = file, uri

    def write(self, data: bytes) -> int:
        with as_os_error(self._uri, is_answered=False):
            self._file.write(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            super().close()
            with as_os_error(self._uri):
                self._file.close()


def reader(file: BinaryIO, uri: str, ahead: int) -> Reader:
    """Returns Beam's open file as one that asks the store for `ahead` bytes at once, and not for Beam's 16 MiB.

    From S3 a file is read in one request however many reads that takes, as long as they go forward.
    """
    if isinstance(file, io.BufferedReader):
        file = file.detach()
    # Each chunk of Google's is a request: 16 MiB are right for who reads on, and too much for a look at a head.
    if ahead < READ_BYTES and hasattr(file, "_chunk_size"):
        file._chunk_size = ahead
    return Reader(file, uri, ahead)


def settle(scheme: str) -> None:
    """Makes Beam use this module's clients for `s3` or `gs`; for others there is nothing to do."""
    with _LOCK:
        _settle_once(scheme)


@cache
def _settle_once(scheme: str) -> None:
    # Of a name with "[" in it, which is escaped as "[[]"; it means that.
    warnings.filterwarnings("ignore", "Possible nested set", FutureWarning, "apache_beam.io.filesystem")
    if scheme == "s3":
        _settle_s3()
    elif scheme == "gs":
        _settle_gcs()


def _settle_s3() -> None:
    from apache_beam.io.aws import s3io
    from apache_beam.io.aws.clients.s3 import boto3_client, messages

    class StoreError(messages.S3ClientError, OSError):
        """An error that boto3 has already been patient with."""

        def __init__(self, cause: object, code: int, status: int | None):
            super().__init__(str(cause), code)
            self.args, self.status = (str(cause),), status

        def __str__(self) -> str:
            return self.args[0]

    def final(error: messages.S3ClientError) -> StoreError:
        # Beam tries again for minutes after 408, 5xx and errors without a status. And it takes a bucket that isn't
        # there for an empty one.
        told = error.code is not None and error.code < 500 and error.code != 408
        code = error.code if told and "NoSuchBucket" not in str(error.message) else 400
        return StoreError(error.message, code, error.code)

    def once(method: Callable) -> Callable:
        def call(self: "Client", request: object) -> object:
            try:
                return method(self, request)
            except messages.S3ClientError as error:
                raise final(error) from error

        return call

    class Client(boto3_client.Client):
        """Beam's client on the process's one boto3 client, which tries again by itself."""

        def __init__(self, options: "PipelineOptions | dict"):
            self._options = options
            self._download_request = self._download_stream = None
            self._download_pos = 0

        @property
        def client(self) -> Any:
            return _boto3(self._options)

        def get_range(self, request: Any, start: int, end: int) -> bytes:
            for pause in (*_PAUSES, None):
                try:
                    data = self.get_stream(request, start).read(end - start)
                except messages.S3ClientError as error:
                    # It couldn't be opened, and boto3 tried.
                    raise final(error) from error
                except Exception as error:
                    # The connection broke off; what came so far of this range is read again.
                    self._download_request = self._download_stream = None
                    if pause is None:
                        raise StoreError(f"the connection broke off: {_text(error)}", 400, None) from error
                    time.sleep(pause)
                else:
                    self._download_pos += len(data)
                    return data

        get_object_metadata = once(boto3_client.Client.get_object_metadata)
        list = once(boto3_client.Client.list)
        create_multipart_upload = once(boto3_client.Client.create_multipart_upload)
        upload_part = once(boto3_client.Client.upload_part)
        complete_multipart_upload = once(boto3_client.Client.complete_multipart_upload)
        delete = once(boto3_client.Client.delete)
        delete_batch = once(boto3_client.Client.delete_batch)
        copy = once(boto3_client.Client.copy)

    boto3_client.Client = Client
    # Beam's own fails where the connection broke off before an answer.
    boto3_client.get_http_error_code = _status
    # Some stores list milliseconds and answer for one object in whole seconds.
    s3io.S3IO._updated_to_seconds = staticmethod(lambda updated: float(int(updated.timestamp())))


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


# By Beam's options, which a process hardly ever changes: making a client takes 60 ms, and it is safe to share.
_CLIENTS: dict[tuple, object] = {}


def _boto3(options: "PipelineOptions | dict") -> object:
    import boto3
    from apache_beam.options.pipeline_options import S3Options
    from botocore.config import Config

    told = options if isinstance(options, dict) else options.view_as(S3Options).get_all_options()
    names = ("access_key_id", "secret_access_key", "session_token", "endpoint_url", "region_name", "api_version")
    key = (_PATIENCE.is_hasty, *(told.get(f"s3_{name}") for name in (*names, "verify", "disable_ssl")))
    with _LOCK:
        if key not in _CLIENTS:
            is_hasty, access_key_id, secret, token, endpoint, region, version, verify, disable_ssl = key
            # Who says otherwise in the environment is obeyed.
            told_tries = os.environ.get("AWS_MAX_ATTEMPTS")
            config = Config(
                connect_timeout=_HASTY_SECONDS if is_hasty else _CONNECT_SECONDS,
                read_timeout=_HASTY_SECONDS if is_hasty else _SILENT_SECONDS,
                max_pool_connections=_CONNECTIONS,
                retries=None if told_tries else {"mode": "standard", "total_max_attempts": 1 if is_hasty else _TRIES},
            )
            _CLIENTS[key] = boto3.session.Session().client(
                "s3",
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret,
                aws_session_token=token,
                endpoint_url=endpoint,
                region_name=region,
                api_version=version,
                verify=verify,
                use_ssl=not disable_ssl,
                config=config,
            )
        return _CLIENTS[key]


def _settle_gcs() -> None:
    from apache_beam.io.gcp import gcsio, gcsio_retry
    from google.cloud.storage import retry
    from requests.adapters import HTTPAdapter

    create = gcsio.create_storage_client

    class Hurry(HTTPAdapter):
        """Sends requests with our patience: Beam's calls have no argument for it."""

        def send(self, request: object, *args: object, **kwargs: object) -> object:
            kwargs["timeout"] = _HASTY_SECONDS if _PATIENCE.is_hasty else (_CONNECT_SECONDS, _SILENT_SECONDS)
            return super().send(request, *args, **kwargs)

    def create_storage_client(pipeline_options: "PipelineOptions", use_credentials: bool = True) -> object:
        # An emulator is sent no credentials, and Beam would look for some for half a minute.
        use_credentials = use_credentials and not os.environ.get("STORAGE_EMULATOR_HOST")
        key = (id(pipeline_options), use_credentials)
        with _LOCK:
            if key not in _CLIENTS:
                # The options are kept, so that no others can have their id.
                client = create(pipeline_options, use_credentials)
                for scheme in ("http://", "https://"):
                    client._http.mount(scheme, Hurry(pool_maxsize=_CONNECTIONS))
                _CLIENTS[key] = pipeline_options, client
            return _CLIENTS[key][1]

    gcsio.create_storage_client = create_storage_client
    # A part of each file's version; Beam's own is an hour off where this machine has daylight saving time.
    gcsio.GcsIO._updated_to_seconds = staticmethod(lambda updated: updated.timestamp())
    # They are the default arguments of all that Google's and Beam's clients do, and have no other handle.
    _PATIENCE.policies = [retry.DEFAULT_RETRY, gcsio_retry.DEFAULT_RETRY_WITH_THROTTLING_COUNTER]
    _PATIENCE.is_lost = True
    _PATIENCE.regain()
