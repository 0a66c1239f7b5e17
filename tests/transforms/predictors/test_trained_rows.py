"""What HEAD knows of its rows: found again by content, else by key; whatever stands in other people's columns."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.errors import FeaturemillError
from transforms.parquet.seals import seal_of
from transforms.predictors.trained_rows import FILE, had_seen, read_rows, rows_file, sides_of


def table(keys, sha256):
    hashes = None if sha256 is None else pa.chunked_array([sha256], pa.binary())
    return SimpleNamespace(keys=pa.chunked_array([keys]), sha256=hashes)


@pytest.fixture
def kept(tmp_path):
    """A HEAD of four labelled rows, of which b has no known content."""
    made = table(["a", "b", "c", "none", "d"], [b"a" * 32, None, b"c" * 32, b"n" * 32, b"d" * 32])
    parts = SimpleNamespace(sides=np.array([0, 1, 2, -1, 0], np.int8), components=np.arange(5))
    (tmp_path / FILE).write_bytes(rows_file(made, parts))
    return str(tmp_path)


def test_rows_are_found_by_content_and_else_by_key(kept):
    rows = read_rows(kept)
    assert rows.to_pydict()["side"] == ["train", "validation", "test", "train"]
    asked = table(
        ["moved", "b", "c", "a", "d", "none"], [b"a" * 32, b"x" * 32, b"new " * 8, b"c" * 32, None, b"n" * 32]
    )
    assert sides_of(asked, rows).to_pylist() == ["train", "validation", None, "test", "train", None]
    assert had_seen(asked, rows).tolist() == [True, True, False, False, True, False]


def test_keys_decide_where_no_content_is_known(kept):
    rows = read_rows(kept)
    for sha256 in (None, [b"61" * 32, b"", b"short"]):
        assert sides_of(table(["c", "d", "e"], sha256), rows).to_pylist() == ["test", "train", None]


def test_a_file_without_a_seal_is_of_before_and_one_with_a_wrong_one_is_refused(tmp_path, kept):
    file, rows = tmp_path / FILE, read_rows(kept)
    assert seal_of(pq.read_metadata(file))
    pq.write_table(rows, tmp_path / "before.parquet", compression="zstd", write_page_checksum=True)
    data = file.read_bytes()
    (tmp_path / "before.parquet").rename(file)
    assert read_rows(kept) == rows
    for at in (len(data) // 3, len(data) - 200):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FeaturemillError, match=r"rows\.parquet can't be read .* restore it, or train again"):
            read_rows(kept)


def test_a_head_from_before_says_nothing(tmp_path, kept):
    assert read_rows(str(tmp_path / "nothing")) is None
    assert had_seen(table(["a"], None), None) is None
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(FeaturemillError, match=r"rows\.parquet can't be read .* restore it, or train again"):
        read_rows(kept)
