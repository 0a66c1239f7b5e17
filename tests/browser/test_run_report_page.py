"""The report on a run in a real browser."""

import pytest

from pipeline.run_report import run_report
from tests.browser.conftest import WIDTHS
from tests.pages_data import HOSTILE, clusters, write_out
from transforms.records import Failure


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    vectors, labels = clusters(300, classes=10)
    labels[: len(HOSTILE)] = HOSTILE
    failures = tuple(
        Failure(f"/gone/{text}", None, "/gone/shard0.tar", i, "decode", "truncated", f"cut off {text}")
        for i, text in enumerate(HOSTILE)
    )
    out = write_out(folder / "out", vectors, labels=labels, failures=failures, units=7)
    run_report(out, page=str(folder / "report.html"))
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_report(report, visit, keep, width, scheme):
    with visit(report, width=width, scheme=scheme) as page:
        assert page.locator("h1").inner_text().startswith("Run ")
        assert page.locator("svg").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs out sideways"
        keep(page, f"report-{width}-{scheme}", full_page=True)
