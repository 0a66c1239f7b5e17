"""Labels from a file, against a dictionary."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_heads_table import draw_matrix, write_plain
from transforms.heads.labels import join_labels, read_labels
from transforms.heads.table import open_table
from transforms.records import FeaturemillError


@pytest.fixture
def table(tmp_path):
    path = write_plain(tmp_path / "a.parquet", draw_matrix(6), key=list("abcdef"), label=["old"] * 6, group_rows=4)
    return open_table(str(path))


def test_join(table, tmp_path):
    labels = {"c": "cat", "a": "ant", "x": "elk", "e": "cat", "y": "ant", "d": ""}
    path = tmp_path / "labels.csv"
    path.write_text("label,note,key\n" + "".join(f"{label},1,{key}\n" for key, label in labels.items()))
    joined, counts = join_labels(table, str(path))
    assert joined.labels.to_pylist() == ["ant", None, "cat", None, "cat", None]
    assert (counts.matched, counts.unlabelled, counts.unlabelled_keys) == (4, 3, ("b", "d", "f"))
    assert (counts.unmatched, counts.unmatched_keys) == (2, ("x", "y"))
    assert joined.keys is table.keys


def test_parquet_and_other_names(table, tmp_path):
    pq.write_table(pa.table({"image": list("abcdef"), "class": [1, 2, 1, 2, None, 1]}), tmp_path / "labels")
    joined, counts = join_labels(table, str(tmp_path / "labels"), key_column="image", label_column="class")
    assert joined.labels.to_pylist() == ["1", "2", "1", "2", None, "1"]
    assert (counts.matched, counts.unlabelled, counts.unmatched) == (6, 1, 0)


def test_empty_text_is_no_label(tmp_path):
    pq.write_table(pa.table({"key": ["a", "b"], "label": ["", "cat"]}), tmp_path / "labels")
    assert read_labels(str(tmp_path / "labels"))["label"].to_pylist() == [None, "cat"]


def test_what_csv_can_hold(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffkey,label\n"a, b",007\n"two\nlines",NA\nc,\n', encoding="utf-8")
    assert read_labels(str(path)).to_pylist() == [
        {"key": "a, b", "label": "007"},
        {"key": "two\nlines", "label": "NA"},
        {"key": "c", "label": None},
    ]


def test_repeated_keys(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label\na,cat\nb,dog\na,cat\n")
    assert sorted(read_labels(str(path))["key"].to_pylist()) == ["a", "b"]
    path.write_text("key,label\na,cat\nb,dog\na,dog\n")
    with pytest.raises(FeaturemillError, match="keys with several labels: 1, such as 'a' with 'cat' and 'dog'"):
        read_labels(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,lable\na,cat\n", "no column 'label'; did you mean lable"),
        ("key,label\nA,cat\n", "no key of .*: the file has 'A', the features have 'a'"),
        ("key,label\n", "no key of"),
        ("key,label\na,cat,more\n", "can't be read as labels"),
        ("key,label\n,cat\na,dog\n", "1 rows have no 'key'"),
        ("", "can't be read as labels"),
        ("key,label,label\na,cat,dog\n", "several columns 'label'"),
        ("key,label\na,caf\xe9\n", "can't be read as labels"),
        ("PAR1 but no Parquet", "can't be read as labels"),
    ],
)
def test_what_is_refused(table, tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FeaturemillError, match=message) as caught:
        join_labels(table, str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(FeaturemillError, match="can't be read as labels"):
        join_labels(table, str(tmp_path / "nowhere.csv"))
