"""Query: the neighbours of plain NumPy in float64, ties by key; conditions stay conditions; bad input is named."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items, write_folder
from pipeline.exploration import questions
from pipeline.exploration.query import QueryOptions, query
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.support import deadly
from tests.support.factories import shared_data
from tests.support.properties import examples
from transforms.errors import FeaturemillError, UsageError
from transforms.rows.sandbox import matching_rows
from transforms.rows.table import open_table
from transforms.similarity.neighbours import METRICS, nearest_stored
from transforms.store.features import open_features


def write_rows(path, matrix, *, keys=None, labels=None, groups=3, **more):
    """Writes plain Parquet, in several row groups."""
    matrix = np.asarray(matrix, np.float32)
    keys = keys or [f"k{i:05}" for i in range(len(matrix))]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    columns = {"key": keys, "label": labels or [None] * len(keys), **more, "embedding": vectors}
    table = pa.table({name: pa.array(c) if isinstance(c, list) else c for name, c in columns.items()})
    pq.write_table(table, path, row_group_size=max(1, -(-len(keys) // groups)))
    return str(path)


def brute_force(matrix, keys, queries, metric, wanted=None, without=None):
    """Returns for each query (row, score) of all rows, sorted, by plain NumPy in float64."""
    matrix, found = np.asarray(matrix, np.float32).astype(np.float64), []
    lengths = np.sqrt((matrix**2).sum(axis=1))
    for number, asked in enumerate(np.asarray(queries, np.float64)):
        if metric == "l2":
            scores = np.sqrt(((matrix - asked) ** 2).sum(axis=1))
        else:
            scores = (matrix * asked).sum(axis=1)
            if metric == "cosine":
                scores /= np.where(lengths > 0, lengths, 1) * np.sqrt((asked**2).sum())
        rows = [
            row
            for row in range(len(matrix))
            if (wanted is None or wanted[row])
            and (without is None or row != without[number])
            # Zeros have no cosine.
            and (metric != "cosine" or matrix[row].any())
        ]
        sign = 1 if metric == "l2" else -1
        found.append([(row, scores[row]) for row in sorted(rows, key=lambda row: (sign * scores[row], keys[row]))])
    return found


@pytest.mark.parametrize("metric", METRICS)
@examples(25)
@given(data=st.data())
def test_equals_brute_force(metric, data, tmp_path_factory):
    """Small whole numbers: products are exact, and ties many."""
    rows, dims, asked = (data.draw(st.integers(1, most)) for most in (60, 5, 4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    matrix = random.integers(-2, 3, (rows, dims))
    queries = random.integers(-2, 3, (asked, dims))
    queries[~queries.any(axis=1)] = 1
    keys = [f"k{number:02}" for number in random.permutation(rows)]
    wanted = random.random(rows) < 0.8
    without = random.integers(-1, rows, asked)
    table = open_table(write_rows(tmp_path_factory.mktemp("rows") / "x.parquet", matrix, keys=keys))
    top = data.draw(st.integers(1, 12))
    found = nearest_stored(table.vectors, table.keys, queries, top=top, metric=metric, wanted=wanted, without=without)
    for number, expected in enumerate(brute_force(matrix, keys, queries, metric, wanted, without)):
        kept = found.rows[number] >= 0
        assert kept.sum() == min(top, len(expected))
        # Cosines of different vectors that are equal on paper are not always so in float64.
        scores = np.array([score for _, score in expected])[: kept.sum()]
        np.testing.assert_allclose(found.scores[number][kept], scores, rtol=0, atol=1e-12)
        if metric != "cosine":
            assert found.rows[number][kept].tolist() == [row for row, _ in expected[:top]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-22, 1.0, 1e15])
def test_equals_brute_force_where_float32_alone_would_not(tmp_path, metric, scale):
    """Rows that differ in the last digits, around and beyond what float32 products can tell apart."""
    random = np.random.default_rng(0)
    base = random.random(64)
    matrix = ((base + random.normal(size=(5000, 64)) * 1e-4) * scale).astype(np.float32)
    queries = (base + random.normal(size=(3, 64)) * 1e-5) * scale
    table = open_table(write_rows(tmp_path / "x.parquet", matrix))
    found = nearest_stored(table.vectors, table.keys, queries, top=20, metric=metric)
    keys = table.keys.to_pylist()
    for number, expected in enumerate(brute_force(matrix, keys, queries, metric)):
        assert found.rows[number].tolist() == [row for row, _ in expected[:20]]


def test_equal_rows_go_by_key(tmp_path):
    matrix = np.tile(np.random.default_rng(1).random(300).astype(np.float32), (3000, 1))
    keys = [f"k{number:04}" for number in np.random.default_rng(2).permutation(3000)]
    found = query(QueryOptions(output=write_rows(tmp_path / "x.parquet", matrix, keys=keys), keys=("k0001",), top=5))
    assert [near.row.key for near in found.neighbours[0]] == ["k0000", "k0002", "k0003", "k0004", "k0005"]
    assert {near.score for near in found.neighbours[0]} == {found.neighbours[0][0].score}


def test_many_queries_share_a_call(tmp_path):
    random = np.random.default_rng(3)
    matrix = random.normal(size=(500, 16))
    path = write_rows(tmp_path / "x.parquet", matrix)
    np.save(tmp_path / "q.npy", matrix[:300].astype(np.float32))
    found = query(QueryOptions(output=path, vectors=(str(tmp_path / "q.npy"),), keys=("k00007",), top=3))
    assert [asked.kind for asked in found.queries] == ["key", *["vector"] * 300]
    # A key's own row isn't among its neighbours, an equal vector's is.
    assert "k00007" not in [near.row.key for near in found.neighbours[0]]
    for number in range(300):
        first = found.neighbours[number + 1][0]
        assert first.row.key == f"k{number:05}"
        assert first.score == pytest.approx(1, abs=1e-12)
    expected = brute_force(matrix, [f"k{i:05}" for i in range(500)], matrix[:300].astype(np.float32), "cosine")
    assert [[near.row.row for near in some] for some in found.neighbours[1:]] == [
        [row for row, _ in some[:3]] for some in expected
    ]


def rows_for_where(folder):
    matrix = np.random.default_rng(4).normal(size=(40, 8))
    labels = [["cat", "dog", "it's; a 'cat'", None][i % 4] for i in range(40)]
    more = {"source": [f"/s{i % 2}.tar" for i in range(40)], "width": list(range(100, 140))}
    return write_rows(folder / "x.parquet", matrix, labels=labels, **more), labels


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("label = 'cat'", range(0, 40, 4)),
        ("label = 'it''s; a ''cat'''", range(2, 40, 4)),
        ("label IS NULL AND width >= 120", range(23, 40, 4)),
        ("source LIKE '%1.tar' -- ; DROP", range(1, 40, 2)),
        ("key IN ('k00003', 'k00004')", (3, 4)),
    ],
)
def test_where(tmp_path, where, rows):
    path, _ = rows_for_where(tmp_path)
    np.save(tmp_path / "q.npy", np.ones(8))
    found = query(QueryOptions(output=path, vectors=(str(tmp_path / "q.npy"),), where=where, top=100))
    assert sorted(near.row.row for near in found.neighbours[0]) == list(rows)
    assert found.searched == len(list(rows))


HOSTILE = [
    "label = 'cat",
    "label = 'cat'; COPY rows TO '{0}'",
    "true) UNION SELECT 1 FROM read_csv('/etc/passwd') --",
    "true) OR (true",
    "true; ATTACH '{0}' AS x",
    "true; INSTALL httpfs",
    "true; LOAD httpfs",
    "true; PRAGMA database_list",
    "true; SET enable_external_access = true",
    "1 FROM read_csv('/etc/passwd')",
    "label IN (SELECT content FROM read_text('/etc/passwd'))",
    "exists(FROM '/etc/passwd')",
    "(SELECT true)",
    "width = (SELECT max(width) FROM rows)",
    "list_transform([1], lambda x: x + (SELECT 1)) = [1]",
    "true UNION SELECT 1",
    "true GROUP BY 1",
    "true ORDER BY 1",
    "true LIMIT 1",
    "true QUALIFY row_number() OVER () = 1",
    "true USING SAMPLE 1",
    "true)--",
    "/* true",
    "true, true",
    "true AS x",
    "count(*) > 1",
    "row_number() OVER () = 1",
    "embedding[1] > 0",
    "nope = 1",
    "read_text('/etc/passwd') = ''",
    "getenv('HOME') = ''",
    "$1 = 1",
    "",
    "   ",
    ";",
]


@pytest.mark.parametrize("where", HOSTILE)
def test_what_is_not_one_condition_on_a_row_is_refused(tmp_path, where):
    path, _ = rows_for_where(tmp_path)
    target = tmp_path / "made"
    with pytest.raises(FeaturemillError, match="condition") as caught:
        query(QueryOptions(output=path, keys=("k00003",), where=where.format(target)))
    assert "\n" not in str(caught.value).replace(repr(where), "")
    assert "root:" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "the condition is empty; write one"),
        (" \n", "the condition is empty; write one"),
        ("1=1; drop table x", "is more than one condition; write one"),
        (
            'label = "bees"',
            """no column "bees"; the columns are key, label, width, and text goes in single quotes: 'bees'""",
        ),
        ("rows.bees = 1", 'does not have a column named "bees"'),
        ("lengthh(label) = 4", "does not exist"),
        ("label =", "syntax error"),
    ],
)
def test_a_wrong_condition_is_reported_in_our_words(tmp_path, capsys, where, message):
    path = write_rows(tmp_path / "x.parquet", np.ones((4, 8)), labels=["bees"] * 4, width=[1] * 4)
    assert run_cli(["query", path, "--key", "k00001", "--where", where]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert "featuremill_row" not in line


def test_no_row_meets_the_condition(tmp_path):
    path, _ = rows_for_where(tmp_path)
    with pytest.raises(FeaturemillError, match="no row"):
        query(QueryOptions(output=path, keys=("k00003",), where="width > 1000"))


def test_bad_vectors_are_named(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "x.parquet", np.ones((4, 8)))
    bad = {
        "dims": (np.ones(7), "vectors of 7 numbers, but embedding of .* has 8"),
        "nan": (np.array([np.ones(8), [np.nan] * 8]), "1 of 2 vectors hold NaN or infinity, the first is row 1"),
        "zeros": (np.zeros(8), "nothing but zeros"),
        "cube": (np.ones((2, 2, 8)), "--vector takes 8 numbers"),
        "text": (np.array(["a"] * 8), "--vector takes 8 numbers"),
        "empty": (np.ones((0, 8)), "--vector takes 8 numbers"),
        "objects": (np.array([{}] * 8), "cannot read"),
    }
    for name, (array, message) in bad.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        with pytest.raises(FeaturemillError, match=message):
            query(QueryOptions(output=path, vectors=(str(tmp_path / f"{name}.npy"),)))
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04abc")
    for name, rows in (("huge", 10**13), ("endless", 10**30)):
        with open(tmp_path / f"{name}.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 8)}
            np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(FeaturemillError, match=r"junk\.npy: it is no \.npy file; .* --image an image"):
        query(QueryOptions(output=path, vectors=(str(tmp_path / "junk.npy"),)))
    whole = (tmp_path / "nan.npy").read_bytes()
    (tmp_path / "open.npy").write_bytes(whole.replace(b"}", b" "))
    (tmp_path / "type.npy").write_bytes(whole.replace(b"<f", b"[f"))
    for name in ("gone.npy", "zip.npy", "huge.npy", "endless.npy", "open.npy", "type.npy"):
        with pytest.raises(FeaturemillError, match="cannot read"):
            query(QueryOptions(output=path, vectors=(str(tmp_path / name),)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "nan.npy").read_bytes())))
    with pytest.raises(FeaturemillError, match="-: 1 of 2"):
        query(QueryOptions(output=path, vectors=("-",)))


def test_bad_rows_are_named(tmp_path):
    matrix = np.ones((30, 8))
    matrix[17, 3] = np.nan
    path = write_rows(tmp_path / "x.parquet", matrix)
    with pytest.raises(FeaturemillError, match=r"NaN or infinity.*'k00017'"):
        query(QueryOptions(output=path, keys=("k00001",)))
    # Zeros have no cosine, but a distance.
    matrix[17] = 0
    path = write_rows(tmp_path / "x.parquet", matrix)
    assert len(query(QueryOptions(output=path, keys=("k00001",), top=30)).neighbours[0]) == 28
    assert len(query(QueryOptions(output=path, keys=("k00001",), top=30, metric="l2")).neighbours[0]) == 29
    with pytest.raises(FeaturemillError, match="k00017 is nothing but zeros"):
        query(QueryOptions(output=path, keys=("k00017",)))


def test_a_key_that_is_not_there_gets_the_nearest(tmp_path):
    keys = [f"/data/train.tar#n{i}/cat{i}.jpg" for i in range(50)]
    path = write_rows(tmp_path / "x.parquet", np.ones((50, 4)), keys=keys)
    with pytest.raises(FeaturemillError, match=r"no key cat42\.jpg; did you mean /data/train\.tar#n42/cat42\.jpg"):
        query(QueryOptions(output=path, keys=("cat42.jpg",)))
    with pytest.raises(FeaturemillError, match=r"did you mean /data/train\.tar#n42/cat42\.jpg"):
        query(QueryOptions(output=path, keys=("/data/train.tar#n42/cat42.jpeg",)))
    with pytest.raises(FeaturemillError, match="no key") as caught:
        query(QueryOptions(output=path, keys=("'; DROP TABLE texts; --\x1b[2J" + "x" * 5000,)))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_key_like_no_other_gets_no_guesses(made, tmp_path):
    with pytest.raises(
        FeaturemillError, match=r'has no key nope; featuremill sql .*out "SELECT key FROM features" lists'
    ):
        query(QueryOptions(output=str(made / "out"), keys=("nope",)))
    path = write_rows(tmp_path / "x.parquet", np.ones((4, 8)))
    with pytest.raises(FeaturemillError, match="has no key nope; its keys are like k00000"):
        query(QueryOptions(output=path, keys=("nope",)))
    with pytest.raises(FeaturemillError, match="did you mean k00001"):
        query(QueryOptions(output=path, keys=("k0001",)))


def test_a_repeated_key_is_its_first_row(tmp_path):
    path = write_rows(tmp_path / "x.parquet", np.eye(4), keys=["a", "b", "b", "c"])
    found = query(QueryOptions(output=path, keys=("b",), metric="l2"))
    assert found.queries[0].row == 1
    assert sorted(near.row.row for near in found.neighbours[0]) == [0, 2, 3]


@pytest.mark.parametrize(
    ("columns", "kept", "where"),
    [
        ({"position": ["a", "b", "c", "d"], "width": [640, 1, 1, 1]}, {"width": 640}, "label IS NULL AND width > 600"),
        ({"width": [640.5, 1.5, 1.5, 1.5], "height": [1.0] * 4}, {}, "key = 'k00000'"),
        ({"source": [1, 2, 3, 4], "sha256": ["ab"] * 4}, {}, "key = 'k00000'"),
        ({"source": pa.array(["x"] * 4, pa.large_string())}, {"source": "x"}, "source = 'x'"),
        ({"source": pa.array(["x"] * 4).dictionary_encode()}, {"source": "x"}, "source = 'x'"),
        ({"position": pa.array([7] * 4, pa.uint8())}, {"position": 7}, "position = 7"),
        ({"sha256": pa.array([b"ab"] * 4, pa.binary(2))}, {"sha256": "6162"}, "sha256 = 'ab'::BLOB"),
    ],
)
def test_a_column_that_only_has_the_name_is_none(tmp_path, capsys, columns, kept, where):
    path = write_rows(tmp_path / "x.parquet", np.ones((4, 8)), **columns)
    found = str(tmp_path / "found.parquet")
    args = ["query", path, "--key", "k00001", "--where", where, "--top", "1", "--json"]
    assert run_cli([*args, "-o", found, "--html", str(tmp_path / "x.html")]) == 0
    [near] = json.loads(capsys.readouterr().out)["queries"][0]["neighbours"]
    names = ("source", "position", "sha256", "width", "height")
    assert {name: near[name] for name in names if near[name] is not None} == kept
    assert pq.read_table(found)["width"].to_pylist() == [kept.get("width")]


def test_what_breaks_under_a_condition_is_reported_as_it_is(tmp_path, capsys):
    path = tmp_path / "x.parquet"
    write_rows(path, np.ones((4, 8)), source=["some"] * 4)
    chunk = pq.read_metadata(path).row_group(0).column(2)
    assert chunk.path_in_schema == "source"
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset : chunk.data_page_offset] = bytes(
        [255] * (chunk.data_page_offset - chunk.dictionary_page_offset)
    )
    path.write_bytes(data)
    assert run_cli(["query", str(path), "--key", "k00001", "--where", "source = 'some'"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"featuremill: {path} can't be read (")
    assert line.endswith("; write it again")
    assert "Traceback" not in line


def test_ctrl_c_under_a_condition_is_ctrl_c():
    def batches():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        matching_rows(batches(), pa.schema([("key", pa.string())]), "key = 'a'", 1)


def test_a_condition_too_deep_is_reported(tmp_path, capsys):
    path = write_rows(tmp_path / "x.parquet", np.ones((4, 8)), width=[1] * 4)
    assert run_cli(["query", path, "--key", "k00001", "--where", "width" + " + 1" * 400 + " > 5"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("is too deeply nested; simplify it")


@pytest.mark.parametrize(
    "given", [{}, {"keys": ("a",), "top": 0}, {"keys": ("a",), "metric": "cosin"}, {"vectors": ("-", "-")}]
)
def test_wrong_options(given):
    with pytest.raises(UsageError):
        QueryOptions(output="x", **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images and its features, by a network with random weights."""
    folder = tmp_path_factory.mktemp("made")
    write_folder(folder / "photos", draw_items(per_class=5, size=48, seed=1))
    options = {
        "weights": "random:0",
        "image_size": 32,
        "features": ("embedding=block3_pool:avg", "top=block4_pool:max"),
    }
    run(ExtractOptions(inputs=(str(folder / "photos"),), output=str(folder / "out"), **options))
    return folder


