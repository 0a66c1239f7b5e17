"""SQL over an OUT: three views that agree with the files, four ways out, and nothing beyond them."""

import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from pipeline.demo.samples import draw_items, write_folder
from pipeline.exploration.sql import Answer, sql, write_answer_csv, write_answer_json
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from tests.support.commands import finish, start
from tests.support.fakes import WEIGHTS, load_fake
from tests.support.pages_data import clusters, write_out
from transforms.store.features import open_features


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An OUT with failures, under a name full of what SQL and globs take for their own."""
    folder = tmp_path_factory.mktemp("it's [1] *")
    write_folder(folder / "photos", draw_items(per_class=8, size=48, seed=1))
    options = ExtractOptions(inputs=(str(folder / "photos"),), output=str(folder / "out"), image_size=32)
    run(options, load=load_fake, weights=WEIGHTS)
    return folder


def ask(folder, text, *options):
    return run_cli(["sql", str(folder / "out"), text, *options])


def rows(folder, text, capsys):
    assert ask(folder, text, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_views_agree_with_the_files(made, capsys):
    features = open_features(str(made / "out"))
    failed = [row for path in (made / "out/failures").iterdir() for row in pq.read_table(path).to_pylist()]
    assert failed
    assert [row["key"] for row in rows(made, "SELECT key FROM features ORDER BY 1", capsys)] == sorted(features.keys)
    found = rows(made, "SELECT key, error FROM failures ORDER BY 1", capsys)
    assert found == sorted(({"key": f["key"], "error": f["error"]} for f in failed), key=lambda row: row["key"])
    [totals] = rows(made, "SELECT sum(rows_read) AS r, sum(rows_embedded) e, sum(rows_failed) f FROM units", capsys)
    # Sums of integers are integers, though DuckDB makes decimals of them.
    assert totals == {"r": features.rows + len(failed), "e": features.rows, "f": len(failed)}


def test_vectors_have_array_functions(made, capsys):
    text = """SELECT a.key, array_cosine_similarity(a.embedding, b.embedding) AS cosine
              FROM features a, features b WHERE a.key = b.key"""
    found = rows(made, text, capsys)
    assert [row["cosine"] for row in found] == pytest.approx([1] * len(found), abs=1e-6)


def test_four_ways_out(made, tmp_path, capsys):
    text = "SELECT label, count(*) AS n, NULL AS nothing, 'a,b' AS x FROM features GROUP BY 1 ORDER BY 1"
    expected = rows(made, text, capsys)
    assert ask(made, text, "--csv") == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert found == [{name: "" if v is None else str(v) for name, v in row.items()} for row in expected]
    assert ask(made, text, "-o", str(tmp_path / "x.parquet")) == 0
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == expected
    assert f"{len(expected)} rows" in capsys.readouterr().err
    assert ask(made, text) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "n", "nothing", "x"]
    assert [line.split()[:2] for line in lines[1:]] == [[row["label"], str(row["n"])] for row in expected]
    assert ask(made, text, "--csv", "--json") == 2


def test_a_type_that_parquet_lacks_is_reported(made, tmp_path, capsys):
    assert ask(made, "SELECT INTERVAL 1 DAY AS long", "-o", str(tmp_path / "x.parquet")) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "interval" in line
    assert line.endswith("leave that column out, or cast it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["SELECT count(*) FROM range(10000000000000)", "SELECT * FROM range(10000000000000)"])
def test_ctrl_c_ends_a_query(made, text):
    script = (
        "import os, signal, sys, threading\n"
        "from pipeline.cli.app import run_cli\n"
        "import pipeline.exploration.sql, duckdb, pyarrow.dataset\n"
        "threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(run_cli(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "sql", str(made / "out"), text, "--csv"]
    code, _, err = finish(start(command, stdout=subprocess.DEVNULL))
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_no_rows_have_columns_all_the_same(made, capsys):
    assert ask(made, "SELECT key, label FROM features WHERE false", "--csv") == 0
    assert capsys.readouterr().out == "key,label\n"


def test_json_is_one_list_whatever_comes_in_pieces(made, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.exploration.sql._PYTHON_ROWS", 2)
    text = "SELECT range AS n, [range, 7] AS list, 'a\n\u2028b' AS odd, 1.50 AS d FROM range({})"
    for count in (0, 1, 5):
        expected = [{"n": n, "list": [n, 7], "odd": "a\n\u2028b", "d": "1.50"} for n in range(count)]
        assert ask(made, text.format(count), "--json") == 0
        assert capsys.readouterr().out == json.dumps(expected, indent=2) + "\n"
        assert ask(made, text.format(count), "--csv") == 0
        assert len(list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))) == count + 1


@pytest.mark.parametrize("write", [write_answer_csv, write_answer_json])
def test_text_is_written_while_the_rows_are_read(write):
    class Stream(io.StringIO):
        def write(self, text):
            read.append("text")
            return super().write(text)

    def batches():
        for number in range(3):
            read.append("batch")
            yield pa.record_batch({"n": [number]})

    read = []
    write(Answer(pa.schema([("n", pa.int64())]), batches(), complete=True), Stream())
    order = [one for one, before in zip(read, [None, *read], strict=False) if one != before]
    assert order[-6:] == ["batch", "text"] * 3


@pytest.mark.parametrize("value", ["DATE '12000-01-01'", "DATE '4000-01-01 (BC)'", "TIMESTAMP 'infinity'"])
@pytest.mark.parametrize("how", [[], ["--json"], ["--csv"]])
def test_a_time_that_python_lacks_is_reported(made, capsys, value, how):
    assert ask(made, f"SELECT {value} AS d", *how) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("featuremill: SQL: column d holds")
    assert line.endswith("cast it to text, such as d::VARCHAR")
    assert ask(made, f"SELECT ({value})::VARCHAR AS d", *how) == 0


def test_a_terminal_gets_no_control_characters(made, capsys):
    assert ask(made, "SELECT chr(27) || '[31m' || chr(10) || chr(8238) || repeat('x', 5000) AS odd") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert len(printed) < 200
    assert ask(made, "SELECT * FROM range(1000)") == 0
    assert "more than these 200 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM features", 'Referenced column "nope" not found'),
        ("SELECT * FROM feature", "Did you mean"),
        ("SELECT label::INT FROM features", "Could not convert string"),
        ("SELECT error('boom') FROM features", "boom"),
        ("", "0 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
    ],
)
def test_broken_sql_is_one_line(made, capsys, text, message):
    assert ask(made, text) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM '{secret}'",
        "FROM read_parquet('{part}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM parquet_metadata('{part}')",
        "SELECT * FROM query_table('{secret}')",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "SELECT (SELECT content FROM read_text('{secret}')) FROM features",
        "SELECT * FROM sqlite_scan('{secret}', 'x')",
        "SELECT * FROM read_text('https://example.com/')",
        "SELECT getenv('HOME')",
        "COPY features TO '{target}'",
        "COPY (SELECT 1) TO '{target}'",
        "ATTACH '{target}' AS other",
        "EXPORT DATABASE '{target}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '{secret}'",
        "PRAGMA enable_profiling",
        "SET enable_external_access = true",
        "SET temp_directory = '{target}'",
        "RESET ALL",
        "CREATE TABLE t AS SELECT 1",
        "CREATE SECRET s (TYPE s3)",
        "DROP VIEW features",
        "DELETE FROM features",
        "INSERT INTO units SELECT * FROM units",
        "CALL pragma_version()",
        "CHECKPOINT",
        "EXECUTE x",
        "VACUUM",
        "SELECT 1; COPY units TO '{target}'",
        "EXPLAIN ANALYZE COPY units TO '{target}'",
        "SELECT * FROM features_dataset",
    ],
)
def test_nothing_gets_out_or_in(made, tmp_path, capsys, text):
    secret, target = tmp_path / "secret.csv", tmp_path / "target"
    secret.write_text("hunter,2\n")
    part = next((made / "out/features").iterdir())
    places = {"secret": secret, "target": target, "part": str(part).replace("'", "''"), "folder": tmp_path}
    # A Python variable that a careless connection would take for a table.
    features_dataset = pq.read_table(part)
    assert ask(made, text.format(**places)) == 1
    printed = capsys.readouterr()
    assert "hunter" not in printed.out + printed.err
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv"]
    assert features_dataset.num_rows


def test_what_does_not_fit_into_memory_spills(made, monkeypatch, capsys):
    """A sort of 80 MB with room for 50: the temporary folder is still open to DuckDB itself."""
    monkeypatch.setattr("transforms.rows.sandbox._MEMORY", "50MB")
    text = "SELECT max(n) AS n FROM (SELECT row_number() OVER (ORDER BY hash(range)) AS n FROM range(5000000))"
    assert rows(made, text, capsys) == [{"n": 5_000_000}]


def test_only_here(capsys):
    assert run_cli(["sql", "gs://bucket/out", "SELECT 1"]) == 1
    assert "copy OUT here first" in capsys.readouterr().err
    assert run_cli(["sql", "/nowhere", "SELECT 1"]) == 1
    assert "holds no features" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [0, 7])
def test_vectors_of_either_width_are_float32(tmp_path, dtype, rows):
    matrix = clusters(rows)[0].astype(dtype)
    out = write_out(tmp_path / "out", matrix)
    with sql(out, "SELECT key, embedding FROM features ORDER BY key") as answer:
        assert answer.schema.field("embedding").type == pa.list_(pa.float32(), 16)
        assert [row[1] for row in answer.rows()] == matrix.tolist()


@pytest.mark.parametrize("how", [["--json"], ["-o", "x.parquet"]])
def test_columns_of_one_name_are_not_lost(made, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    join = "SELECT a.key, b.key FROM features a JOIN features b ON a.label = b.label AND a.key < b.key"
    assert ask(made, join, *how) == 1
    printed = capsys.readouterr()
    assert "several columns are named key" in printed.err
    assert not printed.out
    assert not list(tmp_path.iterdir())
    assert ask(made, join, "--csv") == 0
    assert capsys.readouterr().out.startswith("key,key")


def test_an_unfinished_run_is_reported(tmp_path, capsys):
    out = write_out(tmp_path / "out", clusters(30)[0], complete=False)
    assert run_cli(["sql", out, "SELECT count(*) FROM features", "--csv"]) == 0
    assert "not finished" in capsys.readouterr().err
