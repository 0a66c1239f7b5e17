"""What opening the features of an OUT takes."""

import pytest

from tests.support.manifests import edit_manifest
from tests.support.pages_data import clusters, write_out
from transforms.errors import FeaturemillError
from transforms.store import features
from transforms.store.features import open_features


def test_reports_are_hashed_only_where_there_is_a_hash_to_compare_with(tmp_path, monkeypatch):
    vectors, _ = clusters(rows=30, dims=8)
    finished = write_out(tmp_path / "finished", vectors)
    unfinished = write_out(tmp_path / "unfinished", vectors, complete=False)

    def no_hash(reports):
        raise FeaturemillError("hashed")

    monkeypatch.setattr(features, "parts_sha256", no_hash)
    assert (open_features(unfinished).rows, open_features(finished, whole=False).rows) == (30, 30)
    # One of an earlier version, too.
    assert open_features(finished).rows == 30
    edit_manifest(tmp_path / "finished", parts_sha256="0" * 64)
    with pytest.raises(FeaturemillError, match="hashed"):
        open_features(finished)


@pytest.mark.parametrize(("origin", "source"), [("random:3", "random:3"), ("imagenet (vgg19_notop.h5)", "imagenet")])
def test_weights_are_what_loads_them_again(tmp_path, origin, source):
    out = write_out(tmp_path / "out", clusters(rows=3, dims=8)[0])
    edit_manifest(tmp_path / "out", weights=origin)
    assert open_features(out).weights == source
