"""Totals and reports after accidents: what was cut off halfway, lost, left behind, or done by two runs at once."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.extraction import run as extract
from pipeline.maintenance.inspect import inspect, inspection_text
from tests.pipeline.extraction import test_run as te
from tests.support.factories import draw_items, write_folder, write_tar
from tests.support.manifests import edit_manifest
from tests.support.pages_data import clusters, write_out
from transforms import storage
from transforms.embedding import unit as recipe
from transforms.errors import FeaturemillError
from transforms.records import UnitReport
from transforms.store import parts
from transforms.store import repeats as repeats_module
from transforms.store import reports as reports_module
from transforms.store.features import open_features
from transforms.store.output import Output


@pytest.fixture
def tar(tmp_path) -> Path:
    write_tar(tmp_path / "photos.tar", draw_items(per_class=8, size=48, seed=1))
    return tmp_path / "photos.tar"


def problems(out: Path) -> tuple[str, ...]:
    return inspect(str(out)).problems


def test_a_record_that_gets_lost_on_the_way_is_noticed(tar, tmp_path, monkeypatch):
    real = recipe.embed_batch

    def lossy(batch, engine, fail, **more):
        return real(batch[:-1], engine, fail, **more)

    monkeypatch.setattr(recipe, "embed_batch", lossy)
    with pytest.raises(FeaturemillError, match="is not embedded"):
        te.extract(tar, tmp_path / "out")
    assert os.listdir(tmp_path / "out/features") == []


def test_a_disk_that_cannot_flush_commits_nothing(tar, tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if "part" in os.readlink(f"/proc/self/fd/{descriptor}") or "photos.tar-" in os.readlink(
            f"/proc/self/fd/{descriptor}"
        ):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FeaturemillError, match="No space left on device"):
        te.extract(tar, tmp_path / "out")
    assert os.listdir(tmp_path / "out/features") == []


class Stop(Exception):
    pass


def test_retry_failed_that_is_cut_off(tar, tmp_path, monkeypatch):
    settings = {"unit_bytes": 4000}
    te.extract(tar, tmp_path / "out", max_pixels=2000, **settings)
    monkeypatch.setattr(Output, "write_plan", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        te.extract(tar, tmp_path / "out", retry_failed=True, **settings)
    monkeypatch.undo()
    # Nothing that was there is gone, but the run is open.
    assert open_features(str(tmp_path / "out")).rows == 8
    assert not open_features(str(tmp_path / "out")).complete
    assert te.extract(tar, tmp_path / "out", **settings).totals.rows_embedded == 8
    summary = te.extract(tar, tmp_path / "out", retry_failed=True, **settings)
    assert (summary.totals.rows_read, summary.totals.rows_failed) == (32, 4)
    assert problems(tmp_path / "out") == ()


def test_retry_failed_that_is_cut_off_after_a_unit_was_done_again(tar, tmp_path, monkeypatch):
    settings = {"unit_bytes": 4000}
    te.extract(tar, tmp_path / "out", max_pixels=2000, **settings)
    monkeypatch.setattr(extract, "close_output", lambda *_, **__: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        te.extract(tar, tmp_path / "out", retry_failed=True, **settings)
    monkeypatch.undo()
    summary = te.extract(tar, tmp_path / "out", **settings)
    assert (summary.this_run.units, summary.totals.rows_read, summary.totals.rows_failed) == (0, 32, 4)
    assert problems(tmp_path / "out") == ()


def test_inspect_counts_what_an_unfinished_run_left(tar, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "close_output", lambda *_, **__: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        te.extract(tar, tmp_path / "out", unit_bytes=4000)
    found = inspect(str(tmp_path / "out"))
    assert (found.totals.rows_read, found.totals.rows_embedded, found.rows) == (32, 28, 28)
    text = inspection_text(found)
    assert "read 32 = embedded 28 + failed 4, " in text
    assert f"{found.totals.units} units in {found.parts} parts" in text
    assert "did not finish" in text


def test_overwrite_that_is_cut_off(tar, tmp_path, monkeypatch):
    te.extract(tar, tmp_path / "out")
    monkeypatch.setattr(storage, "remove_tree", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        te.extract(tar, tmp_path / "out", overwrite=True)
    assert not open_features(str(tmp_path / "out")).complete


def test_failures_of_a_killed_attempt_do_not_outlive_it(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    away = folder.parent / "away.png"
    real = parts.PartWriter._publish

    def killed_before_the_part(self, temporary, final):
        if "/features/" in final:
            raise Stop
        real(self, temporary, final)

    monkeypatch.setattr(parts.PartWriter, "_publish", killed_before_the_part)
    monkeypatch.setattr(recipe, "load_files", lambda out, planned: vanish(planned))

    def vanish(planned):
        (folder / "3.png").rename(away)
        from transforms.store.units import load_files

        return load_files(str(tmp_path / "out"), planned)

    with pytest.raises(FeaturemillError):
        te.extract(folder, tmp_path / "out")
    monkeypatch.undo()
    assert len(os.listdir(tmp_path / "out/failures")) == 1
    os.rename(away, folder / "3.png")
    summary = te.extract(folder, tmp_path / "out")
    assert (summary.totals.rows_embedded, summary.totals.rows_failed) == (4, 0)
    assert os.listdir(tmp_path / "out/failures") == []
    assert problems(tmp_path / "out") == ()


def test_inspect_notices_failures_that_no_part_counts(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=4000)
    failures = tmp_path / "out/failures"
    listed = next(failures.iterdir())
    clean = next(p for p in (tmp_path / "out/features").iterdir() if not (failures / p.name).exists())
    shutil.copy(listed, failures / clean.name)
    assert "failures listed, its footer says 0" in " ".join(problems(tmp_path / "out"))


def test_parts_of_a_run_with_other_units_are_refused_and_not_doubled(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=4000)
    te.extract(tar, tmp_path / "other", unit_bytes=9000)
    for part in (tmp_path / "other/features").iterdir():
        shutil.copy(part, tmp_path / "out/features" / part.name)
    with pytest.raises(FeaturemillError, match="is in no plan"):
        te.extract(tar, tmp_path / "out", unit_bytes=4000)
    assert te.extract(tar, tmp_path / "out", unit_bytes=4000, prune=True).totals.rows_read == 32
    assert problems(tmp_path / "out") == ()


def test_parts_that_appear_during_a_run_are_noticed_at_its_end(tar, tmp_path, monkeypatch):
    te.extract(tar, tmp_path / "other", unit_bytes=9000)
    real = extract._run_pipeline

    def with_company(*args, **more):
        real(*args, **more)
        shutil.copytree(tmp_path / "other/features", tmp_path / "out/features", dirs_exist_ok=True)

    monkeypatch.setattr(extract, "_run_pipeline", with_company)
    with pytest.raises(FeaturemillError, match="this run didn't plan"):
        te.extract(tar, tmp_path / "out", unit_bytes=4000)
    assert not open_features(str(tmp_path / "out")).complete


def test_a_lost_plan_is_made_again(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=4000)
    (tmp_path / "out/plan.parquet").unlink()
    again = te.extract(tar, tmp_path / "out", unit_bytes=4000)
    assert (again.this_run.units, again.totals.rows_read) == (0, 32)
    assert problems(tmp_path / "out") == ()


def test_lost_units_are_written_again(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=4000)
    (tmp_path / "out/units.parquet").unlink()
    assert te.extract(tar, tmp_path / "out", unit_bytes=4000).totals.rows_read == 32
    assert problems(tmp_path / "out") == ()


def test_prune_keeps_what_is_left_of_inputs_not_named(tar, tmp_path):
    write_folder(tmp_path / "photos", draw_items(per_class=8, size=48, seed=3))
    te.extract(tmp_path / "photos", tmp_path / "out")
    next((tmp_path / "photos/disc").iterdir()).unlink()
    summary = te.extract(tar, tmp_path / "out", prune=True)
    assert summary.totals.rows_read == 31 + 32
    labels = open_features(str(tmp_path / "out")).labels
    assert labels.count("square") == 14


def cut_off(output: Path, *, keep: int) -> None:
    """Leaves OUT as a run that was killed after so many units."""
    edit_manifest(output, status="running")
    (output / "units.parquet").unlink()
    for part in sorted((output / "features").iterdir())[keep:]:
        part.unlink()
        (output / "failures" / part.name).unlink(missing_ok=True)


@pytest.mark.parametrize("keep", [0, 3])
def test_a_run_with_other_inputs_does_not_forget_what_one_before_left(tar, tmp_path, keep):
    settings = {"unit_bytes": 4000}
    whole = te.extract(tar, tmp_path / "out", **settings).totals
    write_tar(tmp_path / "other.tar", draw_items(per_class=2, size=48, seed=2))
    cut_off(tmp_path / "out", keep=keep)
    lines = []
    both = te.extract(tmp_path / "other.tar", tmp_path / "out", say=lines.append, **settings)
    assert both.totals.rows_read == whole.rows_read + 8
    assert f"{whole.units - keep} of them of inputs not named now" in "\n".join(lines)
    assert problems(tmp_path / "out") == ()


def test_a_deleted_part_is_made_again_by_a_run_with_other_inputs(tar, tmp_path):
    whole = te.extract(tar, tmp_path / "out", unit_bytes=4000).totals
    next((tmp_path / "out/features").iterdir()).unlink()
    write_tar(tmp_path / "other.tar", draw_items(per_class=2, size=48, seed=2))
    assert te.extract(tmp_path / "other.tar", tmp_path / "out").totals.rows_read == whole.rows_read + 8
    assert problems(tmp_path / "out") == ()


def test_prune_that_is_cut_off_keeps_what_is_left_of_inputs_not_named(tar, tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", draw_items(per_class=8, size=48, seed=3))
    te.extract([tmp_path / "photos", tar], tmp_path / "out")
    next((tmp_path / "photos/disc").iterdir()).unlink()
    for name in ("write_plan", "close_output"):
        place = Output if name == "write_plan" else extract
        monkeypatch.setattr(place, name, lambda *_, **__: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            te.extract(tar, tmp_path / "out", prune=True)
        monkeypatch.undo()
    assert te.extract(tar, tmp_path / "out", prune=True).totals.rows_read == 31 + 32
    assert problems(tmp_path / "out") == ()


def test_an_unfinished_input_that_changed_is_planned_anew_without_being_named(tar, tmp_path):
    te.extract(tar, tmp_path / "out", unit_bytes=4000)
    cut_off(tmp_path / "out", keep=0)
    write_tar(tar, draw_items(per_class=3, size=48, seed=4))
    write_tar(tmp_path / "other.tar", draw_items(per_class=2, size=48, seed=2))
    assert te.extract(tmp_path / "other.tar", tmp_path / "out").totals.rows_read == 12 + 8
    tar.unlink()
    cut_off(tmp_path / "out", keep=0)
    assert te.extract(tmp_path / "other.tar", tmp_path / "out").totals.rows_read == 8
    assert problems(tmp_path / "out") == ()


def test_a_plan_with_a_gap_is_noticed_and_fixed(tar, tmp_path):
    settings = {"unit_bytes": 4000}
    te.extract(tar, tmp_path / "out", **settings)
    # As a run leaves it that replaced the plan of another.
    units = Output(str(tmp_path / "out")).plan
    Output(str(tmp_path / "out")).write_plan([units[0], *units[2:]])
    (tmp_path / "out/features" / f"{units[1].unit_id}.parquet").unlink()
    assert f"{tar} is in the plan only in part" in "\n".join(problems(tmp_path / "out"))
    fixed = te.extract(tar, tmp_path / "out", **settings)
    assert (fixed.this_run.units, fixed.totals.rows_read) == (1, 32)
    assert problems(tmp_path / "out") == ()
    # Cut in another way, the old parts are in nobody's plan.
    Output(str(tmp_path / "out")).write_plan([units[0], *units[2:]])
    with pytest.raises(FeaturemillError, match=r"in no plan.*--prune"):
        te.extract(tar, tmp_path / "out")
    assert te.extract(tar, tmp_path / "out", prune=True).totals.rows_read == 32
    assert problems(tmp_path / "out") == ()


def test_a_link_to_nothing_does_not_block_other_inputs(tar, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.png").symlink_to("/nowhere")
    te.extract(tmp_path / "in", tmp_path / "out")
    assert te.extract(tar, tmp_path / "out").totals.rows_read == 33


def test_many_copies_of_one_content_do_not_keep_a_run_open(tar, tmp_path, monkeypatch):
    import duckdb

    def out_of_memory(*_):
        raise duckdb.OutOfMemoryException("no memory")

    monkeypatch.setattr(repeats_module, "_find_repeats", out_of_memory)
    summary = te.extract(tar, tmp_path / "out")
    assert summary.repeats is None
    assert open_features(str(tmp_path / "out")).complete


def test_an_output_that_is_a_file(tar, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FeaturemillError, match="is not a folder"):
        te.extract(tar, tmp_path / "out")


def test_many_failures_are_written_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROW_GROUP_ROWS", 3)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    summary = te.extract(folder, tmp_path / "out")
    [listed] = (tmp_path / "out/failures").iterdir()
    assert pq.ParquetFile(listed).num_row_groups == 4
    assert summary.totals.rows_failed == pq.read_table(listed).num_rows == 10


def test_units_parquet_in_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(reports_module, "UNITS_PER_GROUP", 2)
    reports = [
        UnitReport(f"u{i}", "näme", i, -1, 3, 2, 1, 10**12, 0.5, 1.5, 2.5, 3.5, 4.5, "fake", {"grün": i})
        for i in range(5)
    ]
    (tmp_path / "_tmp").mkdir()
    for some in (reports, []):
        Output(str(tmp_path)).write_reports(some)
        assert Output(str(tmp_path)).reports == some


def test_labels_of_others_are_shown_printable(tmp_path):
    labels = ["a\nbooks  balance", "\x1b[2J", "\u202egnp", "x" * 4096]
    out = write_out(tmp_path / "out", clusters(4)[0], labels=labels)
    text = inspection_text(inspect(out))
    assert len(text) < 2000
    assert not {"\x1b", "\u202e"} & set(text)
    plain = write_out(tmp_path / "plain", clusters(4)[0])
    assert text.count("\n") == inspection_text(inspect(plain)).count("\n")
