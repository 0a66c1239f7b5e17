"""`register`: OUT's parts as tables of Iceberg and Delta Lake, read by PyIceberg, deltalake and DuckDB."""

import io
import json
import os

import duckdb
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.maintenance import inspect as inspecting
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.register import RegisterOptions, register
from tests.pipeline.extraction.test_run import extract
from transforms.errors import FeaturemillError
from transforms.shards import Fields
from transforms.store.features import open_features

deltalake = pytest.importorskip("deltalake")
catalogs = pytest.importorskip("pyiceberg.catalog")
Config = pytest.importorskip("pyiceberg.utils.config").Config
NAME = "here.ns.photos"


@pytest.fixture(autouse=True)
def _there():
    """The tables have no snippets, and need no OUT of those."""


def png(shade):
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (shade + 1, 9, 9)).save(target, "png")
    return target.getvalue()


def add(folder, numbers):
    folder.mkdir(exist_ok=True)
    for n in numbers:
        (folder / f"{n}.png").write_bytes(png(n))
    return folder


@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / "lake").mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__WAREHOUSE", f"file://{tmp_path}/lake")
    # It reads them when it is imported, and never again.
    monkeypatch.setattr(catalogs, "_ENV_CONFIG", Config())
    extract([add(tmp_path / "a", range(3)), add(tmp_path / "b", range(3, 8))], tmp_path / "out")
    extract([add(tmp_path / "c", range(8, 10))], tmp_path / "out")
    return str(tmp_path / "out")


def iceberg():
    return catalogs.load_catalog("here").load_table("ns.photos")


def commits(kind, out):
    if kind == "delta":
        return len(deltalake.DeltaTable(f"{out}/features").history())
    return len(iceberg().snapshots())


def read(kind, out):
    """Yields the table as its own library and as DuckDB have it."""
    if kind == "delta":
        dataset = deltalake.DeltaTable(f"{out}/features").to_pyarrow_dataset()
        yield dataset.to_table()
        yield duckdb.sql("SELECT * FROM dataset").to_arrow_table()
    else:
        yield iceberg().scan().to_arrow()
        yield iceberg().scan().to_duckdb(table_name="photos").sql("SELECT * FROM photos").to_arrow_table()


def check(kind, out):
    rows = pa.Table.from_batches(open_features(out).batches()).sort_by("key").to_pylist()
    for table in read(kind, out):
        assert table.sort_by("key").to_pylist() == rows
    assert inspecting.inspect(out, deep=True).problems == ()


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_table_is_made_and_follows(out, tmp_path, kind):
    asked = {"delta": True} if kind == "delta" else {"iceberg": NAME}
    before = {name: os.stat(f"{out}/features/{name}") for name in os.listdir(f"{out}/features")}
    first = register(RegisterOptions(out, **asked))
    assert (first.added, first.removed, first.rows) == (len(before), 0, 10)
    check(kind, out)
    again = register(RegisterOptions(out, **asked))
    assert (again.added, again.removed, commits(kind, out)) == (0, 0, 1)

    compact(CompactOptions(out, target_bytes=2**20))
    merged = register(RegisterOptions(out, **asked))
    assert (merged.added, merged.removed, commits(kind, out)) == (1, len(before), 2)
    check(kind, out)

    (tmp_path / "a" / "0.png").unlink()
    extract([add(tmp_path / "a", [20]), tmp_path / "b", tmp_path / "c"], out, prune=True)
    pruned = register(RegisterOptions(out, **asked))
    assert (pruned.rows, commits(kind, out)) == (10, 3)
    assert pruned.removed == 1
    check(kind, out)


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_table_of_something_else_is_left_alone(out, tmp_path, kind):
    asked = {"delta": True} if kind == "delta" else {"iceberg": NAME}
    register(RegisterOptions(out, **asked))
    if kind == "delta":
        extract(tmp_path / "a", out, overwrite=True, features=("other=block5_pool:max",))
        with pytest.raises(FeaturemillError, match="_delta_log is that of other columns"):
            register(RegisterOptions(out, delta=True))
    else:
        extract(tmp_path / "a", tmp_path / "second")
        with pytest.raises(FeaturemillError, match=r"files? that .*second never had"):
            register(RegisterOptions(str(tmp_path / "second"), iceberg=NAME))
        with pytest.raises(FeaturemillError, match=r"table nowhere\.a\.b can't be written: "):
            register(RegisterOptions(out, iceberg="nowhere.a.b"))
    assert commits(kind, out) == 1


def test_kept_columns_are_columns_of_the_table(tmp_path, out):
    (tmp_path / "t.csv").write_text("file,price,tag\na/0.png,1.5,x\na/1.png,,y\n")
    extract(tmp_path / "t.csv", tmp_path / "kept", fields=Fields(path="file"), keep=("price:double", "tag"))
    register(RegisterOptions(str(tmp_path / "kept"), delta=True))
    check("delta", str(tmp_path / "kept"))
    assert json.loads((tmp_path / "kept" / "manifest.json").read_text())["kept"] == {"price": "double", "tag": "string"}
