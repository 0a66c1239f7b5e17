"""Inputs and outputs on an object store, as far as that can be shown without one: a store in memory behind Beam."""

import pytest

from tests import memory_store
from tests import test_extract as te
from tests.factories import draw_items, write_tar
from transforms.features import open_features

OUT = "mem://bucket/out"


@pytest.fixture
def store(tmp_path):
    memory_store.OBJECTS.clear()
    memory_store.REQUESTS.clear()
    for number in range(3):
        write_tar(tmp_path / "x.tar", draw_items(per_class=8, size=48, seed=number))
        memory_store.OBJECTS[f"mem://bucket/in/{number}.tar"] = (tmp_path / "x.tar").read_bytes(), 1
    return memory_store


def vectors(output: str) -> dict:
    """{shard's name and member: all but the source}."""
    return {key.rsplit("/", 1)[1]: row[:1] + row[2:] for key, row in te.rows(output).items()}


def test_the_same_rows_as_on_disk(store, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(store.OBJECTS[f"mem://bucket/in/{number}.tar"][0])
    te.extract(tmp_path / "[0-9].tar", tmp_path / "out", unit_bytes=4000)
    summary = te.extract("mem://bucket/in/*.tar", OUT, unit_bytes=4000)
    assert summary.totals.rows_read == 96
    assert vectors(OUT) == vectors(str(tmp_path / "out"))
    assert not [name for name in store.OBJECTS if "/_tmp/" in name]


def test_again_retry_prune_and_overwrite(store):
    assert te.extract("mem://bucket/in", OUT).totals.rows_read == 96
    assert te.extract("mem://bucket/in", OUT).this_run.units == 0
    assert te.extract("mem://bucket/in", OUT, retry_failed=True).this_run.units == 3
    del store.OBJECTS["mem://bucket/in/1.tar"]
    assert te.extract("mem://bucket/in", OUT, prune=True).totals.rows_read == 64
    assert te.extract("mem://bucket/in", OUT, overwrite=True).this_run.units == 2
    assert open_features(OUT).rows == 56


def test_no_request_per_image(store):
    te.extract("mem://bucket/in", OUT)
    assert sum(store.REQUESTS.values()) < 96
