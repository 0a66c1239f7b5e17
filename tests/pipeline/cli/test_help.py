"""The help, what the shell offers, and how lines fit a terminal."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.cli import options as module
from pipeline.cli.app import cli, run_cli
from pipeline.cli.help import complete_files_too
from pipeline.cli.options import echo, folded
from tests import ROOT

ORDER = [
    *("Extract:", "extract", "estimate", "describe", "Ask:", "query", "sql", "duplicates", "outliers", "map"),
    *("Heads:", "train", "predict", "suspects", "compare", "finetune", "export"),
    *("Keep:", "inspect", "verify", "compact", "relocate", "convert", "register", "report", "drop-feature"),
]


def test_commands_stand_by_task_in_the_order_of_use(capsys):
    assert run_cli(["--help"]) == 0
    text = capsys.readouterr().out
    text = text[text.index("Extract:") :]
    assert re.findall(r"^(?:  )?([A-Za-z][a-z-]*:?)", text, re.MULTILINE) == ORDER
    assert "..." not in text


@pytest.mark.parametrize("columns", [40, 80])
def test_help_breaks_between_words(monkeypatch, capsys, columns):
    """Not within options such as --test-fraction either."""
    monkeypatch.setenv("COLUMNS", "10000")
    assert run_cli(["train", "--help"]) == 0
    words = set(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run_cli(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {word for line in lines for word in line.split()} == words
    assert max(map(len, lines)) <= columns


def test_lines_fit_the_terminal_they_are_printed_on(monkeypatch, capsys):
    line = "CAUTION  weights random:0 were never trained: these predictions mean nothing"
    path = f"output   /{'long/' * 12}file (1.0 s)"
    assert folded(f"{line}\n{path}\nshort  line", 40).splitlines() == [
        "CAUTION  weights random:0 were never",
        "         trained: these predictions mean",
        "         nothing",
        "output",
        f"         /{'long/' * 12}file",
        "         (1.0 s)",
        "short  line",
    ]
    assert folded(line, 80) == line
    monkeypatch.setenv("COLUMNS", "40")
    echo(line)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    echo(line)
    module.show({"message": line}, dict, str, as_json=True)
    assert capsys.readouterr().out.splitlines() == [
        line,
        *folded(line, 40).splitlines(),
        "{",
        f'  "message": "{line}"',
        "}",
    ]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("featuremill train --transform s", ["plain,sqrt", "plain,sqrt-l2"]),
        ("featuremill train --head lin", ["plain,linear"]),
        ("featuremill extract --engine nc", ["plain,ncnn"]),
        ("featuremill outliers --by n", ["plain,neighbours"]),
        ("featuremill convert --dtype float1", ["plain,float16"]),
        ("featuremill describe vgg16", ["plain,vgg16"]),
        ("featuremill com", ["plain,compact", "plain,compare"]),
        ("featuremill extract pho", ["file,pho"]),
        ("featuremill train --labels la", ["file,la"]),
    ],
    ids=str,
)
def test_the_shell_offers_what_fits(monkeypatch, capsys, words, offered):
    complete_files_too()
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_FEATUREMILL_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit):
        cli.main([], prog_name="featuremill")
    assert sorted(capsys.readouterr().out.split()) == offered


def test_completion_is_switched_on_as_readme_says():
    environment = {**os.environ, "_FEATUREMILL_COMPLETE": "bash_source"}
    command = [sys.executable, "-c", "from pipeline.cli import main; import sys; sys.argv[0] = 'featuremill'; main()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "complete -o nosort -F _featuremill_completion featuremill" in done.stdout
