"""Rules for pixels have versions: an OUT keeps its own, and what newer ones changed is never mixed in. Notes add up."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.extraction.summary import summary_text
from pipeline.maintenance.inspect import inspect, inspection_text
from tests.pipeline.extraction.test_run import extract
from tests.support.tiffs import tiff
from transforms.spec import PIXEL_RULES, FeatureSpec


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / "a.jpg")
    return folder


def deep(most: int) -> bytes:
    return tiff(np.linspace(0, most, 64).reshape(8, 8).astype(np.uint16)[..., None].repeat(3, axis=2))


def test_an_earlier_out_keeps_its_rules(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out, pixel_rules=1)
    spec = json.loads((out / "manifest.json").read_text())["spec"]
    assert "pixel_rules" not in spec
    assert FeatureSpec.from_json(json.dumps(spec)).pixel_rules == 1
    # Going on without a word of rules, as a user does.
    (folder / "b.tif").write_bytes(deep(65535))
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes())
    summary = extract(folder, out)
    assert (summary.totals.rows_embedded, summary.failures) == (2, {"decode: unsupported": 1})
    [failure] = pq.read_table(out / "failures").to_pylist()
    assert "extract to a new folder" in failure["message"]
    assert inspect(str(out)).problems == ()
    summary = extract(folder, tmp_path / "new")
    assert (summary.totals.rows_embedded, summary.failures) == (3, {})
    assert json.loads((tmp_path / "new/manifest.json").read_text())["spec"]["pixel_rules"] == PIXEL_RULES
    # Begun anew, it has the new rules.
    assert extract(folder, out, overwrite=True).failures == {}


def test_notes_are_added_up_and_shown(folder, tmp_path):
    for number, most in enumerate((65535, 3000, 4000)):
        (folder / f"{number}.tif").write_bytes(deep(most))
    out = tmp_path / "out"
    summary = extract(folder, out)
    words = "of 16 bits with less than 1/16 of the range in use"
    assert summary.notes == {words: 2}
    assert f"note     2 images {words}" in summary_text(summary)
    inspected = inspect(str(out))
    assert inspected.notes == {words: 2}
    assert f"note         2 images {words}" in inspection_text(inspected)
    [notes] = pq.read_table(out / "units.parquet").column("notes").to_pylist()
    assert json.loads(notes) == {words: 2}
    assert extract(folder, out).notes == {words: 2}
