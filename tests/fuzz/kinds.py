"""The kinds of files that come from elsewhere: whole ones to spoil, and what reads each as a command does.

A reader returns whether the file was read; it may raise FeaturemillError, and nothing else.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.factories import WRITERS, draw_items
from transforms.records import EncodedImage, Failure
from transforms.spec import Feature, FeatureSpec

_SPEC = FeatureSpec("vgg16", "0" * 64, (Feature("embedding", "block1_pool", "avg"),), image_size=32)
_DIMS = 4


@dataclass(frozen=True)
class Kind:
    """Some files of a kind.

    Attributes:
        make: Yields whole files.
        read: Takes a spoiled one, under a name with `ending`; True if something was read.
        ending: Of the file's name.
    """

    make: Callable[[], Iterator[bytes]]
    read: Callable[[Path], bool]
    ending: str


def _pixels(size: int = 48) -> Image.Image:
    random = np.random.default_rng(size)
    return Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)).resize((2 * size, size))


def _encoded(format: str, **options: object) -> bytes:
    target = io.BytesIO()
    _pixels().save(target, format, **options)
    return target.getvalue()


def _images(format: str, *several: dict) -> Callable[[], Iterator[bytes]]:
    def make() -> Iterator[bytes]:
        if format == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        for options in several or ({},):
            yield _encoded(format, **options)

    return make


def _decode(path: Path) -> bool:
    from dataclasses import replace

    from transforms.embedding.batches import decode_record
    from transforms.embedding.settings import Embedding

    record = EncodedImage(str(path), None, str(path), 0, path.read_bytes())
    found = [
        decode_record(record, Embedding(spec=replace(_SPEC, decode=decode), max_pixels=2**22))
        for decode in ("exact", "fast")
    ]
    return not any(isinstance(each, Failure) for each in found)


def _shards(kind: str, *, gzip: bool = False) -> Callable[[], Iterator[bytes]]:
    def make() -> Iterator[bytes]:
        import gzip as packing

        with tempfile.TemporaryDirectory() as folder:
            WRITERS[kind](Path(folder, "x"), draw_items(per_class=3, size=16, seed=1))
            data = Path(folder, "x").read_bytes()
            yield packing.compress(data, mtime=0) if gzip else data

    return make


def _read_shard(path: Path) -> bool:
    from transforms import shards

    found = shards.find([str(path)])
    records = [record for shard in found.shards for unit in shards.split(shard, 2000) for record in shards.read(unit)]
    return bool(records) and not any(isinstance(record, Failure) for record in records)


def _examples() -> Iterator[bytes]:
    from transforms.shards.example import serialize

    fields = {"image/encoded": _encoded("PNG"), "image/class/text": "cat", "image/filename": "a.png", "more": [1, 2, 3]}
    yield serialize(fields)
    yield serialize({**fields, "image/class/text": 7, "score": 0.5})


def _read_example(path: Path) -> bool:
    """Reads a spoiled record whose checksums are right."""
    from transforms.shards.tfrecord import frame

    path.write_bytes(frame(path.read_bytes()))
    return _read_shard(path)


def _label_files() -> Iterator[bytes]:
    import gzip

    csv = 'file,label,more\na/1.jpg,café,1\n"b, 2.jpg","two\nlines",\nc.jpg,,"x"\n'
    lines = "".join(json.dumps({"file": f"{i}.jpg", "label": f"bü{i}", "more": [i]}) + "\n" for i in range(9))
    for text in (csv, csv.replace(",", ";"), lines):
        yield from (text.encode(), text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("cp1252"))
    yield gzip.compress(csv.encode(), mtime=0)
    target = io.BytesIO()
    pq.write_table(pa.table({"file": ["a", "b"], "label": ["x", None], "more": [1, 2]}), target)
    yield target.getvalue()


def _read_labels(path: Path) -> bool:
    from transforms.rows.labels import read_labels

    return len(read_labels(str(path)).table.to_pylist()) > 0


def _features(rows: int = 9) -> pa.Table:
    vectors = np.random.default_rng(0).normal(size=(rows, _DIMS)).astype(np.float32)
    columns = {"key": [f"ké{i}" for i in range(rows)], "label": [f"c{i % 2}" for i in range(rows)]}
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), _DIMS)
    return pa.table({**columns, "embedding": flat})


def _feature_files() -> Iterator[bytes]:
    for options in ({}, {"compression": "zstd"}, {"use_dictionary": False}):
        target = io.BytesIO()
        pq.write_table(_features(), target, **options)
        yield target.getvalue()


def _read_features(path: Path) -> bool:
    from transforms.rows.table import open_table

    table = open_table(str(path))
    return sum(len(vectors) for _, vectors in table.vectors.batches()) > 0 and len(table.keys.to_pylist()) > 0


@cache
def _table():
    from transforms.rows.table import open_table

    path = Path(tempfile.mkdtemp(prefix="featuremill-fuzz-"), "features.parquet")
    pq.write_table(_features(), path)
    return open_table(str(path))


def _arrays() -> Iterator[bytes]:
    for array in (np.zeros(_DIMS, np.float32), np.ones((3, _DIMS)), np.asfortranarray(np.ones((2, _DIMS), np.int16))):
        target = io.BytesIO()
        np.save(target, array)
        yield target.getvalue()
    target = io.BytesIO()
    np.savez(target, a=np.ones(_DIMS))
    yield target.getvalue()


def _read_array(path: Path) -> bool:
    from pipeline.exploration.questions import read_queries

    queries, _ = read_queries(_table(), images=(), keys=(), vectors=(str(path),))
    return bool(queries)


def _manifests() -> Iterator[bytes]:
    from transforms.store.manifest import Manifest, Totals, new_manifest

    new = new_manifest(_SPEC, weights="imagenet", weights_are_random=False, limit=None, versions={"numpy": "2"})
    totals = Totals(1, 3, 2, 1, 100, 0.1, 0.1, 0.1, 0.1)
    done = Manifest(**{**vars(new), "status": "complete", "totals": totals, "failures": {"read: truncated": 1}})
    for manifest in (new, done):
        yield json.dumps({**manifest.to_json(), "updated": "2026-01-01T00:00:00Z"}, indent=2).encode()


def _read_manifest(path: Path) -> bool:
    from transforms.store import manifest as manifests

    data = path.read_bytes()
    try:
        # As by somebody who makes the hash fit.
        values = json.loads(data)
        data = json.dumps({**values, "sha256": manifests.own_sha256(values)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    (path.parent / "manifest.json").write_bytes(data)
    manifest = manifests.read_manifest(str(path.parent))
    return bool(manifest.cure and manifest.to_json())


def _head(folder: str) -> None:
    from transforms.heads.model import Model
    from transforms.predictors.head import Head, save_head

    model = Model("ridge", {"kernel1": np.eye(_DIMS)[:, :2], "bias1": np.zeros(2)}, {"penalty": 1.0})
    save_head(Head(model, ("a", "b"), 1.0, ("embedding",), (_DIMS,), _SPEC), folder, overwrite=True)


def _head_files(name: str) -> Callable[[], Iterator[bytes]]:
    def make() -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            _head(f"{folder}/head")
            yield Path(folder, "head", name).read_bytes()

    return make


def _read_head(name: str) -> Callable[[Path], bool]:
    """Returns what reads a head of which one file was spoiled by somebody who made the hashes fit."""

    def read(path: Path) -> bool:
        import hashlib

        from transforms.predictors import head as heads
        from transforms.store.manifest import own_sha256

        folder = path.parent / "head"
        if not folder.exists():
            _head(str(folder))
        whole = {each.name: each.read_bytes() for each in folder.iterdir()}
        try:
            (folder / name).write_bytes(path.read_bytes())
            arrays = hashlib.sha256((folder / "head.npz").read_bytes()).hexdigest()
            try:
                values = json.loads((folder / "head.json").read_bytes())
                values["arrays_sha256"] = arrays
                (folder / "head.json").write_text(json.dumps({**values, "sha256": own_sha256(values)}))
            except (ValueError, TypeError, RecursionError):
                pass
            found = heads.load_head(str(folder))
            return len(found.probabilities(np.ones((2, sum(found.dims)), np.float32))) == 2
        finally:
            for each, data in whole.items():
                (folder / each).write_bytes(data)

    return read


def _weight_files() -> Iterator[bytes]:
    import h5py

    from transforms.network.vgg import layers
    from transforms.network.weights import load_weights

    found = load_weights("random:0", layers("vgg16")[:2], backbone="vgg16")
    for keras3 in (False, True):
        target = io.BytesIO()
        with h5py.File(target, "w") as file:
            for i, (name, pair) in enumerate(found.arrays.items()):
                if keras3:
                    group = file.create_group(f"layers/conv2d_{i}/vars")
                    group.attrs["name"] = name
                    group["0"], group["1"] = pair
                else:
                    group = file.create_group(name)
                    group.attrs["weight_names"] = [b"kernel", b"bias"]
                    group["kernel"], group["bias"] = pair
        yield target.getvalue()


def _read_weights(path: Path) -> bool:
    from transforms.network.vgg import layers
    from transforms.network.weights import load_weights

    return bool(load_weights(str(path), layers("vgg16")[:2], backbone="vgg16").sha256)


KINDS: dict[str, Kind] = {
    "jpeg": Kind(_images("JPEG", {}, {"progressive": True}, {"subsampling": 0, "quality": 95}), _decode, "jpg"),
    "png": Kind(_images("PNG"), _decode, "png"),
    "gif": Kind(_images("GIF"), _decode, "gif"),
    "webp": Kind(_images("WEBP", {}, {"lossless": True}), _decode, "webp"),
    "bmp": Kind(_images("BMP"), _decode, "bmp"),
    "tiff": Kind(_images("TIFF", {}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}), _decode, "tif"),
    "jp2": Kind(_images("JPEG2000"), _decode, "jp2"),
    "avif": Kind(_images("AVIF"), _decode, "avif"),
    "heic": Kind(_images("HEIF"), _decode, "heic"),
    "ico": Kind(_images("ICO"), _decode, "ico"),
    "ppm": Kind(_images("PPM"), _decode, "ppm"),
    "tar": Kind(_shards("tar"), _read_shard, "tar"),
    "tar.gz": Kind(_shards("tar", gzip=True), _read_shard, "tar.gz"),
    "tfrecord": Kind(_shards("tfrecord"), _read_shard, "tfrecord"),
    "example": Kind(_examples, _read_example, "tfrecord"),
    "parquet": Kind(_shards("parquet"), _read_shard, "parquet"),
    "features": Kind(_feature_files, _read_features, "parquet"),
    "labels": Kind(_label_files, _read_labels, "csv"),
    "npy": Kind(_arrays, _read_array, "npy"),
    "manifest": Kind(_manifests, _read_manifest, "json"),
    "head.json": Kind(_head_files("head.json"), _read_head("head.json"), "json"),
    "head.npz": Kind(_head_files("head.npz"), _read_head("head.npz"), "npz"),
    "h5": Kind(_weight_files, _read_weights, "h5"),
}
