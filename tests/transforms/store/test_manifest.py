"""What is said of a folder that isn't an OUT: what it is instead."""

import errno
import json

import pytest

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.store.manifest import read_manifest


def said(folder) -> str:
    with pytest.raises(FeaturemillError) as caught:
        read_manifest(str(folder))
    return str(caught.value)


def test_what_another_folder_is(tmp_path):
    assert "extract: it has no manifest.json; pass the folder that featuremill extract wrote to" in said(tmp_path)
    assert "extract: there is no such folder; pass" in said(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").write_bytes(b"")
    assert "extract: it is a file; pass" in said(tmp_path / "photo.jpg")
    (tmp_path / "head.json").write_text("{}")
    assert "extract: it is a head of featuremill train; pass" in said(tmp_path)


def test_predictions(tmp_path):
    """Of images too, whose features lie in PRED/features."""
    where = f"it holds predictions of featuremill predict, which are Parquet files in {tmp_path}/predictions; pass"
    (tmp_path / "features").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "predictions"}))
    assert where in said(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "predictions").mkdir()
    assert where in said(tmp_path)


def test_why_it_cannot_be_read(tmp_path, monkeypatch):
    def unreachable(uri):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(storage, "read_bytes", unreachable)
    assert "extract: manifest.json can't be read ([Errno 113] No route to host); pass" in said(tmp_path)
