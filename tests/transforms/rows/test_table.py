"""Opening features: what is in a table against what was written; streaming; what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.samples import draw_items, write_folder
from tests.pipeline.extraction.test_run import extract
from tests.support.factories import shared_data
from tests.support.manifests import edit_manifest
from tests.support.properties import examples
from transforms.errors import FeaturemillError, UsageError
from transforms.rows.table import Table, open_table
from transforms.store.features import open_features


def draw_matrix(rows: int, dims: int = 3, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)


def vector_column(matrix: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(list(matrix.astype(float)), kind or pa.list_(pa.float32(), matrix.shape[1]))


def write_plain(path: Path, matrix: np.ndarray, *, group_rows: int = 4, **columns) -> Path:
    """Writes a Parquet file with `embedding` and other columns, `key` by default."""
    columns = {"key": [f"{path.stem}/{i}" for i in range(len(matrix))], "embedding": vector_column(matrix), **columns}
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def read_all(table: Table, **options) -> tuple[np.ndarray, np.ndarray]:
    batches = list(table.vectors.batches(**options))
    assert all(m.dtype == np.float32 and len(n) == len(m) for n, m in batches)
    return np.concatenate([n for n, _ in batches]), np.concatenate([m for _, m in batches])


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write_folder(folder / "photos", draw_items(per_class=3, size=48, seed=1))
    features = ("embedding=block5_pool:avg", "peak=block5_pool:max")
    extract(folder / "photos", folder / "out", features=features)
    return folder / "out"


def test_what_extract_wrote(out):
    table, features = open_table(str(out), columns=("peak", "embedding")), open_features(str(out))
    assert table.keys.to_pylist() == features.keys
    assert table.labels.to_pylist() == features.labels
    hashes = [value for batch in features.batches(["sha256"]) for value in batch.column(0).to_pylist()]
    assert table.sha256.to_pylist() == hashes
    assert (table.spec, table.fingerprint, table.weights) == (features.spec, features.fingerprint, "fake")
    assert (table.columns, table.dims, table.vectors.dims) == (("peak", "embedding"), (512, 512), 1024)
    numbers, matrix = read_all(table)
    assert numbers.tolist() == list(range(features.rows))
    np.testing.assert_array_equal(matrix, np.hstack([features.to_numpy("peak"), features.to_numpy("embedding")]))
    assert open_table(str(out)).columns == ("embedding",)


def test_an_unfinished_out_is_refused(out, tmp_path):
    edit_manifest(tmp_path, out, status="running")
    with pytest.raises(FeaturemillError, match="not finished; finish it with the same extract command"):
        open_table(str(tmp_path))


NUMBERS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
LISTS = {"list": pa.list_, "large": pa.large_list, "fixed": lambda number: pa.list_(number, 3)}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", LISTS)
def test_every_kind_of_vector_column(tmp_path, kind, number):
    matrix = draw_matrix(10).astype(number)
    column = pa.array([list(row) for row in matrix], LISTS[kind](NUMBERS[number]))
    path = write_plain(tmp_path / "a.parquet", matrix, embedding=None, anything=column)
    table = open_table(str(path))
    assert (table.columns, table.dims) == (("anything",), (3,))
    np.testing.assert_array_equal(read_all(table)[1], matrix.astype(np.float32))


def test_a_vector_column_beside_others_whose_names_begin_like_its_own(tmp_path):
    """Parquet's own paths of `a`, of `a.b` and of what is in a struct `a` are told apart by nothing but their order."""
    nested = pa.array([{"list": {"x": 1, "y": [1.0, 2.0]}}] * 5)
    maps = pa.array([[("k", 1)]] * 5, pa.map_(pa.string(), pa.int8()))
    names = {"m": maps, "emb": 4, "emb.small": 2, "emb.list": nested, "emb.list.element": 3}
    matrix = draw_matrix(5, 4)
    columns = {n: c if isinstance(c, pa.Array) else vector_column(matrix[:, :c]) for n, c in names.items()}
    path = write_plain(tmp_path / "a.parquet", matrix, embedding=None, **columns)
    for name in ("emb", "emb.small", "emb.list.element"):
        table = open_table(str(path), columns=[name])
        assert table.dims == (names[name],)
        np.testing.assert_array_equal(read_all(table)[1], matrix[:, : names[name]])


