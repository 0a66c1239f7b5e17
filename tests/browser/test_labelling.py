"""Labels given on pages, and the file that `train` takes: the matrix, the tiles, the dialog, the map."""

import json

import numpy as np
import pyarrow.csv
import pytest

from pipeline.training.options import TrainOptions
from pipeline.training.tables import labelled_table
from transforms.store.features import open_features


def saved(page, button, path):
    with page.expect_download() as download:
        button.click()
    download.value.save_as(path)
    return dict(zip(*pyarrow.csv.read_csv(path).to_pydict().values(), strict=True))


def test_a_cell_of_the_matrix_shows_its_photos(made, visit, keep):
    with visit(made.pages["errors"]) as page:
        cells = page.locator(".cell")
        assert cells.count() > 3
        assert not any(cell.is_visible() for cell in cells.all())
        link = page.locator(".matrix td a").first
        rows = int(link.inner_text())
        link.click()
        section = page.locator(link.get_attribute("href"))
        assert [cell.is_visible() for cell in cells.all()].count(True) == 1
        assert section.is_visible()
        assert section.locator(".tile").count() == min(rows, 24)
        assert section.locator("h3").bounding_box()["y"] < 900, "it is brought into view"
        keep(page, "errors-cell")
        page.get_by_role("link", name="Back to the matrix").first.click()
        page.wait_for_function("location.hash === '#matrix'")
        assert not section.is_visible()


def test_a_tile_opens_its_photo(made, visit):
    with visit(made.pages["outliers"]) as page:
        links = page.locator("a.frame").all()
        assert links
        assert all(link.get_attribute("href").startswith("file:///") for link in links)
        page.locator("button.frame").first.click()
        dialog = page.locator("dialog")
        assert dialog.is_visible()
        assert dialog.locator("img").evaluate("(image) => image.naturalWidth") > 100
        dialog.get_by_role("button", name="Close").click()
        assert not dialog.is_visible()


@pytest.mark.parametrize("name", ["errors", "outliers", "duplicates", "query"])
def test_labels_given_to_tiles_are_saved(made, visit, tmp_path, name):
    with visit(made.pages[name]) as page:
        form = page.locator(".labelling")
        assert form.get_by_role("button", name="Give label").is_disabled()
        picks = page.locator(".pick:visible")
        for number in (0, 1):
            picks.nth(number).check()
        form.get_by_role("combobox").fill('a "new", label')
        form.get_by_role("button", name="Give label").click()
        assert page.locator(".given:visible").first.inner_text() == 'now a "new", label'
        assert page.locator(".pick:checked").count() == 0
        first = page.locator(".tile:visible", has=page.locator(".pick")).nth(2)
        first.locator(".pick").check()
        form.get_by_role("button", name="No label").click()
        found = saved(page, form.locator("[name=save]"), tmp_path / "labels.csv")
    assert 2 <= len(found) <= 3, "a row may stand there twice"
    with visit(made.pages[name]) as page:
        page.locator("input[type=file]").set_input_files(tmp_path / "labels.csv")
        page.wait_for_selector(".labelling [name=save]:enabled")
        assert page.locator(".given:not(:empty)").count() >= 2, "gone on with"
        assert saved(page, page.locator("[name=save]"), tmp_path / "again.csv") == found
    assert set(found) <= set(open_features(made.out).keys)
    assert 'a "new", label' in found.values()


def test_suggestions_are_taken(made, visit, tmp_path):
    with visit(made.pages["suspects"]) as page:
        tile = page.locator(".tile").nth(1)
        tile.locator(".pick").check()
        page.get_by_role("button", name="Take suggestions").click()
        assert saved(page, page.locator("[name=save]"), tmp_path / "labels.csv") == {
            json.loads(tile.get_attribute("data-key")): json.loads(tile.get_attribute("data-suggested"))
        }


def test_train_takes_what_was_saved(made, visit, tmp_path):
    with visit(made.pages["outliers"]) as page:
        page.locator(".pick").first.check()
        page.locator(".labelling").get_by_role("combobox").fill("corrected")
        page.keyboard.press("Enter")
        [key] = saved(page, page.locator("[name=save]"), tmp_path / "labels.csv")
    asked = {"labels": str(tmp_path / "labels.csv"), "labels_mode": "update", "split_column": ""}
    options = TrainOptions(features=made.out, output=str(tmp_path / "head"), **asked)
    table, joined = labelled_table(options, options.features)
    changed = np.array(table.labels.to_pylist()) == "corrected"
    assert table.keys.filter(changed).to_pylist() == [key]
    assert joined.stored > 10


def test_rows_selected_on_the_map_get_a_label(made, visit, tmp_path):
    with visit(made.pages["map"]) as page:
        page.wait_for_selector("body[data-ready]", timeout=30_000)
        form = page.locator("#give")
        assert form.get_by_role("button", name="Give label").is_disabled()
        page.get_by_role("button", name="Select all in view").click()
        form.get_by_role("combobox").fill("of the map")
        form.get_by_role("button", name="Give label").click()
        assert "of the map" in page.locator("#chosen").inner_text()
        found = saved(page, form.locator("[name=save]"), tmp_path / "labels.csv")
    assert set(found) == set(open_features(made.out).keys)
    assert set(found.values()) == {"of the map"}
