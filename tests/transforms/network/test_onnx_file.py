"""ONNX files: how tensors are laid out and pooled, what a network is known by, and what is refused in one line."""

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.support import onnx_files
from tests.support.onnx_files import TensorProto, helper, numpy_helper, onnx
from transforms.errors import FeaturemillError
from transforms.network import files, onnx_file
from transforms.network.bases import open_file
from transforms.network.files import Tap
from transforms.spec import Feature

POOLS = ("avg", "max", "gem", "flatten", "cls")


def saved(tmp_path, model, name="net.onnx"):
    path = tmp_path / name
    path.write_bytes(model.SerializeToString())
    return open_file("onnx", str(path))


def tokens_of(before):
    return Tap("t", (16 + before, 12), 1, before)


@pytest.mark.parametrize(
    "shape", [("n", 3, "h", "w"), (1, "h", "w", 3), (None, 3, 30, 30)], ids=["any", "last", "fixed"]
)
def test_maps_are_found_on_either_side(tmp_path, shape):
    file = saved(tmp_path, onnx_files.convolutions(shape=shape))
    assert (file.channels_last, file.batch) == (shape[3] == 3, 1 if shape[0] == 1 else 0)
    assert file.image_size(None) == (30 if 30 in shape else 224)
    taps = {tap.name: tap for tap in file.tappable(30)}
    # Seven channels at 7×7 positions: no shape says which is which, but a convolution does.
    assert taps["maps"] == Tap("maps", (7, 6, 6), 0)
    assert taps["last"] == Tap("last", (6, 6, 7), 2)
    assert taps["vector"].default_pool == "flatten"
    assert "planes" in taps or shape[3] != 3
    output = np.random.default_rng(0).standard_normal((7, 6, 6)).astype(np.float32)
    for pool in ("avg", "max", "gem", "flatten"):
        # Channels last in what is stored, wherever they were.
        same = taps["maps"].pooled(output, pool), taps["last"].pooled(output.transpose(1, 2, 0), pool)
        np.testing.assert_array_equal(*same)
    np.testing.assert_allclose(taps["maps"].pooled(output, "avg"), output.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_tokens(tmp_path, before):
    file = saved(tmp_path, onnx_files.transformer(before=before))
    tap = file.taps(["hidden"], 32)["hidden"]
    assert tap == replace(tokens_of(before), name="hidden")
    assert tap.default_pool == ("cls" if before else "avg")
    output = np.random.default_rng(0).standard_normal(tap.shape).astype(np.float32)
    np.testing.assert_allclose(tap.pooled(output, "avg"), output[before:].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tap.pooled(output, "max"), output[before:].max(axis=0))
    np.testing.assert_array_equal(tap.pooled(output, "flatten"), output.ravel())
    if before:
        np.testing.assert_array_equal(tap.pooled(output, "cls"), output[0])
    else:
        with pytest.raises(FeaturemillError, match="hidden has no class token"):
            tap.size(Feature("a", "hidden", "cls"))


@pytest.mark.parametrize(
    ("tap", "fitting"),
    [
        (Tap("t", (7,), 0), {"flatten": 7}),
        (Tap("t", (5, 4, 4), 0), {"avg": 5, "max": 5, "gem": 5, "flatten": 80}),
        (Tap("t", (5, 5, 5), None), {"flatten": 125}),
        (tokens_of(1), {"avg": 12, "max": 12, "gem": 12, "flatten": 204, "cls": 12}),
        (Tap("t", (32, 8), 1, None), {"flatten": 256, "cls": 8}),
    ],
    ids=["vector", "maps", "unclear", "tokens", "queries"],
)
def test_a_pool_fits_or_is_refused(tap, fitting):
    for pool in POOLS:
        if pool in fitting:
            assert tap.size(Feature("a", "t", pool)) == fitting[pool]
            output = np.arange(np.prod(tap.shape), dtype=np.float16).reshape(tap.shape)
            assert tap.pooled(output, pool).shape == (fitting[pool],)
        else:
            with pytest.raises(FeaturemillError, match=f"feature 'a=t:{pool}': t .*flatten|avg|cls"):
                tap.size(Feature("a", "t", pool))


def test_an_unclear_layout_is_refused_and_not_guessed(tmp_path):
    arrays = {"kernel": onnx_files.drawn()(4, 3, 8, 8), "shape": np.array([0, 4, 4, 4], np.int64)}
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["maps"], strides=[8, 8]),
        helper.make_node("Reshape", ["maps", "shape"], ["cube"]),
    ]
    file = saved(tmp_path, onnx_files.model(nodes, arrays, shape=("n", 3, 32, 32), outputs=["cube"]))
    tap = file.taps(["cube"], 32)["cube"]
    assert (tap.channels, tap.default_pool) == (None, "flatten")
    with pytest.raises(FeaturemillError, match="laid out in an unknown way; take its numbers as they lie with"):
        tap.size(Feature("a", "cube", "avg"))


