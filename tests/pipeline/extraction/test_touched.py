"""Inputs with a new time: the same bytes are recognised by their hashes and kept, other bytes are not."""

import os
import shutil

import pyarrow.parquet as pq
import pytest

from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.inspect import inspect
from tests.pipeline.extraction.test_faults import SETTINGS
from tests.pipeline.extraction.test_run import extract, rows
from tests.support import memory_store
from tests.support.commands import finish, killed_before, start
from tests.support.factories import (
    draw_items,
    write_every_format,
    write_folder,
    write_tar,
)
from transforms.errors import FeaturemillError
from transforms.store.output import Output


def never(job):
    raise AssertionError("nothing is left to embed")


@pytest.fixture
def made(tmp_path):
    """Inputs of all formats, sharded ones in several units, and what they came to; some images are broken."""
    items = draw_items(per_class=20, size=48, seed=3)
    folder = tmp_path / "in"
    folder.mkdir()
    write_every_format(folder, items, row_group_size=6)
    # So that a test finds a picture's bytes in it.
    table = pq.read_table(folder / "photos.parquet")
    pq.write_table(table, folder / "photos.parquet", row_group_size=6, compression="none")
    extract(folder, tmp_path / "out", unit_bytes=12_000)
    return tmp_path


def touch(folder) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


def change(path) -> None:
    """Other bytes, as many as before."""
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes(255 - byte for byte in data[-3:]))


@pytest.mark.parametrize("compacted", [False, True])
def test_touched_inputs_are_not_embedded_again(made, compacted):
    before = rows(made / "out")
    parts = {path.name: path.stat().st_mtime_ns for path in (made / "out/features").iterdir()}
    if compacted:
        compact(CompactOptions(str(made / "out")))
    touch(made / "in")
    lines = []
    summary = extract(made / "in", made / "out", unit_bytes=12_000, load=never, say=lines.append)
    assert (summary.this_run.units, summary.totals.rows_read) == (0, 320)
    assert f"inputs of {len(parts)} units were written again: comparing their bytes" in lines[0]
    assert "note     320 images of inputs that were written again have the same bytes: their rows are kept" in lines
    assert rows(made / "out") == before
    assert inspect(str(made / "out")).problems == ()
    if not compacted:
        assert parts == {path.name: path.stat().st_mtime_ns for path in (made / "out/features").iterdir()}
    # The plan has the new time: nothing is read a second time.
    lines.clear()
    extract(made / "in", made / "out", load=never, say=lines.append)
    assert not any("written again" in line for line in lines)
    # A run that doesn't name them looks them up, and recognises them as well.
    touch(made / "in")
    os.utime(made / "in/photos.tar", (1.1e9, 1.1e9))
    assert extract(made / "in/photos.tfrecord", made / "out", load=never).totals.rows_read == 320


def test_only_the_units_of_a_changed_file_are_stale(made):
    before = rows(made / "out")
    touch(made / "in")
    files = sorted(path for path in (made / "in/photos").rglob("*.*") if str(path) in before)
    change(files[0])
    [unit] = [p.unit for p in Output(str(made / "out")).plan if str(files[0]) in [f.file.uri for f in p.unit.files]]
    with pytest.raises(
        FeaturemillError, match=rf"holds 1 parts .*{files[0]} has other bytes than were embedded\. Pass"
    ):
        extract(made / "in", made / "out")
    # The others were recognised all the same, and aren't read again.
    lines = []
    summary = extract(made / "in", made / "out", prune=True, say=lines.append)
    assert lines[0].startswith("inputs of 1 unit were written again: comparing their bytes")
    assert 0 < summary.this_run.rows_read == len(unit.files) < 80
    after = rows(made / "out")
    assert {key: after[key] for key in after if key != str(files[0])} == {k: before[k] for k in before if k in after}
    assert inspect(str(made / "out")).problems == ()


