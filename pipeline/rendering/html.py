"""Pages: one HTML file that needs nothing else, rendered from a template and written whole."""

from pathlib import Path
from typing import Any

import jinja2

from transforms import storage
from transforms.committed import write_whole
from transforms.errors import FeaturemillError
from transforms.text import one_line, printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Returns a page: `templates/TEMPLATE` filled in, all values escaped.

    The template gets one thing beside the values: the filter `printable`, for text that others wrote.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    environment.filters["count"] = "{:,}".format
    return environment.get_template(template).render(values)


def write_page(path: str, text: str) -> None:
    """Writes a page, whole or not at all.

    Raises:
        FeaturemillError: It can't be written there.
    """
    path = storage.absolute(path)
    try:
        # Keys may hold what is no text; a browser shows a mark in its place.
        write_whole(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise FeaturemillError(
            f"cannot write {path}: {one_line(error)}; make the folder, or fix its permissions"
        ) from error
