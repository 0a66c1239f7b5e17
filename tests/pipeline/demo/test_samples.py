"""The demo's sample set: equal in every format, equal every time, and broken where it says so."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from pipeline.demo.samples import draw_samples
from tests.support.factories import shared_data, write_parquet, write_tar, write_tfrecord
from transforms import shards


def contents(path, unit_bytes=20_000):
    """Returns the sorted (label, file name, data) of whatever lies at the path, read in many units."""
    found = shards.find([str(path)])
    units = [unit for shard in found.shards for unit in shards.split(shard, unit_bytes)]
    units += shards.slice_files(found.files, 7)
    assert len(units) > 1
    rows = [row for unit in units for row in shards.read(unit)]
    return sorted((row.label, row.key.rpartition("#")[2].rpartition("/")[2], row.data) for row in rows)


def opens(data):
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, Image.DecompressionBombError):
        return False
    return True


def test_every_format_holds_the_same_images(tmp_path):
    paths = draw_samples(str(tmp_path / "one"), per_class=5, size=32)
    assert sorted(paths) == ["folder", "parquet", "tar", "tfrecord"]
    first = contents(paths["folder"])
    assert Counter(label for label, *_ in first) == {"disc": 5, "square": 5, "stripes": 5, "checker": 5}
    for kind in ("tfrecord", "tar", "parquet"):
        assert contents(paths[kind]) == first
    assert Counter(label for label, _, data in first if opens(data)) == dict.fromkeys(
        ["disc", "square", "stripes", "checker"], 4
    )


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    one, two = (draw_samples(str(tmp_path / name), per_class=3, size=32) for name in ("one", "two"))
    for kind in ("tfrecord", "tar", "parquet"):
        assert Path(one[kind]).read_bytes() == Path(two[kind]).read_bytes()
    other = draw_samples(str(tmp_path / "three"), per_class=3, size=32, seed=1)
    assert Path(one["tar"]).read_bytes() != Path(other["tar"]).read_bytes()


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "pipeline.demo.samples"]
    done = subprocess.run([*command, str(tmp_path / "set")], capture_output=True, text=True, check=True)
    assert "photos.tar" in done.stdout
    assert len(contents(tmp_path / "set/photos")) == 60
    assert subprocess.run(command, capture_output=True, text=True).stderr.startswith("usage:")


def test_real_photos_come_out_of_every_format_unchanged(tmp_path):
    from tests.support.factories import Item

    folder = shared_data() / "hymenoptera/train"
    items = [Item(path.name, path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/*"))]
    expected = sorted((item.label, item.name, item.data) for item in items)
    assert contents(folder) == expected
    for kind, write in (("tfrecord", write_tfrecord), ("tar", write_tar), ("parquet", write_parquet)):
        path = tmp_path / f"x.{kind}"
        write(path, items, **({"row_group_size": 20} if kind == "parquet" else {}))
        assert contents(path, unit_bytes=2_000_000) == expected
