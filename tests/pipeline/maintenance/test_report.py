"""The page on a run, made of OUT alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.maintenance.plots import map_plot, norm_plot, rate_plot, size_plot
from pipeline.maintenance.report import ReportOptions, gather_rows, run_report
from tests.pipeline.training.test_report import Page
from tests.support.pages_data import HOSTILE, clusters, write_out
from transforms.errors import FeaturemillError
from transforms.records import Failure, UnitReport
from transforms.store.features import open_features

SOURCE = "/gone/shard0.tar"
SAME = b"s" * 32


def failure(number, error, key=None, message="cut off"):
    return Failure(key or f"{SOURCE}#bad{number}", None, SOURCE, number, "decode", error, message)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    vectors, labels = clusters(90)
    vectors[3] = 0
    labels[5] = None
    sha256 = [i.to_bytes(32, "big") for i in range(90)]
    sha256[10] = sha256[40] = SAME
    failures = (*(failure(i, "truncated") for i in range(5)), failure(9, "too many pixels"))
    out = write_out(folder / "out", vectors, labels=labels, failures=failures, sha256=sha256, units=8)
    printed = run_report(ReportOptions(out, page=str(folder / "report.html")))
    return out, (folder / "report.html").read_text(), printed


def test_page_shows_the_totals(made):
    out, text, printed = made
    page = Page(text)
    words = " ".join(" ".join(page.words).split())
    assert "90 rows, 6 failures" in printed
    assert "Read 96 = embedded 90 + failed 6" in words
    assert "Parts, footers and manifest agree." in words
    # The examples of a reason are three at most.
    assert "decode: truncated 5" in words
    assert words.count("#bad") == 3 + 1
    assert "Seen more than once: 0 keys and 1 content" in words
    assert "/gone/shard.tar#photo000010.jpg = /gone/shard.tar#photo000040.jpg" in words
    assert "0.188 to 0.188 megapixels" in words
    assert "embedding 90 × 16 0 " in words, "the shortest vector is the zero row"
    assert "embedding=block5_pool:avg" in words
    assert json.loads((Path(out) / "manifest.json").read_text())["fingerprint"] in words
    # Seconds: 8 units of 4 to 11 seconds of embedding.
    assert f"{sum(4.0 + i for i in range(8)):.1f}" in words
    assert "Slowest units" in words


def test_page_is_whole_and_needs_nothing_else(made):
    page = Page(made[1])
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    assert page.count("svg") == 4
    assert len(page.ids) == len(set(page.ids))
    assert {link.lstrip("#") for link in page.links} <= set(page.ids)
    assert page.count("table") == page.count("caption")


def test_hostile_text_stays_text(tmp_path):
    vectors, _ = clusters(40)
    labels = [HOSTILE[i % len(HOSTILE)] for i in range(40)]
    failures = tuple(failure(i, "truncated", key=text, message=text) for i, text in enumerate(HOSTILE[:3]))
    sha256 = [SAME] * 40
    keys = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(40)]
    out = write_out(tmp_path / "o", vectors, keys=keys, labels=labels, failures=failures, sha256=sha256)
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.count("script") == page.count("img") == 0
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "document.title='owned'" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert len(text) < 400_000, "long text is cut"


def test_totals_that_disagree_are_reported_first(tmp_path):
    out = write_out(tmp_path / "out", clusters(30)[0])
    part = sorted((tmp_path / "out" / "features").iterdir())[0]
    part.unlink()
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    words = Page((tmp_path / "page.html").read_text()).text
    assert "Parts, footers and manifest disagree" in words
    assert "is planned, but has no part" in words


def test_unfinished_run(tmp_path):
    out = write_out(tmp_path / "out", clusters(30)[0], complete=False)
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    words = Page((tmp_path / "page.html").read_text()).text
    assert "running: not finished" in words
    assert "Read 30 = embedded 30 + failed 0" in words


def test_no_rows_at_all(tmp_path):
    out = write_out(tmp_path / "out", np.empty((0, 4), np.float32), units=1)
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    page = Page((tmp_path / "page.html").read_text())
    assert "No rows." in page.text
    assert page.count("svg") == 0


def test_not_finite_vectors_are_counted(tmp_path):
    vectors, _ = clusters(30)
    vectors[4, 0] = np.nan
    out = write_out(tmp_path / "out", vectors)
    rows = gather_rows(open_features(out), "embedding")
    assert len(rows.sample) == len(rows.sample_labels) == 29
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    assert "nan" in Page((tmp_path / "page.html").read_text()).text.lower()


def test_errors_are_one_line(tmp_path):
    with pytest.raises(FeaturemillError, match="holds no features"):
        run_report(ReportOptions(str(tmp_path), page=str(tmp_path / "page.html")))
    out = write_out(tmp_path / "out", clusters(10)[0])
    with pytest.raises(FeaturemillError, match="no feature 'embeding'; did you mean embedding"):
        run_report(ReportOptions(out, page=str(tmp_path / "page.html"), feature="embeding"))
    with pytest.raises(FeaturemillError, match=r"cannot write .*no/such/page\.html: there is no folder"):
        run_report(ReportOptions(out, page=str(tmp_path / "no" / "such" / "page.html")))
    assert not list(tmp_path.glob("*.tmp"))


def test_sample_is_drawn_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.maintenance.report.MAP_ROWS", 10)
    vectors = np.arange(100, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    out = write_out(tmp_path / "out", vectors, units=1)
    sample = gather_rows(open_features(out), "embedding").sample[:, 0]
    assert sample.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def test_plots_of_odd_numbers():
    report = UnitReport("u", "s", 0, -1, 10, 10, 0, 1, 0, 0, 0, 0, 0.0, "fake")
    # A clock that didn't tick is a gap and no division by zero.
    assert "<svg" in rate_plot([report] * 1000, "rate")
    assert "<svg" in size_plot({(1, 65_000): 1}, "size")
    text = map_plot(np.zeros((5, 2)), ["_x", "$\\frac{", "<b>", None, "a" * 5000], "map")
    assert "&lt;b&gt;" in text
    assert "a" * 100 not in text


@pytest.mark.parametrize("norms", [[1e15] * 3, [3e38], [1e17] * 2, [0, 0], [1e-40], [1, np.inf], [1e10, 1e10 + 1000]])
def test_plot_of_equal_lengths(norms):
    assert "<svg" in norm_plot(np.array(norms, np.float32), "norm", "embedding")


def test_units_without_rows_are_not_the_slowest(tmp_path):
    out = write_out(tmp_path / "out", clusters(7)[0], units=20)
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    words = Page((tmp_path / "page.html").read_text()).text
    slowest = words[words.index("Slowest units") :]
    # Each unit took longer than the one before.
    assert [f"shard{number}.tar" in slowest for number in range(20)] == [2 <= number < 7 for number in range(20)]


def test_run_that_was_cut_off_before_its_first_part(tmp_path):
    out = write_out(tmp_path / "out", clusters(10)[0], complete=False)
    shutil.rmtree(tmp_path / "out" / "features")
    assert "0 rows" in run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    words = Page((tmp_path / "page.html").read_text()).text
    assert "Not finished" in words
    for wrong in ("Parts, footers and manifest disagree", "agree.", "Every image was embedded", "0 × 0"):
        assert wrong not in words


def test_an_unfinished_run_whose_totals_disagree_says_both(tmp_path):
    out = write_out(tmp_path / "out", clusters(10)[0], complete=False)
    part = sorted((tmp_path / "out" / "features").iterdir())[0]
    part.rename(part.with_name("other.parquet"))
    run_report(ReportOptions(out, page=str(tmp_path / "page.html")))
    words = Page((tmp_path / "page.html").read_text()).text
    assert "Not finished" in words
    assert "Parts, footers and manifest disagree" in words
