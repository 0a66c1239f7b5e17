"""Files of stores: read like any file, in few and large pieces; errors of one line, in time; the environment's say."""

import errno
import io
import os
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FileInfo, FileType, PyFileSystem

from tests.support import memory_store
from transforms import object_stores, storage
from transforms.object_stores import Place, Reader, ask, is_answer, place, short_timeout

DATA = bytes(range(256)) * 5
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 900)),
        st.tuples(st.just("seek"), st.integers(0, 1500)),
        st.tuples(st.just("end"), st.integers(-1280, 0)),
    ),
    max_size=20,
)


class Counted:
    """A file that counts what is fetched."""

    def __init__(self, data: bytes):
        self.data, self.fetches = data, []

    def read_at(self, count, position):
        self.fetches.append(count)
        return self.data[position : position + count]


@pytest.fixture(autouse=True)
def _timeout(monkeypatch):
    monkeypatch.setattr(object_stores, "_TIMEOUT", object_stores._Timeout())


@given(STEPS, st.integers(1, 2000))
def test_reads_as_a_file_does(steps, ahead):
    reader, plain = Reader(Counted(DATA), len(DATA), ahead), io.BytesIO(DATA)
    for what, number in steps:
        if what == "read":
            assert reader.read(number) == plain.read(number)
        else:
            assert reader.seek(number, 2 if what == "end" else 0) == plain.seek(number, 2 if what == "end" else 0)
        assert reader.tell() == plain.tell()


def test_few_fetches():
    file = Counted(DATA)
    reader = Reader(file, len(DATA), 256)
    while reader.read(10):
        reader.seek(0, 1)
    # Who reads on will read on.
    assert file.fetches == [256, 512, 512]
    # Asking for the size, as Arrow does between two reads, costs nothing; nor does reading at the end.
    reader.seek(-20, 2)
    reader.read(10)
    before = len(file.fetches)
    reader.seek(0, 2)
    assert reader.read(10) == b""
    reader.seek(-10, 2)
    assert reader.read() == DATA[-10:]
    assert len(file.fetches) == before


def test_no_fetch_is_too_large(monkeypatch):
    monkeypatch.setattr(object_stores, "_MOST_BYTES", 1000)
    file = Counted(DATA)
    assert Reader(file, len(DATA), 300).read() == DATA
    assert file.fetches == [1000, 280]


def test_a_file_that_was_cut_meanwhile_is_no_end_of_file():
    with pytest.raises(OSError, match="changed meanwhile"):
        Reader(Counted(DATA[:100]), len(DATA), 64).read()


def asked(error: Exception) -> OSError:
    def fail():
        raise error

    with pytest.raises(OSError) as raised:  # noqa: PT011 The tests say which it is.
        ask(fail)
    return raised.value


def test_errors_become_os_errors_of_one_line():
    error = asked(OSError("When listing: AWS Error ACCESS_DENIED:\nAccess Denied (Request ID: 4xJ; trace: 7)"))
    assert str(error) == "When listing: AWS Error ACCESS_DENIED: Access Denied"
    assert str(asked(pa.ArrowInvalid("no such\nname"))) == "no such name"
    assert str(asked(ValueError())) == "ValueError"
    google = "google::cloud::Status(PERMISSION_DENIED: Permanent error, "
    google += "with a last message of No error_info={a=b}). Detail: [errno 13]"
    assert str(asked(OSError(google))) == "PERMISSION_DENIED: No"


def test_what_is_not_there_is_reported_as_missing():
    error = asked(FileNotFoundError(errno.ENOENT, "Path does not exist 'b/x'. Detail: [errno 2] No such file"))
    assert isinstance(error, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert str(error) == "[Errno 2] Path does not exist 'b/x'"
    assert is_answer(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", True),
        ("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: It does not exist.", True),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation", True),
        ("AWS Error UNKNOWN (HTTP status 408) during HeadObject operation", False),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation", False),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation", False),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18", False),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error)", True),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", False),
    ],
)
def test_an_answer_about_one_object_is_no_trouble(text, expected):
    assert is_answer(asked(OSError(text))) is expected


@pytest.fixture
def short(monkeypatch):
    """Timeouts of half a second and, if short, a twentieth."""
    monkeypatch.setattr(object_stores, "_SECONDS", 0.5)
    monkeypatch.setattr(object_stores, "_SHORT_WAIT", 0.05)


def seconds(call) -> float:
    started = time.monotonic()
    with pytest.raises(OSError, match="no answer for"):
        ask(call)
    return time.monotonic() - started


