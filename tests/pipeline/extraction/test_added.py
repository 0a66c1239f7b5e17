"""A feature added to an OUT that is there: the same rows, none of them rewritten, whatever happens meanwhile."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.exploration.query import QueryOptions, query
from pipeline.exploration.sql import sql
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import run
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.convert import ConvertOptions, convert
from pipeline.maintenance.drop import drop_feature
from pipeline.maintenance.inspect import inspect, inspection_text
from pipeline.maintenance.relocate import RelocateOptions, relocate
from pipeline.maps.rows import read_map_rows
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests.pipeline.extraction import test_run as te
from tests.support.commands import finish, killed_before, start
from tests.support.factories import draw_items, write_every_format, write_folder, write_tar
from tests.support.fakes import WEIGHTS, load_fake
from transforms.errors import FeaturemillError, UsageError
from transforms.network.bases import open_file
from transforms.predictors.head import check_features, load_head
from transforms.rows.table import open_table
from transforms.shards import Fields
from transforms.store.features import open_features
from transforms.store.merging import rewrite
from transforms.store.output import Output

DEEP = "deep=vgg16:block2_pool:avg"


def add(folder: Path, feature: str = DEEP, *, inputs=None, load=load_fake, loaded=WEIGHTS, named=(), **more):
    """Adds a feature to the OUT in a folder."""
    inputs = inputs or sorted((folder / "in").iterdir())
    options = te.options(inputs, folder / "out", add_feature=feature, **more)
    options = resumed(options, ["image_size", "batch_size", *named, *more])
    return run(options, load=load, weights=loaded)


def extract(folder: Path, **more):
    return te.extract(sorted((folder / "in").iterdir()), folder / "out", unit_bytes=4000, **more)


def contents(folder: Path) -> dict[str, str]:
    """{path: SHA-256} of all files of OUT itself, without its manifest and what was added."""
    out = folder / "out"
    paths = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    ours = [path for path in paths if path.parts[0] not in ("manifest.json", "_tmp", "features-deep")]
    return {str(path): hashlib.sha256((out / path).read_bytes()).hexdigest() for path in ours}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A complete OUT of about forty small parts, from all formats, with failures."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "in").mkdir()
    write_every_format(folder / "in", draw_items(per_class=8, size=48, seed=1), row_group_size=3)
    extract(folder)
    return folder


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy of OUT; its inputs stay where they are."""
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "in").symlink_to(made / "in")
    return tmp_path


def test_the_added_column_is_read_as_if_it_had_been_there_from_the_first(made, own):
    before = contents(own)
    summary = add(own, inputs=sorted((made / "in").iterdir()))
    assert contents(own) == before
    assert summary.totals.rows_read == summary.totals.rows_embedded == open_features(str(own / "out")).rows
    features = open_features(str(own / "out"))
    assert features.names == ("embedding", "deep")
    assert features.to_numpy("deep").shape == (features.rows, 128)
    # The fake engine's numbers are of the pixels alone.
    assert np.array_equal(features.to_numpy("deep")[:, :128], features.to_numpy("embedding")[:, :128])
    both = open_table(str(own / "out"), columns=["deep", "embedding"])
    assert both.columns == ("embedding", "deep")
    [numbers, matrix] = map(np.concatenate, zip(*both.vectors.batches(), strict=True))
    assert np.array_equal(matrix, np.hstack([features.to_numpy("embedding"), features.to_numpy("deep")])[numbers])


def test_every_reader_joins_it(made, own, tmp_path):
    inputs = sorted((made / "in").iterdir())
    add(own, inputs=inputs)
    out = str(own / "out")
    assert inspect(out).problems == ()
    assert inspect(out).added["deep"].rows == inspect(out).rows
    features = open_features(out)
    with sql(out, "SELECT key, deep[1] AS a, embedding[1] AS b FROM features ORDER BY key") as answer:
        rows = list(answer.rows())
    assert [row[0] for row in rows] == sorted(features.keys)
    assert all(a == b for _, a, b in rows)
    convert(ConvertOptions(out, str(tmp_path / "copy.parquet")))
    assert pq.read_table(tmp_path / "copy.parquet").column("deep").to_pylist() == features.to_numpy("deep").tolist()
    read_map_rows(features, "deep", limit=10)
    alone = open_table(out, columns=["deep"])
    assert alone.spec == features.added[0].spec
    (near,) = query(QueryOptions(output=out, keys=(features.keys[0],), feature="deep")).neighbours
    assert len(near) == min(10, len(rows) - 1)
    add(own, inputs=inputs, load=never)


