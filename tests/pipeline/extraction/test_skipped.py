"""Every file that is met is accounted for: embedded, failed, or in skipped.parquet with its reason."""

import json
import os

import pyarrow.parquet as pq

from pipeline.demo.samples import draw_items, write_folder
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.extraction.summary import summary_json, summary_text
from pipeline.maintenance import inspect as inspecting
from tests.support.fakes import WEIGHTS, load_fake
from transforms.store.output import Output


def extract(inputs, output, lines=None, **more):
    options = ExtractOptions(inputs=tuple(map(str, inputs)), output=str(output), image_size=32, batch_size=4, **more)
    return run(options, load=load_fake, weights=WEIGHTS, say=[].append if lines is None else lines.append)


def listed(output) -> dict[str, str]:
    """{file name: reason} of the list."""
    path = output / "skipped.parquet"
    table = pq.read_table(path).to_pylist() if path.exists() else []
    return {row["uri"].rsplit("/", 1)[1]: row["reason"] for row in table}


def test_all_files_of_a_folder_are_accounted_for(tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    write_folder(photos, draw_items(per_class=3, size=40, seed=0))
    for name in ("a.txt", "b.txt", ".DS_Store", "raw.cr2", "c.json"):
        (photos / name).write_bytes(b"12345")
    lines = []
    summary = extract([photos], output, lines)
    files = sum(len(names) for *_, names in os.walk(photos))
    assert summary.totals.rows_read + summary.skipped == files == 17
    failed = pq.read_table(output / "failures")["key"].to_pylist()
    assert str(photos / "raw.cr2") in failed
    assert listed(output) == {"a.txt": (by_name := "neither image nor shard by its name"), "b.txt": by_name} | {
        "c.json": by_name,
        ".DS_Store": "hidden",
    }
    assert set(pq.read_table(output / "skipped.parquet")["bytes"].to_pylist()) == {5}
    endings = {".txt": 2, ".json": 1, "hidden": 1}
    assert summary.skipped_endings == summary_json(summary)["skipped_endings"] == endings
    text = "4 other files passed over: 2 .txt, 1 .json, 1 hidden"
    assert any(text in line for line in lines)
    assert f"{text}; " in summary_text(summary)
    found = inspecting.inspect(str(output))
    assert f"skipped      {text}" in inspecting.inspection_text(found)
    values = json.loads(json.dumps(inspecting.inspection_json(found)))
    assert (values["skipped"], values["skipped_endings"], values["problems"]) == (4, endings, [])


def test_the_list_follows_the_folder_over_many_runs(tmp_path):
    items = draw_items(per_class=2, size=40, seed=0)
    write_folder(tmp_path / "one", items[:2])
    write_folder(tmp_path / "two", items[2:])
    (tmp_path / "one/a.txt").write_text("x")
    (tmp_path / "two/b.txt").write_text("x")
    output = tmp_path / "out"
    extract([tmp_path / "one"], output)
    assert set(listed(output)) == {"a.txt"}
    extract([tmp_path / "two"], output)
    assert set(listed(output)) == {"a.txt", "b.txt"}
    # Nothing to embed, and the list still follows.
    (tmp_path / "two/b.txt").unlink()
    (tmp_path / "two/c.txt").write_text("x")
    assert extract([tmp_path / "two"], output).this_run.rows_read == 0
    assert set(listed(output)) == {"a.txt", "c.txt"}
    (tmp_path / "one/a.txt").unlink()
    (tmp_path / "two/c.txt").unlink()
    assert extract([tmp_path / "one", tmp_path / "two"], output).skipped == 0
    assert not (output / "skipped.parquet").exists()
    assert Output(str(output)).is_whole


def test_overwrite_removes_the_list(tmp_path):
    write_folder(tmp_path / "one", draw_items(per_class=2, size=40, seed=0))
    (tmp_path / "one/a.txt").write_text("x")
    output = tmp_path / "out"
    extract([tmp_path / "one"], output)
    extract([tmp_path / "one/*/*.jpg"], output, overwrite=True)
    assert listed(output) == {}
