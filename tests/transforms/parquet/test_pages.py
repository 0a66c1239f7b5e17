"""Pages: headers are found wherever reads are cut, and pages that would take the memory are refused."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.parquet import pages
from transforms.parquet.files import ParquetFile
from transforms.parquet.pages import Pages, chunk_of, chunks_of, read_header


def written(table, **options):
    target = io.BytesIO()
    pq.write_table(table, target, **options)
    return target.getvalue()


def headers(data, chunk):
    """The headers of a chunk, one after another."""
    at, found = chunk.start, []
    while at < chunk.end:
        found.append((at, read_header(data, at)))
        at = found[-1][1].end + found[-1][1].packed
    assert at == chunk.end
    return found


TABLES = st.builds(
    lambda rows, seed: pa.table(
        {
            "number": pa.array(np.random.default_rng(seed).integers(0, 9, rows)),
            "text": pa.array([None if i % 7 == 3 else f"é{i % 50}" * (i % 9) for i in range(rows)]),
            "list": pa.array([[float(i)] * (i % 3) for i in range(rows)]),
        }
    ),
    st.integers(0, 300),
    st.integers(0, 5),
)
OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_page_checksum": st.booleans(),
        "data_page_size": st.sampled_from([1, 100, 2**20]),
        "write_batch_size": st.sampled_from([1, 7, 1024]),
        "row_group_size": st.sampled_from([10, 1000]),
    }
)


@given(TABLES, OPTIONS, st.sampled_from([0, 16, 33, 1000]))
def test_whole_files_are_read_as_without(table, options, buffer_size):
    data = written(table, **options)
    file = Pages(io.BytesIO(data), in_parts=buffer_size > 0)
    parquet = pq.ParquetFile(file, buffer_size=buffer_size, pre_buffer=False)
    file.watch(chunks_of(parquet.metadata))
    assert parquet.read().equals(table)
    # All of each chunk was looked at.
    assert not file._under_way


@given(TABLES.filter(len), OPTIONS)
def test_headers_lie_one_behind_another(table, options):
    data = written(table, **options)
    metadata = pq.read_metadata(io.BytesIO(data))
    for number in range(metadata.num_row_groups):
        for column in map(metadata.row_group(number).column, range(metadata.num_columns)):
            found = headers(data, chunk_of(column))
            sizes = sum(header.end - at + header.unpacked for at, header in found)
            assert sizes == column.total_uncompressed_size


@pytest.fixture
def later_bomb(monkeypatch):
    """A column with 500 small pages and one that would take the memory."""
    monkeypatch.setattr(pages, "_PAGE_BYTES", 100_000)
    values = [b"%06d" % i for i in range(500)] + [b"x" * 10**6]
    options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 1}
    return values, written(pa.table({"a": values}), **options)


BOMB = r"a page of \d+ bytes would unpack to 100\d{4}"


def test_a_later_page_that_would_take_the_memory_is_refused(later_bomb):
    with pytest.raises(OSError, match=BOMB):
        ParquetFile(io.BytesIO(later_bomb[1])).read()


@pytest.mark.parametrize("buffer_size", [64, 4096, 10**6])
def test_rows_before_a_page_that_is_refused_are_read(later_bomb, buffer_size):
    values, data = later_bomb
    file = Pages(io.BytesIO(data), in_parts=True)
    parquet = pq.ParquetFile(file, buffer_size=buffer_size, pre_buffer=False)
    file.watch(chunks_of(parquet.metadata))
    batches, read = parquet.iter_batches(100, use_threads=False), []

    def read_all():
        for batch in batches:
            read.extend(batch["a"].to_pylist())

    with pytest.raises(OSError, match=BOMB):
        read_all()
    assert 200 <= len(read) <= 500
    assert read == values[: len(read)]


def test_a_page_that_is_longer_than_its_column_is_refused():
    """Arrow would take the memory for all of it before it reads."""
    data = bytearray(written(pa.table({"a": [b"x" * 9000]}), compression="none", use_dictionary=False))
    chunk = chunk_of(pq.read_metadata(io.BytesIO(data)).row_group(0).column(0))
    [(start, header)] = headers(data, chunk)
    # Of the packed size, a number of 7 bits a byte, the topmost bits.
    last = max(at for at in range(start, header.end) if data[at] == 1 and data[at - 1] & 0x80 and data[at - 2] & 0x80)
    data[last] = 0x7F
    assert read_header(data, start).packed > 2**19
    with pytest.raises(OSError, match=r"a page of \d+ bytes can't be in \d+ of its column"):
        ParquetFile(io.BytesIO(data)).read()


def test_dictionaries_of_more_values_than_bytes_are_refused():
    header = pages.PageHeader(unpacked=100, packed=50, values=101, end=20)
    with pytest.raises(OSError, match="a page of 100 bytes can't hold a dictionary of 101 values"):
        pages.check_header(header)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_none_or_refused(data):
    try:
        header = read_header(data)
    except OSError as error:
        header = None
        if "a page's header is damaged" not in str(error):
            raise
    assert header is None or min(header.unpacked, header.packed, header.values) >= 0
