"""Relocate: inputs that were moved keep their rows, whatever happens meanwhile; what isn't the same is refused."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.inspect import inspect, inspection_text
from pipeline.maintenance.relocate import RelocateOptions, relocate, relocate_text
from pipeline.maintenance.verify import VerifyOptions, verify
from tests.pipeline.extraction.test_run import extract, options, rows
from tests.pipeline.extraction.test_touched import change
from tests.support import memory_store
from tests.support.commands import finish, killed_before, start
from tests.support.factories import (
    draw_items,
    write_every_format,
    write_folder,
)
from tests.support.manifests import edit_manifest
from transforms.errors import FeaturemillError, UsageError
from transforms.isolated import Isolated
from transforms.store.listing import list_parts
from transforms.store.output import Output

UNITS = {"unit_bytes": 12_000}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Inputs of all formats, sharded ones in several units, and what they came to; some images are broken."""
    folder = tmp_path_factory.mktemp("made")
    items = draw_items(per_class=20, size=48, seed=3)
    (folder / "in").mkdir()
    write_every_format(folder / "in", items, row_group_size=6)
    for name in ("notes.txt", ".hidden", "checksums.md5"):
        (folder / "in" / name).write_text("no image")
    return folder


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy of the inputs, and OUT."""
    shutil.copytree(made / "in", tmp_path / "in")
    extract(tmp_path / "in", tmp_path / "out", **UNITS)
    return tmp_path


def never(job):
    raise AssertionError("nothing is left to embed")


def moved(rows: dict[str, tuple], old, new) -> dict[str, tuple]:
    """The rows as they have to be: other keys and sources, and nothing else."""

    def at(place):
        return f"{new}{place[len(str(old)) :]}" if place.startswith(str(old)) else place

    # The source is the second column.
    return {at(key): (row[0], at(row[1]), *row[2:]) for key, row in rows.items()}


def failures(output: Path) -> set[tuple[str, str]]:
    tables = [pq.read_table(path).to_pylist() for path in (output / "failures").iterdir()]
    return {(row["key"], row["source"]) for table in tables for row in table}


def check_moved(output, expected: dict[str, tuple], old) -> None:
    assert rows(output) == expected
    assert inspect(str(output)).problems == ()
    for file in (p for name in ("features", "failures") for p in (Path(output) / name).iterdir()):
        table = pq.read_table(file, columns=["key", "source"])
        assert not [text for column in table.columns for text in column.to_pylist() if text.startswith(f"{old}/")]
        assert f'"source": "{old}/' not in (pq.read_metadata(file).metadata.get(b"featuremill.report", b"")).decode()
    assert not [report for report in Output(str(output)).reports if report.source.startswith(f"{old}/")]
    assert not [each for each in Output(str(output)).skipped if each.file.uri.startswith(f"{old}/")]
    manifest = json.loads((Path(output) / "manifest.json").read_text())
    assert f"{old}/" not in json.dumps(manifest)
    assert "relocation" not in manifest
    assert manifest["status"] == "complete"


@pytest.mark.parametrize("compacted", [0, 20_000, 10**9])
def test_a_folder_that_was_renamed(own, compacted):
    before, failed = rows(own / "out"), failures(own / "out")
    if compacted:
        compact(CompactOptions(str(own / "out"), target_bytes=compacted))
    names = sorted(os.listdir(own / "out/features"))
    (own / "in").rename(own / "elsewhere")
    with pytest.raises(FeaturemillError, match=r"is gone.*; if they were moved, featuremill relocate keeps what"):
        extract(own / "elsewhere", own / "out")
    summary = relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/elsewhere"]))
    assert (summary.files, summary.images) == (83, 320)
    check_moved(own / "out", moved(before, own / "in", own / "elsewhere"), own / "in")
    assert failures(own / "out") == {
        (k.replace(f"{own}/in", f"{own}/elsewhere"), s.replace(f"{own}/in", f"{own}/elsewhere")) for k, s in failed
    }
    assert sorted(os.listdir(own / "out/features")) == names
    assert os.listdir(own / "out/_tmp") == []
    assert extract(own / "elsewhere", own / "out", load=never).this_run.units == 0
    # What is redone, taken apart, compacted and pruned goes on as before.
    extract(own / "elsewhere", own / "out", retry_failed=True)
    compact(CompactOptions(str(own / "out")))
    check_moved(own / "out", moved(before, own / "in", own / "elsewhere"), own / "in")
    (own / "elsewhere/photos.tar").unlink()
    assert extract(own / "elsewhere", own / "out", prune=True, load=never).totals.rows_read == 240
    assert inspect(str(own / "out")).problems == ()


@pytest.mark.parametrize("name", ["photos.tar", "photos.tfrecord", "photos.parquet", "photos/disc"])
def test_one_of_several_inputs(own, name):
    before = rows(own / "out")
    old, new = own / "in" / name, own / "there" / name
    new.parent.mkdir(parents=True)
    old.rename(new)
    summary = relocate(RelocateOptions(str(own / "out"), [f"{old}={new}"]))
    assert summary.files == (20 if old.name == "disc" else 1)
    check_moved(own / "out", moved(before, old, new), old)
    assert extract([own / "in", own / "there"], own / "out", load=never).this_run.units == 0


def test_several_moves_at_once_even_in_a_circle(own):
    before = rows(own / "out")
    a, b, c = (own / "in/photos" / name for name in ("disc", "checker", "new"))
    a.rename(own / "aside")
    b.rename(a)
    (own / "aside").rename(b)
    # Their pictures have the names of their classes.
    expected = {}
    for key, row in before.items():
        now = key.replace(str(a), "#").replace(str(b), str(a)).replace("#", str(b)) if "photos/" in key else key
        expected[now] = (row[0], now if "photos/" in key else row[1], *row[2:])
    relocate(RelocateOptions(str(own / "out"), [f"{a}={b}", f"{b}={a}"]))
    assert rows(own / "out") == expected
    assert not c.exists()


def test_into_itself_and_back(own):
    before = rows(own / "out")
    (own / "aside").mkdir()
    (own / "in").rename(own / "aside/in")
    (own / "aside").rename(own / "in")
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/in/in"]))
    assert rows(own / "out") == moved(before, own / "in", own / "in/in")
    for path in (own / "in/in").iterdir():
        path.rename(own / "in" / path.name)
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in/in={own}/in"]))
    assert rows(own / "out") == before


@pytest.mark.parametrize("kind", ["gone", "size", "bytes"])
def test_what_is_not_the_same_is_named_and_nothing_changes(own, kind):
    there = {path: path.read_bytes() for path in (own / "out").rglob("*") if path.is_file()}
    (own / "in").rename(own / "new")
    victim = next(path for path in sorted((own / "new/photos/disc").iterdir()) if path.stat().st_size > 100)
    if kind == "gone":
        victim.unlink()
    elif kind == "size":
        victim.write_bytes(victim.read_bytes() + b"x")
    else:
        change(victim)
    problem = {
        "gone": "is not there",
        "size": r"has \d+ bytes, and .* had",
        "bytes": "has other bytes than were embedded",
    }
    with pytest.raises(FeaturemillError, match=rf"was left as it is.*: {victim} {problem[kind]}") as raised:
        relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"]))
    assert "\n" not in str(raised.value)
    assert there == {path: path.read_bytes() for path in (own / "out").rglob("*") if path.is_file()}
    # The other folders can be.
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in/photos/checker={own}/new/photos/checker"]))
    if kind == "bytes":
        assert relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"], check="size")).images == 0


@pytest.mark.parametrize("name", ["photos.tar", "photos.tfrecord", "photos.parquet"])
def test_another_shard_of_the_same_size_is_named(own, name):
    (own / "in").rename(own / "new")
    path = own / "new" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(FeaturemillError, match=rf"was left as it is.*{name}"):
        relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"]))


def test_an_output_that_is_not_finished(own):
    before = rows(own / "out")
    parts = sorted((own / "out/features").iterdir())
    for part in parts[::3]:
        part.unlink()
    edit_manifest(own / "out", status="running")
    (own / "out/units.parquet").unlink()
    (own / "in").rename(own / "new")
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"]))
    assert json.loads((own / "out/manifest.json").read_text())["status"] == "running"
    summary = extract(own / "new", own / "out")
    assert summary.this_run.units == len(parts[::3])
    check_moved(own / "out", moved(before, own / "in", own / "new"), own / "in")


def test_the_old_place_may_be_extracted_as_well(own):
    """Ids are kept, and the same files at the old place would have them, too."""
    before = rows(own / "out")
    shutil.copytree(own / "in", own / "copy")
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/copy"]))
    summary = extract([own / "in", own / "copy"], own / "out", **UNITS)
    assert (summary.this_run.rows_read, summary.totals.rows_read) == (320, 640)
    assert rows(own / "out") == moved(before, own / "in", own / "copy") | before
    assert inspect(str(own / "out")).problems == ()
    with pytest.raises(FeaturemillError, match=r"copy/photos.* would be in it twice"):
        relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/copy"]))


def test_verify_and_heads_go_on(made, tmp_path):
    from pipeline.prediction.options import PredictOptions
    from pipeline.prediction.run import predict
    from pipeline.training.options import TrainOptions
    from pipeline.training.run import train
    from tests.pipeline.maintenance.test_verify import extract as embed

    shutil.copytree(made / "in/photos", tmp_path / "in")
    out = str(tmp_path / "out")
    embed(tmp_path / "in", tmp_path / "out")
    train(TrainOptions(features=out, output=str(tmp_path / "head"), validation=0.5))
    (tmp_path / "in").rename(tmp_path / "new")
    assert not verify(VerifyOptions(out)).ok
    relocate(RelocateOptions(out, [f"{tmp_path}/in={tmp_path}/new"]))
    assert verify(VerifyOptions(out, sample=1000)).ok
    predicted = predict(PredictOptions(head=str(tmp_path / "head"), inputs=(out,), output=str(tmp_path / "pred")))
    assert predicted.manifest.totals.predicted == len(rows(tmp_path / "out"))


@pytest.mark.long
def test_killed_at_many_moments(own):
    before = rows(own / "out")
    compact(CompactOptions(str(own / "out"), target_bytes=12_000))
    # A place inside the old one: what is moved twice would show.
    (own / "aside").mkdir()
    (own / "in").rename(own / "aside/in")
    (own / "aside").rename(own / "in")
    expected = moved(before, own / "in", own / "in/in")
    move = f"{own}/in={own}/in/in"
    # Before the so manieth rename.
    code = "from pipeline.maintenance.relocate import *\nrelocate(RelocateOptions(sys.argv[1], [sys.argv[2]]))"
    states = set()
    for moment in (1, 2, 3, 4, 9, 20, -2, -1):
        output = own / f"out{moment}"
        shutil.copytree(own / "out", output)
        # Manifest, plan, parts and failures, units.parquet, manifest.
        files = sum(len(list((output / name).iterdir())) for name in ("features", "failures"))
        at = moment if moment > 0 else files + 5 + moment
        status, _, err = finish(start(killed_before(at, code, output, move)))
        assert status == -signal.SIGKILL, (moment, err)
        there = rows(output)
        states.add(len(there.keys() & expected.keys()))
        # Each row is there once, at the one place or the other.
        assert len(there) == len(before)
        assert there.items() <= (before | expected).items()
        if moment > 1:
            found = inspect(str(output))
            cure = f"the last run did not finish (status running): run featuremill relocate OUT {move} again"
            assert inspection_text(found).splitlines()[-1] == cure
            with pytest.raises(FeaturemillError, match=r"relocated only in part; finish that with feat.* OUT .* first"):
                extract(own / "in", output)
            with pytest.raises(FeaturemillError, match=r"is not finished .*; finish it with feat.* OUT .* first"):
                compact(CompactOptions(str(output)))
            with pytest.raises(FeaturemillError, match="another relocation was cut off; finish it first: feature"):
                relocate(RelocateOptions(str(output), [f"{own}/in={own}/other"]))
        relocate(RelocateOptions(str(output), [move]))
        check_moved_inside(output, expected)
        assert os.listdir(output / "_tmp") == []
    assert len(states) >= 4


def check_moved_inside(output: Path, expected: dict[str, tuple]) -> None:
    assert rows(output) == expected
    assert inspect(str(output)).problems == ()
    assert list_parts(str(output)).leftovers == ()
    uris = {f.file.uri for p in Output(str(output)).plan for f in p.unit.files} | set(expected)
    assert all("/in/in/" in uri and "/in/in/in/" not in uri for uri in uris)


def test_on_object_stores(made, tmp_path, monkeypatch):
    memory_store.OBJECTS.clear()
    # The store is in this process's memory.
    for name in ("call", "iterate"):
        monkeypatch.setattr(Isolated, name, lambda self, function, *arguments: function(*arguments))
    out = "mem://bucket/out"
    extract(made / "in", out, **UNITS)
    before = rows(out)
    for path in sorted((made / "in").rglob("*")):
        if path.is_file():
            memory_store.OBJECTS[f"mem://bucket/photos/{path.relative_to(made / 'in')}"] = path.read_bytes(), 1
    summary = relocate(RelocateOptions(out, [f"{made}/in=mem://bucket/photos/"]))
    assert summary.images == 320
    assert rows(out) == moved(before, made / "in", "mem://bucket/photos")
    assert inspect(out).problems == ()
    assert not [name for name in memory_store.OBJECTS if "/_tmp/" in name]
    assert extract("mem://bucket/photos", out, load=never).this_run.units == 0


def test_what_could_not_be_read_before(own):
    """It stays a failure until --retry-failed, and doesn't keep a folder from being relocated."""
    file = own / "in/photos/disc/disc_000.jpg"
    data = file.read_bytes()
    file.unlink()
    file.symlink_to("nowhere")
    shutil.rmtree(own / "out")
    failed = extract(own / "in", own / "out").totals.rows_failed
    (own / "in").rename(own / "new")
    file = own / "new/photos/disc/disc_000.jpg"
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(FeaturemillError, match=r"disc_000\.jpg has \d+ bytes"):
        relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"]))
    # Of the same size, as where only the permissions were wrong.
    plan = Output(str(own / "out")).plan
    [found] = [f for p in plan for f in p.unit.files if f.file.uri.endswith("disc_000.jpg")]
    sized = replace(found, file=replace(found.file, size=len(data)))
    units = [replace(p.unit, files=tuple(sized if f == found else f for f in p.unit.files)) for p in plan]
    Output(str(own / "out")).write_plan([replace(p, unit=unit) for p, unit in zip(plan, units, strict=True)])
    relocate(RelocateOptions(str(own / "out"), [f"{own}/in={own}/new"]))
    assert extract(own / "new", own / "out", load=never).totals.rows_failed == failed
    assert extract(own / "new", own / "out", retry_failed=True).totals.rows_failed == failed - 1