def test_files_folders_and_patterns(tmp_path):
    first, second = draw_matrix(5), draw_matrix(6, seed=1)
    paths = [write_plain(tmp_path / f"{name}.parquet", m, key=None) for name, m in (("a", first), ("b", second))]
    (tmp_path / "notes.txt").write_text("passed over")
    for location in (tmp_path, tmp_path / "*.parquet"):
        table = open_table(str(location))
        assert table.keys.to_pylist() == [f"{paths[0]}#{i}" for i in range(5)] + [f"{paths[1]}#{i}" for i in range(6)]
        np.testing.assert_array_equal(read_all(table)[1], np.vstack([first, second]))
    assert (table.spec, table.fingerprint, table.weights_are_random) == (None, None, False)
    assert table.labels.null_count == 11
    assert (table.groups, table.sides, table.sha256) == (None, None, None)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
        (pa.array([7, None, 9]), ["7", None, "9"]),
        (pa.array([7.0, None, 9.0]), ["7", None, "9"]),
        (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    ],
)
def test_labels_of_other_types(tmp_path, labels, expected):
    path = write_plain(tmp_path / "a.parquet", draw_matrix(3), group=labels, label=labels)
    table = open_table(str(path), group_column="group")
    assert table.labels.to_pylist() == table.groups.to_pylist() == expected
    assert table.labels.type == pa.string()


