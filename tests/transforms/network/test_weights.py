"""Weights from seeds, files of every layout, Keras's cache and the net; and what is said of each that won't do."""

import hashlib
import http.server
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import ROOT
from transforms.errors import FeaturemillError, UsageError
from transforms.network import published as imagenet
from transforms.network import weight_files
from transforms.network.bases import BASES
from transforms.network.vgg import BACKBONES, build, cut, describe, layers
from transforms.network.weights import digest, load_weights

SEED = "random:7"


def random_weights(name, *, include_top=False, tap="block5_pool"):
    return load_weights(SEED, cut(layers(name, include_top=include_top), [tap]), backbone=name)


def write_published(path, arrays, *, naming="{layer}_{kind}_1:0", root="/"):
    """Writes the layout of the published files; `naming` as Keras 1 (there) or Keras 2 and 3 had it."""
    with h5py.File(path, "w") as file:
        top = file.require_group(root)
        top.attrs["layer_names"] = [name.encode() for name in arrays]
        for name, pair in arrays.items():
            group = top.create_group(name)
            names = [
                naming.format(layer=name, kind=kind)
                for kind in (("W", "b") if "_1:0" in naming else ("kernel", "bias"))
            ]
            group.attrs["weight_names"] = [weight.encode() for weight in names]
            for weight, array in zip(names, pair, strict=True):
                group[weight] = array
        # Layers without weights are there too.
        top.create_group("block1_pool").attrs["weight_names"] = np.array([], "S1")


@pytest.fixture(scope="module")
def vgg16():
    return random_weights("vgg16")


@pytest.fixture(scope="module")
def published(tmp_path_factory, vgg16):
    path = tmp_path_factory.mktemp("published") / "vgg16.h5"
    write_published(path, vgg16.arrays)
    return path


def assert_same(found, expected, *, is_random=False):
    assert found.sha256 == expected.sha256
    assert list(found.arrays) == list(expected.arrays)
    for name, pair in expected.arrays.items():
        for mine, theirs in zip(found.arrays[name], pair, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_array_equal(mine, theirs)
    assert found.is_random == is_random


# Seeds


def test_random_is_he_normal_and_says_so(vgg16):
    assert vgg16.is_random
    assert vgg16.origin == SEED
    for name, (kernel, bias) in vgg16.arrays.items():
        assert kernel.dtype == bias.dtype == np.float32
        expected = np.sqrt(2 / np.prod(kernel.shape[:-1]))
        assert kernel.std() == pytest.approx(expected, rel=0.05), name
        assert 0 < np.abs(bias).max() < 0.1


def test_random_depends_on_the_seed_and_not_on_the_cut(vgg16):
    short = random_weights("vgg16", tap="block2_conv1")
    assert list(short.arrays) == ["block1_conv1", "block1_conv2", "block2_conv1"]
    for name, pair in short.arrays.items():
        np.testing.assert_array_equal(pair[0], vgg16.arrays[name][0])
    other = load_weights("random:8", layers("vgg16")[:1], backbone="vgg16")
    assert not np.array_equal(other.arrays["block1_conv1"][0], short.arrays["block1_conv1"][0])
    assert not np.array_equal(short.arrays["block1_conv1"][0][..., :5], short.arrays["block1_conv2"][0][:, :, :3, :5])


def test_random_is_the_same_on_every_machine():
    """A golden value: a change of it would make every stored fingerprint of random weights stale."""
    weights = load_weights("random:0", layers("vgg19")[:2], backbone="vgg19")
    assert weights.sha256 == "9753ab874a3c9b5f312a22bc1d50587dca8f51b7b857dc85748a218f6bae9764"


# The digest


def test_digest_is_what_it_says():
    arrays = {"a": (np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float32))}
    text = b"a 2\xc3\x973\n" + np.arange(6, dtype="<f4").tobytes() + b"a 3\n" + bytes(12)
    assert digest(arrays) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("change", ["name", "value", "shape"])
def test_digest_sees_every_change(change):
    kernel, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float32)
    before = digest({"a": (kernel, bias)})
    changed = {
        "name": {"b": (kernel, bias)},
        "value": {"a": (kernel, bias + np.float32(1e-30))},
        "shape": {"a": (kernel.reshape(3, 2), bias)},
    }
    assert digest({"a": (np.asfortranarray(kernel), bias)}) == before
    assert digest(changed[change]) != before


