"""The snippets of docs/query.md, by the heading that they stand under."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[2] / "docs/query.md").read_text()


def snippets(heading: str, language: str) -> list[str]:
    """Returns the blocks of a language under a heading."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", _without_comments(), re.M | re.S)
    return re.findall(rf"```{language}\n(.+?)```", section[1], re.S)


def _without_comments() -> str:
    """A comment in Python begins like a heading; no snippet has one on a line of its own."""
    assert not re.search(r"```python\n(?:(?!```).)*^#", TEXT, re.M | re.S)
    return TEXT


def run_python(heading: str) -> dict[str, Any]:
    """Runs the Python under a heading and returns its variables."""
    [code] = snippets(heading, "python")
    found: dict[str, Any] = {}
    exec(compile(code, f"docs/query.md, {heading}", "exec"), found)
    return found


def commands(heading: str) -> list[str]:
    """Returns the command lines under a heading."""
    return [line.removeprefix("$ ") for block in snippets(heading, "console") for line in block.splitlines()]


def shell(line: str, **more: Any) -> subprocess.CompletedProcess:
    """Runs a command line in a shell that finds what is installed beside Python."""
    return subprocess.run(in_shell(line), capture_output=True, text=True, timeout=280, **more)


def in_shell(line: str) -> list[str]:
    """Returns a command line as arguments of a shell that becomes the command."""
    return ["bash", "-c", f'PATH="{Path(sys.executable).parent}:$PATH"; exec {line}']
