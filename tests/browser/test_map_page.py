"""The map in a real browser: what a person does with it."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.maps.run import MapOptions, make_map
from tests.browser.conftest import WIDTHS
from tests.pipeline.maps.test_run import photos, write_predictions  # noqa: F401
from tests.support.pages_data import HOSTILE, clusters, write_out
from transforms.similarity.all_pairs import all_nearest
from transforms.similarity.projection import flatten
from transforms.store.features import open_features

ROWS = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the page of a map, the OUT's keys, labels, vectors and places."""
    folder = tmp_path_factory.mktemp("map")
    vectors, labels = clusters(ROWS, classes=10)
    vectors[0] *= 6
    keys = [f"/gone/shard.tar#photo{i:06}.jpg" for i in range(ROWS)]
    for i, text in enumerate(HOSTILE):
        keys[10 + i], labels[20 + i] = text, text
    out = write_out(folder / "out", vectors, keys=keys, labels=labels)
    pred = write_predictions(folder / "pred", keys, ["class 0"] * ROWS)
    make_map(MapOptions(out, str(folder / "map.html"), method="pca", predictions=pred))
    return {
        "page": folder / "map.html",
        "keys": keys,
        "labels": open_features(out).labels,
        "vectors": vectors,
        # As the map takes them: what counts is their direction.
        "places": flatten(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "pca", seed=0),
    }


@pytest.fixture
def page(made, visit):
    with visit(made["page"]) as opened:
        ready(opened)
        yield opened


def ready(page):
    page.wait_for_selector("body[data-ready]", timeout=30_000)


def on_screen(page, places):
    """Returns where rows are on the screen, N×2 pixels."""
    return np.array(
        page.evaluate(
            """(places) => {
              const plot = document.getElementById("plot"), {xaxis, yaxis} = plot._fullLayout;
              const box = plot.getBoundingClientRect();
              const left = box.x + xaxis._offset, top = box.y + yaxis._offset;
              return places.map(([x, y]) => [left + xaxis.d2p(x), top + yaxis.d2p(y)]);
            }""",
            np.asarray(places).tolist(),
        )
    )


def loneliest(pixels):
    """Returns the row with the most room around it."""
    distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return int(distances.min(axis=1).argmax())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_draws(made, visit, keep, width, scheme):
    with visit(made["page"], width=width, scheme=scheme) as page:
        ready(page)
        assert page.locator("#status").inner_text() == "400 rows shown."
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs out sideways"
        background = [255, 255, 255] if scheme == "light" else [23, 24, 26]
        shot = np.array(Image.open(io.BytesIO(page.locator("#plot").screenshot())).convert("RGB"))
        assert shot[12, 12].tolist() == background
        assert (np.abs(shot.astype(int) - background).max(axis=2) > 60).sum() > 500, "there are points"
        page.locator("#search").fill("photo000100")
        page.locator("#hits button").first.click()
        page.wait_for_selector("#row .near")
        keep(page, f"map-row-{width}-{scheme}", full_page=True)


def test_hover_shows_a_card(page, made, keep):
    pixels = on_screen(page, made["places"])
    row = loneliest(pixels)
    page.mouse.move(*(pixels[row] - 3))
    page.mouse.move(*pixels[row])
    page.wait_for_selector("#card:not([hidden])")
    assert made["keys"][row] in page.locator("#card").inner_text()
    assert "source is gone" in page.locator("#card").inner_text()
    keep(page, "map-hover")
    page.mouse.move(5, 5)
    page.wait_for_selector("#card", state="hidden")


def test_click_shows_the_row_and_its_nearest(page, made):
    pixels = on_screen(page, made["places"])
    row = loneliest(pixels)
    page.mouse.click(*pixels[row])
    page.wait_for_selector("#row .near")
    assert made["keys"][row] in page.locator("#row .picked").inner_text()
    near = page.locator("#row .near .key").all_inner_texts()
    expected, _ = all_nearest(made["vectors"], 10)
    simple = [made["keys"][i] for i in expected[row]]
    assert near == simple
    assert page.evaluate("document.getElementById('plot').layout.shapes.length") == 11
    page.locator("#row .near button").first.click()
    page.wait_for_function("(key) => document.querySelector('#row .picked').innerText.includes(key)", arg=simple[0])


@pytest.mark.parametrize("tool", ["Lasso", "Box"])
def test_lasso_selects_and_saves(page, made, keep, tool):
    pixels = on_screen(page, made["places"])
    low, high = np.percentile(pixels, 30, axis=0), np.percentile(pixels, 70, axis=0)
    page.get_by_role("button", name=tool, exact=True).click()
    corners = [low, (high[0], low[1]), high, (low[0], high[1]), low] if tool == "Lasso" else [low, high]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=8)
    page.mouse.up()
    page.wait_for_function("!document.getElementById('save').disabled")
    inside = ((pixels > low) & (pixels < high)).all(axis=1)
    edge = (np.abs(pixels - low) < 2).any(axis=1) | (np.abs(pixels - high) < 2).any(axis=1)
    saved = save(page)
    assert {made["keys"][i] for i in np.flatnonzero(inside & ~edge)} <= set(saved)
    assert set(saved) <= {made["keys"][i] for i in np.flatnonzero(inside | edge)}
    assert f"{len(saved)} row" in page.locator("#selected").inner_text()
    assert page.locator("#chosen tbody tr").count() == min(100, len(saved))
    keep(page, f"map-{tool.lower()}")
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#selected").inner_text() == "No rows selected."


