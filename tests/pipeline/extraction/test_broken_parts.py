"""Parts under their names that aren't what a unit committed: cut off, emptied, another's; extract does these again."""

import shutil
from pathlib import Path

import pytest

from pipeline.exploration.sql import sql
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.inspect import inspect
from tests.pipeline.extraction import test_run as te
from tests.support.factories import draw_items, write_tar
from tests.support.fakes import load_fake
from tests.support.manifests import edit_manifest
from transforms.errors import FeaturemillError
from transforms.store.features import open_features


@pytest.fixture
def tar(tmp_path):
    write_tar(tmp_path / "in.tar", draw_items(per_class=6, size=48, seed=4))
    return tmp_path / "in.tar"


@pytest.fixture
def out(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=6000)
    assert len(parts(tmp_path / "out")) > 3
    return tmp_path / "out"


def parts(out: Path) -> list[Path]:
    return sorted((out / "features").iterdir())


def cut(part: Path, out: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])


def empty(part: Path, out: Path) -> None:
    part.write_bytes(b"")


def replace_by_its_neighbour(part: Path, out: Path) -> None:
    shutil.copy(next(other for other in parts(out) if other != part), part)


def fill_with_zeros(part: Path, out: Path) -> None:
    part.write_bytes(bytes(part.stat().st_size))


SPOILED = {"cut": cut, "empty": empty, "another": replace_by_its_neighbour}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("how", SPOILED)
def test_it_is_named_and_done_again(tar, out, how, finished):
    rows, spoiled = te.rows(out), parts(out)[1]
    others = {part: part.stat().st_mtime_ns for part in parts(out) if part != spoiled}
    if not finished:
        edit_manifest(out, status="running")
        (out / "units.parquet").unlink()
    SPOILED[how](spoiled, out)
    lines: list[str] = []
    summary = te.extract(tar, out, unit_bytes=6000, say=lines.append)
    [line] = [line for line in lines if line.startswith("broken")]
    assert spoiled.name in line
    assert summary.this_run.units == 1
    assert te.rows(out) == rows
    assert {part: part.stat().st_mtime_ns for part in others} == others
    assert inspect(str(out), deep=True).problems == ()


def test_one_of_the_same_size_is_looked_at_where_the_run_is_unfinished(tar, out):
    """Once it is finished, extract doesn't open what has the size that it had; readers do."""
    rows, spoiled = te.rows(out), parts(out)[2]
    fill_with_zeros(spoiled, out)
    with pytest.raises(FeaturemillError, match="no whole Parquet file"):
        open_features(str(out))
    (out / "units.parquet").unlink()
    te.extract(tar, out, unit_bytes=6000)
    assert te.rows(out) == rows


def test_a_merged_part(tar, out):
    rows = te.rows(out)
    compact(CompactOptions(str(out)))
    [merged] = parts(out)
    cut(merged, out)
    lines: list[str] = []
    te.extract(tar, out, unit_bytes=6000, say=lines.append)
    assert any(line.startswith(f"broken   part {merged.name}") for line in lines)
    assert te.rows(out) == rows
    assert merged not in parts(out)


def test_files_of_other_names_stay(tar, out):
    (out / "features/notes.parquet").write_bytes(b"mine")
    with pytest.raises(FeaturemillError, match="notes is in no plan"):
        te.extract(tar, out, unit_bytes=6000)
    assert (out / "features/notes.parquet").read_bytes() == b"mine"


def test_nothing_is_opened_where_all_is_as_it_was(tar, out, monkeypatch):
    from transforms.store import listing

    monkeypatch.setattr(listing, "read_footer", None)
    assert te.extract(tar, out, unit_bytes=6000).this_run.units == 0


def other_numbers(job):
    """An engine that is off by one."""
    engine = load_fake(job)
    embed = engine.embed
    engine.embed = lambda pixels: {name: values + 1 for name, values in embed(pixels).items()}
    return engine


def test_a_part_of_an_earlier_run_is_noticed_by_every_reader(tar, out, tmp_path):
    """It has the right name and settings, and its own hash is right; only the manifest tells."""
    copy, victim = tmp_path / "copy", parts(out)[1]
    shutil.copytree(out, copy)
    te.extract(tar, out, unit_bytes=6000, overwrite=True, load=other_numbers)
    shutil.copy(copy / "features" / victim.name, victim)
    with pytest.raises(FeaturemillError, match="has other parts than it was finished with: one was replaced or lost"):
        open_features(str(out))
    [problem] = inspect(str(out)).problems
    assert problem.startswith(f"{victim.stem}: its part isn't the one that OUT was finished with; delete it and run")
    victim.unlink()
    te.extract(tar, out, unit_bytes=6000)
    assert inspect(str(out)).problems == ()
    assert open_features(str(out)).rows == open_features(str(copy)).rows


