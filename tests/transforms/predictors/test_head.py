"""Heads on disk: what is written comes back, damage is seen, nothing else is overwritten; what a head fits."""

import contextlib
import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import memory_store  # noqa: F401  Registers mem:// with Beam.
from tests.support.properties import examples
from tests.transforms.rows.test_table import draw_matrix, write_plain
from transforms import committed, storage
from transforms.errors import FeaturemillError
from transforms.heads.model import Model
from transforms.heads.transform import Transform
from transforms.predictors.folder import check_place
from transforms.predictors.head import Head, check_features, load_head, save_head, softmax
from transforms.rows.table import open_table
from transforms.spec import Feature, FeatureSpec
from transforms.store.manifest import own_sha256

SPEC = FeatureSpec(
    "vgg19", "ab" * 32, (Feature("embedding", "block5_pool", "avg"), Feature("peak", "block5_pool", "max"))
)


@pytest.fixture
def head() -> Head:
    random = np.random.default_rng(0)
    arrays = {"kernel1": random.normal(size=(3, 2)), "bias1": random.normal(size=2).astype(np.float32)}
    model = Model("ridge", arrays, {"penalty": np.float64(0.1)}, ({"penalty": 0.1, "loss": float("nan")},))
    return Head(
        model=model,
        classes=("ant", "bée"),
        temperature=1.5,
        columns=("embedding",),
        dims=(3,),
        spec=SPEC,
        weights="imagenet",
        source="/features",
        split={"seed": 1, "rows": {"train": {"ant": np.int64(4)}}},
        metrics={"accuracy": np.float32(0.5), "top5": None},
        versions={"numpy": "2"},
    )


@pytest.fixture
def table(tmp_path):
    table = open_table(str(write_plain(tmp_path / "a.parquet", draw_matrix(5))))
    return replace(table, spec=SPEC, fingerprint=SPEC.fingerprint)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(head, tmp_path):
    folder = tmp_path / "deep" / "head"
    save_head(head, str(folder), files={"report.html": b"<p>"})
    assert set(files(folder)) == {"head.json", "head.npz", "metrics.json", "report.html"}
    assert os.listdir(folder.parent) == ["head"]
    loaded = load_head(str(folder))
    for name in (
        "classes",
        "temperature",
        "columns",
        "dims",
        "spec",
        "weights",
        "weights_are_random",
        "source",
        "versions",
    ):
        assert getattr(loaded, name) == getattr(head, name)
    assert loaded.split == {"seed": 1, "rows": {"train": {"ant": 4}}}
    assert loaded.metrics == json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.5, "top5": None}
    assert loaded.model.settings == {"penalty": 0.1}
    assert loaded.model.curve == ({"penalty": 0.1, "loss": None},)
    assert loaded.fingerprint == head.fingerprint == SPEC.fingerprint
    for name, array in head.model.arrays.items():
        np.testing.assert_array_equal(loaded.model.arrays[name], array)
        assert loaded.model.arrays[name].dtype == array.dtype


@pytest.mark.parametrize("scales", [(), (0.5, 2.0)])
def test_a_transform_comes_back_and_earlier_versions_refuse_it(head, tmp_path, scales):
    transform = Transform("sqrt-l2", (1, 2), scales)
    save_head(head, str(tmp_path / "plain"))
    assert json.loads((tmp_path / "plain/head.json").read_text()).get("transform") is None
    assert load_head(str(tmp_path / "plain")).model.transform == Transform(), "and so do heads of before"
    save_head(replace(head, model=replace(head.model, transform=transform)), str(tmp_path / "new"))
    loaded = load_head(str(tmp_path / "new"))
    assert loaded.model.transform == transform
    matrix = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.probabilities(matrix), head.probabilities(transform(matrix)))
    versions = [json.loads((tmp_path / name / "head.json").read_text())["schema_version"] for name in ("plain", "new")]
    assert versions == [1, 2], "what knows no transform would leave it out without a word"


@pytest.mark.parametrize(
    "values",
    [
        {"name": "cube", "widths": [], "scales": []},
        {"name": "l2", "widths": [4], "scales": []},
        {"name": "l2", "widths": [1, 2], "scales": [1.0]},
        {"name": "l2", "widths": [3], "scales": [0.0]},
        {"name": "l2", "widths": ["3"], "scales": []},
        {"name": "l2"},
        "l2",
    ],
    ids=str,
)
def test_what_is_no_transform_is_reported(head, tmp_path, values):
    save_head(head, str(tmp_path / "head"))
    path = tmp_path / "head/head.json"
    stored = {**json.loads(path.read_text()), "transform": values}
    path.write_text(json.dumps({**stored, "sha256": own_sha256(stored)}))
    with pytest.raises(FeaturemillError, match="transform") as caught:
        load_head(str(tmp_path / "head"))
    assert len(str(caught.value).splitlines()) == 1


