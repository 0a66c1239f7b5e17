"""OUT as an object: each of its files is read once, and manifests stay as they are on disk."""

import json
import re
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.maintenance.report import ReportOptions, run_report
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests import ROOT
from tests.pipeline.extraction import test_run as te
from tests.support.counts import ONCE, count_reads
from tests.support.factories import draw_items, write_tar
from tests.support.pages_data import clusters, write_out
from transforms.spec import FeatureSpec
from transforms.store.manifest import Manifest, PredictionsManifest, read_manifest, write_manifest
from transforms.store.output import Output


@pytest.fixture
def counts(monkeypatch) -> Counter:
    return count_reads(monkeypatch)


def test_an_extract_reads_each_of_the_files_once(tmp_path, counts):
    for number in (1, 2):
        write_tar(tmp_path / f"{number}.tar", draw_items(per_class=8, size=48, seed=number))

    def counted(**more) -> tuple[int, Counter]:
        counts.clear()
        run = te.extract([tmp_path / f"{number}.tar" for number in (1, 2)], tmp_path / "out", unit_bytes=9000, **more)
        assert max(counts["read_units"], counts["units.parquet"]) <= 1
        assert max(counts["read_plan"], counts["manifest.json"]) <= 1
        return run.this_run.units, counts["list_parts"]

    units, listings = counted()
    assert units > 4
    assert listings == 2
    assert counted() == (0, 1)
    some = sorted((tmp_path / "out/features").iterdir())[:2]
    for part in some:
        part.unlink()
    assert counted() == (2, 2)
    (tmp_path / "out/units.parquet").unlink()
    assert counted() == (0, 2)
    # Merged parts may have come between plan and beginning where there are no locks: these runs look once more.
    again, listings = counted(retry_failed=True)
    assert again > 0
    assert listings == 3
    assert counted(overwrite=True) == (units, 2)


@pytest.mark.parametrize("command", ["train", "report"])
def test_a_command_reads_each_of_the_files_once(tmp_path, counts, command):
    vectors, labels = clusters(60)
    out = write_out(tmp_path / "out", vectors, labels=labels, units=3)
    counts.clear()
    if command == "report":
        run_report(ReportOptions(out, page=str(tmp_path / "report.html")))
        assert +counts == {**ONCE, "units.parquet": 1, "read_units": 1, "plan.parquet": 1, "read_plan": 1}
    else:
        # Its page of errors looks for images, by the plan.
        train(TrainOptions(features=out, output=str(tmp_path / "head"), kinds=("ridge",), learning_curve=False))
        assert +counts == {**ONCE, "plan.parquet": 1, "read_plan": 1}


def test_reports_of_another_run_are_seen(tmp_path):
    out = Output(write_out(tmp_path / "out", clusters(20)[0]))
    [first, _] = out.reports
    assert out.reports is out.reports
    Output(out.folder).write_reports([replace(first, rows_read=123_456_789)])
    assert [report.rows_read for report in out.reports] == [123_456_789]


def lines(out: str) -> list[str]:
    found = Path(out, "manifest.json").read_text().splitlines()
    return [line.rstrip(",") for line in found if not re.search('"(updated|sha256)"', line)]


def test_a_manifest_is_written_as_it_was_read(tmp_path):
    out = write_out(tmp_path / "out", clusters(20)[0])
    values = json.loads(Path(out, "manifest.json").read_text())
    assert list(values)[:5] == ["schema_version", "status", "fingerprint", "spec", "weights"]
    # As a later version may add some.
    del values["sha256"]
    later = {"first": 1, **values, "last": {"a": [None]}}
    Path(out, "manifest.json").write_text(json.dumps(later, indent=2) + "\n")
    before = lines(out)
    manifest = read_manifest(out)
    assert manifest == read_manifest(out)
    write_manifest(out, manifest)
    assert lines(out) == before
    write_manifest(out, replace(manifest, status="running"))
    assert lines(out) == [line.replace('"complete"', '"running"') for line in before]
    assert read_manifest(out) != manifest


def test_manifests_of_an_earlier_version_stay_as_they_are():
    kinds = Counter()
    with tarfile.open(ROOT / "tests/earlier/earlier.tar.xz") as archive:
        for name in archive.getnames():
            if not name.endswith("manifest.json"):
                continue
            text = archive.extractfile(name).read().decode()
            values = json.loads(text)
            if "kind" in values:
                manifest = PredictionsManifest.from_json(values)
            else:
                manifest = Manifest.from_json(values, FeatureSpec.from_json(json.dumps(values["spec"])))
            kinds[type(manifest), manifest.status] += 1
            assert json.dumps(manifest.to_json(), indent=2) + "\n" == text
    assert len(kinds) == 4


def test_a_part_of_a_shard_called_plan_is_no_leftover(tmp_path):
    """Another run may be writing it; what is ours is removed once it is older than the run."""
    (tmp_path / "_tmp").mkdir()
    ours = [f"plan.{'0' * 32}", f"manifest.json.{'0' * 32}", f"todo.{'0' * 32}.parquet"]
    theirs = f"plan.tar-000000000-{'a' * 16}.{'0' * 32}.parquet"
    for name in (*ours, theirs):
        (tmp_path / "_tmp" / name).touch()
    Output(str(tmp_path)).tidy(set(), began=time.time() + 60)
    assert [path.name for path in (tmp_path / "_tmp").iterdir()] == [theirs]