def test_a_part_that_a_second_worker_wrote_again_is_the_same(tar, out, tmp_path):
    """Its footer says other seconds; its rows are those."""
    te.extract(tar, tmp_path / "again", unit_bytes=6000)
    victim = parts(out)[1]
    before = victim.read_bytes()
    shutil.copy(tmp_path / "again/features" / victim.name, victim)
    assert victim.read_bytes() != before
    assert inspect(str(out), deep=True).problems == ()
    assert open_features(str(out)).complete


def test_failures_of_an_earlier_run(tar, out, tmp_path):
    failures = sorted((out / "failures").iterdir())[0]
    earlier = failures.read_bytes()
    te.extract(tar, out, unit_bytes=6000, overwrite=True, max_pixels=100)
    failures.write_bytes(earlier)
    [problem] = inspect(str(out)).problems
    assert f"failures/{failures.name}: it isn't the one that its part was committed with; delete it and its" in problem


def test_units_of_an_earlier_run(tar, out, tmp_path):
    earlier = (out / "units.parquet").read_bytes()
    te.extract(tar, out, unit_bytes=6000, overwrite=True, load=other_numbers)
    (out / "units.parquet").write_bytes(earlier)
    with (
        pytest.raises(FeaturemillError, match=r"units\.parquet isn't the one that it was finished with"),
        sql(str(out), "SELECT * FROM units"),
    ):
        pass
    assert any("units.parquet isn't the one" in problem for problem in inspect(str(out)).problems)
    (out / "units.parquet").unlink()
    te.extract(tar, out, unit_bytes=6000)
    assert inspect(str(out)).problems == ()


def test_deep_names_every_file_and_its_cure(out, capsys):
    from pipeline.cli.app import run_cli

    part, failures = parts(out)[0], sorted((out / "failures").iterdir())[0]
    names = [f"features/{part.name}", f"failures/{failures.name}", "plan.parquet", "units.parquet"]
    assert run_cli(["inspect", str(out), "--deep"]) == 0
    capsys.readouterr()
    for name in names:
        data = bytearray((out / name).read_bytes())
        # In the first page's header or content, wherever that is.
        data[20] ^= 4
        (out / name).write_bytes(data)
    assert run_cli(["inspect", str(out), "--deep"]) == 1
    printed = capsys.readouterr().out
    for name in names:
        assert f"PROBLEM      {name}: its content was changed since it was written; delete it and" in printed


@pytest.mark.parametrize("finished", [True, False])
def test_a_lost_manifest_is_written_anew(tar, out, finished):
    rows, before, written = te.rows(out), open_features(str(out)), [part.stat().st_mtime_ns for part in parts(out)]
    (out / "manifest.json").unlink()
    if not finished:
        parts(out)[0].write_bytes(b"")
        (out / "units.parquet").unlink()
    with pytest.raises(FeaturemillError, match=r"has lost its manifest.json; run the same extract command again"):
        open_features(str(out))
    with pytest.raises(FeaturemillError, match="made with other settings"):
        te.extract(tar, out, unit_bytes=6000, image_size=40)
    lines: list[str] = []
    summary = te.extract(tar, out, unit_bytes=6000, say=lines.append)
    assert [line for line in lines if line.startswith("lost ")]
    assert summary.this_run.units == (0 if finished else 1)
    assert te.rows(out) == rows
    assert [part.stat().st_mtime_ns for part in parts(out)][1:] == written[1:]
    after = open_features(str(out))
    assert (after.spec, after.added_columns, after.complete) == (before.spec, before.added_columns, True)
    assert inspect(str(out), deep=True).problems == ()


def test_a_lost_manifest_that_no_part_tells_blocks_with_a_cure(tar, out):
    (out / "manifest.json").unlink()
    for part in parts(out):
        part.write_bytes(b"")
    with pytest.raises(FeaturemillError, match="no part in its folder features says how it was made; remove it"):
        te.extract(tar, out, unit_bytes=6000)