def test_an_image_finds_itself(made, capsys):
    features = open_features(str(made / "out"))
    images = features.keys[:3]
    args = [part for image in images for part in ("--image", image)]
    assert run_cli(["query", str(made / "out"), *args, "--feature", "top", "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [asked["neighbours"][0]["key"] for asked in found["queries"]] == images
    for asked in found["queries"]:
        first = asked["neighbours"][0]
        assert first["score"] == pytest.approx(1, abs=1e-6)
        assert len(first["sha256"]) == 64


def test_an_image_with_other_weights_is_refused(made, tmp_path, capsys):
    [image, *_] = open_features(str(made / "out")).keys
    assert run_cli(["query", str(made / "out"), "--image", image, "--weights", "random:1"]) == 1
    message = capsys.readouterr().err
    assert "made with weights random:0, not random:1; leave --weights out" in message
    assert message.count("\n") == 1
    (tmp_path / "no.jpg").write_bytes(b"no image")
    for path in (tmp_path / "no.jpg", tmp_path / "gone.jpg"):
        assert run_cli(["query", str(made / "out"), "--image", str(path)]) == 1
        assert str(path) in capsys.readouterr().err
    plain = write_rows(tmp_path / "x.parquet", np.ones((4, 8)))
    assert run_cli(["query", plain, "--image", image]) == 1
    assert "wasn't written by featuremill extract" in capsys.readouterr().err


def test_an_image_that_holds_up_its_decoder_is_reported(made, tmp_path, monkeypatch, capsys):
    for name, value in deadly.codecs(tmp_path / "codecs").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(questions, "_DECODE_SECONDS", 0.5)
    (tmp_path / "hold.bmp").write_bytes(deadly.image("hold"))
    assert run_cli(["query", str(made / "out"), "--image", str(tmp_path / "hold.bmp")]) == 1
    assert "hold.bmp: too slow (over 0.5 s)" in capsys.readouterr().err


def test_parquet_and_page(made, tmp_path, capsys):
    keys = open_features(str(made / "out")).keys
    args = ["--key", keys[0], "--key", keys[1], "--top", "3", "--where", "width > 0"]
    files = ["-o", str(tmp_path / "found.parquet"), "--html", str(tmp_path / "page.html")]
    assert run_cli(["query", str(made / "out"), *args, *files]) == 0
    rows = pq.read_table(tmp_path / "found.parquet").to_pylist()
    assert [(row["query"], row["rank"]) for row in rows] == [(key, rank) for key in keys[:2] for rank in (1, 2, 3)]
    assert all(row["key"] != row["query"] for row in rows)
    assert (tmp_path / "page.html").read_text().count("data:image/webp;base64,") == 8
    assert run_cli(["query", str(made / "out"), "--key", keys[0], "-o", str(tmp_path / "no" / "x.parquet")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))


def test_photos_find_their_like():
    """Real photos, real features of VGG19: the nearest of the others is mostly of the same kind."""
    path = str(shared_data() / "vgg19_block5_pool_real.parquet")
    table = open_table(path)
    keys, labels = table.keys.to_pylist(), table.labels.to_pylist()
    found = query(QueryOptions(output=path, keys=tuple(keys), top=5))
    first = [some[0].row.label for some in found.neighbours]
    assert np.mean([one == other for one, other in zip(first, labels, strict=True)]) > 0.75
    matrix = np.concatenate([batch for _, batch in table.vectors.batches()])
    expected = brute_force(matrix, keys, matrix, "cosine", without=[asked.row for asked in found.queries])
    assert [[near.row.row for near in some] for some in found.neighbours] == [
        [row for row, _ in some[:5]] for some in expected
    ]


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30])
def test_a_cosine_does_not_depend_on_the_length(made, tmp_path, capsys, size):
    features = open_features(str(made / "out"))
    np.save(tmp_path / "a.npy", features.to_numpy("embedding")[3].astype(np.float64) * size)
    assert run_cli(["query", str(made / "out"), "--vector", str(tmp_path / "a.npy"), "--top", "1", "--json"]) == 0
    [near] = json.loads(capsys.readouterr().out)["queries"][0]["neighbours"]
    assert near["key"] == features.keys[3]
    assert near["score"] == pytest.approx(1, abs=1e-6)


def test_a_vector_beyond_float32_is_refused(made, tmp_path, capsys):
    dims = open_features(str(made / "out")).to_numpy("embedding").shape[1]
    np.save(tmp_path / "a.npy", np.full(dims, 1e300))
    assert run_cli(["query", str(made / "out"), "--vector", str(tmp_path / "a.npy")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_engine_that_is_none_is_refused_also_where_none_is_needed():
    with pytest.raises(UsageError, match="no engine 'nccn'; did you mean ncnn"):
        QueryOptions(output="out", keys=("k",), engine="nccn")
