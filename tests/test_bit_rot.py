"""Any bit of any stored file flips: whoever reads it says so in one line, or it changes nothing of what is read.

The files are those of an OUT, a HEAD, a PRED and the cache of converted weights; the readers are the commands, called
as functions. `make torture` flips twenty times as many.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exploration.query import QueryOptions, found_json, query
from pipeline.exploration.sql import sql
from pipeline.maintenance.inspect import inspect, inspection_json
from pipeline.maps.rows import _read_predictions
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from pipeline.training.options import TrainOptions
from pipeline.training.run import train
from tests.pipeline.extraction import test_run as te
from tests.support.factories import draw_items, write_folder
from tests.support.properties import examples
from transforms.engines import load_engine
from transforms.engines.checks import computed_layers
from transforms.errors import FeaturemillError
from transforms.network.weights import load_weights
from transforms.spec import FeatureSpec, parse_feature
from transforms.store.features import open_features
from transforms.store.predictions import Predictions

FEATURE = "embedding=block1_pool:avg"
NOTICED = "noticed"


def write(path: Path, data: bytes) -> None:
    """Replaces a file's content, but not its time: what rots doesn't tell."""
    info = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


class Stored:
    """What is stored, in a folder of its own, and what each reader makes of it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root = root
        self.inputs = [root / "in/photos"]
        write_folder(self.inputs[0], draw_items(per_class=20, size=32, seed=3))
        (self.inputs[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
        (self.inputs[0] / "notes.txt").write_text("no image")
        self.extract(root / "OUT")
        self.key = open_features(str(root / "OUT")).keys[3]
        self.train(root / "HEAD")
        self.predict(root / "PRED")
        patch.setenv("FEATUREMILL_CACHE", str(root / "cache"))
        features = (parse_feature("embedding=block1_conv1:avg"),)
        weights = load_weights("random:1", computed_layers(FeatureSpec("vgg19", "", features)), backbone="vgg19")
        self.spec = FeatureSpec("vgg19", weights.sha256, features, image_size=32)
        self.embed()
        self.readers: dict[str, list[Callable[[], object]]] = {
            "OUT": [self.rows, self.inspect, self.inspect_deep, self.sql, self.query, self.resume, self.train],
            "HEAD": [self.shown],
            "PRED": [self.predict, self.mapped],
            "cache": [self.embed],
        }
        self.files = [path for name in self.readers for path in sorted((root / name).rglob("*")) if path.is_file()]
        self.expected = {reader.__name__: reader() for readers in self.readers.values() for reader in readers}
        assert NOTICED not in self.expected.values()

    def extract(self, output: Path) -> object:
        summary = te.extract(self.inputs, output, features=(FEATURE,))
        return summary.totals.rows_read, summary.failures, summary.notes

    def rows(self, output: str = "OUT") -> object:
        features = open_features(str(self.root / output))
        rows = [row for batch in features.batches() for row in batch.to_pylist()]
        return repr(rows), features.labels, features.to_numpy().tobytes()

    def inspect(self, deep: bool = False) -> object:
        found = inspection_json(inspect(str(self.root / "OUT"), deep=deep))
        return NOTICED if found["problems"] else repr(found)

    def inspect_deep(self) -> object:
        return self.inspect(deep=True)

    def sql(self) -> object:
        found = []
        for view in ("features", "failures", "units", "(SELECT label FROM features)"):
            with sql(str(self.root / "OUT"), f"SELECT * FROM {view} ORDER BY ALL") as answer:
                found.append(list(answer.rows()))
        return repr(found)

    def query(self) -> object:
        found = found_json(query(QueryOptions(output=str(self.root / "OUT"), keys=(self.key,), top=5)))
        return repr(found | {"seconds": 0})

    def resume(self) -> object:
        """Goes on with a copy, one part of which is gone: what it redoes must be what it was."""
        copy = self.root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.root / "OUT", copy)
        max((copy / "features").iterdir()).unlink()
        return self.extract(copy), sorted(self.rows("copy"), key=str)

    def train(self, output: Path | None = None) -> object:
        options = TrainOptions(
            features=str(self.root / "OUT"),
            output=str(output or self.root / "copied"),
            validation=0.5,
            learning_curve=False,
            errors=False,
            overwrite=True,
        )
        trained = train(options)
        return {name: array.tobytes() for name, array in trained.head.model.arrays.items()}, trained.head.classes

    def shown(self) -> object:
        options = PredictOptions(inputs=(str(self.root / "OUT"),), head=str(self.root / "HEAD"))
        return repr(predict(options).shown)

    def predict(self, output: Path | None = None) -> object:
        folder = output or self.root / "PRED"
        whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        options = PredictOptions(
            inputs=(str(self.root / "OUT"),), head=str(self.root / "HEAD"), output=str(folder), evaluate=True
        )
        summary = predict(options)
        for path, data in whole.items():
            # Predicted anew it has another time in its manifest.
            write(path, data)
        totals = {name: value for name, value in asdict(summary.manifest).items() if name not in ("updated", "status")}
        return repr((totals, summary.metrics))

    def mapped(self) -> object:
        return repr(_read_predictions(Predictions(str(self.root / "PRED"))).to_pylist())

    def embed(self) -> object:
        engine = load_engine("ncnn", self.spec, "random:1", include_top=False, batch_size=1, threads=1)
        return engine.embed(np.full((1, 32, 32, 3), 77, np.uint8))["embedding"].tobytes()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield Stored(tmp_path_factory.mktemp("rot"), patch)


def test_what_is_whole_is_read(stored):
    names = {path.relative_to(stored.root).parts[0] + "/" + path.name.split(".")[0][:5] for path in stored.files}
    assert {"OUT/plan", "OUT/units", "OUT/skipp", "OUT/manif", "HEAD/head", "PRED/part-", "PRED/metri"} <= names
    assert len(list((stored.root / "OUT/features").iterdir())) > 1
    assert len(list((stored.root / "OUT/failures").iterdir())) > 0
    for readers in stored.readers.values():
        for reader in readers:
            assert reader() == stored.expected[reader.__name__], reader.__name__


@pytest.mark.long
@examples(150)
@given(seed=st.integers(0, 2**48))
def test_no_flipped_bit_goes_unseen(stored, seed):
    draw = random.Random(seed)
    path = draw.choice(stored.files)
    data = path.read_bytes()
    bit = draw.randrange(8 * len(data))
    readers = stored.readers[path.relative_to(stored.root).parts[0]]
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        for reader in draw.sample(readers, min(2, len(readers))):
            write(path, flipped)
            try:
                found = reader()
            except FeaturemillError as error:
                found = NOTICED if "\n" not in str(error) else str(error)
            where = f"{reader.__name__} of {path.relative_to(stored.root)} with bit {bit} flipped"
            assert found in (NOTICED, stored.expected[reader.__name__]), where
    finally:
        write(path, data)
