"""One of each that a registry knows: a format, an engine, a pool, a base, a kind of head, made without the package."""

import re

import numpy as np

from tests.support.fakes import FakeEngine
from transforms.engines.engine import EngineInfo
from transforms.heads import Kind
from transforms.heads.model import Model
from transforms.network.bases import Base, feature_size
from transforms.network.keras_import import import_keras
from transforms.network.published import application_file
from transforms.pools import POOLS, Pool
from transforms.records import EncodedImage
from transforms.shards.format import Format
from transforms.shards.stream import cut, open_stream, stretches

# A line for each image: its bytes as hexadecimal digits.
_MAGIC = b"HEXLINES\n"


def write_lines(path, items) -> None:
    path.write_bytes(_MAGIC + b"".join(item.data.hex().encode() + b"\n" for item in items))


def _lines(shard, start=0):
    """Yields (offset, line) from a byte at which a line starts."""
    with open_stream(shard, start) as stream:
        data = stream.read(shard.file.size)
    for line in data.splitlines(keepends=True):
        yield start, line
        start += len(line)


def _split(shard, unit_bytes):
    starts = [offset for offset, line in _lines(shard) if line != _MAGIC]
    return cut(shard, [*starts, shard.file.size], unit_bytes)


def _read(unit):
    index = unit.first_index
    for offset, line in _lines(unit.shard, unit.start):
        if 0 <= unit.stop <= offset:
            return
        if line != _MAGIC:
            uri = unit.shard.file.uri
            yield EncodedImage(f"{uri}#{index}", f"class{index % 2}", uri, offset, bytes.fromhex(line.decode()))
            index += 1


FORMAT = Format(
    name="lines",
    title="file of lines",
    sign="HEXLINES",
    ending=re.compile(r"\.hex$"),
    gzip=True,
    matches=lambda head, named: head.startswith(_MAGIC),
    resolve=lambda shard, fields: ("", "", ""),
    split=_split,
    read=_read,
    narrow=stretches,
)


def _load(spec, weights_source, *, include_top, batch_size, threads):
    sizes = {f.name: feature_size(f, spec.backbone, spec.image_size) for f in spec.features}
    return FakeEngine(sizes, batch_size, description="dummy")


ENGINE = EngineInfo(
    libraries=("click",),
    precisions=("float32",),
    load=_load,
    check=lambda: None,
    batch_size=lambda threads, on_gpu: 3,
    idle_gpu=", and the dummy knows none",
)

# The mean of the smallest and the largest number of a channel.
POOL = Pool(
    planes=lambda positions: (positions.min(axis=1) + positions.max(axis=1)) / 2,
    output=lambda output: (POOLS["max"].output(output) - POOLS["max"].output(-output)) / 2,
)


def build_network(*, include_top, weights, pooling, input_shape):
    """Builds a small network as a function of `keras.applications` does."""
    keras = import_keras()
    pixels = keras.Input(input_shape)
    first = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="first")(pixels)
    last = keras.layers.Conv2D(6, 3, strides=2, name="last")(first)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D(name="pooled")(last))


BASE = Base(
    published={False: application_file("dummy/dummy_notop.h5", "0" * 32)},
    builder="Dummy",
    feature="embedding=last:avg",
    width=6,
    normalise="tf",
    image_size=48,
    resize="squash",
)


class _Centres:
    """Fits the mean vector of each class."""

    def __init__(self, rows, settings):
        self._rows = rows

    def fit(self, train, validation):
        numbers, matrix = self._rows.matrix(train)
        codes = self._rows.codes[numbers]
        centres = np.stack([matrix[codes == code].mean(axis=0) for code in range(len(self._rows.classes))])
        return Model("centres", {"centres": centres})

    def refit(self, model, train):
        return self.fit(train, ())


def _logits(model, vectors):
    return -np.square(vectors[:, None] - model.arrays["centres"]).sum(axis=2)


KINDS = {"centres": Kind(fitter=_Centres, logits=_logits, keras_logits=None, is_dense=False)}
