"""What is said of a folder that isn't an OUT: what it is instead."""

import errno
import json

import pytest

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.spec import Feature, FeatureSpec
from transforms.store.manifest import new_manifest, read_manifest


def error_of(folder) -> str:
    with pytest.raises(FeaturemillError) as caught:
        read_manifest(str(folder))
    return str(caught.value)


def test_what_another_folder_is(tmp_path):
    assert "extract: it has no manifest.json; pass the folder that featuremill extract wrote to" in error_of(tmp_path)
    assert "extract: there is no such folder; pass" in error_of(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").write_bytes(b"")
    assert "extract: it is a file; pass" in error_of(tmp_path / "photo.jpg")
    (tmp_path / "head.json").write_text("{}")
    assert "extract: it is a head of featuremill train; pass" in error_of(tmp_path)


def test_predictions(tmp_path):
    """Of images too, whose features lie in PRED/features."""
    where = f"it holds predictions of featuremill predict, which are Parquet files in {tmp_path}/predictions; pass"
    (tmp_path / "features").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "predictions"}))
    assert where in error_of(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "predictions").mkdir()
    assert where in error_of(tmp_path)


def test_why_it_cannot_be_read(tmp_path, monkeypatch):
    def unreachable(uri):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(storage, "read_bytes", unreachable)
    assert "extract: manifest.json can't be read ([Errno 113] No route to host); pass" in error_of(tmp_path)


@pytest.mark.parametrize("wrong", [True, -1, 1.5, "x", [1], [[]], {"a": {}}, {"moves": [1]}, {"units": "x"}])
def test_values_of_other_types(tmp_path, wrong):
    """Each is refused or read as it is; nothing else is raised, then or when it is used."""
    spec = FeatureSpec("vgg16", "0" * 64, (Feature("embedding", "block1_pool", "avg"),))
    manifest = new_manifest(spec, weights="imagenet", weights_are_random=False, limit=None, versions={"numpy": "2"})
    values = manifest.to_json()
    refused = 0
    for name in (*values, "relocation", "notes", "totals"):
        (tmp_path / "manifest.json").write_text(json.dumps({**values, name: wrong}))
        try:
            found = read_manifest(str(tmp_path))
        except FeaturemillError as error:
            refused += str(tmp_path) in str(error)
        else:
            assert found.cure
            found.to_json()
    assert refused > 8
    for name in values["spec"]:
        (tmp_path / "manifest.json").write_text(json.dumps({**values, "spec": {**values["spec"], name: wrong}}))
        if type(values["spec"][name]) is not type(wrong):
            assert "its spec is not one of featuremill" in error_of(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert "is not valid JSON" in error_of(tmp_path)
