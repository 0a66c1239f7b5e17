"""What anybody needs of a page, whatever it shows: asked of the page itself, in the browser."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

# WCAG 2.1, 1.4.3: text of ordinary size. Large text is held to it, too.
LEAST_CONTRAST = 4.5

_AUDIT = Path(__file__).with_name("audit.js").read_text()


def structure_problems(page: "Page") -> list[str]:
    """Returns what is wrong with language, title, landmarks, headings, names, tables and focus; a line each."""
    # From here on the browser takes focus for a keyboard's.
    page.keyboard.press("Tab")
    problems = [*_ask(page, "structure"), *_ask(page, "unseenFocus")]
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    return problems


def contrast_problems(page: "Page") -> list[str]:
    """Returns the pieces of text that can't be told well enough from what lies behind them; a line each."""
    checked, problems = _ask(page, "contrast", LEAST_CONTRAST)
    assert checked > 5, "text was found"
    return problems


def cut_off(page: "Page", width: int) -> list[str]:
    """Returns headings, captions and names of columns that stand out of a window so wide, in pixels; a line each."""
    return _ask(page, "cut", width)


def _ask(page: "Page", question: str, value: float | None = None) -> list:
    return page.evaluate(f"(value) => {{ const audit = {_AUDIT}; return audit.{question}(value); }}", value)
