"""Labels from a file, against a dictionary."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.rows.test_table import draw_matrix, write_plain
from transforms.errors import FeaturemillError
from transforms.rows.labels import join_labels, read_labels
from transforms.rows.table import open_table


def join(table, path, **names):
    return join_labels(table, read_labels(str(path), **names), str(path))


@pytest.fixture
def table(tmp_path):
    path = write_plain(tmp_path / "a.parquet", draw_matrix(6), key=list("abcdef"), label=["old"] * 6, group_rows=4)
    return open_table(str(path))


def test_join(table, tmp_path):
    labels = {"c": "cat", "a": "ant", "x": "elk", "e": "cat", "y": "ant", "d": ""}
    path = tmp_path / "labels.csv"
    path.write_text("label,note,key\n" + "".join(f"{label},1,{key}\n" for key, label in labels.items()))
    joined, counts = join(table, path)
    assert joined.labels.to_pylist() == ["ant", None, "cat", None, "cat", None]
    assert (counts.matched, counts.unlabelled, counts.unlabelled_keys) == (4, 3, ("b", "d", "f"))
    assert (counts.unmatched, counts.unmatched_keys) == (2, ("x", "y"))
    assert joined.keys is table.keys


def test_parquet_and_other_names(table, tmp_path):
    pq.write_table(pa.table({"image": list("abcdef"), "class": [1, 2, 1, 2, None, 1]}), tmp_path / "labels")
    joined, counts = join(table, tmp_path / "labels", key_column="image", label_column="class")
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


def test_groups_and_sides_where_the_file_has_them(table, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label,side,flat\nb,dog,test,2\na,cat,,007\nb,dog,test,2\n")
    joined, _ = join(table, path, group_column="flat", split_column="side")
    assert joined.sides.to_pylist() == [None, "test", *[None] * 4]
    assert joined.groups.to_pylist() == ["007", "2", *[None] * 4]
    assert joined.sides_from == str(path)
    joined, _ = join(table, path, group_column="house", split_column=None)
    assert joined.groups is joined.sides is None


@pytest.mark.parametrize(("column", "first", "second"), [("side", "'train'", "'test'"), ("flat", "'1'", "None")])
def test_a_key_is_on_one_side_and_in_one_group(tmp_path, column, first, second):
    path = tmp_path / "labels.csv"
    values = {"side": "train,test", "flat": "1,"}[column].split(",")
    path.write_text(f"key,label,{column}\n" + "".join(f"a,cat,{value}\n" for value in values))
    match = f"labels.csv: keys with several values of '{column}': 1, such as 'a' with {first} and {second}; leave one"
    with pytest.raises(FeaturemillError, match=match):
        read_labels(str(path), group_column="flat", split_column="side")
    # Nobody asked for it.
    assert len(read_labels(str(path))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,lable\na,cat\n", "no column 'label'; did you mean lable"),
        ("key,label\nA,cat\n", "no key of .*: the file has 'A', the features have 'a'"),
        ("key,label\n", r"labels\.csv has no rows, only a header"),
        ("key,label\na,cat,more\n", "can't be read as labels"),
        ("key,label\n,cat\na,dog\n", "column 'key' is empty in 1 of 2 rows"),
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
        join(table, path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FeaturemillError, match=r"^there is no file of labels .*/nowhere\.csv; check the path$"):
        read_labels(str(tmp_path / "nowhere.csv"))
    with pytest.raises(FeaturemillError, match="can't be read as labels"):
        read_labels(str(tmp_path))
