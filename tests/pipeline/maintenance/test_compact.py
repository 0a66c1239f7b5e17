"""Compact: the same rows in fewer files, whatever happens meanwhile, and all that works on OUT works after it."""

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.exploration.query import QueryOptions, query
from pipeline.exploration.sql import sql
from pipeline.maintenance import compact as compacting
from pipeline.maintenance.compact import CompactOptions, compact, compact_text
from pipeline.maintenance.convert import ConvertOptions, convert
from pipeline.maintenance.inspect import inspect
from pipeline.maintenance.verify import VerifyOptions, verify
from tests.pipeline.extraction import test_run as te
from tests.support import memory_store
from tests.support.commands import finish, killed_before, start
from tests.support.factories import (
    draw_items,
    write_every_format,
    write_folder,
    write_tar,
)
from tests.support.fakes import WEIGHTS
from tests.support.manifests import edit_manifest
from tests.support.properties import examples
from transforms import locks, storage
from transforms.errors import FeaturemillError, UsageError
from transforms.records import UnitReport
from transforms.rows.table import open_table
from transforms.similarity.copies import find_duplicates
from transforms.store import merging
from transforms.store.features import open_features
from transforms.store.listing import list_parts, read_footer
from transforms.store.manifest import read_manifest, write_manifest
from transforms.store.output import Output
from transforms.store.parts import PartWriter


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A complete OUT of about forty small parts, from all formats, with failures."""
    folder = tmp_path_factory.mktemp("made")
    items = draw_items(per_class=8, size=48, seed=1)
    (folder / "in").mkdir()
    write_every_format(folder / "in", items, row_group_size=3)
    extract(folder)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of OUT; its inputs stay where they are."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def own(made, tmp_path) -> Path:
    """Inputs and OUT for tests that change the inputs."""
    shutil.copytree(made / "in", tmp_path / "in")
    extract(tmp_path)
    return tmp_path


def extract(folder: Path, output: Path | None = None, **more):
    inputs = sorted((folder / "in").iterdir())
    return te.extract(inputs, output or folder / "out", unit_bytes=4000, **more)


def never(job):
    raise AssertionError("nothing is left to embed")


def merged_parts(output: Path) -> list[Path]:
    return sorted((output / "features").glob("compact-*"))


def whole(output: Path) -> dict[str, bytes]:
    """{name: content} of all that compact has no business with."""
    found = {name: (output / name).read_bytes() for name in ("manifest.json", "units.parquet", "plan.parquet")}
    return found | {path.name: path.read_bytes() for path in (output / "failures").iterdir()}


def reports(output: Path) -> list[UnitReport]:
    listing = list_parts(str(output))
    footers = [read_footer(f"{output}/features/{name}") for name in listing.names]
    return sorted((r for footer in footers for r in footer.reports), key=lambda report: report.unit_id)


def check_same(output: Path, rows: dict[str, tuple]) -> None:
    assert te.rows(output) == rows
    assert inspect(str(output)).problems == ()


@pytest.mark.parametrize("target_bytes", [12_000, 40_000, 10**9])
@pytest.mark.parametrize("row_group", [2**26, 5000])
def test_rows_totals_and_reports_stay_what_they_are(copy, monkeypatch, target_bytes, row_group):
    monkeypatch.setattr(merging, "ROW_GROUP_BYTES", row_group)
    monkeypatch.setattr(merging, "_BATCH_BYTES", row_group // 2)
    rows, before, units = te.rows(copy), whole(copy), reports(copy)
    parts = len(list((copy / "features").iterdir()))
    summary = compact(CompactOptions(str(copy), target_bytes=target_bytes))
    check_same(copy, rows)
    assert whole(copy) == before
    assert reports(copy) == units == sorted(Output(str(copy)).reports, key=lambda report: report.unit_id)
    assert (summary.parts_before, summary.rows) == (parts, len(rows))
    assert summary.parts_after == len(list((copy / "features").iterdir())) < parts / 2
    assert summary.written == len(merged_parts(copy)) == (1 if target_bytes == 10**9 else summary.written)
    assert summary.bytes_after == sum(path.stat().st_size for path in (copy / "features").iterdir())
    for part in merged_parts(copy):
        file = pq.ParquetFile(part)
        keys = file.read(["key"]).column(0).to_pylist()
        assert keys == sorted(keys)
        assert file.metadata.num_row_groups == max(1, -(-len(keys) // max(1, row_group // 2048)))
        columns = [file.metadata.row_group(g).column(c) for g in range(file.num_row_groups) for c in range(8)]
        assert {column.compression for column in columns} == {"ZSTD"}
        # Row groups of a row or two add up to more than the parts had.
        assert row_group == 5000 or sum(column.total_compressed_size for column in columns) <= target_bytes
    assert os.listdir(copy / "_tmp") == []


def test_parts_of_neighbouring_keys_are_merged(copy):
    compact(CompactOptions(str(copy), target_bytes=40_000))
    sources = []
    for part in merged_parts(copy):
        keys = pq.read_table(part, columns=["key"]).column(0).to_pylist()
        sources.append({key.split("#")[0] if "#" in key else "photos" for key in keys})
    assert len(sources) > 2
    # Four sources, one after the other: a new one begins only where the last ended.
    assert sum(map(len, sources)) <= len(sources) + 3


def test_plain_readers_see_the_rows(copy):
    rows = te.rows(copy)
    compact(CompactOptions(str(copy), target_bytes=40_000))
    query = f"SELECT key, position, list_sum(embedding::FLOAT[]) FROM '{copy}/features/*.parquet'"
    found = {key: position for key, position, _ in duckdb.sql(query).fetchall()}
    assert found == {key: row[2] for key, row in rows.items()}


def test_a_second_time_nothing_is_left_to_merge(copy):
    compact(CompactOptions(str(copy)))
    [part] = merged_parts(copy)
    before = part.stat()
    summary = compact(CompactOptions(str(copy)))
    assert (summary.merged, summary.written, summary.parts_after) == (0, 0, 1)
    assert part.stat() == before
    assert "nothing to merge" in compact_text(summary)


def test_extract_after_it_does_nothing(made, copy):
    compact(CompactOptions(str(copy)))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    summary = extract(made, copy, load=never)
    assert (summary.this_run.units, summary.totals.rows_read) == (0, 128)
    assert summary.stored_bytes == merged_parts(copy)[0].stat().st_size
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


def test_units_parquet_is_written_anew_from_merged_footers(made, copy):
    compact(CompactOptions(str(copy)))
    units = Output(str(copy)).reports
    (copy / "units.parquet").unlink()
    # A compaction was killed while it wrote.
    (copy / f"_tmp/{'compact-' + 'a' * 32}.{'b' * 32}.parquet").write_bytes(b"PAR1")
    extract(made, copy, load=never)
    assert os.listdir(copy / "_tmp") == []
    assert Output(str(copy)).reports == units
    assert inspect(str(copy)).problems == ()


def test_added_inputs_and_a_second_compaction(own):
    out = own / "out"
    compact(CompactOptions(str(out)))
    Image.new("RGB", (40, 40), "red").save(own / "in/photos/disc/0_first_by_name.png")
    assert extract(own).this_run.rows_read == 1
    assert len(list((out / "features").iterdir())) == 2
    rows = te.rows(out)
    compact(CompactOptions(str(out)))
    assert len(list((out / "features").iterdir())) == 1
    check_same(out, rows)


def test_retry_failed_takes_a_merged_part_apart(own):
    out = own / "out"
    rows = te.rows(out)
    shutil.rmtree(out)
    extract(own, max_pixels=2000)
    compact(CompactOptions(str(out), target_bytes=20_000))
    parts = merged_parts(out)
    untouched = [p for p in parts if not any(r.rows_failed for r in read_footer(str(p)).reports)]
    summary = extract(own, retry_failed=True)
    assert (summary.totals.rows_read, summary.totals.rows_failed) == (128, 16)
    check_same(out, rows)
    assert merged_parts(out) == untouched
    compact(CompactOptions(str(out), target_bytes=20_000))
    check_same(out, rows)


def test_prune_takes_a_merged_part_apart(own):
    out = own / "out"
    tables = {path.name: pq.read_table(path) for path in (out / "features").iterdir()}
    compact(CompactOptions(str(out)))
    rows = te.rows(out)
    (own / "in/photos.tar").unlink()
    with pytest.raises(FeaturemillError, match="Pass --prune"):
        extract(own)
    assert len(merged_parts(out)) == 1
    summary = extract(own, prune=True, load=never)
    assert summary.totals.rows_read == 96
    # The other units' parts are what they were, row by row.
    assert {path.name: pq.read_table(path) for path in (out / "features").iterdir()} == {
        name: table for name, table in tables.items() if not name.startswith("photos.tar-")
    }
    check_same(out, {key: row for key, row in rows.items() if "photos.tar#" not in key})


def test_a_lost_merged_part_is_embedded_again(made, copy):
    rows = te.rows(copy)
    compact(CompactOptions(str(copy), target_bytes=20_000))
    lost = merged_parts(copy)[1]
    units = {report.unit_id for report in read_footer(str(lost)).reports}
    lost.unlink()
    assert inspect(str(copy)).problems
    assert extract(made, copy).this_run.units == len(units) > 1
    check_same(copy, rows)


def test_verify_finds_the_sources_of_merged_rows(tmp_path):
    items = draw_items(per_class=4, size=48, seed=3)
    write_tar(tmp_path / "a.tar", items)
    write_folder(tmp_path / "b", items)
    from tests.pipeline.maintenance.test_verify import extract as embed

    embed(tmp_path / "a.tar", tmp_path / "out")
    embed(tmp_path / "b", tmp_path / "out")
    compact(CompactOptions(str(tmp_path / "out")))
    assert len(merged_parts(tmp_path / "out")) == 1
    found = verify(VerifyOptions(str(tmp_path / "out"), sample=1000))
    assert found.compared == found.rows == len(te.rows(tmp_path / "out"))
    assert found.ok


class Stop(Exception):
    pass


def cut_off(monkeypatch, name: str, call: int) -> None:
    """Lets the `call`th call of a function of `storage` raise, after the half of its work that can be done."""
    real, calls = getattr(storage, name), []

    def stop(*args):
        calls.append(args)
        if len(calls) < call:
            return real(*args)
        if name == "delete":
            uris = list(args[0])
            real(uris[: len(uris) // 2])
        raise Stop

    monkeypatch.setattr(storage, name, stop)


@pytest.mark.parametrize(
    ("name", "call"), [("rename", 1), ("rename", 2), ("sync", 2), ("delete", 3), ("delete", 4), ("open_write", 2)]
)
@pytest.mark.parametrize("then", ["compact", "extract"])
def test_cut_off_and_run_again(made, copy, monkeypatch, name, call, then):
    rows = te.rows(copy)
    # Merged parts are merged again as well.
    compact(CompactOptions(str(copy), target_bytes=12_000))
    cut_off(monkeypatch, name, call)
    with pytest.raises(Stop):
        compact(CompactOptions(str(copy), target_bytes=40_000))
    monkeypatch.undo()
    assert te.rows(copy) == rows
    listing = list_parts(str(copy))
    assert bool(listing.leftovers) == (name == "delete")
    assert bool(inspect(str(copy)).problems) == (name == "delete")
    if then == "compact":
        compact(CompactOptions(str(copy), target_bytes=40_000))
    else:
        extract(made, copy, load=never)
    check_same(copy, rows)
    assert list_parts(str(copy)).leftovers == ()
    [(count,)] = duckdb.sql(f"SELECT count(*) FROM '{copy}/features/*.parquet'").fetchall()
    assert count == len(rows)
    assert os.listdir(copy / "_tmp") == [] or then == "extract"


@pytest.mark.parametrize("call", [1, 5, 11])
def test_taking_apart_that_is_cut_off(own, monkeypatch, call):
    out = own / "out"
    rows = te.rows(out)
    compact(CompactOptions(str(out)))
    real, calls = storage.rename, []

    def stop(old, new):
        calls.append(new)
        if "/features/" in new and sum("/features/" in c for c in calls) == call:
            raise Stop
        real(old, new)

    monkeypatch.setattr(storage, "rename", stop)
    with pytest.raises(Stop):
        extract(own, retry_failed=True)
    monkeypatch.undo()
    assert te.rows(out) == rows
    assert not open_features(str(out)).complete
    with pytest.raises(FeaturemillError, match="is not finished"):
        compact(CompactOptions(str(out)))
    extract(own, load=never)
    check_same(out, rows)
    extract(own, retry_failed=True)
    check_same(out, rows)


@pytest.mark.long
def test_killed_at_many_moments(made, tmp_path):
    rows = te.rows(made / "out")
    # Before the so manieth rename or removal.
    code = "from pipeline.maintenance.compact import *\ncompact(CompactOptions(sys.argv[1], 12_000), say=print)"
    seen = set()
    for moment in (1, 2, 3, 8, 17, 30):
        output = tmp_path / f"out{moment}"
        shutil.copytree(made / "out", output)
        status, _, err = finish(start(killed_before(moment, code, output, events=("os.rename", "os.remove"))))
        assert status == -signal.SIGKILL, err
        seen.add((len(merged_parts(output)), len(list((output / "features").iterdir()))))
        assert te.rows(output) == rows
        compact(CompactOptions(str(output), target_bytes=12_000))
        check_same(output, rows)
        assert list_parts(str(output)).leftovers == ()
        assert os.listdir(output / "_tmp") == []
    assert len(seen) == 6


def test_only_a_complete_output(copy, tmp_path):
    with pytest.raises(UsageError, match="--target-bytes must be at least 1, not 0"):
        compact(CompactOptions(str(copy), target_bytes=0))
    with pytest.raises(FeaturemillError, match="holds no features"):
        compact(CompactOptions(str(tmp_path / "nothing")))
    edit_manifest(copy, status="running")
    with pytest.raises(FeaturemillError, match=r"is not finished \(status running\); finish it"):
        compact(CompactOptions(str(copy)))


def test_a_lost_part_is_reported(copy):
    lost = sorted((copy / "features").iterdir())[0]
    count = pq.read_metadata(lost).num_rows
    lost.unlink()
    with pytest.raises(FeaturemillError, match=r"holds \d+ units, but its manifest says \d+: a part is missing; run"):
        compact(CompactOptions(str(copy)))
    if count:
        with pytest.raises(
            FeaturemillError, match=r"holds \d+ rows, but its manifest says \d+: a part is missing; run"
        ):
            open_features(str(copy))
    assert inspect(str(copy)).problems
    edit_manifest(copy, status="running")
    assert not open_features(str(copy)).complete


def test_an_extract_that_began_meanwhile_is_no_loss(copy, monkeypatch):
    from transforms.store import features

    sorted((copy / "features").iterdir())[0].unlink()
    real = features.read_footers

    def began(parts):
        edit_manifest(copy, status="running")
        return real(parts)

    monkeypatch.setattr(features, "read_footers", began)
    assert not open_features(str(copy)).complete


def test_two_at_once_and_extract_meanwhile(made, copy, monkeypatch):
    rows = te.rows(copy)
    real = merging._rows_in_order

    def meanwhile(*args):
        with pytest.raises(FeaturemillError, match="in use by another command"):
            compact(CompactOptions(str(copy)))
        with pytest.raises(FeaturemillError, match="in use by another command"):
            te.extract(made / "in", copy)
        # As an extract on another machine does.
        write_manifest(str(copy), replace(read_manifest(str(copy)), status="running"))
        yield from real(*args)

    monkeypatch.setattr(merging, "_rows_in_order", meanwhile)
    with pytest.raises(FeaturemillError, match=r"extract began on .* while it was compacted"):
        compact(CompactOptions(str(copy)))
    assert merged_parts(copy) == os.listdir(copy / "_tmp") == []
    assert te.rows(copy) == rows


def test_extract_keeps_compactions_away(made, copy, monkeypatch):
    def meanwhile(*_, **__):
        with pytest.raises(FeaturemillError, match="in use by another command"):
            compact(CompactOptions(str(copy)))
        with pytest.raises(FeaturemillError, match="in use by another command"):
            te.extract(made / "in", copy, overwrite=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.extraction.run.make_plan", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        te.extract(made / "in", copy)
    assert compact(CompactOptions(str(copy))).merged


@pytest.mark.parametrize("when", ["unchanged", "split", "running"])
def test_parts_are_only_removed_while_their_merged_one_is_there(copy, monkeypatch, when):
    """Without locks, as on stores: an extract elsewhere began after the merged part was committed."""
    rows = te.rows(copy)
    real = compacting.merge_parts

    def merge(output, names, **more):
        name = real(output, names, **more)
        if when == "running":
            write_manifest(output.folder, replace(read_manifest(output.folder), status="running"))
        if when != "unchanged":
            merging.split_part(output, name)
        return name

    monkeypatch.setattr(compacting, "merge_parts", merge)
    if when == "running":
        with pytest.raises(FeaturemillError, match=r"extract began on .* while it was compacted"):
            compact(CompactOptions(str(copy), target_bytes=12_000))
    else:
        compact(CompactOptions(str(copy), target_bytes=12_000))
    assert te.rows(copy) == rows


def test_two_merged_parts_with_the_same_unit_are_reported(copy):
    names = list_parts(str(copy)).names
    for some in (names[:3], names[2:4]):
        merging.merge_parts(Output(str(copy)), some, before_commit=lambda: None)
    with pytest.raises(FeaturemillError, match=r"both hold unit .* run extract again"):
        open_features(str(copy))
    with pytest.raises(FeaturemillError, match="both hold unit"):
        inspect(str(copy))


def test_a_part_that_lost_rows_is_not_merged(copy):
    victim = next(p for p in sorted((copy / "features").iterdir()) if pq.read_metadata(p).num_rows > 1)
    table, metadata = pq.read_table(victim), pq.read_metadata(victim).metadata
    # As an earlier version wrote it: without a seal.
    own = (b"ARROW:schema", b"featuremill.seal", b"featuremill.data")
    with pq.ParquetWriter(victim, table.schema) as writer:
        writer.write_table(table.slice(1))
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k not in own})
    with pytest.raises(FeaturemillError, match="doesn't hold the rows that its footer says"):
        compact(CompactOptions(str(copy)))


def test_an_output_without_rows(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.tar").write_bytes(b"\0" * 1024)
    te.extract(tmp_path / "in", tmp_path / "out")
    assert compact(CompactOptions(str(tmp_path / "out"))).merged == 3
    check_same(tmp_path / "out", {})


def test_on_an_object_store(tmp_path):
    memory_store.OBJECTS.clear()
    for number in range(3):
        write_tar(tmp_path / "x.tar", draw_items(per_class=8, size=48, seed=number))
        memory_store.OBJECTS[f"mem://bucket/in/{number}.tar"] = (tmp_path / "x.tar").read_bytes(), 1
    out = "mem://bucket/out"
    te.extract("mem://bucket/in", out, unit_bytes=4000)
    rows = te.rows(out)
    summary = compact(CompactOptions(out))
    assert (summary.parts_after, summary.bytes_after) == (1, 0)
    check_same(out, rows)
    assert not [name for name in memory_store.OBJECTS if "/_tmp/" in name]
    assert te.extract("mem://bucket/in", out, unit_bytes=4000, load=never).this_run.units == 0
    te.extract("mem://bucket/in", out, unit_bytes=4000, retry_failed=True)
    check_same(out, rows)


def test_printed_lines(copy):
    lines = []
    summary = compact(CompactOptions(str(copy), target_bytes=40_000), say=lines.append)
    assert lines[0].startswith(f"1 of {summary.written} merged, from ")
    assert f"{summary.parts_before} → {summary.parts_after} parts" in compact_text(summary)
    assert summary.rows == len(te.rows(copy))


def write_unit(output: str, unit_id: str, keys: list[str], seed: int) -> None:
    spec = te.options("x", "y").spec(WEIGHTS)
    random = np.random.default_rng(seed)
    report = UnitReport(unit_id, "s", 0, -1, len(keys), len(keys), 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, "fake")
    with PartWriter(output, unit_id, spec=spec, sizes={"embedding": 3}) as writer:
        if keys:
            rows = [(key, None, "s", i, bytes(32), 1, 1) for i, key in enumerate(keys)]
            writer.add(rows, {"embedding": random.normal(size=(len(keys), 3)).astype(np.float32)})
        writer.commit(report)


def unit_rows(output: str, name: str) -> list[dict]:
    return pq.read_table(f"{output}/features/{name}").to_pylist()


@examples(40)
@given(
    units=st.lists(st.lists(st.text("abé#", max_size=3), max_size=9), min_size=1, max_size=6), size=st.integers(1, 9)
)
def test_merged_and_taken_apart_again(units, size):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        os.makedirs(f"{folder}/features")
        patch.setattr(merging, "ROW_GROUP_ROWS", size)
        for number, keys in enumerate(units):
            write_unit(folder, f"u{number}", keys, number)
        names = [f"u{number}.parquet" for number in range(len(units))]
        before = [unit_rows(folder, name) for name in names]
        merged = merging.merge_parts(Output(folder), names, before_commit=lambda: None)
        together = unit_rows(folder, merged)
        # The oracle: Python's sort, which is stable, by the bytes of the key.
        assert together == sorted((row for rows in before for row in rows), key=lambda row: row["key"].encode())
        assert list_parts(folder).leftovers == tuple(names)
        assert list_parts(folder).unit_ids() == {name.removesuffix(".parquet") for name in names}
        for name in names:
            os.remove(f"{folder}/features/{name}")
        merging.split_part(Output(folder), merged)
        assert sorted(os.listdir(f"{folder}/features")) == names
        for name, rows in zip(names, before, strict=True):
            assert unit_rows(folder, name) == rows


def test_groups_are_as_full_as_they_can_be():
    facts = [merging.PartFacts(f"{i}", f"{i:03}", size, 1) for i, size in enumerate([30, 30, 30, 80, 30, 50, 10, 100])]
    groups = compacting._groups(facts, 100)
    assert [[f.data_bytes for f in group] for group in groups] == [[30, 30, 30], [30, 50, 10]]
    many = [merging.PartFacts(f"{i}", "", 0, 1) for i in range(merging.MOST_UNITS + 5)]
    assert [len(group) for group in compacting._groups(many, 100)] == [merging.MOST_UNITS, 5]


_COMPACTS = """
import os, sys
from pipeline.maintenance.compact import CompactOptions, compact
from transforms.store.merging import split_part
from transforms.store.output import Output
print("ready", flush=True)
while os.path.exists(sys.argv[2]):
    # Merged ones are merged again, then all are taken apart.
    for target in (12_000, 40_000):
        compact(CompactOptions(sys.argv[1], target_bytes=target))
    with Output(sys.argv[1]).locked() as out:
        for name in list(out.listing.merged):
            split_part(out, name)
