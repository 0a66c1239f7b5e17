"""Targets: no command writes over what it reads, or finds out at its end that it has nowhere to write."""

import os

import pytest

from pipeline.cli import run_cli
from tests.pages_data import clusters, write_out


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


def test_two_results_are_two_files(out, tmp_path, capsys):
    both = str(tmp_path / "x")
    assert run_cli(["duplicates", out, "--html", both, "-o", f"{tmp_path}/./x"]) == 2
    assert "twice" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out"]


def test_plain_parquet_is_not_overwritten_and_a_page_may_lie_in_out(out, tmp_path, capsys):
    [part, _] = sorted((tmp_path / "out/features").iterdir())
    before = part.read_bytes()
    assert run_cli(["duplicates", str(part), "-o", str(part)]) == 2
    assert part.read_bytes() == before
    assert run_cli(["report", out, "--html", f"{out}/report.html"]) == 0
