"""Chromium as Debian packages it, without a window and without a graphics card."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# WebGL by software: there is no graphics card where tests run.
_ARGUMENTS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def chromium_path() -> str | None:
    """Returns the browser's path: $CHROMIUM, or the packaged one; None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_chromium() -> "Iterator[Browser]":
    """Yields a browser."""
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox can't be set up by root, such as in a container.
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()
