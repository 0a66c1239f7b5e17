"""Files of stores: read like any file, in few and large pieces; errors are OSErrors with the cause."""

import errno
import io
import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.object_stores import Reader, Writer, as_os_error, is_answer, settle

DATA = bytes(range(256)) * 5
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 900)),
        st.tuples(st.just("seek"), st.integers(0, 1500)),
        st.tuples(st.just("end"), st.integers(-1280, 0)),
    ),
    max_size=20,
)


class Counted(io.BytesIO):
    """A file that counts what is fetched."""

    fetches = 0

    def read(self, count=-1):
        self.fetches += 1
        return super().read(count)


@given(STEPS, st.integers(1, 2000))
def test_reads_as_a_file_does(steps, ahead):
    reader, plain = Reader(Counted(DATA), "mem://x", ahead), io.BytesIO(DATA)
    for what, number in steps:
        if what == "read":
            assert reader.read(number) == plain.read(number)
        else:
            assert reader.seek(number, 2 if what == "end" else 0) == plain.seek(number, 2 if what == "end" else 0)
        assert reader.tell() == plain.tell()


def test_few_fetches():
    file = Counted(DATA)
    reader = Reader(file, "mem://x", 512)
    while reader.read(10):
        reader.seek(0, 1)
    assert file.fetches == -(-len(DATA) // 512)
    # Asking for the size, as Arrow does between two reads, costs nothing; nor does reading at the end.
    reader.seek(-20, 2)
    reader.read(10)
    before = file.fetches
    reader.seek(0, 2)
    assert reader.read(10) == b""
    reader.seek(-10, 2)
    assert reader.read() == DATA[-10:]
    assert file.fetches == before


def test_a_file_that_was_cut_meanwhile_is_no_end_of_file():
    file = io.BytesIO(DATA)
    reader = Reader(file, "mem://x", 64)
    file.truncate(100)
    with pytest.raises(OSError, match="changed meanwhile"):
        reader.read()


class StoreError(Exception):
    def __init__(self, code):
        super().__init__("the store's\nown words")
        self.code = code


@pytest.mark.parametrize("code", [None, 403, 500])
def test_errors_become_os_errors_of_one_line(code):
    with pytest.raises(OSError, match=r"^the store's own words$"), as_os_error("mem://x"):
        raise StoreError(code)


def test_what_is_not_there_is_said_to_be():
    with pytest.raises(FileNotFoundError) as raised, as_os_error("mem://x"):
        raise StoreError(404)
    assert raised.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("code", "expected"), [(403, True), (404, True), (None, False), (408, False), (429, False), (503, False)]
)
def test_an_answer_about_one_object_is_told_from_trouble(code, expected):
    with pytest.raises(OSError) as raised, as_os_error("mem://x"):  # noqa: PT011 Which it is, is_answer says.
        raise StoreError(code)
    assert is_answer(raised.value) is expected


def test_what_the_clients_of_s3_raise_is_told_from_trouble_too():
    pytest.importorskip("boto3", reason="pip install 'featuremill[aws]'")
    from apache_beam.io.aws.clients.s3 import boto3_client, messages

    settle("s3")

    class Refusing(boto3_client.Client):
        def __init__(self, code):
            self._code = code

        @property
        def client(self):
            raise RefusalError(self._code)

    class RefusalError(Exception):
        def __init__(self, code):
            super().__init__("refused")
            self.response = {"ResponseMetadata": {"HTTPStatusCode": code}} if code else None

    for code, expected in ((403, True), (404, True), (503, False), (None, False)):
        with pytest.raises(OSError, match="refused") as raised, as_os_error("s3://x"):
            Refusing(code).get_object_metadata(messages.GetRequest("bucket", "x"))
        assert is_answer(raised.value) is expected


@pytest.fixture(params=["UTC", "Australia/Sydney", "America/New_York"])
def time_zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(params=[(1, 1767268800), (7, 1782907200)], ids=["January", "July"])
def after_noon(request, time_zone):
    """A quarter of a second after noon in winter and in summer, and noon in seconds since 1970."""
    month, noon = request.param
    return datetime(2026, month, 1, 12, microsecond=250_000, tzinfo=timezone.utc), noon


def test_a_files_time_is_the_same_in_any_time_zone(after_noon):
    pytest.importorskip("google.cloud.storage", reason="pip install 'featuremill[gcp]'")
    from apache_beam.io.gcp.gcsio import GcsIO

    settle("gs")
    updated, noon = after_noon
    assert GcsIO._updated_to_seconds(updated) == noon + 0.25


def test_s3_lists_a_file_with_the_time_that_it_answers_for_it(after_noon):
    pytest.importorskip("boto3", reason="pip install 'featuremill[aws]'")
    from apache_beam.io.aws.s3io import S3IO

    settle("s3")
    # MinIO and Ceph: milliseconds in a listing, none in the head of an answer.
    listed, noon = after_noon
    assert S3IO._updated_to_seconds(listed) == S3IO._updated_to_seconds(listed.replace(microsecond=0)) == noon


def test_beams_wrappings_are_taken_off():
    from apache_beam.io.filesystem import BeamIOError

    wrapped = BeamIOError("outer", {"mem://x": BeamIOError("inner", {"mem://x": StoreError(403)})})
    with pytest.raises(OSError, match=r"^the store's own words$"), as_os_error("mem://x"):
        raise wrapped


def test_a_failed_upload_is_an_os_error():
    class Full(io.BytesIO):
        def close(self):
            raise StoreError(507)

    writer = Writer(Full(), "mem://x")
    writer.write(b"data")
    with pytest.raises(OSError, match="own words"):
        writer.close()
    # Whoever tidies up may close it again.
    writer.close()