def never(job):
    raise AssertionError("nothing is left to embed")


def test_compact_and_add_in_any_order(made, own, tmp_path):
    inputs = sorted((made / "in").iterdir())
    shutil.copytree(own / "out", tmp_path / "late/out")
    add(own, inputs=inputs)
    rows = te.rows(own / "out")
    compact(CompactOptions(str(own / "out"), target_bytes=30_000))
    assert open_features(str(own / "out")).lacking == {}
    assert te.rows(own / "out") == rows
    compact(CompactOptions(str(tmp_path / "late/out"), target_bytes=30_000))
    add(tmp_path / "late", inputs=inputs)
    assert te.rows(tmp_path / "late/out") == rows
    assert inspect(str(tmp_path / "late/out")).problems == ()


@pytest.mark.long
def test_two_worker_processes_add_the_same_numbers(made, own, tmp_path):
    inputs = sorted((made / "in").iterdir())
    # Of parts of one unit and of merged ones.
    compact(CompactOptions(str(own / "out"), target_bytes=30_000))
    shutil.copytree(own / "out", tmp_path / "two/out")
    found = []
    for folder, workers in ((own, 1), (tmp_path / "two", 2)):
        add(folder, inputs=inputs, load=None, loaded=None, weights="random:0", workers=workers)
        found.append(te.rows(folder / "out"))
        assert inspect(str(folder / "out")).problems == ()
        assert open_features(str(folder / "out")).to_numpy("deep").any(axis=1).all()
    assert found[0] == found[1]


@pytest.fixture
def small(tmp_path) -> Path:
    """Inputs and OUT for tests that change the inputs."""
    (tmp_path / "in").mkdir()
    items = draw_items(per_class=3, size=40, seed=2)
    write_folder(tmp_path / "in/photos", items)
    write_tar(tmp_path / "in/photos.tar", items)
    extract(tmp_path)
    return tmp_path


def lacking(folder: Path) -> str:
    out = str(folder / "out")
    [why] = open_features(out).lacking.values()
    assert why in inspect(out).problems
    assert inspection_text(inspect(out)).endswith(f"\nparts, footers and manifest agree, but {why}")
    with pytest.raises(FeaturemillError, match=r"the added feature deep"):
        open_features(out).to_numpy("deep")
    with pytest.raises(FeaturemillError, match=r"the added feature deep"):
        open_table(out, columns=["deep"])
    # The others are read as ever.
    assert open_table(out).columns == ("embedding",)
    return why


def whole(folder: Path) -> None:
    out = str(folder / "out")
    assert inspect(out).problems == ()
    assert inspection_text(inspect(out)).endswith("\nparts, footers and manifest agree")
    assert np.array_equal(open_features(out).to_numpy("deep"), open_features(out).to_numpy("embedding")[:, :128])


def test_more_inputs_wait_for_the_same_command(small):
    add(small)
    write_tar(small / "in/more.tar", draw_items(per_class=2, size=40, seed=3))
    with pytest.raises(FeaturemillError, match=r"1 unit to be embedded; run the same command without --add-feature"):
        add(small)
    extract(small)
    assert "--add-feature deep=vgg16:block2_pool:avg" in lacking(small)
    added = {path: path.read_bytes() for path in (small / "out/features-deep/features").iterdir()}
    add(small)
    assert all(path.read_bytes() == data for path, data in added.items())
    whole(small)


def test_what_is_done_again_loses_its_added_rows_first(small):
    add(small)
    extract(small, retry_failed=True)
    assert "finish it with" in lacking(small)
    add(small)
    whole(small)


def test_pruned_rows_go_with_their_added_ones(small):
    add(small)
    (small / "in/photos.tar").unlink()
    with pytest.raises(FeaturemillError, match=r"photos.tar is gone and 9 more. Pass --prune"):
        add(small)
    with pytest.raises(UsageError, match=r"--prune doesn't go with --add-feature"):
        add(small, prune=True)
    extract(small, prune=True)
    add(small)
    whole(small)


