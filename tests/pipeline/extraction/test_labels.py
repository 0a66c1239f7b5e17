"""Labels are shown before any work and after it, by folder, TFRecord and Parquet; what looks wrong is said."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.extraction import labels
from pipeline.extraction.summary import summary_json, summary_text
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests.pipeline.extraction.test_run import extract
from transforms.shards import Fields, example, tfrecord
from transforms.store.features import open_features
from transforms.store.manifest import write_manifest
from transforms.store.output import Output


def picture(seed):
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()


PICTURES = [picture(seed) for seed in range(16)]


def write(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[number % len(PICTURES)])
    return folder


def lines_of(inputs, output, **more):
    lines = []
    summary = extract(inputs, output, say=lines.append, **more)
    return lines, summary


def test_classes_and_sides_of_folders(tmp_path):
    data = write(
        tmp_path / "data", *(f"{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("ants", "bees") for i in "12")
    )
    lines, summary = lines_of(data, tmp_path / "out")
    assert "labels   2 classes: ants 4, bees 4; from folder names" in lines
    assert not [line for line in lines if line.startswith("CAUTION  ") and "trained" not in line]
    assert "labels   2 classes: ants 4, bees 4" in summary_text(summary).splitlines()
    assert summary_json(summary)["labels"] == {"ants": 4, "bees": 4}
    features = open_features(tmp_path / "out")
    sides = {key.split("/")[-3]: side for key, side in zip(features.keys, features.splits, strict=True)}
    assert sides == {"train": "train", "val": "validation"}
    # A later run with other labels is told so; the same one has nothing to do.
    assert extract(data, tmp_path / "out").this_run.units == 0
    with pytest.raises(Exception, match=r"had label 'ants', now None.*or --label-from"):
        extract(data, tmp_path / "out", fields=Fields(label=""))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["images/a.jpg", "imgs/b.jpg"], "CAUTION  no image file has a label, though they lie in 2 folders"),
        (["a.jpg", "b.jpg"], "note     no image file has a label"),
        (["cat/a.jpg", "Cat/b.jpg"], "CAUTION  labels differ only by blanks, case"),
        (["cat/a.jpg"], "CAUTION  there is only one class, 'cat'"),
        (["00000/a.jpg", "00001/b.jpg"], "CAUTION  the labels are '00000', '00001': they look like numbers of shards"),
    ],
)
def test_what_looks_wrong_is_reported_before_any_work(tmp_path, names, expected):
    lines, _ = lines_of(write(tmp_path / "in", *names), tmp_path / "out")
    assert [line for line in lines if line.startswith(expected)]


def test_shards(tmp_path):
    records = [{"image": data, "label": label} for data, label in zip(PICTURES, [1, 2, -1, [0, 1]], strict=False)]
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(tfrecord.frame(example.serialize(values)) for values in records))
    table = {"image": PICTURES[4:7], "label": ["cat", None, "dog"]}
    pq.write_table(pa.table(table), tmp_path / "y.parquet")
    lines, summary = lines_of(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    [labels] = [line for line in lines if line.startswith("labels")]
    assert labels == "labels   4 classes: 1 1, 2 1, cat 1, dog 1; from field label of TFRecord, field label of Parquet"
    assert [line for line in lines if "labels are numbers ('1', '2'), others names" in line]
    text = summary_text(summary)
    assert summary.totals.rows_failed == 0
    assert (summary.labels, summary.unlabelled) == ({"1": 1, "2": 1, "cat": 1, "dog": 1}, 3)
    assert "3 rows without a label" in text
    assert "a list" in text


def test_a_look_at_many_records_is_bounded(tmp_path):
    labels = [f"{i % 3}" for i in range(1000)]
    pq.write_table(pa.table({"image": [PICTURES[0]] * 1000, "label": labels}), tmp_path / "x.parquet")
    lines, _ = lines_of(tmp_path / "x.parquet", tmp_path / "out", limit=3)
    assert "labels   3 classes: 0 84, 1 83, 2 83; from field label of Parquet (a look at the first 250 images)" in lines


def test_an_out_begun_without_sides_goes_on_without_them(tmp_path):
    data = write(tmp_path / "data", "train/ants/1.jpg", "val/bees/2.jpg")
    extract(data / "train", tmp_path / "out")
    output = Output(str(tmp_path / "out"))
    for part in output.listing.names:
        uri = output.path("features", part)
        table, footer = pq.read_table(uri).drop_columns(["split"]), pq.read_metadata(uri).metadata
        with pq.ParquetWriter(uri, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({k: v for k, v in footer.items() if k.startswith(b"featuremill")})
    manifest = replace(output.manifest, added_columns=[], stored={})
    write_manifest(output.folder, manifest)
    # The plan of that time knew no sides.
    plan = output.plan
    units = [replace(p, unit=replace(p.unit, files=tuple(replace(f, split=None) for f in p.unit.files))) for p in plan]
    output.write_plan(units)
    extract([data / "train", data / "val"], tmp_path / "out")
    features = open_features(tmp_path / "out")
    assert features.splits == [None, None]
    assert all("split" not in pq.read_schema(part).names for part in features.parts)


def clouds(folder, sides):
    """Writes class folders below sides, and embeds them."""
    names = [
        f"{side}/{label}/{i}.jpg" for side, count in sides.items() for label in ("ants", "bees") for i in range(count)
    ]
    for number, name in enumerate(names):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    extract(folder / "data", folder / "out")
    return str(folder / "out")


def test_train_uses_the_sides_unless_another_split_is_stated(tmp_path):
    features = clouds(tmp_path, {"train": 40, "val": 10, "test": 10})
    lines = []
    trained = train(TrainOptions(features=features, output=str(tmp_path / "head")), say=lines.append)
    assert trained.head.split["by_column"]
    assert trained.head.split["options"]["split_column"] == "split"
    assert [sum(rows.values()) for rows in trained.head.split["rows"].values()] == [80, 20, 20]
    assert [line for line in lines if line.startswith("sides    as column split says; --split-column ''")]
    for number, more in enumerate(({"split_column": ""}, {"test": 0.2}, {"folds": 3})):
        asked = TrainOptions(features=features, output=str(tmp_path / f"other{number}"), **more)
        assert not train(asked).head.split["by_column"]


def test_train_passes_over_sides_that_leave_nothing(tmp_path):
    lines = []
    asked = TrainOptions(features=clouds(tmp_path, {"test": 40}), output=str(tmp_path / "head"))
    assert not train(asked, say=lines.append).head.split["by_column"]
    assert [line for line in lines if line.startswith("sides    by chance")]


def test_labels_of_very_many_parts_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_COUNTED_PARTS", 1)
    first = write(tmp_path / "first", "a.png")
    summary = extract(first, tmp_path / "out")
    assert (summary.labels, summary.unlabelled) == ({}, 1)
    summary = extract([first, write(tmp_path / "second", "b.png")], tmp_path / "out", fields=Fields(label_from="none"))
    assert (summary.labels, summary.unlabelled) == (None, None)
    assert "GROUP BY label" in summary_text(summary)
