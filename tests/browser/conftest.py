"""One browser for all tests of pages; where there is none they are skipped, and say so."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.chromium import chromium_path, open_chromium
from tests.browser.made_pages import write_pages

ARTEFACTS = Path(os.environ.get("FEATUREMILL_ARTEFACTS", Path(__file__).parents[2] / "browser-artefacts"))
WIDTHS = (1280, 390)


@pytest.fixture(scope="session")
def browser():
    pytest.importorskip("playwright", reason="NO BROWSER TESTS: playwright is not installed; pip install -e '.[dev]'")
    if chromium_path() is None:
        pytest.skip("NO BROWSER TESTS: Chromium is not installed; apt-get install chromium, or set $CHROMIUM")
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns the pages of all commands."""
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def visit(browser):
    """Returns a context manager: a page opened from disk, which may neither complain nor ask for anything else."""

    @contextmanager
    def visit(path, *, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        complaints, asked = [], []
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert complaints == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert page.title() != "owned"
        context.close()

    return visit


@pytest.fixture
def keep():
    """Returns what saves a screenshot where CI finds it."""

    def keep(page, name, **options):
        ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=str(ARTEFACTS / f"{name}.png"), **options)

    return keep
