"""Convert: the copy has OUT's rows in OUT's order, and what can't be copied is one line on standard error."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.maintenance import convert as module
from tests.support.pages_data import HOSTILE, clusters, write_out
from transforms.spec import ADDED_COLUMNS, ROW_COLUMNS
from transforms.store.features import BATCH_BYTES, open_features


def converted(*args: object) -> int:
    return run_cli(["convert", *map(str, args)])


@pytest.fixture
def matrix() -> np.ndarray:
    return clusters(60)[0]


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("dtype", [None, "float16", "float32", "float64"])
def test_parquet_holds_the_rows_in_order(tmp_path, matrix, stored, dtype, monkeypatch):
    # Several batches to a part.
    monkeypatch.setattr("transforms.store.features.BATCH_BYTES", 7 * 16 * 4)
    matrix = matrix.astype(stored)
    out = write_out(tmp_path / "out", matrix, labels=[None, "a", "b"] * 20)
    assert converted(out, "-o", tmp_path / "copy.parquet", *(["--dtype", dtype] if dtype else [])) == 0
    table = pq.read_table(tmp_path / "copy.parquet")
    assert table.schema.names == [*ROW_COLUMNS, *ADDED_COLUMNS, "embedding"]
    assert pa.types.is_list(table.schema.field("embedding").type)
    assert str(table.schema.field("embedding").type.value_type) == {"float16": "halffloat"}.get(
        dtype or stored, {"float32": "float", "float64": "double"}.get(dtype or stored)
    )
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), matrix.astype(dtype or stored))
    rest = pa.Table.from_batches(open_features(out).batches(ROW_COLUMNS))
    assert table.select(ROW_COLUMNS).to_pylist() == rest.to_pylist()
    assert BATCH_BYTES > 10**6
    assert sorted(os.listdir(tmp_path)) == ["copy.parquet", "out"]


def test_the_projector_gets_every_row_on_a_line_of_its_own(tmp_path, matrix):
    keys = [f"{i} {HOSTILE[i % len(HOSTILE)]}\t\n\r end" for i in range(60)]
    out = write_out(tmp_path / "out", matrix, keys=keys, labels=["x\ty", None, "", "ü"] * 15)
    assert converted(out, "-o", tmp_path / "copy") == 0
    numbers = np.loadtxt(tmp_path / "copy/vectors.tsv", delimiter="\t", dtype=np.float32)
    np.testing.assert_array_equal(numbers, matrix)
    head, *lines = (tmp_path / "copy/metadata.tsv").read_bytes().decode().removesuffix("\n").split("\n")
    cells = [line.split("\t") for line in lines]
    assert head.split("\t") == [name for name in ROW_COLUMNS + ADDED_COLUMNS if name != "sha256"]
    assert [row[0].split()[0] for row in cells] == list(map(str, range(60)))
    assert all(row[0].endswith(r"\t\n\r end") and len(row) == 7 for row in cells)
    assert [row[1] for row in cells[:4]] == [r"x\ty", "", "", "ü"]
    assert 'tensor_name: "embedding"' in (tmp_path / "copy/projector_config.pbtxt").read_text()


@pytest.mark.parametrize("number", [65_520, -1e30])
def test_no_number_becomes_infinite(tmp_path, matrix, number, capsys):
    matrix[41, 3] = number
    matrix[2, 1] = np.inf
    out = write_out(tmp_path / "out", matrix)
    assert converted(out, "-o", tmp_path / "copy.parquet", "--dtype", "float16") == 1
    assert "photo000041.jpg" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out"]
    # What was infinite stays so; 65,519 is nearer to the largest float16.
    matrix[41, 3] = 65_519
    out = write_out(tmp_path / "other", matrix)
    assert converted(out, "-o", tmp_path / "copy.parquet", "--dtype", "float16") == 0
    copied = np.stack(pq.read_table(tmp_path / "copy.parquet")["embedding"].to_numpy())
    assert copied[41, 3] == 65_504
    assert np.isinf(copied[2, 1])


@pytest.mark.parametrize("name", ["copy.parquet", "copy"])
def test_a_copy_is_replaced_when_asked_and_else_kept(tmp_path, matrix, name, capsys, monkeypatch):
    first = write_out(tmp_path / "first", matrix)
    second = write_out(tmp_path / "second", matrix[:30])
    copy = tmp_path / name
    assert converted(first, "-o", copy) == 0
    file = copy if name.endswith(".parquet") else copy / "metadata.tsv"
    before = file.read_bytes()
    assert converted(second, "-o", copy) == 1
    assert "--overwrite" in capsys.readouterr().err

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.rendering.tables.os.replace", full)
        patch.setattr("transforms.committed._put", full)
        assert converted(second, "-o", copy, "--overwrite") == 1
    assert "No space left" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert converted(second, "-o", copy, "--overwrite") == 0
    assert file.read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == sorted(["first", "second", name])


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["nowhere", "-o", "c.parquet"], 1, "holds no features"),
        (["unfinished", "-o", "c.parquet"], 1, "not finished"),
        (["none", "-o", "c.parquet"], 1, "no rows"),
        (["out", "-o", "c.parquet", "--feature", "embeding"], 1, "did you mean embedding"),
        (["out", "-o", "c", "--feature", "key"], 1, "no feature"),
        (["out", "-o", "c.parquet", "--dtype", "float8"], 2, "float64"),
        (["out", "-o", "c", "--dtype", "float32"], 2, "--dtype is for .parquet"),
        (["out", "-o", "c.csv"], 2, "neither"),
        (["out", "-o", "s3://bucket/c.parquet"], 2, "this machine"),
        (["out", "-o", "out/features/c.parquet"], 1, "count twice"),
        (["out", "-o", "link/c"], 1, "count twice"),
        (["out", "-o", "other", "--overwrite"], 1, "no copy of convert's"),
        (["out", "-o", "out", "--overwrite"], 1, "no copy of convert's"),
        (["out", "-o", "shared", "--overwrite"], 1, "no copy of convert's"),
        (["out", "-o", "missing/c.parquet"], 1, "cannot write"),
        (["out", "-o", "missing/c"], 1, "cannot write"),
    ],
)
def test_bad_input_is_one_line(tmp_path, matrix, monkeypatch, capsys, args, code, problem):
    monkeypatch.chdir(tmp_path)
    out = write_out(tmp_path / "out", matrix[:4])
    write_out(tmp_path / "unfinished", matrix[:4], complete=False)
    write_out(tmp_path / "none", matrix[:0], units=1)
    (tmp_path / "link").symlink_to(out)
    assert converted(out, "-o", tmp_path / "shared") == 0
    (tmp_path / "shared/events.out.tfevents.1").write_text("mine")
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    before = sorted(map(str, tmp_path.rglob("*")))
    assert converted(*args) == code
    message = capsys.readouterr().err
    assert problem in message.splitlines()[-1]
    assert message.count("\n") == 1
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_one_of_several_features(tmp_path, matrix, monkeypatch):
    features = open_features(write_out(tmp_path / "out", matrix))
    monkeypatch.setattr(type(features), "names", ("texture", "embedding"))
    assert module._chosen(features, None, one=False) == ("texture", "embedding")
    assert module._chosen(features, None, one=True) == ("embedding",)
    assert module._chosen(features, "texture", one=False) == ("texture",)
