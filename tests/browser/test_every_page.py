"""What holds for every page: it fits, it can be read in light and dark, and by keyboard and screen reader."""

import pytest

from tests.browser.audit import contrast_problems, structure_problems
from tests.browser.conftest import WIDTHS
from tests.support.pages_data import HOSTILE

# How each page's heading begins, and how many plots it has.
PAGES = {
    "query": ("Nearest in ", 0),
    "duplicates": ("Duplicates in ", 0),
    "outliers": ("Outliers in ", 0),
    "heads": ("Head ", 8),
    "report": ("Run ", 4),
    "map": ("Map of ", None),
}
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 24, 26)"}


@pytest.mark.parametrize("name", PAGES)
def test_page(made, visit, keep, name):
    heading, plots = PAGES[name]
    with visit(made.pages[name]) as page:
        if name == "map":
            page.wait_for_selector("body[data-ready]", timeout=30_000)
        assert page.locator("h1").inner_text().startswith(heading)
        assert plots is None or page.locator("svg[role='img']").count() == plots
        for scheme, background in BACKGROUNDS.items():
            page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
                assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs out sideways"
                keep(page, f"{name}-{width}-{scheme}", full_page=True)
            # Colours don't depend on the width; what is cut off may.
            assert contrast_problems(page) == []
        assert structure_problems(page) == []


@pytest.mark.parametrize("name", [name for name in PAGES if name != "map"])
def test_hostile_names_are_shown_and_do_nothing(made, visit, name):
    with visit(made.pages[name]) as page:
        text = page.locator("body").inner_text()
        assert page.locator("script, img[src='x'], [onerror]").count() == 0
        assert HOSTILE[1] in text
        assert "{{ 7 * 7 }}" in text
        assert "long long" in text
        assert "long " * 100 not in text, "cut in its middle"
        assert "\u202e" not in page.content()
