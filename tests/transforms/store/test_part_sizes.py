"""A part's writer holds rows up to a size, whatever the rows are made of."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from transforms.records import Failure, UnitReport
from transforms.spec import Feature, FeatureSpec
from transforms.store import parts
from transforms.store.layout import failures_uri, part_uri
from transforms.store.parts import PartWriter


@pytest.mark.parametrize("long", ["key", "label"])
def test_texts_are_written_before_they_add_up(tmp_path, monkeypatch, long):
    monkeypatch.setattr(parts, "ROW_GROUP_TEXT_BYTES", 10_000)
    spec = FeatureSpec("vgg16", "0" * 64, (Feature("embedding", "block1_pool", "avg"),))
    for folder in ("features", "failures"):
        (tmp_path / folder).mkdir()
    with PartWriter(str(tmp_path), "unit", spec=spec, sizes={"embedding": 2}) as writer:
        for i in range(30):
            key, label = (f"{i}" + "x" * 1000 * (long == name) for name in ("key", "label"))
            writer.add([(key, label, "s", i, bytes(32), 1, 1)], {"embedding": np.zeros((1, 2), np.float32)})
            writer.fail(Failure(f"f{key}", label, "s", i, "read", "bad", "m"))
            assert len(writer._rows) <= 10
            assert len(writer._failures) <= 10
        writer.commit(UnitReport("unit", "s", 0, -1, 60, 30, 30, 0, 0.0, 0.0, 0.0, 0.0, 0.0, "fake"))
    for uri in (part_uri(str(tmp_path), "unit"), failures_uri(str(tmp_path), "unit")):
        written = pq.ParquetFile(uri)
        assert written.metadata.num_rows == 30
        assert written.metadata.num_row_groups == 3
