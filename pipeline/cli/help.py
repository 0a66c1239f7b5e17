"""The help and the shell's completion: commands by task, lines that break between words, files among what fits."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import click

# What a hyphen is called while lines are broken: textwrap breaks behind the plain one, as in `--test-of`.
_UNBROKEN = "\u2011"
_FEWEST_COLUMNS = 24


class Formatter(click.HelpFormatter):
    """Breaks lines between words only, at any width of the terminal; click's own keeps to 50 columns at least."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None):
        columns = min(shutil.get_terminal_size().columns, max_width or 80) - 2
        super().__init__(indent_increment, width or max(columns, _FEWEST_COLUMNS))

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _UNBROKEN))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args.replace("-", _UNBROKEN), prefix)

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        whole = [(name.replace("-", _UNBROKEN), text.replace("-", _UNBROKEN)) for name, text in rows]
        super().write_dl(whole, min(col_max, self.width // 3), col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_UNBROKEN, "-")


class Context(click.Context):
    formatter_class = Formatter


class Tasks(click.Group):
    """Commands in the order of their use, under the names of tasks."""

    context_class = Context

    def add_tasks(self, tasks: Mapping[str, Sequence[click.Command]]) -> None:
        self._tasks = tasks
        for command in (command for commands in tasks.values() for command in commands):
            command.context_class = Context
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for task, commands in self._tasks.items():
            with formatter.section(task):
                # The first sentence, whole.
                formatter.write_dl([(command.name, command.get_short_help_str(limit=200)) for command in commands])


def complete_files_too() -> None:
    """Lets the shell complete names of files wherever a command knows nothing better, as it does without completion."""
    from click import shell_completion

    class Files:
        def get_completions(self, args: list[str], incomplete: str) -> list[Any]:
            found = super().get_completions(args, incomplete)
            return found or [shell_completion.CompletionItem(incomplete, type="file")]

    for shell in (shell_completion.BashComplete, shell_completion.ZshComplete, shell_completion.FishComplete):
        shell_completion.add_completion_class(type(shell.__name__, (Files, shell), {}))