def test_same_head_same_bytes(head, tmp_path):
    for name in ("a", "b"):
        save_head(head, str(tmp_path / name))
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("place", ["local", "mem://heads/large"])
def test_arrays_are_never_in_memory_twice(head, tmp_path, place):
    """knn's are as large as its rows: a head that could be trained has to be written, too."""
    arrays = {"vectors": np.arange(2**23, dtype=np.float32).reshape(-1, 512), "codes": np.arange(2**14) % 2}
    arrays |= {"neighbours": np.int64(1), "classes": np.int64(2)}
    folder, large = str(tmp_path / "large") if place == "local" else place, 32 * 2**20
    expected = io.BytesIO()
    np.savez(expected, **arrays)
    written, loaded = peak_of(lambda: save_head(replace(head, model=Model("knn", arrays), dims=(512,)), folder)), []
    read = peak_of(lambda: loaded.append(load_head(folder)))
    assert storage.read_bytes(f"{folder}/head.npz") == expected.getvalue()
    np.testing.assert_array_equal(loaded[0].model.arrays["vectors"], arrays["vectors"])
    if place == "local":
        assert written < 0.75 * large
        assert read < 1.5 * large


def peak_of(call) -> int:
    """Returns how many bytes a call took at its peak, by Python and NumPy."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_probabilities(head):
    matrix = draw_matrix(7)
    scores = (matrix @ head.model.arrays["kernel1"] + head.model.arrays["bias1"]) / 1.5
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.probabilities(matrix), expected, rtol=1e-6)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(0.01, 100))
def test_softmax(logits, temperature):
    found = softmax(np.array(logits, np.float32), temperature)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found, softmax(np.array(logits, np.float32).astype(float) + 7, temperature), atol=1e-6)


def test_heads_are_replaced_only_when_asked(head, tmp_path):
    save_head(head, str(tmp_path / "head"), files={"base.weights.h5": b"weights"})
    before = files(tmp_path / "head")
    with pytest.raises(FeaturemillError, match="holds a head already; choose another --output, or pass --overwrite"):
        save_head(head, str(tmp_path / "head"))
    assert files(tmp_path / "head") == before
    save_head(replace(head, temperature=2.0), str(tmp_path / "head"), overwrite=True)
    assert load_head(str(tmp_path / "head")).temperature == 2.0
    assert "base.weights.h5" not in files(tmp_path / "head")
    assert os.listdir(tmp_path) == ["head"]


def test_what_is_not_a_head_is_never_replaced(head, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FeaturemillError, match="is a file, and a head is a folder"):
        check_place(str(tmp_path / "file"), overwrite=True)
    with pytest.raises(FeaturemillError, match="file is no folder one may write to"):
        check_place(str(tmp_path / "file" / "deep" / "head"), overwrite=True)
    (tmp_path / "photos").mkdir()
    check_place(str(tmp_path / "photos"), overwrite=False)
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(FeaturemillError, match=r"holds what is no head's \(cat.jpg\)"):
        check_place(str(tmp_path / "photos"), overwrite=True)
    # Somebody put a file, and a folder, beside a head.
    save_head(head, str(tmp_path / "head"))
    check_place(str(tmp_path / "head"), overwrite=True)
    (tmp_path / "head" / "saved_model").mkdir()
    with pytest.raises(FeaturemillError, match="saved_model"):
        save_head(head, str(tmp_path / "head"), overwrite=True)
    (tmp_path / "empty").mkdir()
    save_head(head, str(tmp_path / "empty"))
    assert load_head(str(tmp_path / "empty")).classes == head.classes


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("module", "broken"), [(storage, "open_write"), (committed, "_put")])
def test_nothing_half_written(head, tmp_path, monkeypatch, overwrite, module, broken):
    if overwrite:
        save_head(head, str(tmp_path / "head"))
    before = files(tmp_path / "head") if overwrite else None
    calls, real = [], getattr(module, broken)

    def full(*args):
        calls.append(args)
        if broken == "_put" or len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(module, broken, full)
    with pytest.raises(FeaturemillError, match=r"cannot write the head to .*No space left"):
        save_head(replace(head, temperature=9.0), str(tmp_path / "head"), overwrite=overwrite)
    assert os.listdir(tmp_path) == (["head"] if overwrite else [])
    assert not overwrite or files(tmp_path / "head") == before


@examples(60)
@given(
    name=st.sampled_from(["head.json", "head.npz"]), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255)
)
def test_a_changed_byte_is_seen(tmp_path_factory, name, where, flip):
    folder = tmp_path_factory.mktemp("head") / "head"
    model = Model("ridge", {"kernel1": np.eye(3), "bias1": np.zeros(3)})
    head = Head(model, ("a", "b", "c"), 1.0, ("embedding",), (3,), None)
    save_head(head, str(folder))
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data))] ^= flip
    (folder / name).write_bytes(data)
    try:
        loaded = load_head(str(folder))
    except FeaturemillError as error:
        message = str(error)
    else:
        # White space between the values of the JSON means nothing, so changing it changes nothing.
        assert name == "head.json"
        assert replace(loaded, model=model) == head
        return
    assert "\n" not in message
    assert str(folder) in message


def edit(folder, **changes) -> None:
    values = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    "changes",
    [{"classes": ["bée", "ant"]}, {"temperature": 1}, {"fingerprint": "0" * 64}, {"sha256": None}, {"new": 1}],
)
def test_edited_json_is_refused(head, tmp_path, changes):
    save_head(head, str(tmp_path / "head"))
    edit(tmp_path / "head")
    load_head(str(tmp_path / "head"))
    edit(tmp_path / "head", **changes)
    with pytest.raises(FeaturemillError, match=r"head.json was changed or damaged"):
        load_head(str(tmp_path / "head"))


def resign(folder, **changes) -> None:
    """Changes head.json and gives it the hash that fits."""
    values = {**json.loads((folder / "head.json").read_text()), **changes}
    (folder / "head.json").write_text(json.dumps({**values, "sha256": own_sha256(values)}))


@pytest.mark.parametrize("wrong", [None, True, -1, 1.5, "x", [], [[]], {}, {"a": {}}, [1, "x"]])
def test_values_of_other_types_are_distinguished_from_damage(head, tmp_path, wrong):
    """Whoever writes a head.json can give it a hash that fits."""
    save_head(head, str(tmp_path / "head"))
    before = (tmp_path / "head" / "head.json").read_text()
    for name in json.loads(before):
        resign(tmp_path / "head", **{name: wrong})
        with contextlib.suppress(FeaturemillError):
            loaded = load_head(str(tmp_path / "head"))
            loaded.probabilities(draw_matrix(2))
            assert loaded.never_trained == ()
        (tmp_path / "head" / "head.json").write_text(before)
    resign(tmp_path / "head", settings={"finetuned": wrong})
    if not isinstance(wrong, dict):
        with pytest.raises(FeaturemillError, match=r"head.json was changed or damaged"):
            load_head(str(tmp_path / "head"))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "holds nothing instead of layers"),
        ({"kernel1": np.eye(3)}, "instead of layers"),
        ({"kernel1": np.eye(3), "bias1": np.zeros(3)}, "it gives 3 scores for 2 classes"),
        ({"kernel1": np.eye(2), "bias1": np.zeros(2)}, "should take 3 numbers"),
        ({"kernel1": np.zeros((3, 2), int), "bias1": np.zeros(2)}, "what are no numbers"),
        ({"kernel1": np.full((3, 2), np.nan), "bias1": np.zeros(2)}, "what are no numbers"),
    ],
)
def test_arrays_that_are_not_those_of_the_kind(head, tmp_path, arrays, says):
    save_head(replace(head, model=replace(head.model, arrays=arrays)), str(tmp_path / "head"))
    with pytest.raises(FeaturemillError, match=rf"head.npz was changed or damaged .*{says}"):
        load_head(str(tmp_path / "head"))


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": np.array([0, 2])},
        {"codes": np.array([0.0, 1.0])},
        {"codes": np.array([0])},
        {"neighbours": np.int64(3)},
        {"neighbours": np.array([1, 1])},
        {"classes": np.int64(3)},
        {"vectors": np.zeros((2, 4), np.float32)},
        {"mean": np.zeros(3)},
    ],
)
def test_neighbours_that_do_not_fit(head, tmp_path, changes):
    arrays = {"vectors": np.eye(3, dtype=np.float32)[:2], "codes": np.array([0, 1]), "neighbours": np.int64(1)}
    arrays["classes"] = np.int64(2)
    save_head(replace(head, model=Model("knn", arrays)), str(tmp_path / "good"))
    load_head(str(tmp_path / "good"))
    save_head(replace(head, model=Model("knn", {**arrays, **changes})), str(tmp_path / "head"))
    with pytest.raises(FeaturemillError, match=r"head.npz was changed or damaged"):
        load_head(str(tmp_path / "head"))


def test_arrays_that_unpack_to_far_more(head, tmp_path):
    """Some kilobytes that would take megabytes; and an array that claims more than any memory holds."""
    save_head(head, str(tmp_path / "head"))
    packed = io.BytesIO()
    np.savez_compressed(packed, kernel1=np.zeros((3, 2**21)), bias1=np.zeros(2))
    claims = io.BytesIO()
    np.lib.format.write_array_header_1_0(claims, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)})
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w") as archive:
        archive.writestr("kernel1.npy", claims.getvalue())
    for data, says in ((packed, "its arrays are packed"), (large, "head.npz was changed")):
        (tmp_path / "head" / "head.npz").write_bytes(data.getvalue())
        resign(tmp_path / "head", arrays_sha256=hashlib.sha256(data.getvalue()).hexdigest())
        with pytest.raises(FeaturemillError, match=says):
            load_head(str(tmp_path / "head"))


def test_what_is_no_head(head, tmp_path):
    with pytest.raises(FeaturemillError, match=r"is no head: .*; pass the folder that featuremill train wrote"):
        load_head(str(tmp_path))
    for text in ("[1]", "{}", "\xff", "{"):
        (tmp_path / "head.json").write_text(text, encoding="latin-1")
        with pytest.raises(FeaturemillError, match=r"head.json was changed or damaged"):
            load_head(str(tmp_path))
    save_head(head, str(tmp_path / "head"))
    edit(tmp_path / "head", schema_version=99)
    with pytest.raises(FeaturemillError, match="schema version 99, this featuremill reads 1"):
        load_head(str(tmp_path / "head"))


def test_swapped_and_pickled_arrays_are_refused(head, tmp_path):
    save_head(head, str(tmp_path / "head"))
    save_head(replace(head, model=Model("ridge", {"kernel1": np.zeros((3, 2))})), str(tmp_path / "other"))
    for data in ((tmp_path / "other" / "head.npz").read_bytes(), b""):
        (tmp_path / "head" / "head.npz").write_bytes(data)
        with pytest.raises(FeaturemillError, match=r"head.npz was changed or damaged"):
            load_head(str(tmp_path / "head"))
    # Even with hashes that fit.
    save_head(replace(head, model=Model("ridge", {"kernel1": np.array([{}], object)})), str(tmp_path / "pickled"))
    with pytest.raises(FeaturemillError, match=r"head.npz was changed or damaged \(.*allow_pickle"):
        load_head(str(tmp_path / "pickled"))


def test_object_stores(head):
    save_head(head, "mem://heads/one", files={"report.html": b"<p>"})
    assert load_head("mem://heads/one").classes == head.classes
    with pytest.raises(FeaturemillError, match="holds a head already"):
        save_head(head, "mem://heads/one")
    save_head(replace(head, temperature=3.0), "mem://heads/one/", overwrite=True)
    assert load_head("mem://heads/one").temperature == 3.0
    assert storage.list_folder("mem://heads/one") == {"head.json", "head.npz", "metrics.json"}


def test_features_of_the_same_fingerprint(head, table):
    assert check_features(head, table) is None


def test_features_of_other_columns(head, table):
    assert check_features(head, replace(table, spec=replace(SPEC, features=SPEC.features[:1]))) is None
    renamed = replace(SPEC, features=(Feature("mean", "block5_pool", "avg"),))
    assert check_features(head, replace(table, spec=renamed, columns=("mean",))) is None
    with pytest.raises(FeaturemillError, match=r"features block5_pool:avg \| block5_pool:max"):
        check_features(head, replace(table, columns=("peak",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 96}, r"image_size 224 \| 96"),
        ({"weights": "cd" * 32, "resize": "pad"}, r"weights abababababab \| cdcdcdcdcdcd; resize squash \| pad"),
        ({"weights": "ab" * 31 + "cd"}, "weights"),
        ({"dtype": "float16"}, r"dtype float32 \| float16"),
    ],
)
def test_features_of_other_settings_are_refused(head, table, changes, message):
    with pytest.raises(FeaturemillError, match=message) as caught:
        check_features(head, replace(table, spec=replace(SPEC, **changes)))
    assert "head | features" in str(caught.value)


def test_plain_parquet_is_reported_and_its_dims_checked(head, table):
    assert "fingerprint" in check_features(head, replace(table, spec=None))
    assert "the head was trained on plain Parquet" in check_features(replace(head, spec=None), table)
    with pytest.raises(FeaturemillError, match=r"the head takes 4 numbers .* has 3"):
        check_features(replace(head, dims=(4,), spec=None), table)