# Files of every layout


@pytest.mark.parametrize(
    ("naming", "root"),
    [("{layer}_{kind}_1:0", "/"), ("{layer}/{kind}:0", "/"), ("{layer}/{kind}", "model_weights")],
)
def test_published_layout(tmp_path, vgg16, naming, root):
    write_published(tmp_path / "a.h5", vgg16.arrays, naming=naming, root=root)
    found = load_weights(str(tmp_path / "a.h5"), layers("vgg16"), backbone="vgg16")
    assert_same(found, vgg16)
    assert found.origin == str(tmp_path / "a.h5")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("ending", ["weights.h5", "h5", "keras"])
@pytest.mark.parametrize("ours", [True, False])
def test_files_that_keras_writes(tmp_path, name, ending, ours):
    import keras

    table = layers(name)
    if ours:
        model = build(table, 32)
    else:
        model = getattr(keras.applications, name.upper())(weights=None, include_top=False, input_shape=(32, 32, 3))
    path = tmp_path / f"a.{ending}"
    (model.save_weights if ending == "weights.h5" else model.save)(path)
    found = load_weights(str(path), table, backbone=name)
    for layer in model.layers:
        if layer.weights:
            for mine, theirs in zip(found.arrays[layer.name], layer.get_weights(), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    assert len(found.arrays) == sum(layer.has_weights for layer in table)


def test_keras_3_layout_without_names_goes_by_order(tmp_path, vgg16):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for i, pair in enumerate(vgg16.arrays.values()):
            group = file.create_group(f"layers/conv2d{f'_{i}' if i else ''}/vars")
            group["0"], group["1"] = pair
        file.create_group("layers/max_pooling2d/vars")
    assert_same(load_weights(str(tmp_path / "a.weights.h5"), layers("vgg16"), backbone="vgg16"), vgg16)
    with pytest.raises(FeaturemillError, match="looks like vgg16 weights"):
        load_weights(str(tmp_path / "a.weights.h5"), layers("vgg19"), backbone="vgg19")


def test_the_network_inside_a_larger_keras_model(tmp_path):
    import keras

    table = layers("vgg16")[:3]
    inner = build(table, 32)
    model = keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Flatten(), keras.layers.Dense(2)])
    for name, save in (("a.keras", model.save), ("a.weights.h5", model.save_weights)):
        save(tmp_path / name)
        found = load_weights(str(tmp_path / name), table, backbone="vgg16")
        np.testing.assert_array_equal(found.arrays["block1_conv2"][0], inner.get_layer("block1_conv2").get_weights()[0])


def test_only_the_layers_used_are_read_and_hashed(published, vgg16):
    table = cut(layers("vgg16"), ["block1_pool"])
    found = load_weights(str(published), table, backbone="vgg16")
    assert list(found.arrays) == ["block1_conv1", "block1_conv2"]
    assert found.sha256 == digest({name: vgg16.arrays[name] for name in found.arrays}) != vgg16.sha256


def test_top_layers(tmp_path):
    path = tmp_path / "top.h5"
    write_published(path, random_weights("vgg16").arrays)
    table = cut(layers("vgg16", include_top=True), ["fc1"])
    with h5py.File(path, "a") as file:
        group = file.create_group("fc1")
        group.attrs["weight_names"] = [b"fc1_W_1:0", b"fc1_b_1:0"]
        # Filled, not written: 400 MB that take no place on the disk.
        for name, shape in zip(("fc1_W_1:0", "fc1_b_1:0"), describe(table, 224)[-1].weight_shapes, strict=True):
            group.create_dataset(name, shape, "<f4", fillvalue=0.5)
    kernel, bias = load_weights(str(path), table, backbone="vgg16").arrays["fc1"]
    assert (kernel.shape, bias.shape) == ((25_088, 4096), (4096,))
    assert kernel[0, 0] == bias[-1] == 0.5


def test_half_and_double_precision_become_float32(tmp_path, vgg16):
    table = cut(layers("vgg16"), ["block1_conv2"])
    for dtype in ("float16", "float64"):
        arrays = {
            name: [array.astype(dtype) for array in vgg16.arrays[name]] for name in ("block1_conv1", "block1_conv2")
        }
        write_published(tmp_path / "a.h5", arrays)
        kernel = load_weights(str(tmp_path / "a.h5"), table, backbone="vgg16").arrays["block1_conv2"][0]
        assert kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel, arrays["block1_conv2"][0].astype("float32"))