def test_a_silent_store_is_waited_for_once(short):
    def silent():
        time.sleep(3)

    assert 0.5 <= seconds(silent) < 1.5
    # Who tidies up doesn't wait again, until the store has answered.
    assert seconds(silent) < 0.45
    assert ask(lambda: "an answer") == "an answer"
    assert seconds(silent) >= 0.5


def test_bytes_in_a_buffer_are_no_answer(short):
    asked(OSError("AWS Error NETWORK_CONNECTION"))
    ask(lambda: None, is_answered=False)
    assert object_stores._TIMEOUT.is_short


def test_a_short_timeout_holds_for_its_caller_alone(short):
    def silent():
        time.sleep(3)

    with short_timeout():
        assert seconds(silent) < 0.45
    assert seconds(silent) >= 0.5


def test_a_refusal_shortens_no_timeout():
    asked(OSError("AWS Error ACCESS_DENIED"))
    assert not object_stores._TIMEOUT.is_short
    asked(OSError("AWS Error NETWORK_CONNECTION"))
    assert object_stores._TIMEOUT.is_short


def test_a_failed_upload_is_an_os_error(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError("the store is full")

    memory_store.OBJECTS.clear()
    stream = pa.PythonFile(Full(), mode="w")
    monkeypatch.setattr(memory_store.MemoryStore, "open_output_stream", lambda *_: stream)
    file = storage.open_write("mem://b/x")
    file.write(b"data")
    with pytest.raises(OSError, match="the store is full"):
        file.close()
    # Whoever tidies up may close it again.
    file.close()
    assert memory_store.OBJECTS == {}


NOON = {"January": 1767268800, "July": 1782907200}


@pytest.fixture(params=["UTC", "Australia/Sydney", "America/New_York"])
def _time_zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_time_zone")
@pytest.mark.parametrize("noon", NOON.values(), ids=NOON)
def test_a_files_version_is_as_it_always_was(noon):
    """The names of units are made from it: OUT of an older version must be known again."""
    info = FileInfo("b/x", FileType.File, size=1, mtime_ns=noon * 10**9 + 250_000_999)
    google = storage._file(Place(None, "b", "gs://"), info)
    assert (google.uri, google.version) == ("gs://b/x", f"{noon}.25")
    # MinIO and Ceph: milliseconds in a listing, none in the head of an answer.
    assert storage._file(Place(None, "b", "s3://"), info).version == f"{noon}.0"


@pytest.fixture
def made(monkeypatch):
    """What the file systems were made from."""
    calls = []

    def make(server, is_short):
        calls.append((server, is_short))
        return PyFileSystem(memory_store.MemoryStore())

    monkeypatch.setattr(object_stores, "_MADE", {})
    monkeypatch.setattr(object_stores, "FILE_SYSTEMS", dict.fromkeys(object_stores.FILE_SYSTEMS, make))
    return calls


@pytest.mark.parametrize(
    ("uri", "server", "path"),
    [
        ("s3://bucket/a b/[x]%20#?.tar", "", "bucket/a b/[x]%20#?.tar"),
        ("gs://bucket", "", "bucket"),
        ("hdfs://name:8020/in/x.tar", "name:8020", "/in/x.tar"),
        ("hdfs:///in/x.tar", "", "/in/x.tar"),
        ("abfss://box@account.dfs.core.windows.net/in/x.tar", "account.dfs.core.windows.net", "box/in/x.tar"),
    ],
)
def test_a_url_and_back(made, uri, server, path):
    there = place(uri)
    assert (there.path, made) == (path, [(server, False)])
    assert there.uri(path) == uri


def test_one_file_system_per_process_and_server(made, monkeypatch):
    for uri in ("s3://a/x", "s3://b/y", "hdfs://one/x", "hdfs://two/x", "s3://c/z"):
        place(uri)
    assert made == [("", False), ("one", False), ("two", False)]
    # A forked process has none of its parent's connections.
    monkeypatch.setattr(object_stores.os, "getpid", lambda: 1)
    place("s3://a/x")
    assert len(made) == 4


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9000", {"endpoint_override": "127.0.0.1:9000", "scheme": "http"}),
        ("https://store.example/", {"endpoint_override": "store.example", "scheme": "https"}),
        ("localhost:9000", {"endpoint_override": "localhost:9000", "scheme": "http"}),
        ("", {}),
    ],
)
def test_another_server_is_the_environments(monkeypatch, url, expected):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://not.this")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    assert object_stores._server("STORAGE_EMULATOR_HOST") == expected
    assert object_stores._server("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")["endpoint_override"] == "not.this"


def test_stores_are_made_without_a_request(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "STORAGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(object_stores, "_MADE", {})
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    assert place("s3://b/x").files.type_name == "s3"
    assert place("gs://b/x").files.type_name == "gcs"
