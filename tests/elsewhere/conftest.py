"""Two OUTs of drawn images, as float32 and float16, each in a folder of its own under the name that the docs use."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.demo.samples import draw_items, write_folder
from pipeline.extraction.run import run
from tests.pipeline.extraction.test_run import options

# Before datasets is imported: nothing may be asked of a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# The photo that docs/query.md asks about.
ASKED = "0013035.jpg"
COUNTS = [("ants", 39), ("bees", 40)]


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Draws images of two classes: two of them can't be decoded, two are equal."""
    items = draw_items(per_class=40, size=400, seed=0)
    names = dict(zip(dict.fromkeys(item.label for item in items), ("ants", "bees"), strict=False))
    items = [replace(item, label=names[item.label]) for item in items if item.label in names]
    items[0] = replace(items[0], name=ASKED)
    bee = next(item for item in items if item.label == "bees")
    items.append(replace(bee, name="copy.jpg"))
    folder = tmp_path_factory.mktemp("photos") / "photos"
    write_folder(folder, items)
    return folder


@pytest.fixture(scope="session", params=["float32", "float16"])
def place(request, photos, tmp_path_factory) -> Path:
    """Returns a folder with `photos`, and `features` of them."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "photos").symlink_to(photos)
    (folder / "new.jpg").write_bytes((photos / "bees/copy.jpg").read_bytes())
    run(options(folder / "photos", folder / "features", weights="random:0", dtype=request.param))
    return folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch, tmp_path):
    """Runs each test beside `features`, as the snippets expect."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