MATRIX = draw_matrix(3)
INVALID = pa.StringArray.from_buffers(3, pa.py_buffer(np.arange(4, dtype=np.int32)), pa.py_buffer(b"a\xffc"))
RAGGED = pa.array([[1.0, 2.0], [1.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"columns": ["embeding"]}, "no column 'embeding'; did you mean embedding"),
        ({}, {"columns": ["key"]}, "column 'key' holds string, no vectors; choose from embedding"),
        ({}, {"group_column": "group"}, "no column 'group'"),
        ({}, {"label_column": "keys"}, "no column 'keys'; did you mean key"),
        ({"embedding": None}, {}, "no column of vectors"),
        ({"embedding": None, "a": vector_column(MATRIX), "b": vector_column(MATRIX)}, {}, "several columns .*: a, b"),
        ({"embedding": RAGGED}, {}, "different lengths, or rows without one"),
        ({"embedding": pa.array([[1.0, 2.0], None, [3.0, 4.0]])}, {}, "different lengths, or rows without one"),
        ({"label": pa.array([0.5, 1.5, 2.5])}, {}, "column 'label' holds double, no text or whole numbers"),
        ({"key": ["a", None, "c"]}, {}, "is empty in 1 of"),
        ({"label": INVALID}, {}, "column 'label' holds .* Invalid UTF8"),
    ],
)
def test_what_is_refused(tmp_path, columns, options, message):
    path = write_plain(tmp_path / "a.parquet", MATRIX, **columns)
    with pytest.raises(FeaturemillError, match=message) as caught:
        open_table(str(path), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals(tmp_path):
    (tmp_path / "text.parquet").write_text("no Parquet")
    write_plain(tmp_path / "none.parquet", draw_matrix(0))
    with pytest.raises(FeaturemillError, match="not a readable Parquet file"):
        open_table(str(tmp_path / "text.parquet"))
    with pytest.raises(FeaturemillError, match="no rows"):
        open_table(str(tmp_path / "none.parquet"))
    with pytest.raises(FeaturemillError, match="has no features: no OUT"):
        open_table(str(tmp_path / "nowhere"))
    path = write_plain(tmp_path / "a.parquet", MATRIX)
    with pytest.raises(UsageError, match="named twice"):
        open_table(str(path), columns=("embedding", "embedding"))
    twice = pa.table([vector_column(MATRIX)] * 2, ["embedding", "embedding"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(FeaturemillError, match="several columns 'embedding'"):
        open_table(str(tmp_path / "twice.parquet"))
    write_plain(tmp_path / "b.parquet", draw_matrix(2, dims=4), sha256=[b"1", b"2"])
    with pytest.raises(FeaturemillError, match=r"b.parquet: column 'embedding' holds vectors of different lengths"):
        open_table(str(tmp_path / "[ab].parquet"))
    write_plain(tmp_path / "b.parquet", draw_matrix(2), sha256=[b"1", b"2"])
    with pytest.raises(FeaturemillError, match=r"a.parquet has no column 'sha256'"):
        open_table(str(tmp_path / "[ab].parquet"))


def test_uneven_vectors_whose_numbers_add_up_are_refused_when_read(tmp_path):
    path = write_plain(tmp_path / "a.parquet", MATRIX, embedding=pa.array([[1.0, 2.0], [1.0], [3.0, 4.0, 5.0]]))
    with pytest.raises(FeaturemillError, match="doesn't hold 2 numbers in every row"):
        read_all(open_table(str(path)))


@pytest.mark.parametrize(
    ("value", "number", "message"),
    [
        (np.nan, np.float32, "hold NaN or infinity"),
        (-np.inf, np.float32, "hold NaN or infinity"),
        (1e300, np.float64, "hold NaN or infinity"),
        (None, None, "hold nothing but zeros"),
    ],
)
def test_vectors_that_no_fit_can_use(tmp_path, value, number, message):
    matrix = draw_matrix(10).astype(number or np.float32)
    matrix[[6, 7]] = 0
    if value is not None:
        matrix[[6, 7], 1] = value
    kind = pa.list_(pa.float64() if number is np.float64 else pa.float32(), 3)
    path = write_plain(tmp_path / "a.parquet", matrix, embedding=vector_column(matrix, kind))
    table = open_table(str(path))
    with pytest.raises(FeaturemillError, match=f"2 of 4 vectors .* {message}, the first is that of 'a/6'"):
        read_all(table)
    # Rows that nobody wants may be what they like.
    assert len(read_all(table, wanted=~np.isin(np.arange(10), [6, 7]))[0]) == 8
    path = write_plain(tmp_path / "b.parquet", matrix, embedding=vector_column(matrix, kind), key=None)
    with pytest.raises(FeaturemillError, match=f"the first is that of '{path}#6'"):
        read_all(open_table(str(path)))


def test_tiny_and_huge_numbers_pass(tmp_path):
    matrix = np.array([[1e-30, 0, 0], [3e38, 3e38, 0]], np.float32)
    np.testing.assert_array_equal(read_all(open_table(str(write_plain(tmp_path / "a.parquet", matrix))))[1], matrix)


@pytest.fixture(scope="module")
def three_files(tmp_path_factory) -> tuple[Table, np.ndarray]:
    folder, matrix = tmp_path_factory.mktemp("three"), draw_matrix(40)
    for name, rows in (("a", slice(0, 17)), ("b", slice(17, 18)), ("c", slice(18, 40))):
        write_plain(folder / f"{name}.parquet", matrix[rows])
    return open_table(str(folder)), matrix


@examples(60)
@given(
    wanted=st.none() | st.lists(st.booleans(), min_size=40, max_size=40).map(np.array),
    batch_rows=st.none() | st.integers(1, 50),
    seed=st.none() | st.integers(0, 5),
)
def test_every_wanted_row_comes_once(three_files, wanted, batch_rows, seed):
    table, matrix = three_files
    batches = list(table.vectors.batches(wanted, batch_rows=batch_rows, seed=seed))
    assert all(0 < len(numbers) <= (batch_rows or 40) for numbers, _ in batches)
    numbers = [number for batch, _ in batches for number in batch]
    expected = list(range(40)) if wanted is None else np.flatnonzero(wanted).tolist()
    assert (numbers if seed is None else sorted(numbers)) == expected
    for batch, vectors in batches:
        np.testing.assert_array_equal(vectors, matrix[batch])


def test_seeds_decide_the_order(three_files):
    table, _ = three_files
    orders = {seed: read_all(table, seed=seed)[0].tolist() for seed in range(5)}
    assert orders == {seed: read_all(table, seed=seed)[0].tolist() for seed in range(5)}
    assert len(set(map(tuple, orders.values()))) == 5


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path):
    path = write_plain(tmp_path / "a.parquet", draw_matrix(12))
    table, metadata = open_table(str(path)), pq.read_metadata(path)
    at = metadata.row_group(1).column(1).dictionary_page_offset or metadata.row_group(1).column(1).data_page_offset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 40)
    wanted = ~np.isin(np.arange(12), range(4, 8))
    assert len(read_all(table, wanted=wanted)[0]) == 8
    with pytest.raises(FeaturemillError, match="can't be read"):
        read_all(table)


def test_a_file_that_changed_is_refused(tmp_path):
    table = open_table(str(write_plain(tmp_path / "a.parquet", draw_matrix(12))))
    write_plain(tmp_path / "a.parquet", draw_matrix(12), group_rows=6)
    with pytest.raises(FeaturemillError, match="changed while it was in use"):
        read_all(table)


def test_real_features():
    path = shared_data() / "vgg19_block5_pool_real.parquet"
    table = open_table(str(path), columns=("embedding",), group_column="group")
    read = pq.read_table(path)
    assert table.dims == (512,)
    assert table.groups.to_pylist() == read["group"].to_pylist()
    np.testing.assert_array_equal(read_all(table)[1], np.array(read["embedding"].to_pylist(), np.float32))
