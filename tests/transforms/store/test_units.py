"""A run's units in a file: nothing lost, and a graph that doesn't grow with them."""

import pytest

from transforms.errors import FeaturemillError
from transforms.records import FileInfo, ListedFile, Shard, Unit
from transforms.store import units
from transforms.store.units import Chunk, PlannedUnit, read_todo, unit_id, write_todo


def planned(count: int) -> list[PlannedUnit]:
    shard = Shard(FileInfo("/data/näme\udcff.tar", 10**9, "v1"), "tar", "gzip", "", "cls", "")
    listed = (ListedFile(FileInfo("/data/a.jpg", 1, "v"), None),)
    return [
        PlannedUnit(f"unit{i}", Unit(shard, 10 * i, 10 * i + 10, i, 10, i or None, listed if i % 2 else ()))
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_round_trip_without_the_files_of_listings(tmp_path, monkeypatch, count):
    monkeypatch.setattr(units, "CHUNK_UNITS", 3)
    (tmp_path / "_tmp").mkdir()
    chunks = write_todo(str(tmp_path / "todo.parquet"), planned(count))
    assert len(chunks) == -(-count // 3)
    found = [unit for chunk in chunks for unit in read_todo(chunk)]
    assert [f.unit_id for f in found] == [p.unit_id for p in planned(count)]
    assert all(f.unit.files == () for f in found)
    assert [f.unit.shard for f in found] == [p.unit.shard for p in planned(count)]
    assert [f.unit.limit for f in found] == [p.unit.limit for p in planned(count)]


def test_workers_that_cannot_reach_the_output_say_so(tmp_path):
    with pytest.raises(FeaturemillError, match="under the same name"):
        read_todo(Chunk(str(tmp_path / "nowhere.parquet"), 0))


def test_ids_are_what_they_always_were():
    """Another id for the same unit would embed all that is stored again."""
    tar = Shard(FileInfo("s3://b/x y.tar", 5, "1.5"), "tar")
    files = tuple(ListedFile(FileInfo(f"/a/{n}.jpg", 1, "2"), label) for n, label in (("ü", None), ("b", "c")))
    listing = Shard(FileInfo("/a", 2, "4"), "files")
    assert unit_id(Unit(tar), "f") == "x_y.tar-000000000-610e81302ca8a833"
    assert unit_id(Unit(tar, 3, 9, 7, 4), "f") == "x_y.tar-000000007-307d98d6f25f0393"
    assert unit_id(Unit(tar, limit=10), "f") == "x_y.tar-000000000-200106e2e1e1fe36"
    assert unit_id(Unit(listing, 0, 2, 0, 2, None, files), "f") == "a-000000000-004a361cd6ec8960"
