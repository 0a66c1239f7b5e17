"""The map: its rows, its columns, its thumbnails, its page."""

import base64
import gzip
import io
import json
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.maps import run as module
from pipeline.maps.rows import add_predictions, read_map_rows
from pipeline.maps.run import MapOptions, make_map, map_text
from tests.support.pages_data import HOSTILE, clusters, write_out
from transforms.errors import FeaturemillError, UsageError
from transforms.store.features import open_features
from transforms.store.predictions import Predictions

COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10))


def page_data(path):
    """Returns the JSON that the page holds, unpacked."""
    text = path.read_text()
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', text, re.DOTALL).group(1))

    def numbers(packed, kind):
        return np.frombuffer(gzip.decompress(base64.b64decode(packed)), kind)

    def strings(packed):
        return json.loads(gzip.decompress(base64.b64decode(packed)))

    columns = {}
    for column in data["columns"]:
        if column["kind"] == "number":
            columns[column["name"]] = numbers(column["values"], "<f4")
        else:
            names = strings(column["names"])
            columns[column["name"]] = [names[code] for code in numbers(column["codes"], "<u4")]
    sizes = numbers(data["thumbnails"]["sizes"], "<u4")
    ends = np.cumsum(sizes)
    pieces = [data["thumbnails"]["text"][end - size : end] for end, size in zip(ends, sizes, strict=True)]
    images = [base64.b64decode(piece) for piece in pieces]
    return {
        "keys": strings(data["keys"]),
        "places": numbers(data["places"], "<f4").reshape(-1, 2),
        "neighbours": numbers(data["neighbours"], "<i4").reshape(-1, data["k"]) if data["k"] else None,
        "columns": columns,
        "thumbnails": dict(zip(numbers(data["thumbnails"]["rows"], "<i4").tolist(), images, strict=True)),
        "gone": numbers(data["thumbnails"]["gone"], "<i4").tolist(),
        "color": data["color"],
    }


def draw(out, folder, **options):
    page = folder / "map.html"
    summary = make_map(MapOptions(str(out), str(page), **{"method": "pca", "overwrite": True, **options}))
    return summary, page_data(page)


