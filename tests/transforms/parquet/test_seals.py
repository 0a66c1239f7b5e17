"""Sealed Parquet files: each bit counts, whole or by what is read; files without a seal are read as before."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from transforms.errors import FeaturemillError
from transforms.parquet import files, seals
from transforms.parquet.files import ParquetFile, check_headers, check_whole, open_parquet, open_sealed
from transforms.parquet.seals import (
    Broken,
    Verified,
    content_of,
    origin_of,
    read_metadata,
    seal_of,
    sealed,
    values_for_copy,
)


def table() -> pa.Table:
    vectors = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    return pa.table(
        {
            "key": [f"key{i}" for i in range(6)],
            "label": ["a", None, "b", "a", "b", None],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3),
        }
    )


def written(values=None) -> bytes:
    buffer = io.BytesIO()
    with sealed(buffer, table().schema, values) as writer:
        writer.write(table().slice(0, 4))
        writer.write(table().slice(4))
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.parquet").write_bytes(written({"note": "so"}))
    return tmp_path / "a.parquet"


def flips(data: bytes, start: int, stop: int, step: int = 1):
    for bit in range(8 * start, 8 * stop, step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(flipped)


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_others_read_it_as_any_parquet(path):
    assert pq.read_table(path).replace_schema_metadata(None).equals(table())
    assert pq.read_metadata(path).metadata[b"note"] == b"so"
    assert pq.ParquetFile(path, page_checksum_verification=True).read().num_rows == 6


def test_the_same_rows_give_the_same_seal(path):
    assert written({"note": "so"}) == path.read_bytes()
    assert check_whole(str(path)) == seal_of(read_metadata(path.open("rb"))) != ""
    assert seal_of(read_metadata(io.BytesIO(written({"note": "no"})))) != check_whole(str(path))


def test_every_bit_of_the_footer_counts(path):
    data, unnoticed = path.read_bytes(), set()
    name = data.rindex(b"featuremill.seal")
    for bit, flipped in flips(data, footer_start(data), len(data), 3):
        try:
            read_metadata(io.BytesIO(flipped))
            unnoticed.add(bit // 8)
        except (Broken, pa.ArrowException, ValueError):
            pass
    # Without its name it is no seal; all else is there then.
    assert unnoticed <= set(range(name, name + len("featuremill.seal")))


def test_every_bit_before_counts_for_who_reads_its_column(path):
    """Also one of a page's header, which no checksum covers: Arrow may take such a page for none at all."""
    data = path.read_bytes()
    for bit, flipped in flips(data, 4, footer_start(data), 5):
        path.write_bytes(flipped)
        with pytest.raises(OSError, match="changed"):
            check_whole(str(path))
        for name in ("key", "label", "vector"):
            with io.BytesIO(flipped) as file:
                metadata = read_metadata(file)
                parquet = ParquetFile(Verified(file, metadata), metadata=metadata)
                for read in (
                    lambda name=name, parquet=parquet: parquet.read([name]),
                    lambda name=name, parquet=parquet: pa.Table.from_batches(parquet.iter_batches(2, columns=[name])),
                ):
                    try:
                        found = read()
                    except (OSError, pa.ArrowException):
                        continue
                    assert found.replace_schema_metadata(None).equals(table().select([name])), (name, bit)


def test_a_data_set_gets_what_was_written_once_the_headers_are_checked(path, monkeypatch):
    """As DuckDB reads: pages with their checksums, and no blocks."""
    # Else the file is one block, and whoever checks a header checks all.
    monkeypatch.setattr(seals, "_BLOCK_BYTES", 8)
    monkeypatch.setattr(files, "_HEADER_BYTES", 8)
    data, let_through = written(), 0
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    checked = ds.ParquetFileFormat(default_fragment_scan_options=options)
    for bit, flipped in flips(data, 4, footer_start(data), 3):
        path.write_bytes(flipped)
        try:
            check_headers(str(path))
        except Broken:
            continue
        let_through += 1
        for name in table().column_names:
            try:
                found = ds.dataset(path, format=checked).to_table([name])
            except (OSError, pa.ArrowException):
                continue
            assert found.replace_schema_metadata(None).equals(table().select([name])), (name, bit)
    assert let_through


@pytest.mark.parametrize("cut", [0, 3, 11, 100, -1, -8, -200])
def test_cut_off(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with (
        pytest.raises(FeaturemillError, match=r"a\.parquet can't be read \(.+\); make it anew$"),
        open_sealed(str(path), cure="make it anew"),
    ):
        pass


def test_bytes_put_in_or_left_out_before_the_footer(path):
    data = path.read_bytes()
    for changed in (data[:50] + b"x" + data[50:], data[:50] + data[51:]):
        with pytest.raises(Broken, match="bytes and was written with"):
            read_metadata(io.BytesIO(changed))


def test_without_a_seal(tmp_path):
    pq.write_table(table(), tmp_path / "old.parquet")
    with open_sealed(str(tmp_path / "old.parquet"), cure="") as parquet:
        assert parquet.read().equals(table())
        assert seal_of(parquet.metadata) == origin_of(parquet.metadata) == ""
    assert check_whole(str(tmp_path / "old.parquet")) == ""
    check_headers(str(tmp_path / "old.parquet"))


def test_a_copy_that_others_made_is_read_as_theirs(path, tmp_path):
    """Also if they copied the values of the footer, the seal among them."""
    copy = tmp_path / "copy.parquet"
    values = {k: v for k, v in pq.read_metadata(path).metadata.items() if k != b"ARROW:schema"}
    pq.write_table(pq.read_table(path).slice(2).replace_schema_metadata(values), copy)
    assert seal_of(pq.read_metadata(copy))
    with open_parquet(str(copy)) as parquet:
        assert parquet.read().num_rows == 4
    with pytest.raises(FeaturemillError, match="footer was changed"), open_sealed(str(copy), cure=""):
        pass


def test_what_is_written_anew_remembers_the_first_seal(path):
    metadata = read_metadata(path.open("rb"))
    values = values_for_copy(metadata)
    assert values == {b"note": b"so", b"featuremill.origin": content_of(metadata).encode()}
    again = read_metadata(io.BytesIO(written(values)))
    assert origin_of(again) == content_of(metadata)
    assert seal_of(metadata) != seal_of(again)
    assert origin_of(read_metadata(io.BytesIO(written(values_for_copy(again))))) == content_of(metadata)


def test_an_error_leaves_no_footer():
    buffer = io.BytesIO()
    with pytest.raises(ValueError, match="schema"), sealed(buffer, table().schema) as writer:
        writer.write(table().select([0, 0, 0]))
    # At its beginning, not at an end.
    assert buffer.getvalue() == b"PAR1"
