"""What holds for every page: it fits, it can be read in light and dark, and by keyboard and screen reader."""

import pytest

from tests.browser.audit import contrast_problems, cut_off, structure_problems
from tests.browser.conftest import WIDTHS
from tests.support.pages_data import HOSTILE

# How each page's heading begins, and how many plots it has.
PAGES = {
    "query": ("Nearest in ", 0),
    "duplicates": ("Duplicates in ", 0),
    "outliers": ("Outliers in ", 0),
    "heads": ("Head ", 8),
    "errors": ("Errors of ", 2),
    "suspects": ("Suspects in ", 0),
    "report": ("Run ", 4),
    "map": ("Map of ", None),
}
_UNFOLD = "() => document.querySelectorAll('details').forEach((one) => { one.open = true; })"
_FOLDED = "() => [...document.querySelectorAll('details')].map((one) => !one.open)"
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 24, 26)"}


@pytest.mark.parametrize("name", PAGES)
def test_page(made, visit, keep, name):
    heading, plots = PAGES[name]
    with visit(made.pages[name]) as page:
        if name == "map":
            page.wait_for_selector("body[data-ready]", timeout=30_000)
        assert page.locator("h1").inner_text().startswith(heading)
        assert plots is None or page.locator("svg[role='img']").count() == plots
        if name == "heads":
            assert page.evaluate(_FOLDED) == [False, True], "only the best is open"
        page.evaluate(_UNFOLD)
        for scheme, background in BACKGROUNDS.items():
            page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
                assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs out sideways"
                assert cut_off(page, width) == []
                keep(page, f"{name}-{width}-{scheme}", full_page=True)
            # Colours don't depend on the width; what is cut off may.
            assert contrast_problems(page) == []
        assert structure_problems(page) == []


def test_names_of_columns_stay_in_view(made, visit):
    """Of the 30 classes only some are seen at once."""
    with visit(made.pages["heads"]) as page:
        page.evaluate("() => { document.querySelector('.tall').scrollTop = 300; }")
        tops = "() => ['.tall', '.tall thead th'].map((one) => document.querySelector(one).getBoundingClientRect().top)"
        box, head = page.evaluate(tops)
        assert head == box


@pytest.mark.parametrize("name", [name for name in PAGES if name != "map"])
def test_hostile_names_are_shown_and_do_nothing(made, visit, name):
    with visit(made.pages[name]) as page:
        page.evaluate(_UNFOLD)
        text = page.locator("body").inner_text()
        # Our own script has no text of others in it.
        assert page.locator("script:not([data-own]), img[src='x'], [onerror]").count() == 0
        assert page.locator("script").count() == (name not in ("heads", "report"))
        assert HOSTILE[1] in text
        assert "{{ 7 * 7 }}" in text
        assert "long long" in text
        assert "long " * 100 not in text, "cut in its middle"
        assert "\u202e" not in page.content()
