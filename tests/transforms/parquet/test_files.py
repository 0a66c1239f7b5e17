"""Parquet files: what is read of them at a time."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.parquet.files import APART, ParquetFile, count_values


class Counted(io.BytesIO):
    """A file that remembers the size of each read."""

    reads: tuple[int, ...] = ()

    def read(self, count=-1):
        data = super().read(count)
        self.reads += (len(data),)
        return data


@pytest.mark.parametrize("own", [False, True])
def test_a_large_row_group_is_read_a_buffer_at_a_time(own):
    file = Counted()
    values = np.random.default_rng(0).normal(size=10**6)
    pq.write_table(pa.table({"a": values}), file, compression="none", use_dictionary=False)
    metadata = pq.read_metadata(file) if own else None
    parquet = ParquetFile(file, metadata=metadata, buffer_size=2**16)
    assert parquet.num_row_groups == 1
    file.reads = ()
    read = [value for batch in parquet.iter_batches(10_000) for value in batch["a"].to_pylist()]
    assert read == values.tolist()
    assert sum(file.reads) >= 8 * 10**6
    # A page is of a megabyte.
    assert max(file.reads) < 3 * 2**20


def test_what_is_asked_about_a_footer_lies_in_one_module(monkeypatch):
    # The child imports the modules of what it is asked for, while the command waits.
    asked = []
    monkeypatch.setattr(APART, "call", lambda function, *given: asked.append(function.__module__) or function(*given))
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, 3]}), file)
    assert count_values(ParquetFile(file).metadata, 0, apart=True) == [3]
    assert asked == ["transforms.parquet.pages"] * 2
