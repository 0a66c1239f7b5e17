"""Label files of every make, against the same three rows; and what can't be read, in a line with its cure."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.errors import FeaturemillError
from transforms.rows.labels import read_labels

ROWS = [("a/1.jpg", "café"), ("b, 2.jpg", "two\nlines"), ("c.jpg", None)]
CSV = 'file,label,more\na/1.jpg,café,1\n"b, 2.jpg","two\nlines",\nc.jpg,,"x"\n'


def delimited(delimiter: str) -> bytes:
    return CSV.replace(",", delimiter).replace(f"b{delimiter} 2", "b, 2").encode()


def found(tmp_path, data: bytes, name: str = "labels") -> list[tuple]:
    path = tmp_path / name
    path.write_bytes(data)
    return [(row["key"], row["label"]) for row in read_labels(str(path)).table.to_pylist()]


JSON_LINES = "".join(json.dumps({"file": key, "more": [1], "label": label}) + "\n" for key, label in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        CSV.encode(),
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        b"\xfe\xff" + CSV.encode("utf-16-be"),
        CSV.encode("utf-32"),
        delimited(";"),
        delimited("\t"),
        delimited("|"),
        delimited("\t").decode().encode("utf-16"),
        gzip.compress(delimited(";"), mtime=0),
        gzip.compress(CSV.encode("utf-16"), mtime=0),
        b"\n# made by hand; on a Monday\n#\n" + CSV.encode(),
        CSV.encode().replace(b"\nc.jpg", b"\n\n# not this, it is a note, and so on, with more\n\nc.jpg"),
        JSON_LINES.encode(),
        gzip.compress(JSON_LINES.encode("utf-8-sig"), mtime=0),
        b"\n" + JSON_LINES.replace("\n", "\n\n").encode(),
    ],
)
def test_the_same_rows(tmp_path, data):
    assert found(tmp_path, data) == ROWS


def test_other_line_ends(tmp_path):
    rows = [("a", "cat"), ("b", "dog")]
    for end in ("\r\n", "\r", "\n\n"):
        assert found(tmp_path, end.join(["key,label", "a,cat", "b,dog", ""]).encode()) == rows
    assert found(tmp_path, b"key,label\na,cat\nb,dog") == rows


def test_parquet(tmp_path):
    columns = {"file": [row[0] for row in ROWS], "label": pa.array([row[1] for row in ROWS]).dictionary_encode()}
    pq.write_table(pa.table({**columns, "vector": [[1.0]] * 3}), tmp_path / "labels.parquet")
    assert found(tmp_path, (tmp_path / "labels.parquet").read_bytes()) == ROWS


def test_a_delimiter_is_what_divides_all_rows_alike(tmp_path):
    assert found(tmp_path, b"key;label\na,b;0,5\nc;1,5\n") == [("a,b", "0,5"), ("c", "1,5")]
    assert found(tmp_path, b"key,label\na;1,x;y\nb;2,z\n") == [("a;1", "x;y"), ("b;2", "z")]


def test_json_values_are_written_as_labels_are(tmp_path):
    lines = [{"key": 7, "label": 1.0}, {"key": "08", "label": 0.1}, {"key": "x"}]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert found(tmp_path, data) == [("7", "1"), ("08", "0.1"), ("x", None)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 and so on", "it is a spreadsheet or a zip file; save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "it is an old spreadsheet"),
        (b"BZh91AY", "it is packed in a way that isn't read; unpack it"),
        ("key,label\na,café\n".encode("latin-1"), "it isn't UTF-8; save it as UTF-8 .*iconv -f WINDOWS-1252"),
        ("clé,label\na,x\n".encode("latin-1"), "it isn't UTF-8"),
        ("key,label\na,cat\n".encode("utf-16-le"), "it holds NUL bytes, as UTF-16 without its mark"),
        (b"key,label\na,cat\n\0", "it holds NUL bytes"),
        (b"\xff\xfek\0e", "it begins as UTF-16 and isn't"),
        (b"", "it is empty; pass CSV with a header, JSON lines or Parquet"),
        (b" \n\n", "it is empty"),
        (b"# only\n# notes\n", "none of its columns"),
        (b'[{"key": "a", "label": "b"}]', r"it is one JSON list; write an object to a line \(jq -c '\.\[\]' FILE"),
        (b'{\n "key": 1}', r"it holds no JSON in line 1 .*; write an object to a line \(jq -c \. FILE\)"),
        (b'{"key": "a", "label": "b"}\n["a"]\n', "it holds no JSON object in line 2"),
        (b'{"key": "a", "label": ["b"]}\n', "it has a 'label' in row 1 that can't be used"),
        (b"key,label\na,cat,more\n", "Expected 2 columns, got 3: a,cat,more"),
        (b'key,label\na,"cat\nb,dog\n', "it has a quote that isn't closed, before 'cat"),
        (gzip.compress(b"key,label\na,cat\n", mtime=0)[:-9], "can't be read as labels"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "can't be read as labels .*invalid block type"),
        (b'{"key": "a", "label": ' + b"[" * 100_000, "it holds no JSON in line 1"),
    ],
)
def test_what_is_refused(tmp_path, data, message):
    with pytest.raises(FeaturemillError, match=message) as caught:
        found(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_parquet_whose_columns_are_not_named_in_utf8(tmp_path):
    pq.write_table(pa.table({"key": ["a"], "läbel": ["b"]}), tmp_path / "x.parquet", store_schema=False)
    data = (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(FeaturemillError, match=r"can't be read as labels \('utf-8' codec"):
        found(tmp_path, data.replace("läbel".encode(), b"l\xff\xffbel"))
