"""README can't rot: its commands parse, its Python runs, its options exist, and what exists is in it."""

import re
import shlex
import subprocess
import sys

import pytest

from pipeline.cli.app import cli
from pipeline.demo.samples import draw_items, write_folder
from pipeline.extraction.run import run
from tests import ROOT
from tests.pipeline.extraction.test_run import options

README = (ROOT / "README.md").read_text()
# In the blocks with a prompt, and in the table of recipes.
COMMANDS = re.findall(r"^\$ featuremill (.+)$", README, re.M) + re.findall(
    r"`featuremill ([^`]+ [^`]*--(?:output|head) [^`]+)`", README
)
SNIPPETS = re.findall(r"```python\n(.+?)```", README, re.S)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    name, *args = shlex.split(line)
    cli.commands[name].make_context(name, args)


def test_every_command_is_shown():
    assert {shlex.split(line)[0] for line in COMMANDS} == set(cli.commands)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_folder(folder / "photos", draw_items(per_class=21, size=40, seed=0))
    # With a real engine, because a snippet embeds images itself.
    run(options(folder / "photos", folder / "features", weights="random:0"))
    return folder


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(code, features, monkeypatch, capsys):
    monkeypatch.chdir(features)
    exec(compile(code, "README.md", "exec"), {})
    stated = re.search(r"print\(.+\)  # ([\d,]+)", code)
    printed = capsys.readouterr().out.strip()
    assert printed
    if stated:
        assert printed == stated[1].replace(",", "")


@pytest.mark.parametrize("code", [*SNIPPETS, (ROOT / "examples/embed_in_a_pipeline.py").read_text()])
def test_users_import_featuremill_alone(code):
    assert re.findall(r"^(?:from|import) (?:pipeline|transforms)\b", code, re.M) == []


def test_the_example_embeds_every_image_or_says_why(features):
    command = [sys.executable, ROOT / "examples/embed_in_a_pipeline.py", "photos/*/*", "features"]
    printed = subprocess.run(command, cwd=features, capture_output=True, text=True, check=True).stdout
    assert len(printed.splitlines()) == len(list(features.glob("photos/*/*")))


def test_options_named_in_readme_exist():
    known = {
        option for command in cli.commands.values() for p in command.params for option in (*p.opts, *p.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.split("-- --project")[0]))
    assert named - known == set()