def save(page):
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save keys as CSV").click()
    with open(waiting.value.path(), newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["key"]
    return [key for (key,) in rows]


def test_all_keys_come_out_as_they_are(page, made):
    page.get_by_role("button", name="Select all in view").click()
    assert save(page) == made["keys"]


def test_search(page, made):
    page.locator("#search").fill("PHOTO0001")
    page.wait_for_function("document.getElementById('found').innerText.startsWith('100 keys have that')")
    assert page.locator("#hits button").count() == 20
    page.locator("#search").fill("no such key")
    page.wait_for_function("document.getElementById('found').innerText === 'No key has that.'")
    page.locator("#search").fill("photo000007")
    page.keyboard.press("Enter")
    page.wait_for_selector("#row .near")
    assert made["keys"][7] in page.locator("#row .picked").inner_text()


def test_hostile_keys_are_shown_and_do_nothing(page, made):
    for wanted, shown in (
        ("onerror", "<img src=x onerror="),
        ("</script", "</script><script>"),
        ("gpj", "\ufffdgpj.exe"),
    ):
        page.locator("#search").fill(wanted)
        page.keyboard.press("Enter")
        page.wait_for_function("(text) => document.querySelector('#row .picked')?.innerText.includes(text)", arg=shown)
        assert page.locator("img[src='x']").count() == 0
    assert "\u202e" not in page.locator("body").inner_text()


def test_legend_toggles(page, made):
    boxes = page.locator("#legend input")
    assert boxes.count() == len(set(made["labels"]))
    count = int(page.locator("#legend .rows").first.inner_text())
    boxes.first.uncheck()
    page.wait_for_function(
        "(rows) => document.getElementById('status').innerText === `${rows} rows shown.`", arg=400 - count
    )
    page.get_by_role("button", name="Select all in view").click()
    assert len(save(page)) == 400 - count, "what is hidden isn't selected"
    page.get_by_role("button", name="None", exact=True).click()
    page.wait_for_function("document.getElementById('status').innerText === '0 rows shown.'")
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_function("document.getElementById('status').innerText === '400 rows shown.'")


def test_colour_by_any_column(page, made, keep):
    options = page.locator("#colour option").all_inner_texts()
    assert options == ["label", "prediction", "agreement", "score", "source", "width", "height", "vector length"]
    for name in options:
        page.locator("#colour").select_option(name)
        page.wait_for_function(
            "(numbers) => document.getElementById('legend').hidden === numbers",
            arg=name in ("score", "width", "height", "vector length"),
        )
    assert page.locator("#ramp").is_visible()
    keep(page, "map-numbers")
    page.locator("#colour").select_option("agreement")
    page.wait_for_selector("#legend li")
    assert page.locator("#legend .name").all_inner_texts() == ["differs", "agrees"]


def test_everything_by_keyboard(page):
    plot = page.locator("#plot")
    plot.focus()
    before = page.evaluate("document.getElementById('plot').layout.xaxis.range")
    page.keyboard.press("+")
    page.wait_for_function("(old) => document.getElementById('plot').layout.xaxis.range[0] > old", arg=before[0])
    zoomed = page.evaluate("document.getElementById('plot').layout.xaxis.range")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(old) => document.getElementById('plot').layout.xaxis.range[0] > old", arg=zoomed[0])
    page.keyboard.press("0")
    page.wait_for_function("(old) => document.getElementById('plot').layout.xaxis.range[0] < old", arg=zoomed[0])
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"Lasso", "zoom-in", "colour", "search", "in-view"} <= seen


def test_panning_moves_the_points(page, made):
    before = on_screen(page, made["places"][:1])
    box = page.locator("#plot").bounding_box()
    x, y = box["x"] + 60, box["y"] + 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 100, y + 40, steps=10)
    page.mouse.up()
    page.wait_for_timeout(300)
    np.testing.assert_allclose(on_screen(page, made["places"][:1]) - before, [[100, 40]], atol=2)


def test_light_turns_dark_while_open(page):
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.getElementById('plot').layout.plot_bgcolor === '#17181a'")


def test_thumbnails_are_shown(photos, tmp_path, visit, keep):  # noqa: F811
    make_map(MapOptions(str(photos / "out"), str(tmp_path / "map.html"), method="pca"))
    with visit(tmp_path / "map.html") as page:
        ready(page)
        page.locator("#search").fill("plain/1.jpg")
        page.keyboard.press("Enter")
        page.wait_for_selector("#row .picked img")
        shot = page.locator("#row .picked img").screenshot()
        pixel = np.array(Image.open(io.BytesIO(shot)).convert("RGB"))[32, 32].astype(int)
        assert np.abs(pixel - (10, 250, 10)).max() < 30, "the green one"
        keep(page, "map-thumbnails")