"""


def _opened(out: str):
    """Opens, waits for a compaction to write beside it, and only then reads."""
    features = open_features(out)
    before = set(os.listdir(f"{out}/features"))
    deadline = time.monotonic() + 3
    while set(os.listdir(f"{out}/features")) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(features.keys)


def _asked(out: str):
    with sql(out, "SELECT count(*), sum(position) FROM features") as answer:
        return list(answer.rows())


READERS = {
    "open_features": _opened,
    "rows": te.rows,
    "inspect": lambda out: inspect(out).problems,
    "sql": _asked,
    "query": lambda out: [near.row.key for near in query(QueryOptions(output=out, keys=_keys(out))).neighbours[0]],
    "duplicates": lambda out: sum(map(len, (g.rows for g in find_duplicates(out).groups))),
    "convert": lambda out: convert(ConvertOptions(out, f"{out}-copy", overwrite=True)).rows,
    "table": lambda out: sum(map(len, (numbers for numbers, _ in open_table(out).vectors.batches()))),
}


def _keys(out: str) -> tuple[str, ...]:
    return (min(open_features(out).keys),)


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_readers_see_the_same_rows_while_parts_are_merged_and_taken_apart(copy, tmp_path, name):
    read, out = READERS[name], str(copy)
    expected = read(out) if name != "open_features" else len(te.rows(copy))
    (tmp_path / "goes on").touch()
    command = start([sys.executable, "-c", _COMPACTS, out, str(tmp_path / "goes on")])
    assert command.stdout.readline() == "ready\n"
    try:
        for _ in range(3):
            assert read(out) == expected
            # The compaction has its turn.
            time.sleep(0.1)
        assert command.poll() is None
    finally:
        (tmp_path / "goes on").unlink()
        status, _, err = finish(command)
    assert status == 0, err
    assert read(out) == expected


def test_parts_that_somebody_reads_are_not_removed(copy, monkeypatch):
    monkeypatch.setattr(locks, "READ_SECONDS", 0.2)
    features = open_features(str(copy))
    keys = features.keys
    with pytest.raises(FeaturemillError, match=rf"out is being read \(process {os.getpid()} on .*run the same command"):
        compact(CompactOptions(str(copy), target_bytes=40_000))
    assert features.keys == keys
    # Who opens it now sees the merged part, and waits for nobody.
    assert sorted(open_features(str(copy)).keys) == sorted(keys)
    del features
    gc.collect()
    compact(CompactOptions(str(copy), target_bytes=40_000))
    assert inspect(str(copy)).problems == ()
    assert sorted(open_features(str(copy)).keys) == sorted(keys)