def test_remote_files_are_read_through_beam(monkeypatch, published, vgg16):
    opened = []

    def open_read(uri):
        opened.append(uri)
        return open(published, "rb")

    monkeypatch.setattr(weight_files.storage, "open_read", open_read)
    found = load_weights("gs://bucket/vgg16.h5", layers("vgg16"), backbone="vgg16")
    assert opened == ["gs://bucket/vgg16.h5"] == [found.origin]
    assert_same(found, vgg16)


def test_hdf5_needs_no_keras(published):
    code = (
        "import sys; from transforms.network.vgg import layers; from transforms.network.weights import load_weights;"
        f"print(load_weights({str(published)!r}, layers('vgg16'), backbone='vgg16').sha256);"
        "print('keras' in sys.modules, 'tensorflow' in sys.modules, 'apache_beam' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False"] * 3


# Files that won't do


def refusal(path, *, backbone="vgg16", table=None):
    with pytest.raises(FeaturemillError) as caught:
        load_weights(str(path), table or layers(backbone), backbone=backbone)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def change(tmp_path, vgg16, **arrays):
    path = tmp_path / "changed.h5"
    write_published(path, {**vgg16.arrays, **arrays})
    return path


def test_the_other_network(tmp_path, published):
    assert "has no layer block3_conv4: it looks like vgg16 weights, not vgg19; pass --backbone vgg16" in refusal(
        published, backbone="vgg19"
    )
    # VGG19 has all of VGG16's layers, so nothing else would notice; nor would a cut before the difference.
    write_published(tmp_path / "19.h5", random_weights("vgg19").arrays)
    for table in (layers("vgg16"), layers("vgg16")[:2]):
        assert "has a layer block3_conv4: it looks like vgg19 weights" in refusal(tmp_path / "19.h5", table=table)


def test_a_file_without_the_top(published):
    assert "no layer fc1: it was saved without the top" in refusal(published, table=layers("vgg16", include_top=True))


def test_wrong_shape_dtype_count_and_values(tmp_path, vgg16):
    kernel, bias = vgg16.arrays["block2_conv1"]
    message = refusal(change(tmp_path, vgg16, block2_conv1=(kernel.transpose(3, 2, 0, 1), bias)))
    assert "block2_conv1's kernel has shape 128×64×3×3, expected 3×3×64×128" in message
    message = refusal(change(tmp_path, vgg16, block2_conv1=(kernel.astype(np.int32), bias)))
    assert "block2_conv1's kernel is int32, expected one of float16, float32, float64" in message
    broken = bias.copy()
    broken[:3] = [np.nan, np.inf, -np.inf]
    assert "block2_conv1's bias holds 3 values that are NaN" in refusal(
        change(tmp_path, vgg16, block2_conv1=(kernel, broken))
    )
    with h5py.File(tmp_path / "changed.h5", "a") as file:
        file["block2_conv1"].attrs["weight_names"] = [b"block2_conv1_W_1:0"]
    assert "block2_conv1 has 1 arrays, expected kernel and bias" in refusal(tmp_path / "changed.h5")


def test_finite_in_float64_but_not_in_float32(tmp_path, vgg16):
    kernel, bias = vgg16.arrays["block1_conv1"]
    path = change(tmp_path, vgg16, block1_conv1=(kernel.astype(np.float64), np.full_like(bias, 1e300, np.float64)))
    assert "block1_conv1's bias holds 64 values" in refusal(path)


def test_another_model(tmp_path):
    write_published(tmp_path / "a.h5", {"conv_1": (np.zeros((3, 3), np.float32), np.zeros(3, np.float32))})
    assert "has no layer block1_conv1: it has conv_1; pass a file of vgg16 weights" in refusal(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = [1, 2]
    assert "it has no weights at all" in refusal(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "block1_conv1"
        group.create_group("0")
        group.create_group("1")
    assert "is damaged" in refusal(tmp_path / "c.h5")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer; .* git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page; download the file itself"),
        (b"PK\x03\x04 and no more", "cannot read .* as a Keras archive: File is not a zip file"),
        (b"hello", "of another format"),
    ],
)
def test_what_is_no_weight_file(tmp_path, content, says):
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    message = refusal(path)
    assert re.search(says, message), message


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.999])
def test_cut_off_files(tmp_path, published, share):
    data = published.read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(data[: int(len(data) * share)])
    assert "is damaged or cut off" in refusal(path)


