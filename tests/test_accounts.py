"""Whatever people's files are: each is embedded, failed or skipped, each label is as written, or null and counted."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.pipeline.extraction.test_run import extract
from tests.support.properties import examples
from transforms.records import UNUSABLE_LABEL
from transforms.shards import example, tfrecord
from transforms.store.features import open_features

MISSING = object()
NO_IMAGES = {
    "README.md": b"about these",
    "_SUCCESS": b"",
    "stats.json": b"{}",
    "Thumbs.db": bytes(20),
    ".DS_Store": bytes(20),
    "run.log": b"done",
}
UNREAD = {"scan.dcm": bytes(128) + b"DICM" + bytes(50), "new.jxl": b"\xff\x0a" + bytes(50), "cut.jpg": b"\xff\xd8\xff"}


def jpeg(number: int) -> bytes:
    """An image whose bytes no other number has."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def expected(label: Any) -> tuple[str | None, bool]:
    """Returns the label that OUT must have, and whether it counts as one that can't be used; by code of its own."""
    if label is MISSING or label is None:
        return None, False
    if isinstance(label, (list, dict)) or (isinstance(label, int) and not isinstance(label, bool) and label == -1):
        return None, True
    if isinstance(label, bool):
        return ("true" if label else "false"), False
    if isinstance(label, float):
        return (f"{label:.0f}" if label == round(label) else repr(label)), False
    return str(label).strip() or None, False


TEXTS = st.sampled_from(["cat", "dog", " cat ", "Émile", "n01443537", "7", "a b", ""])
NUMBERS = st.sampled_from([0, 1, 999, -1])
# Those that float32 holds as they are written, or rounds.
FLOATS = st.sampled_from([0.1, 2.0, 0.5, 1234.5])


def columns(*shapes: st.SearchStrategy) -> st.SearchStrategy[list]:
    """A column of one to four labels, all of one shape, as real files have them."""
    return st.one_of(*(st.lists(shape, min_size=1, max_size=4) for shape in shapes))


LISTS = st.lists(st.integers(0, 3), min_size=2, max_size=3)


def write_tar(path: Path, labels: list, start: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate(labels, start):
            members = {f"{number}.jpg": jpeg(number)}
            if isinstance(label, str):
                members[f"{number}.cls"] = label.encode()
            elif label is not MISSING:
                members[f"{number}.json"] = json.dumps({"label": label, "caption": "x"}).encode()
            for name, data in {**members, **({"LICENSE": b"free"} if number == start else {})}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def write_tfrecord(path: Path, labels: list, start: int) -> None:
    with open(path, "wb") as file:
        for number, label in enumerate(labels, start):
            values = {"image/encoded": jpeg(number), "image/filename": f"{number}.jpg"}
            if label is not MISSING:
                name = "image/class/text" if isinstance(label, str) else "image/class/label"
                values[name] = label
            file.write(tfrecord.frame(example.serialize(values)))


def write_parquet(path: Path, labels: list, start: int) -> None:
    names = [f"{number}.jpg" for number in range(start, start + len(labels))]
    images = pa.array([{"bytes": jpeg(start + i), "path": name} for i, name in enumerate(names)])
    table = {"image": images, "Label": pa.array([None if label is MISSING else label for label in labels])}
    pq.write_table(pa.table(table), path)


def write_folder(path: Path, labels: list, start: int) -> None:
    for number, label in enumerate(labels, start):
        folder = path / ("" if label is MISSING else label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number))


KINDS = {
    "tar": (write_tar, columns(TEXTS, NUMBERS, FLOATS, st.booleans(), LISTS, st.just({"a": 1}), st.just(MISSING))),
    "record": (write_tfrecord, columns(TEXTS, NUMBERS, LISTS, st.just(MISSING))),
    "parquet": (write_parquet, columns(TEXTS, NUMBERS, FLOATS, st.booleans(), LISTS, st.none())),
    "folder": (write_folder, columns(st.sampled_from(["cat", "dog", "Émile", "7"]))),
}
ONE = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), KINDS[kind][1]))


@pytest.mark.long
@examples(25)
@given(
    sources=st.lists(ONE, min_size=1, max_size=4),
    junk=st.sets(st.sampled_from(sorted(NO_IMAGES))),
    unread=st.sets(st.sampled_from(sorted(UNREAD))),
    unit_bytes=st.sampled_from([500, 1 << 20]),
)
def test_every_file_and_every_label_is_accounted_for(tmp_path_factory, sources, junk, unread, unit_bytes):
    folder = tmp_path_factory.mktemp("accounts")
    inputs = folder / "in"
    inputs.mkdir()
    labels: dict[str, Any] = {}
    for number, (kind, some) in enumerate(sources):
        start = len(labels)
        place = inputs if kind == "folder" else inputs / f"{number}.{kind}"
        KINDS[kind][0](place, some, start)
        labels |= {f"{start + i}.jpg": label for i, label in enumerate(some)}
    for name in junk | unread:
        (inputs / name).write_bytes({**NO_IMAGES, **UNREAD}[name])
    summary = extract(inputs, folder / "out", unit_bytes=unit_bytes)

    totals = summary.totals
    assert totals.rows_read == totals.rows_embedded + totals.rows_failed
    assert (totals.rows_embedded, totals.rows_failed) == (len(labels), len(unread))
    skipped = pq.read_table(folder / "out" / "skipped.parquet")["uri"].to_pylist() if junk else []
    assert sorted(Path(uri).name for uri in skipped) == sorted(junk)
    found = {}
    for batch in open_features(str(folder / "out")).batches(["key", "label"]):
        found |= {row["key"].rpartition("/")[2].rpartition("#")[2]: row["label"] for row in batch.to_pylist()}
    assert found == {name: expected(label)[0] for name, label in labels.items()}
    unusable = sum(count for note, count in summary.notes.items() if note.startswith(UNUSABLE_LABEL))
    assert unusable == sum(expected(label)[1] for label in labels.values())
    assert summary.unlabelled == sum(label is None for label in found.values())