@pytest.mark.parametrize("name", ["photos.tar", "photos.tfrecord", "photos.parquet"])
def test_only_the_unit_of_a_changed_record_is_stale(made, name):
    before = rows(made / "out")
    path = made / "in" / name
    # Not the first record, by which the fields of a TFRecord are found.
    key, row = [(key, row) for key, row in before.items() if f"{name}#" in key][-1]
    picture = (made / "in/photos" / row[0] / key.split("#")[1].rsplit("/", 1)[-1]).read_bytes()
    # In Parquet it may be among a column's statistics as well.
    path.write_bytes(path.read_bytes().replace(picture, picture[:-2] + b"zz"))
    with pytest.raises(FeaturemillError, match=rf"holds 1 parts .*{name}"):
        extract(made / "in", made / "out")


@pytest.mark.parametrize("name", ["photos.tar", "photos/disc"])
def test_another_size_another_label_and_gone_are_not_compared(made, name, monkeypatch):
    path = made / "in" / name
    touch(made / "in")
    if path.is_dir():
        path.rename(path.with_name("disk"))
    else:
        path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(FeaturemillError, match=r"is gone|had .* bytes, now"):
        extract(made / "in", made / "out")


def test_what_could_not_be_read_is_read_again(tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/a.tar", draw_items(per_class=4, size=48, seed=3))
    whole = (tmp_path / "in/a.tar").read_bytes()
    (tmp_path / "in/a.tar").write_bytes(whole[:3000])
    extract(tmp_path / "in", tmp_path / "out")
    before = rows(tmp_path / "out")
    # Cut off as before: that is the same, too.
    os.utime(tmp_path / "in/a.tar", (1e9, 1e9))
    extract(tmp_path / "in", tmp_path / "out", load=never)
    assert rows(tmp_path / "out") == before


def test_a_lost_plan_of_touched_inputs_is_no_loss(made):
    """The ids of units are of an earlier time; without the plan, their parts are named, and nothing is doubled."""
    before = rows(made / "out")
    touch(made / "in")
    extract(made / "in", made / "out", load=never)
    (made / "out/plan.parquet").unlink()
    with pytest.raises(FeaturemillError, match="is in no plan"):
        extract(made / "in", made / "out")
    extract(made / "in", made / "out", unit_bytes=12_000, prune=True)
    assert rows(made / "out") == before


@pytest.mark.long
def test_killed_while_it_writes_what_it_recognised(made):
    before = rows(made / "out")
    code = "from tests.support import fakes\nfakes.main()"
    # The plan; then, because one file is new, the manifest and the plan, before anything else.
    for moment in (1, 2, 3, 4):
        output = made / f"out{moment}"
        shutil.copytree(made / "out", output)
        os.utime(made / "in/photos.tar", (1e9 + moment, 1e9))
        touch(made / "in/photos")
        shutil.copy(made / "in/photos/disc/disc_000.jpg", made / f"in/photos/disc/new{moment}.jpg")
        command = killed_before(moment, code, made / "in", "-o", output, *SETTINGS)
        status, _, err = finish(start(command))
        assert status == -9, err
        assert before.items() <= rows(output).items()
        summary = extract(made / "in", output)
        assert (summary.this_run.rows_read, summary.totals.rows_read) == (moment, 320 + moment)
        assert before.items() <= rows(output).items()
        assert inspect(str(output)).problems == ()


def test_on_an_object_store(tmp_path):
    memory_store.OBJECTS.clear()
    write_folder(tmp_path / "photos", draw_items(per_class=8, size=48, seed=1))
    paths = sorted(path for path in (tmp_path / "photos").rglob("*") if path.is_file())
    for written in (1, 2):
        for path in paths:
            memory_store.OBJECTS[f"mem://bucket/in/{path.relative_to(tmp_path)}"] = path.read_bytes(), written
        again = extract("mem://bucket/in", "mem://bucket/out", **({"load": never} if written == 2 else {}))
    assert (again.this_run.units, again.totals.rows_read) == (0, len(paths))