def test_overwritten_files_never_end_in_another_error(tmp_path, vgg16):
    table = layers("vgg16")[:2]
    path = tmp_path / "noise.h5"
    write_published(path, {layer.name: vgg16.arrays[layer.name] for layer in table})
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        noisy = bytearray(data)
        start = int(rng.integers(8, 8_000))
        noisy[start : start + 64] = rng.bytes(64)
        path.write_bytes(noisy)
        try:
            load_weights(str(path), table, backbone="vgg16")
        except FeaturemillError:
            refused += 1
    assert refused > 20


def test_numbers_outside_the_file(tmp_path, vgg16):
    path = change(tmp_path, vgg16)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * 4))
    with h5py.File(path, "a") as file:
        group = file["block1_conv1"]
        del group["block1_conv1_b_1:0"]
        group.create_dataset("block1_conv1_b_1:0", (64,), "<f4", external=[(str(secret), 0, 256)])
    assert "block1_conv1's bias lies outside the file" in refusal(path)


def test_missing_files_and_folders(tmp_path):
    assert "no weight file" in refusal(tmp_path / "none.h5")
    assert "cannot read weights from" in refusal(tmp_path)


def test_no_model_is_built_from_a_keras_archive(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(3)])
    model.save(tmp_path / "a.keras")
    assert "has no layer block1_conv1: it has dense" in refusal(tmp_path / "a.keras")


def test_archives_that_claim_too_much_or_lack_their_weights(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2**20))
    assert "is damaged or cut off" in refusal(tmp_path / "a.keras")
    monkeypatch.setattr(weight_files, "_MOST_ARCHIVE_BYTES", 2**20 - 1)
    assert "its weights claim 1,048,576 bytes" in refusal(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    assert "no item named 'model.weights.h5'" in refusal(tmp_path / "b.keras")


def test_chunks_that_unpack_to_far_more_than_the_array(tmp_path, vgg16, monkeypatch):
    monkeypatch.setattr(weight_files, "_CHUNK_NUMBERS", 1000)
    path = change(tmp_path, vgg16)
    with h5py.File(path, "a") as file:
        group = file["block1_conv1"]
        del group["block1_conv1_b_1:0"]
        group.create_dataset("block1_conv1_b_1:0", (64,), "<f4", maxshape=(None,), chunks=(2**20,), compression="gzip")
    assert "block1_conv1's bias is stored in chunks of 1048576" in refusal(path)


@pytest.mark.parametrize("shape", ["dag", "ring", "deep", "outside"])
def test_groups_that_link_to_each_other(tmp_path, shape):
    """Each is looked at once: over every path, two links from each of 40 groups to the next would take for ever."""
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other.create_group("layers/conv2d/vars").attrs["name"] = "block1_conv1"
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        for _ in range(300 if shape == "deep" else 40):
            child = group.create_group("l")
            if shape == "dag":
                group["r"] = child
            group = child
        if shape == "ring":
            group["back"] = file["a"]
        if shape == "outside":
            group["other"] = h5py.ExternalLink("other.h5", "/layers")
    says = "its groups lie over 100 deep" if shape == "deep" else "it has no weights at all"
    assert says in refusal(path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("imagnet", "did you mean imagenet"),
        ("random:x", "the seed is a whole number, such as random:0"),
        ("random", "such as random:0"),
        ("random:-1", "such as random:0"),
        ("whatever", "neither a file here nor a known name"),
    ],
)
def test_unknown_sources(source, says):
    with pytest.raises(UsageError, match=says):
        load_weights(source, layers("vgg16"), backbone="vgg16")


# The published files


class Site:
    """A server on loopback that has one file, whole or breaking off midway."""

    def __init__(self, content):
        self.content, self.promised, self.requests = content, len(content), []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append(self.path)
                if site.content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(site.promised))
                self.end_headers()
                self.wfile.write(site.content)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def place(monkeypatch, digest):
    """Has the published files of VGG16 where the server is; the one without the top with this digest."""
    for with_top, file in list(BASES["vgg16"].published.items()):
        expected = file.digest if with_top else digest
        monkeypatch.setitem(
            BASES["vgg16"].published, with_top, imagenet.application_file(f"vgg16/{file.name}", expected)
        )