def test_a_class_token_behind_channels_is_not_believed(tmp_path):
    # As a detector gives its boxes: 22 numbers of each of 28² + 14² + 7² = 32² + 5.
    arrays = {"kernel": onnx_files.drawn()(22, 3, 1, 1), "shape": np.array([0, 22, -1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["maps"]),
        helper.make_node("Reshape", ["maps", "shape"], ["patches"]),
        helper.make_node("Slice", ["patches", *"abc"], ["boxes"]),
    ]
    arrays |= {name: np.array([value], np.int64) for name, value in zip("abc", (0, 1029, 2), strict=True)}
    file = saved(tmp_path, onnx_files.model(nodes, arrays, shape=("n", 3, 33, 33), outputs=["boxes"]))
    taps = file.taps(["patches", "boxes"], 33)
    assert taps["patches"] == Tap("patches", (22, 1089), 0)
    assert (taps["boxes"].shape, taps["boxes"].default_pool) == ((22, 1029), "flatten")


def test_sizes_that_are_negative_are_any(tmp_path):
    file = saved(tmp_path, onnx_files.convolutions(shape=(-1, 3, -1, -1)))
    assert (file.batch, file.image_size(48)) == (0, 48)
    assert file.taps(["vector"], 48)["vector"].shape == (7,)


def constants(model):
    """Moves a network's tensors into nodes, as Paddle has them."""
    nodes = [helper.make_node("Constant", [], [each.name], value=each) for each in model.graph.initializer]
    nodes += model.graph.node
    for name, them in (("initializer", []), ("node", nodes)):
        del getattr(model.graph, name)[:]
        getattr(model.graph, name).extend(them)
    return model


def test_tensors_in_nodes(tmp_path):
    file = saved(tmp_path, onnx_files.convolutions())
    inside = saved(tmp_path, constants(onnx_files.convolutions()), "inside.onnx")
    assert inside.parameters == file.parameters == 5 * 3 * 9 + 7 * 5 * 9 + 7
    model = constants(onnx_files.convolutions())
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="beside.bin", size_threshold=0, convert_attribute=True
    )
    onnx.save(model, tmp_path / "outside.onnx")
    assert (tmp_path / "beside.bin").stat().st_size > 0
    outside = open_file("onnx", str(tmp_path / "outside.onnx"))
    assert outside.sha256 == inside.sha256
    assert outside.taps(["vector"], 32)["vector"].shape == (7,)
    os.unlink(tmp_path / "beside.bin")
    files.forget()
    with pytest.raises(FeaturemillError, match=r"has its tensors in beside.bin, which isn't beside it"):
        open_file("onnx", str(tmp_path / "outside.onnx"))


def test_what_a_network_is_known_by(tmp_path):
    model = onnx_files.convolutions()
    file = saved(tmp_path, model)
    # Another name, author, order of tensors, names of nodes, and its tensors in a file beside it.
    other = onnx_files.convolutions(producer_name="somebody", doc_string="what it is")
    for number, node in enumerate(other.graph.node):
        node.name = f"node {number}"
    tensors = list(reversed(other.graph.initializer))
    del other.graph.initializer[:]
    other.graph.initializer.extend(tensors)
    (tmp_path / "b").mkdir()
    onnx.external_data_helper.convert_model_to_external_data(other, location="beside.bin", size_threshold=0)
    onnx.save(other, tmp_path / "b/other.onnx")
    assert (tmp_path / "b/beside.bin").stat().st_size > 0
    moved = open_file("onnx", str(tmp_path / "b/other.onnx"))
    assert moved.sha256 == file.sha256
    assert moved.taps(["maps"], 32) == file.taps(["maps"], 32)
    # Equal tensors in another graph, and other tensors in an equal one.
    changed = onnx_files.convolutions()
    changed.graph.node[1].op_type = "Sigmoid"
    hashes = {saved(tmp_path, each, "c.onnx").sha256 for each in (changed, onnx_files.convolutions(seed=1), model)}
    assert len(hashes) == 3
    assert file.sha256 in hashes
    os.unlink(tmp_path / "b/beside.bin")
    os.utime(tmp_path / "b/other.onnx", (1, 1))
    with pytest.raises(FeaturemillError, match=r"has its tensors in beside.bin, which isn't beside it"):
        open_file("onnx", str(tmp_path / "b/other.onnx"))


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    model = onnx_files.convolutions()
    tensor = model.graph.initializer[0]
    for name in ("/etc/passwd", "../secret", "a/../../secret", ""):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=name)
        with pytest.raises(FeaturemillError, match="outside of its folder"):
            saved(tmp_path, model, f"{len(name)}.onnx")


def spoiled(**changes):
    model = onnx_files.convolutions()
    for name, change in changes.items():
        change(getattr(model.graph, name))
    return model.SerializeToString()


def of_input(*shape, kind=TensorProto.FLOAT):
    return onnx_files.convolutions(shape=shape, kind=kind).SerializeToString()


