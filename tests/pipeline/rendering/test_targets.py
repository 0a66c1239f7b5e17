"""Targets: no command writes over what it reads, or finds out at its end that it has nowhere to write."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.rendering.targets import check_targets
from tests.support.pages_data import clusters, write_out
from transforms.errors import UsageError


@pytest.fixture
def out(tmp_path):
    return write_out(tmp_path / "out", clusters(20)[0])


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "args",
    [
        ["sql", "out", "SELECT 1", "-o", "{target}"],
        ["query", "out", "--key", "/gone/shard.tar#photo000001.jpg", "-o", "{target}"],
        ["query", "out", "--key", "/gone/shard.tar#photo000001.jpg", "--html", "{target}"],
        ["duplicates", "out", "-o", "{target}"],
        ["outliers", "out", "--by", "neighbours", "--html", "{target}"],
        ["map", "out", "--method", "pca", "--html", "{target}"],
        ["map", "out", "--method", "pca", "--html", "page.html", "-o", "{target}"],
        ["report", "out", "--html", "{target}"],
    ],
    ids=lambda args: f"{args[0]} {args[-2]}",
)
@pytest.mark.parametrize(
    "target", ["out/features/new.parquet", "out/manifest.json", "link/units.parquet", "", "out", "no/x"]
)
def test_a_target_is_refused_before_any_work(out, tmp_path, monkeypatch, capsys, args, target):
    monkeypatch.chdir(tmp_path)
    os.symlink("out", "link")
    before = files(tmp_path)
    assert run_cli([part.format(target=target) for part in args]) == 2
    assert files(tmp_path) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "cure"),
    [
        (["sql", "out", "SELECT 1", "-o", "x.xlsx"], ".parquet or .csv or .jsonl"),
        (["query", "out", "--key", "/gone/shard.tar#photo000001.jpg", "-o", "x.txt"], ".parquet or .csv or .jsonl"),
        (["duplicates", "out", "--html", "x", "-o", "x.parquet"], ".html or .htm"),
        (["outliers", "out", "--html", "x.htm", "-o", "x"], ".parquet or .csv or .jsonl"),
        (["map", "out", "--html", "x.html", "-o", "x.html"], ".parquet or .csv or .jsonl"),
        (["report", "out", "--html", "x.parquet"], ".html or .htm"),
        (["describe", "vgg16", "--plot", "x.jpg"], ".png or .svg"),
    ],
    ids=lambda args: args[0] if isinstance(args, list) else args,
)
def test_an_ending_says_what_is_in_a_file(out, tmp_path, monkeypatch, capsys, args, cure):
    monkeypatch.chdir(tmp_path)
    assert run_cli(args) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"its ending has to be {cure}")
    assert os.listdir(tmp_path) == ["out"]


def test_a_plot_goes_where_there_is_a_folder(tmp_path, capsys):
    assert run_cli(["describe", "vgg16", "--plot", str(tmp_path / "no/x.svg")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path}/no/x.svg: there is no folder {tmp_path}/no" in line
    assert os.listdir(tmp_path) == []


def test_endings_may_be_large_and_all_results_may_be_asked_for(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_targets([out], rows="x.Parquet", page="x.HTM", plot="x.svg")


def test_plain_parquet_is_not_overwritten_and_a_page_may_lie_in_out(out, tmp_path, capsys):
    [part, _] = sorted((tmp_path / "out/features").iterdir())
    before = part.read_bytes()
    assert run_cli(["duplicates", str(part), "-o", str(part)]) == 2
    assert part.read_bytes() == before
    report = ["report", out, "--html", f"{out}/report.html"]
    assert [run_cli(command) for command in (report, report, [*report, "--overwrite"])] == [0, 1, 0]
    assert "report.html is there already; choose another place, or pass --overwrite" in capsys.readouterr().err


KEY = "/gone/shard.tar#photo000001.jpg"


@pytest.mark.parametrize(
    "args",
    [
        ["query", "plain/*.parquet", "--key", KEY, "-o", "plain/a.parquet"],
        ["query", "linked", "--key", KEY, "-o", "elsewhere.parquet"],
        ["query", "linked/a.parquet", "--key", KEY, "-o", "elsewhere.parquet"],
        ["query", "out/features/*.parquet", "--key", KEY, "-o", "out/features/part.parquet"],
        ["query", "out/features/part.parquet", "--key", KEY, "-o", "out/features/near.parquet"],
        ["query", "out/features/part.parquet", "--key", KEY, "--html", "out/failures/near"],
        ["query", "out/features/part.parquet", "--key", KEY, "-o", "out/units.parquet"],
        ["duplicates", "linked", "-o", "out/features/near.parquet"],
        ["query", "plain", "--vector", "q.npy", "-o", "q.npy"],
        ["query", "plain", "--vector", "q.npy", "--html", "./elsewhere/../q.npy"],
        ["query", "plain", "--image", "q.jpg", "-o", "q.jpg"],
        ["query", "plain", "--image", "q.jpg", "--weights", "w.h5", "-o", "w.h5"],
        ["map", "out", "--predictions", "pred", "--html", "x.html", "-o", "pred/predictions/part-00000.parquet"],
        ["map", "out", "--predictions", "pred", "--html", "x.html", "-o", "pred/predictions/new.parquet"],
        ["map", "out", "--predictions", "pred", "--html", "x.html", "-o", "pred/places.parquet"],
        ["map", "out", "--predictions", "pred", "--html", "pred/manifest.json"],
    ],
    ids=" ".join,
)
def test_nothing_that_is_read_is_written(out, tmp_path, monkeypatch, capsys, args):
    monkeypatch.chdir(tmp_path)
    first, _ = sorted((tmp_path / "out/features").iterdir())
    first.rename("out/features/part.parquet")
    for folder in ("plain", "linked", "elsewhere", "pred/predictions"):
        os.makedirs(folder)
    for name in ("plain/a.parquet", "elsewhere.parquet"):
        (tmp_path / name).write_bytes((tmp_path / "out/features/part.parquet").read_bytes())
    os.symlink("../elsewhere.parquet", "linked/a.parquet")
    np.save("q.npy", np.ones(16))
    for name in ("q.jpg", "w.h5"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "pred/manifest.json").write_text("{}")
    predicted = {"key": [KEY], "label": ["a"], "score": pa.array([0.5], pa.float32())}
    pq.write_table(pa.table(predicted), "pred/predictions/part-00000.parquet")
    before = files(tmp_path)
    assert run_cli(args) == 2
    assert files(tmp_path) == before
    [line] = capsys.readouterr().err.splitlines()
    assert "choose another" in line


def test_other_places_are_free(out, tmp_path, monkeypatch):
    """Pages in OUT and PRED, new files beside what a pattern matches, an OUT that is called as a folder of another."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pred/predictions", "features"):
        os.makedirs(folder)
    for name in ("pred/manifest.json", "manifest.json", "features/manifest.json", "pred/map.html", "a.parquet"):
        (tmp_path / name).write_text("{}")
    for page in (f"{out}/map.html", "pred/map.html"):
        check_targets([out, "pred"], page=page, overwrite=True)
    check_targets(["features"], page="features/report.html", rows="near.parquet")
    check_targets(["*.parquet", "q.npy"], rows="pred/near.parquet")
    with pytest.raises(UsageError, match="one of the files of"):
        check_targets(["*.parquet", "q.npy"], rows="a.parquet")