@pytest.fixture
def site(monkeypatch, tmp_path, published):
    """The file on a server, an empty cache, and the table changed to expect it."""
    content = published.read_bytes()
    site = Site(content)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(imagenet, "_STORE", site.url)
    place(monkeypatch, hashlib.md5(content).hexdigest())
    yield site
    site.server.shutdown()
    site.server.server_close()


NOTOP = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


def load_imagenet(table=None):
    return load_weights("imagenet", table or layers("vgg16"), backbone="vgg16")


def cached(tmp_path):
    folder = tmp_path / "keras" / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_downloads_once_into_keras_cache(site, tmp_path, vgg16):
    for _ in range(2):
        found = load_imagenet()
        assert_same(found, vgg16)
        assert found.origin == f"imagenet ({NOTOP})"
    assert site.requests == [f"/vgg16/{NOTOP}"]
    assert cached(tmp_path) == [NOTOP]


@pytest.mark.parametrize("fault", ["wrong content", "breaks off", "not there", "no server"])
def test_failed_downloads_leave_nothing_and_name_the_cure(site, tmp_path, fault, monkeypatch):
    if fault == "wrong content":
        site.content = b"x" * site.promised
    elif fault == "breaks off":
        site.content = site.content[:1_500_000]
    elif fault == "not there":
        site.content = None
    else:
        monkeypatch.setattr(imagenet, "_STORE", "http://127.0.0.1:9")
        place(monkeypatch, BASES["vgg16"].published[False].digest)
    with pytest.raises(FeaturemillError) as caught:
        load_imagenet()
    message = str(caught.value)
    assert "\n" not in message
    for part in (NOTOP, "MD5", "--weights PATH", str(tmp_path / "keras" / "models"), imagenet._STORE):
        assert part in message
    assert {
        "wrong content": "got 58,",
        "breaks off": "got 1,500,000 bytes",
        "not there": "404",
        "no server": "refused",
    }[fault] in message
    assert cached(tmp_path) == []


def test_a_wrong_file_in_the_cache_is_named_and_kept(site, tmp_path):
    folder = tmp_path / "keras" / "models"
    folder.mkdir(parents=True)
    (folder / NOTOP).write_bytes(b"mine")
    with pytest.raises(
        FeaturemillError, match=r"not the published file: 4 bytes with MD5 \w+, expected \w+; delete it"
    ):
        load_imagenet()
    assert (folder / NOTOP).read_bytes() == b"mine"
    assert site.requests == []


def test_the_top_is_fetched_only_when_it_is_used(site):
    with pytest.raises(FeaturemillError, match=r"got .* bytes with MD5"):
        load_imagenet(layers("vgg16", include_top=True))
    load_imagenet(cut(layers("vgg16", include_top=True), ["flatten"]))
    assert site.requests == ["/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5", f"/vgg16/{NOTOP}"]


def test_names_addresses_and_hashes_are_keras_own():
    """Read from the installed Keras, so that a new release that moves them is noticed."""
    import keras

    folder = Path(keras.__file__).parent / "src" / "applications"
    for name in BACKBONES:
        source = "".join((folder / f"{name}.py").read_text().split()).replace('""', "")
        for file in BASES[name].published.values():
            assert file.url in source
            assert f'"{file.name}"' in source
            assert f'file_hash="{file.digest}"' in source


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, base in BASES.items() if not base.is_chain])
def test_keras_asks_for_the_same_file(monkeypatch, name):
    """What Keras itself would fetch, of bases whose file names it puts together."""
    import importlib

    import keras

    asked = []

    def get_file(file_name, url, *, file_hash, **more):
        asked.append(imagenet.Published(file_name, url, file_hash))
        raise FileNotFoundError

    module = importlib.import_module(getattr(keras.applications, BASES[name].builder).__module__)
    monkeypatch.setattr(module.file_utils, "get_file", get_file)
    with pytest.raises(FileNotFoundError):
        getattr(keras.applications, BASES[name].builder)(include_top=False)
    assert asked == [BASES[name].published[False]]
