"""What is said of a folder that isn't an OUT: what it is instead."""

import errno
import json
from dataclasses import replace

import pytest

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.spec import Feature, FeatureSpec
from transforms.store.manifest import (
    Manifest,
    PredictionsManifest,
    PredictionTotals,
    Relocation,
    new_manifest,
    read_manifest,
)
from transforms.store.predictions import Predictions


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


def test_a_relocation_is_written_as_it_was_read(tmp_path):
    spec = FeatureSpec("vgg16", "0" * 64, (Feature("embedding", "block1_pool", "avg"),))
    manifest = new_manifest(spec, weights="imagenet", weights_are_random=False, limit=None, versions={})
    relocation = {"token": "a" * 32, "moves": [["/old", "/new"], ["/a b", "/c"]], "status": "complete"}
    found = Manifest.from_json(json.loads(json.dumps({**manifest.to_json(), "relocation": relocation})), spec)
    assert found.relocation == Relocation("a" * 32, (("/old", "/new"), ("/a b", "/c")), "complete")
    assert found.cure == "featuremill relocate OUT /old=/new '/a b=/c'"
    assert json.loads(json.dumps(found.to_json()))["relocation"] == relocation
    assert "relocation" not in replace(found, relocation=None).to_json()


@pytest.mark.parametrize("more", [{}, {"labels_mode": "update", "group_column": "g", "threshold": 0.5}])
def test_settings_of_a_prediction_are_on_disk_where_they_say_something(tmp_path, more):
    plain = {"head_sha256": "0", "inputs": ["/in"], "feature_columns": ["embedding"], "top": 1, "probabilities": True}
    plain |= {"labels": None, "label_column": "label", "key_column": "key", "fields": {}, "max_pixels": 9}
    values = {"head": "h", "settings": {**plain, **more}, "totals": {"read": 3, "predicted": 2, "failed": 1}}
    values |= {"inputs_sha256": "0", "fingerprint": None, "classes": ["a"], "features_kept": True, "versions": {}}
    manifest = PredictionsManifest.from_json(values)
    assert manifest.totals == PredictionTotals(read=3, predicted=2, failed=1)
    written = manifest.to_json()
    assert {name: written[name] for name in values} == values
    output = Predictions(str(tmp_path))
    output.manifest = manifest
    output.check_settings(manifest.settings)
    with pytest.raises(FeaturemillError, match=r"threshold (0\.0|0\.5) \| 0\.7\. Choose"):
        output.check_settings(replace(manifest.settings, threshold=0.7))
    if more:
        # What is no longer asked for is a difference, too.
        with pytest.raises(FeaturemillError, match=r"threshold 0\.5 \| 0\.0\. Choose"):
            output.check_settings(replace(manifest.settings, threshold=0.0))
