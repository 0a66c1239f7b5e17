"""Rows of one unit, as the workers read them that add a feature."""

import os

import pytest

from pipeline.maintenance.compact import CompactOptions, compact
from tests.pipeline.extraction import test_run as te
from tests.support.factories import draw_items, write_tar
from transforms.errors import FeaturemillError
from transforms.rows import sources
from transforms.store.output import Output


@pytest.fixture
def out(tmp_path) -> str:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/a.tar", draw_items(per_class=4, size=40, seed=1))
    te.extract(tmp_path / "in", tmp_path / "out", unit_bytes=4000)
    return str(tmp_path / "out")


def test_a_merged_part_is_read_once_for_all_its_units(out, monkeypatch):
    unit_ids = sorted(Output(out).listing.unit_ids())
    expected = {unit_id: sources.stored_rows(out, unit_id) for unit_id in unit_ids}
    assert len(unit_ids) > 3
    assert {"key", "label", "source", "position", "sha256"} == expected[unit_ids[0]][0].keys()
    compact(CompactOptions(out, target_bytes=2**20))
    [part] = Output(out).listing.names
    opened, listed, read, look = [], [], sources.open_sealed, sources.list_parts
    monkeypatch.setattr(sources, "open_sealed", lambda uri, **more: opened.append(uri) or read(uri, **more))
    monkeypatch.setattr(sources, "list_parts", lambda *args: listed.append(args) or look(*args))

    def by_key(rows: list) -> list:
        return sorted(rows, key=lambda row: row["key"])

    assert all(by_key(sources.stored_rows(out, unit_id)) == by_key(expected[unit_id]) for unit_id in unit_ids)
    assert (len(opened), len(listed)) == (1, 1)
    # Relocated, it has other keys under the same name.
    os.utime(f"{out}/features/{part}", (1, 1))
    sources.stored_rows(out, unit_ids[0])
    assert (len(opened), len(listed)) == (2, 1)
    os.unlink(f"{out}/features/{part}")
    with pytest.raises(FeaturemillError, match=r"has lost the part of unit .*; run extract again"):
        sources.stored_rows(out, unit_ids[0])