def test_an_image_that_changed_unseen_gets_no_vector(small):
    # Of the same length and time as before, so that only its content tells.
    path = next(path for path in sorted((small / "in/photos").rglob("*.jpg")))
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before[:-9] + bytes(7) + before[-2:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert add(small).failures == {"read: changed": 1}
    assert "--retry-failed (1 image failed" in lacking(small)
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    add(small, retry_failed=True)
    whole(small)


def test_other_rows_are_never_joined(small):
    add(small)
    side = Output(str(small / "out")).added_feature("deep")
    part = max(side.part_files, key=lambda name: side.part_files[name].size)
    # As many rows as its part has, and all hashes fit.
    rewrite(side, side.path("features", part), token="t", rows=lambda t: t.take([*range(len(t))][::-1]), report=dict)
    with pytest.raises(FeaturemillError, match=r"hasn't the rows of its part"):
        open_features(str(small / "out")).to_numpy("deep")
    with pytest.raises(FeaturemillError, match=r"has other rows"), sql(str(small / "out"), "FROM features") as answer:
        list(answer.rows())
    with sql(str(small / "out"), "SELECT key, embedding FROM features") as answer:
        assert len(list(answer.rows())) == open_features(str(small / "out")).rows


def test_dropped_it_is_as_if_it_had_never_been_there(small):
    before, manifest = contents(small), json.loads((small / "out/manifest.json").read_text())
    add(small)
    with pytest.raises(FeaturemillError, match=r"no added feature 'deap'; did you mean deep"):
        drop_feature(str(small / "out"), "deap")
    with pytest.raises(FeaturemillError, match=r"embedding is in the parts themselves"):
        drop_feature(str(small / "out"), "embedding")
    drop_feature(str(small / "out"), "deep")
    assert not (small / "out/features-deep").exists()
    assert contents(small) == before
    now = json.loads((small / "out/manifest.json").read_text())
    assert {**now, "updated": 0, "sha256": 0} == {**manifest, "updated": 0, "sha256": 0}


def test_kept_columns_are_outs_alone(tmp_path):
    """Those of a table of paths, too, in whose units they are."""
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "photos", draw_items(per_class=3, size=40, seed=2))
    paths = sorted(map(str, (tmp_path / "photos").rglob("*.jpg")))
    table = pa.table({"path": paths, "price": list(range(len(paths)))})
    pq.write_table(table, tmp_path / "in/photos.parquet")
    fields = Fields(path="path")
    extract(tmp_path, keep=("price",), fields=fields)
    with pytest.raises(UsageError, match="--keep doesn't go with --add-feature"):
        add(tmp_path, named=["keep"], fields=fields)
    assert add(tmp_path, fields=fields).this_run.rows_embedded == open_features(str(tmp_path / "out")).rows
    whole(tmp_path)
    assert add(tmp_path, load=never, fields=fields).this_run.units == 0
    [batch] = pa.Table.from_batches(open_features(str(tmp_path / "out")).batches(["key", "price"])).to_batches()
    assert {(row["key"], row["price"]) for row in batch.to_pylist()} <= {*zip(*table.to_pydict().values(), strict=True)}
    assert "price" not in open_features(str(tmp_path / "out/features-deep")).row_columns
    with pytest.raises(FeaturemillError, match="a column price of its own"):
        add(tmp_path, "price=block1_pool:avg", fields=fields)


@pytest.mark.parametrize("how", ["another way to normalise", "a file"])
def test_another_base_brings_its_own_normalisation(small, how):
    feature, loaded, more = "deep=densenet121:conv5_block16_concat:avg", WEIGHTS, {}
    if how == "a file":
        from tests.support import onnx_files

        path = small / "net.onnx"
        path.write_bytes(onnx_files.convolutions().SerializeToString())
        tensor = open_file("onnx", str(path)).outputs[0]
        feature, loaded, more = f"deep={tensor}:flatten", None, {"backbone": str(path), "normalise": "tf"}
    add(small, feature, loaded=loaded, **more)
    spec = open_features(str(small / "out/features-deep")).spec
    assert (spec.backbone, spec.normalise) == (("onnx", "tf") if more else ("densenet121", "torch"))
    assert open_features(str(small / "out")).spec.normalise == "caffe"
    assert "deep" in open_features(str(small / "out")).names
    # Another input, all of whose images fail; then the command that is said to finish it, which needn't name the file.
    write_folder(small / "in/more", draw_items(per_class=1, size=40, seed=3))
    extract(small)
    asked = re.search(r"--add-feature (\S+)", lacking(small))[1]
    assert asked.startswith(f"deep={spec.backbone}:")
    add(small, asked, loaded=loaded)
    assert "deep" in open_features(str(small / "out")).names