def test_names_with_signs_and_odd_bytes(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/label=cat/\xe9t\xe9#1")
    os.makedirs(folder)
    for item in draw_items(per_class=2, size=48, seed=3):
        Path(f"{folder}/{item.name}").write_bytes(item.data)
    extract(tmp_path / "label=cat", tmp_path / "out")
    count = len(rows(tmp_path / "out"))
    new = os.fsdecode(os.fsencode(tmp_path) + b"/label=dog/\xe9=\xe9")
    os.makedirs(os.path.dirname(new))
    os.rename(folder, new)
    relocate(RelocateOptions(str(tmp_path / "out"), [f"{folder}={new}"]))
    found = rows(tmp_path / "out")
    assert len(found) == count > 0
    assert all(key.startswith(f"{tmp_path}/label=dog/\\udce9=\\udce9/") for key in found)
    # A folder beside it, whose name is that up to the sign.
    write_folder(tmp_path / "label", draw_items(per_class=1, size=48, seed=4))
    extract(tmp_path / "label", tmp_path / "out")
    with pytest.raises(UsageError, match="can be read in two ways"):
        relocate(RelocateOptions(str(tmp_path / "out"), [f"{tmp_path}/label=dog={tmp_path}/dog"]))


def test_what_cannot_be_is_refused(own):
    out = str(own / "out")
    with pytest.raises(UsageError, match="no move was given"):
        relocate(RelocateOptions(out, []))
    with pytest.raises(UsageError, match="no check 'none'; choose from all, size"):
        relocate(RelocateOptions(out, [f"{own}/in={own}/new"], check="none"))
    for move in ("somewhere", "=/new", "/old=", "/=/new"):
        with pytest.raises(UsageError, match="is no move; write OLD=NEW"):
            relocate(RelocateOptions(out, [move]))
    with pytest.raises(UsageError, match="both places are the same"):
        relocate(RelocateOptions(out, [f"{own}/in={own}/in/"]))
    # Part of a name is no folder.
    with pytest.raises(
        FeaturemillError, match=rf"no input of this OUT lies in {own}/i; its inputs are such as {own}/in"
    ):
        relocate(RelocateOptions(out, [f"{own}/i={own}/j"]))
    with pytest.raises(FeaturemillError, match="holds no features"):
        relocate(RelocateOptions(str(own / "nothing"), ["/a=/b"]))


def test_the_command(own, capsys):
    (own / "in").rename(own / "new")
    assert run_cli(["relocate", str(own / "out"), f"{own}/in={own}/new", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["files"] == 83
    assert "comparing the images of 83 files with their stored hashes" in err
    (own / "new").rename(own / "in")
    summary = relocate(RelocateOptions(str(own / "out"), [f"{own}/new={own}/in"]))
    assert "83 input files relocated, 320 images compared" in relocate_text(summary)
    assert summary.images == 320
    assert options(own / "in", own / "out")
