"""Files of stores: read like any file, in few and large pieces; errors are OSErrors with the cause."""

import errno
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.object_stores import Reader, Writer, as_os_error

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