def test_overwrite_removes_it_too(small):
    add(small)
    extract(small, overwrite=True)
    assert not (small / "out/features-deep").exists()
    assert inspect(str(small / "out")).added == {}


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("deep", "not of the form"),
        ("deep=vgg61:block2_pool:avg", "no backbone 'vgg61'"),
        ("embedding=block2_pool:avg", "a column embedding of its own"),
        ("Embedding=block2_pool:avg", "a column Embedding of its own"),
        ("deep=block9_pool:avg", "no layer 'block9_pool'"),
    ],
)
def test_what_cannot_be_added_is_reported(own, made, feature, message):
    with pytest.raises(FeaturemillError, match=message):
        add(own, feature, inputs=[made / "in/photos"])


@pytest.mark.long
@pytest.mark.parametrize("moment", [0, 8, 20, 32])
def test_relocated_with_it_also_if_killed(small, moment):
    add(small)
    before = te.rows(small / "out")
    (small / "in").rename(small / "moved")
    move = f"{small}/in={small}/moved"
    code = (
        "import sys; from pipeline.maintenance.relocate import *; "
        "relocate(RelocateOptions(sys.argv[1] + '/out', [sys.argv[2]]))"
    )
    assert finish(start(killed_before(moment, code, small, move)))[0] == (-9 if moment else 0)
    if moment:
        relocate(RelocateOptions(str(small / "out"), [move]))
    assert te.rows(small / "out") == {key.replace("/in/", "/moved/"): moved(row) for key, row in before.items()}
    (small / "moved").rename(small / "in")
    relocate(RelocateOptions(str(small / "out"), [f"{small}/moved={small}/in"]))
    add(small, load=never)
    whole(small)


def moved(row: tuple) -> tuple:
    return tuple(value.replace("/in/", "/moved/") if isinstance(value, str) else value for value in row)


KILLED = """
import sys
from pathlib import Path
from tests.pipeline.extraction.test_added import add
add(Path(sys.argv[1]))
"""
KILLED_DROP = """
import sys
from pipeline.maintenance.drop import drop_feature
drop_feature(sys.argv[1] + "/out", "deep")
"""


@pytest.mark.long
@pytest.mark.parametrize("moment", [1, 3, 6, 12])
def test_killed_while_adding(small, moment):
    before = contents(small)
    command = start(killed_before(moment, KILLED, small))
    assert finish(command)[0] == -9
    assert contents(small) == before
    assert open_features(str(small / "out")).names == ("embedding",)
    add(small)
    assert contents(small) == before
    whole(small)
    assert os.listdir(small / "out/features-deep/_tmp") == []


@pytest.mark.long
@pytest.mark.parametrize("moment", [1, 3, 9, 14])
def test_killed_while_dropping(small, moment):
    before = contents(small)
    add(small)
    command = start(killed_before(moment, KILLED_DROP, small, events=("os.remove", "os.rmdir")))
    assert finish(command)[0] == -9
    assert "the added feature deep" in lacking(small)
    drop_feature(str(small / "out"), "deep")
    assert contents(small) == before
    assert not (small / "out/features-deep").exists()


def test_heads_of_both_know_what_they_were_trained_on(made, own, tmp_path):
    out, head, inputs = str(own / "out"), str(tmp_path / "head"), sorted((made / "in").iterdir())
    add(own, inputs=inputs)
    add(own, "other=vgg16:block2_pool:max", inputs=inputs)
    trained = train(TrainOptions(features=out, output=head, columns=("deep", "embedding")))
    assert trained.head.columns == ("embedding", "deep")
    loaded = load_head(head)
    assert loaded.fingerprints == open_table(out, columns=["embedding", "deep"]).fingerprints
    assert check_features(loaded, open_table(out, columns=["deep", "embedding"])) is None
    with pytest.raises(FeaturemillError, match=r"of different features \(their fingerprints differ\)"):
        check_features(loaded, open_table(out, columns=["other", "embedding"]))
    predicted = predict(PredictOptions(head=head, inputs=(out,), output=str(tmp_path / "pred")))
    assert predicted.manifest.totals.predicted == open_features(out).rows
    with pytest.raises(FeaturemillError, match=r"was trained on features of several networks, so it can't take images"):
        predict(PredictOptions(head=head, inputs=(str(made / "in/photos"),), output=str(tmp_path / "no")))
    # One of them is an OUT of its own.
    train(TrainOptions(features=out, output=str(tmp_path / "one"), columns=("deep",)))
    assert load_head(str(tmp_path / "one")).spec == open_features(out).added[0].spec
