"""Labels from a file, against a dictionary."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.rows.test_table import draw_matrix, write_plain
from transforms.errors import FeaturemillError
from transforms.rows.labels import join_labels, read_labels
from transforms.rows.table import open_table


def join(table, path, *, mode="replace", **names):
    (joined,), counts = join_labels([table], read_labels(str(path), **names), mode=mode)
    return joined, counts


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
    assert read_labels(str(tmp_path / "labels")).table["label"].to_pylist() == [None, "cat"]


def test_what_csv_can_hold(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffkey,label\n"a, b",007\n"two\nlines",NA\nc,\n', encoding="utf-8")
    assert read_labels(str(path)).table.to_pylist() == [
        {"key": "a, b", "label": "007"},
        {"key": "two\nlines", "label": "NA"},
        {"key": "c", "label": None},
    ]


def test_repeated_keys(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label\na,cat\nb,dog\na,cat\n")
    assert sorted(read_labels(str(path)).table["key"].to_pylist()) == ["a", "b"]
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
    assert len(read_labels(str(path)).table) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "key,labl1,labl2\na,cat,dog\n",
            "no column 'label', and several may be the label: 'labl1', 'labl2'; say which by",
        ),
        ("key,class,label_id,target\na,1,2,3\n", "several may be the label: 'class', 'target'; say"),
        ("key\na\n", "no column 'label', and it has no other than 'key'"),
        ("a.jpg,cat\nb.jpg,dog\n", "none of its columns is called as a key is .'a.jpg', 'cat'.; if these are no names"),
        ("key,label\nA,cat\n", "no key of .*: column 'key' has 'A', the features have 'a'"),
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


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("label,note,key", ("key", "label")),
        ("File Name,Class", ("File Name", "Class")),
        ("image_id,diagnosis", ("image_id", "diagnosis")),
        (",id,filename,target,width", ("filename", "target")),
        ("name,category,label", ("name", "label")),
        ("PATH,y", ("PATH", "y")),
    ],
)
def test_columns_are_found_by_what_they_are_called(tmp_path, header, chosen):
    path = tmp_path / "labels.csv"
    path.write_text(f"{header}\n{','.join(f'v{i}' for i in range(header.count(',') + 1))}\n")
    columns = read_labels(str(path)).columns
    assert (columns["key"], columns["label"]) == chosen


def test_blanks_around_labels_and_keys_are_left_out(table, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key, label\na, cat\n b,cat  \nc ,dog\nd,  \n,\n")
    joined, counts = join(table, path)
    assert joined.labels.to_pylist() == ["cat", "cat", "dog", None, None, None]
    assert (counts.file.stripped, counts.matched, counts.unlabelled) == (2, 4, 3)


def test_update_keeps_what_the_file_does_not_have(table, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label\nb,new\nc,\nx,new\n")
    joined, counts = join(table, path, mode="update")
    # An empty label in the file is one that was taken away.
    assert joined.labels.to_pylist() == ["old", "new", None, "old", "old", "old"]
    assert (counts.matched, counts.stored, counts.unlabelled, counts.unmatched) == (2, 4, 1, 1)
    joined, counts = join(table, path)
    assert joined.labels.to_pylist() == [None, "new", None, None, None, None]
    assert (counts.stored, counts.unlabelled) == (0, 5)


def test_update_keeps_groups_and_sides_too(tmp_path):
    columns = {"key": ["a", "b", "c"], "label": ["x", "y", "x"], "side": ["test", "train", "train"], "flat": [1, 2, 3]}
    table = open_table(
        str(write_plain(tmp_path / "a.parquet", draw_matrix(3), **columns)), group_column="flat", split_column="side"
    )
    path = tmp_path / "labels.csv"
    path.write_text("key,label,side,flat\nb,z,val,7\n")
    joined, _ = join(table, path, mode="update", group_column="flat", split_column="side")
    assert joined.sides.to_pylist() == ["test", "val", "train"]
    assert joined.groups.to_pylist() == ["1", "7", "3"]


def test_several_tables_are_joined_together(tmp_path):
    """A file name that is in both is no row for certain, though each table has it once; and one may have no row of the
    file."""
    tables = [
        open_table(
            str(write_plain(tmp_path / f"{name}.parquet", draw_matrix(2), key=[f"/{name}/{i}.jpg" for i in keys]))
        )
        for name, keys in (("one", (1, 2)), ("two", (2, 3)))
    ]
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n1.jpg,cat\n")
    joined, counts = join_labels(tables, read_labels(str(path)))
    assert [table.labels.to_pylist() for table in joined] == [["cat", None], [None, None]]
    assert (counts.rule, counts.unlabelled, counts.unlabelled_keys) == (
        "file name",
        3,
        ("/one/2.jpg", "/two/2.jpg", "/two/3.jpg"),
    )
    path.write_text("file,label\n1.jpg,cat\n2.jpg,dog\n")
    match = (
        r"1 row of .*labels\.csv can't be told apart by file name: '2\.jpg' of the file may be /one/2\.jpg or "
        r"/two/2\.jpg; write more of the path in column 'file'"
    )
    with pytest.raises(FeaturemillError, match=match):
        join_labels(tables, read_labels(str(path)))


def test_two_rows_of_the_file_for_one_key(tmp_path):
    table = open_table(str(write_plain(tmp_path / "a.parquet", draw_matrix(1), key=["/x/1.jpg"])))
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na/1.jpg,cat\nb/1.jpg,dog\n")
    with pytest.raises(
        FeaturemillError, match=r"by file name: 'a/1\.jpg' and 'b/1\.jpg' of the file are the same, /x/1"
    ):
        join(table, path)