SECOND = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" * 9, "is not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not an ONNX file"),
        (onnx_files.convolutions().SerializeToString()[:-90], "is not an ONNX file, or is damaged"),
        (spoiled(input=lambda them: them.append(SECOND)), r"takes 2 inputs \(pixels, mask\), not one"),
        (spoiled(node=lambda them: setattr(them[1], "domain", "mine")), "ONNX Runtime .* can't load .*mine"),
        (onnx_files.convolutions(opset=99).SerializeToString(), "can't load .*opset"),
        (of_input("n", 3, 32, 48), "32×48, and only squares"),
        (of_input("n", 4, 32, 32), "where its input, [?]×4×32×32, has the colours isn't clear"),
        (of_input(2, 3, 3, 3), "isn't clear"),
        (of_input("n", 3, 32, 32, kind=TensorProto.INT32), "isn't N×3×S×S"),
        (spoiled(initializer=lambda them: them[0].ClearField("raw_data")), "tensor a is damaged"),
        (of_input("n", 3, 2, 2), "pass another --image-size"),
        (of_input("n", 3, 10**6, 10**6), "takes 1 image of 1000000×1000000 at once, over 2.15 GB"),
        (of_input(10**9, 3, 32, 32), "takes 1,000,000,000 images of 32×32 at once"),
        (spoiled(output=lambda them: them.pop()), "is empty"),
    ],
    ids=[
        "empty",
        "png",
        "lfs",
        "cut",
        "inputs",
        "operator",
        "opset",
        "oblong",
        "four",
        "cube",
        "ints",
        "tensor",
        "small",
        "giant",
        "batch",
        "outputs",
    ],
)
def test_one_line_says_why_a_file_cannot_be_used(tmp_path, data, says):
    (tmp_path / "net.onnx").write_bytes(data)

    def use():
        file = open_file("onnx", str(tmp_path / "net.onnx"))
        file.taps(["vector"], file.image_size(None))

    with pytest.raises(FeaturemillError, match=says) as error:
        use()
    assert "\n" not in str(error.value)
    assert "net.onnx" in str(error.value)


def test_outputs_that_are_no_features(tmp_path):
    nodes = [
        helper.make_node("Shape", ["pixels"], ["sizes"]),
        helper.make_node("ReduceMean", ["pixels"], ["one"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Flatten", ["pixels"], ["all"], axis=0),
        helper.make_node("GlobalAveragePool", ["pixels"], ["colours"]),
    ]
    file = saved(tmp_path, onnx_files.model(nodes, {}, shape=("n", 3, "h", "w"), outputs=["one"]))
    for name, says in (
        ("sizes", "int64, not floats"),
        ("one", "not N×D"),
        ("all", "not N×D"),
        ("ones", "did you mean"),
    ):
        with pytest.raises(FeaturemillError, match=says):
            file.taps([name], 32)
    assert [tap.name for tap in file.tappable(32)] == ["colours"]
    assert file.taps(["colours"], 32)["colours"].size(Feature("a", "colours", "avg")) == 3


def test_a_wrong_name_is_not_answered_with_hundreds(tmp_path):
    chain = ["pixels", *(f"t{number}" for number in range(40))]
    nodes = [helper.make_node("Relu", [taken], [given]) for taken, given in pairwise(chain)]
    file = saved(tmp_path, onnx_files.model(nodes, {}, shape=("n", 3, "h", "w"), outputs=["t39"]))
    with pytest.raises(FeaturemillError, match=r"choose from t0, t1, .*, t29 … [(]40 in all[)]$"):
        file.taps(["block5_pool"], 32)


def test_only_what_is_needed_is_computed(tmp_path):
    # What `maps` needs ends before a node that can't be loaded.
    model = onnx_files.convolutions()
    model.graph.node[-1].op_type = "Unheard"
    file = saved(tmp_path, model)
    assert file.taps(["maps"], 32)["maps"].shape == (7, 7, 7)
    with pytest.raises(FeaturemillError, match="Unheard"):
        file.taps(["vector"], 32)


def test_a_file_is_read_anew_where_it_changed_and_bounded(tmp_path, monkeypatch):
    first = saved(tmp_path, onnx_files.convolutions())
    assert open_file("onnx", str(tmp_path / "net.onnx")) is first
    tensor = numpy_helper.from_array(np.zeros((7, 100), np.float32), "more")
    model = onnx_files.convolutions()
    model.graph.initializer.append(tensor)
    assert saved(tmp_path, model).sha256 != first.sha256
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 2_000)
    files.forget()
    with pytest.raises(FeaturemillError, match=r"net.onnx: it holds over 2 kB; use a smaller"):
        open_file("onnx", str(tmp_path / "net.onnx"))
    with pytest.raises(FeaturemillError, match="no network file"):
        open_file("onnx", str(tmp_path / "gone.onnx"))