def write_predictions(folder, keys, labels, positions=None):
    (folder / "predictions").mkdir(parents=True)
    half = len(keys) // 2
    positions = pa.array(positions or [None] * len(keys), pa.int64())
    for number, part in enumerate((slice(0, half), slice(half, None))):
        table = {
            "key": pa.array(keys[part], pa.string()),
            "position": positions[part],
            "label": pa.array(labels[part], pa.string()),
        }
        table["score"] = np.linspace(0, 1, len(keys[part]), dtype="f4")
        pq.write_table(pa.table(table), folder / "predictions" / f"part-{number:05}.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    vectors, labels = clusters(120)
    labels[7] = None
    return write_out(tmp_path_factory.mktemp("map") / "out", vectors, labels=labels)


def test_page_holds_the_rows(out, tmp_path):
    summary, data = draw(out, tmp_path, coordinates=str(tmp_path / "places.parquet"))
    features = open_features(out)
    assert (summary.rows, summary.of_rows) == (120, 120)
    assert data["keys"] == features.keys
    assert data["columns"]["label"] == [label or "(none)" for label in features.labels]
    vectors = features.to_numpy()
    np.testing.assert_allclose(data["columns"]["vector length"], np.linalg.norm(vectors, axis=1), rtol=1e-5)
    normed = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = normed @ normed.T
    np.fill_diagonal(cosines, -2)
    np.testing.assert_array_equal(data["neighbours"], np.argsort(-cosines, axis=1)[:, :10])
    table = pq.read_table(tmp_path / "places.parquet")
    assert table["key"].to_pylist() == features.keys
    np.testing.assert_array_equal(np.column_stack([table["x"], table["y"]]), data["places"])
    assert {"label", "source", "width", "vector_length"} <= set(table.column_names)


def test_how_long_vectors_are_moves_no_point(tmp_path):
    """Neighbours are found by cosine, and places are to agree with them."""
    vectors, labels = clusters(60)
    longer = (vectors * np.random.default_rng(0).uniform(0.1, 10, (60, 1))).astype(np.float32)
    longer[3] = vectors[3] = 0
    places = []
    for name, matrix in (("plain", vectors), ("longer", longer)):
        (tmp_path / name).mkdir()
        places.append(draw(write_out(tmp_path / name / "out", matrix, labels=labels), tmp_path / name)[1]["places"])
    np.testing.assert_allclose(*places, atol=1e-5)


def test_page_needs_nothing_else(out, tmp_path):
    draw(out, tmp_path)
    text = (tmp_path / "map.html").read_text()
    ours = text.replace(re.search(r'id="plotly">(.*?)</script>', text, re.DOTALL).group(1), "")
    assert not re.search(r'(?:src|href)="(?!data:)', ours)
    assert "@import" not in ours
    assert set(re.findall(r"https?://[^\"' ]*", ours)) == {"http://www.w3.org/2000/svg"}
    assert "connect-src" not in ours.split("default-src 'none'")[0]
    assert "default-src 'none'" in ours, "the browser itself is told to load nothing"


def test_same_seed_same_page(out, tmp_path):
    draw(out, tmp_path)
    first = (tmp_path / "map.html").read_bytes()
    draw(out, tmp_path)
    assert (tmp_path / "map.html").read_bytes() == first


def test_limit_draws_evenly(out, tmp_path):
    summary, data = draw(out, tmp_path, limit=12)
    keys = open_features(out).keys
    assert data["keys"] == [keys[i] for i in np.linspace(0, 119, 12).astype(int)]
    assert "12 points of 120 rows" in map_text(summary)


def test_predictions_colour(out, tmp_path):
    features = open_features(out)
    keys, labels = features.keys[:-1], features.labels[:-1]
    predicted = ["class 0"] * len(keys)
    pred = write_predictions(tmp_path / "pred", keys[::-1], predicted)
    _, data = draw(out, tmp_path, predictions=pred, color="agreement")
    assert data["color"] == "agreement"
    assert list(data["columns"])[:4] == ["label", "prediction", "agreement", "score"]
    assert data["columns"]["prediction"] == [*predicted, "(none)"]
    expected = ["(none)" if label is None else "agrees" if label == "class 0" else "differs" for label in labels]
    assert data["columns"]["agreement"] == [*expected, "(none)"]
    assert np.isnan(data["columns"]["score"][-1])


def test_predictions_of_keys_that_repeat(tmp_path):
    """Inside a tar names may repeat: by key and position each row gets its own, by key alone only what is certain."""
    vectors, _ = clusters(20)
    keys = [f"/s.tar#{i // 2}.jpg" for i in range(20)]
    labels = [f"class {i % 2}" for i in range(20)]
    out = write_out(tmp_path / "out", vectors, keys=keys, labels=labels)
    placed = write_predictions(tmp_path / "placed", keys[::-1], labels[::-1], positions=list(range(20))[::-1])
    _, data = draw(out, tmp_path, predictions=placed)
    assert data["columns"]["prediction"] == labels
    assert set(data["columns"]["agreement"]) == {"agrees"}
    # The last two keys have one label each.
    alone = write_predictions(tmp_path / "alone", keys, [*labels[:16], *["class 0"] * 4])
    assert add_predictions(read_map_rows(open_features(out), "embedding", limit=20), Predictions(alone)) == 4
    _, data = draw(out, tmp_path, predictions=alone)
    assert data["columns"]["prediction"] == [*["(none)"] * 16, *["class 0"] * 4]
    assert data["columns"]["agreement"] == [*["(none)"] * 16, *["agrees", "differs"] * 2]
    assert np.isnan(data["columns"]["score"][:16]).all()


def test_predictions_of_other_rows(out, tmp_path):
    pred = write_predictions(tmp_path / "pred", ["/else/1", "/else/2"], ["a", "b"])
    with pytest.raises(FeaturemillError, match="predicts none of these rows: it has '/else/1'"):
        draw(out, tmp_path, predictions=pred)
    empty = write_predictions(tmp_path / "empty", [], [])
    with pytest.raises(FeaturemillError, match="predicts none of these rows: it is empty"):
        draw(out, tmp_path, predictions=empty)
    with pytest.raises(FeaturemillError, match="holds no predictions"):
        draw(out, tmp_path, predictions=str(tmp_path))
    assert not (tmp_path / "map.html").exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns an OUT by the real run and its fake engine: a tar and a folder of one-coloured images."""
    from pipeline.extraction.options import ExtractOptions
    from pipeline.extraction.run import run
    from tests.support.fakes import WEIGHTS, load_fake

    folder = tmp_path_factory.mktemp("photos")
    (folder / "plain").mkdir()
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for i in range(12):
            buffer = io.BytesIO()
            Image.new("RGB", (80, 60), COLOURS[i % 4]).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
            (folder / "plain" / f"{i}.jpg").write_bytes(buffer.getvalue())
    inputs = (str(folder / "shard.tar"), str(folder / "plain"))
    run(ExtractOptions(inputs=inputs, output=str(folder / "out"), image_size=32), load=load_fake, weights=WEIGHTS)
    return folder


def colour_of(image):
    picture = Image.open(io.BytesIO(image))
    assert picture.size == (64, 48)
    pixel = np.array(picture.convert("RGB"))[24, 32].astype(int)
    return int(np.abs(np.array(COLOURS) - pixel).sum(axis=1).argmin())


def test_thumbnails_are_those_of_their_rows(photos, tmp_path):
    summary, data = draw(photos / "out", tmp_path)
    assert summary.thumbnails == len(data["thumbnails"]) == 24
    for place, image in data["thumbnails"].items():
        number = int(re.search(r"(\d+)\.jpg$", data["keys"][place]).group(1))
        assert colour_of(image) == number % 4


def test_thumbnails_keep_to_their_limits(photos, tmp_path, monkeypatch):
    _, data = draw(photos / "out", tmp_path, thumbnails=6)
    assert list(data["thumbnails"]) == np.linspace(0, 23, 6).astype(int).tolist()
    assert draw(photos / "out", tmp_path, thumbnails=0)[1]["thumbnails"] == {}
    monkeypatch.setattr(module, "THUMBNAIL_BYTES", 700)
    _, data = draw(photos / "out", tmp_path)
    assert 0 < sum(map(len, data["thumbnails"].values())) <= 900
    places = list(data["thumbnails"])
    assert max(places) - min(places) > 8, "evenly drawn, not the first ones"


def test_sources_that_are_gone_or_changed(photos, tmp_path):
    away = photos / "away.tar"
    (photos / "shard.tar").rename(away)
    changed = photos / "plain" / "3.jpg"
    before = changed.read_bytes()
    changed.write_bytes((photos / "plain" / "4.jpg").read_bytes())
    try:
        summary, data = draw(photos / "out", tmp_path)
    finally:
        away.rename(photos / "shard.tar")
        changed.write_bytes(before)
    assert sorted([*data["thumbnails"], *data["gone"]]) == list(range(24))
    assert {data["keys"][i].rsplit("/", 1)[1] for i in data["gone"]} == {
        "3.jpg",
        *(f"shard.tar#{i}.jpg" for i in range(12)),
    }
    assert "13 images can't be shown, such as" in map_text(summary)


def test_hostile_text_stays_inside_its_strings(tmp_path):
    vectors, _ = clusters(40)
    keys = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(40)]
    out = write_out(tmp_path / "out", vectors, keys=keys, labels=[HOSTILE[i % len(HOSTILE)] for i in range(40)])
    _, data = draw(out, tmp_path)
    assert data["keys"] == keys, "whole, because they are exported"
    text = (tmp_path / "map.html").read_text()
    assert "document.title=" not in text
    assert max(map(len, data["columns"]["label"])) < 200


@pytest.mark.parametrize("rows", [1, 2, 11])
@pytest.mark.parametrize("method", ["pca", "umap"])
def test_few_rows(tmp_path, rows, method):
    out = write_out(tmp_path / "out", clusters(rows)[0])
    _, data = draw(out, tmp_path, method=method)
    assert len(data["keys"]) == rows
    assert data["neighbours"] is None if rows == 1 else data["neighbours"].shape == (rows, min(10, rows - 1))


def test_bad_rows(tmp_path):
    vectors, _ = clusters(20)
    vectors[13, 2] = np.inf
    out = write_out(tmp_path / "bad", vectors, units=1)
    with pytest.raises(FeaturemillError, match=r"hold NaN or infinity, the first is that of .*photo000013"):
        draw(out, tmp_path)
    out = write_out(tmp_path / "none", np.empty((0, 4), np.float32), units=1)
    with pytest.raises(FeaturemillError, match="holds no rows"):
        draw(out, tmp_path)


def test_vectors_that_do_not_fit(out, monkeypatch):
    monkeypatch.setattr("pipeline.maps.rows.MOST_BYTES", 4 * 16 * 50)
    with pytest.raises(FeaturemillError, match="pass --limit 50"):
        read_map_rows(open_features(out), "embedding", limit=120)
    assert len(read_map_rows(open_features(out), "embedding", limit=50).numbers) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "umapp"}, "did you mean umap"),
        ({"limit": 0}, "--limit 0"),
        ({"thumbnails": -1}, "--thumbnails -1"),
        ({"seed": -1}, "--seed -1"),
        ({"color": "lable"}, "did you mean label"),
        ({"color": "agreement"}, "pass --predictions PRED"),
        ({"coordinates": "/no/such/folder/x.parquet"}, "there is no folder /no/such/folder"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        MapOptions(str(tmp_path), str(tmp_path / "map.html"), **options)


def test_places_that_cant_be_written_leave_nothing(out, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FeaturemillError, match=r"cannot write .*places\.parquet: .*No space left"):
        draw(out, tmp_path, coordinates=str(tmp_path / "places.parquet"))
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_reported(tmp_path):
    out = write_out(tmp_path / "out", clusters(30)[0], complete=False)
    summary, _ = draw(out, tmp_path)
    assert "not finished" in map_text(summary)
    assert "so far: the run is not finished" in (tmp_path / "map.html").read_text()


def test_an_unfinished_run_without_rows_is_reported(tmp_path):
    out = write_out(tmp_path / "out", np.empty((0, 4), np.float32), units=1, complete=False)
    with pytest.raises(FeaturemillError, match=r"holds no rows, .*; the run is not finished: run the same extract"):
        draw(out, tmp_path)


def test_principal_components_are_shown_first(tmp_path, monkeypatch):
    """What takes longer follows; of so few rows UMAP isn't started."""
    out = write_out(tmp_path / "out", clusters(11)[0])
    pages, lines = [], []
    monkeypatch.setattr(module, "write_page", lambda _, text: pages.append(text))
    make_map(MapOptions(str(out), str(tmp_path / "map.html"), method="umap"), say=lines.append)
    assert [re.search("PCA|UMAP", page.split("<main>")[1])[0] for page in pages] == ["PCA", "UMAP"]
    assert any("umap compiles" in line for line in lines)
    assert lines.index(next(line for line in lines if "umap is next" in line)) < len(lines) - 2
