"""`register` without its libraries, and what it refuses before it needs them. Tables themselves: tests/elsewhere."""

import sys

import pytest

from pipeline.maintenance import register as module
from pipeline.maintenance.register import Registered, RegisterOptions, register
from tests.pipeline.extraction.test_added import add
from tests.pipeline.extraction.test_kept import png
from tests.pipeline.extraction.test_run import extract
from transforms.errors import FeaturemillError, UsageError


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, "--iceberg CATALOG.NS.TABLE or --delta, one of them"),
        ({"iceberg": "a.b.c", "delta": True}, "one of them"),
        ({"iceberg": "a.b"}, "not of the form CATALOG.NS.TABLE"),
    ],
)
def test_what_is_no_table(tmp_path, asked, error):
    with pytest.raises(UsageError, match=error):
        register(RegisterOptions(str(tmp_path), **asked))


@pytest.mark.parametrize(
    ("asked", "library", "extra"),
    [({"delta": True}, "deltalake", "delta"), ({"iceberg": "a.b.c"}, "pyiceberg", "iceberg")],
)
def test_a_missing_library_is_one_line(photo, tmp_path, monkeypatch, asked, library, extra):
    extract(photo, tmp_path / "out")
    for name in [*sys.modules, library]:
        if name.partition(".")[0] == library:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FeaturemillError, match=rf"can't be written: .*; pip install 'featuremill\[{extra}\]'"):
        register(RegisterOptions(str(tmp_path / "out"), **asked))
    assert [path.suffix for path in (tmp_path / "out" / "features").iterdir()] == [".parquet"]


def test_added_features_are_reported_as_left_out(photo, tmp_path, monkeypatch):
    made = Registered("out", "out/features", added=1, removed=0, parts=1, rows=1)
    monkeypatch.setattr(module, "_register_delta", lambda features, out: made)
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in/a.png")
    extract([tmp_path / "in/a.png"], tmp_path / "out")
    first = register(RegisterOptions(str(tmp_path / "out"), delta=True))
    assert module.registered_text(first).endswith("1 part, 1 row")
    add(tmp_path, "texture=block1_pool:avg")
    found = register(RegisterOptions(str(tmp_path / "out"), delta=True))
    assert found.left_out == ("texture",)
    assert module.registered_text(found).endswith("1 row; without texture, which lie beside the parts")


def test_numbers_that_tables_do_not_have(photo, tmp_path):
    extract(photo, tmp_path / "out", dtype="float16")
    with pytest.raises(FeaturemillError, match=r"holds float16, .* convert --dtype float32"):
        register(RegisterOptions(str(tmp_path / "out"), delta=True))
