"""Makes click options from declared fields; parameter types and options that several commands share."""

import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import get_annotations
from pkgutil import resolve_name
from types import UnionType
from typing import Any, TextIO, get_args, get_origin, get_type_hints

import click

from transforms.declared import Option, flags
from transforms.text import shown, shown_within

EXIT_FAILURES, EXIT_INTERRUPTED = 3, 130


def set_up_logging(debug: bool) -> None:
    """Shows our warnings as lines for people; Beam's log and TensorFlow's chatter only with --debug."""
    if not debug:
        # Before TensorFlow is imported, and inherited by worker processes.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("featuremill: %(levelname)s: %(message)s"))
    if not debug:
        handler.addFilter(lambda record: record.name.startswith(("pipeline", "transforms")))
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class OptionsCommand(click.Command):
    """A command that begins with the options that a class declares.

    They are made when they are first looked at, so that `featuremill --help` imports none of these classes.

    Args:
        options: `module:Class`, a dataclass with `declared` fields.
        without: Names of fields that are left out.
    """

    def __init__(self, *args: Any, options: str, without: Collection[str] = (), **more: Any):
        self._declared: Any = lambda: options_of(resolve_name(options), without=without)
        super().__init__(*args, **more)

    @property
    def params(self) -> list[click.Parameter]:
        if self._declared:
            own, self._declared = self._declared(), None
            self._params = [*own, *self._params]
        return self._params

    @params.setter
    def params(self, params: list[click.Parameter]) -> None:
        self._params = params


def options_of(declaring: type, *, without: Collection[str] = ()) -> list[click.Option]:
    """Returns the click options of a class's declared fields, its own before those of its bases.

    Those of an options object within it are named `FIELD_NAME`.
    """
    types = get_type_hints(declaring)
    by_name = {own.name: own for own in fields(declaring)}
    made = []
    # Each name once, where it is declared last.
    for name in dict.fromkeys(name for base in declaring.__mro__ for name in get_annotations(base)):
        if name not in by_name or name in without:
            continue
        if "option" in by_name[name].metadata:
            made.append(_option(by_name[name], types[name]))
        elif is_dataclass(types[name]):
            for inner in options_of(types[name]):
                inner.name = f"{name}_{inner.name}"
                made.append(inner)
    return made


def _option(own: Field, kind: Any) -> click.Option:
    option: Option = own.metadata["option"]
    flag, *others = flags(own.name, option)
    help_text = option.help + (f": {_listed(tuple(option.choices))}." if option.choices else ".")
    if option.unset:
        help_text += f"  [default: {option.unset}]"
    settings: dict[str, Any] = {"help": help_text, "metavar": option.metavar, "required": own.default is MISSING}
    if own.default not in (MISSING, None, ()):
        settings |= {"default": own.default, "show_default": own.default is not False and not option.unset}
    if get_origin(kind) is UnionType:
        # The other is None.
        kind = get_args(kind)[0]
    if kind is bool:
        flag += f"/--no-{flag[2:]}" if own.default else ""
        settings |= {"is_flag": True}
    elif option.parse:
        settings |= {"type": Parsed(option.parse, option.choices), "show_default": False}
    else:
        settings |= {"multiple": True} if get_origin(kind) is tuple else {"type": kind}
        if option.choices:
            settings |= {"type": Chosen(option.choices)}
    return click.Option([flag, *others, own.name], **settings)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


class Chosen(click.ParamType):
    """One of several names, which the shell offers; whoever takes the value checks it, and names the nearest ones.

    Args:
        choices: The names, or `module:NAMES` where they are, which is imported only to offer them.
    """

    name = "name"

    def __init__(self, choices: Iterable[str] | str):
        self._choices = choices

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        choices = resolve_name(self._choices) if isinstance(self._choices, str) else self._choices
        return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]


class Parsed(Chosen):
    """A value that a function makes of the text."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any], choices: Iterable[str] = ()):
        super().__init__(choices)
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from transforms.errors import UsageError

        try:
            return self._parse(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(str(error), param, ctx)


def gathered(declaring: type, given: dict[str, Any], **more: Any) -> Any:
    """Returns an options object from a command's options and more values."""
    values = dict(given)
    for name, kind in get_type_hints(declaring).items():
        if is_dataclass(kind):
            inner = [own.name for own in fields(kind) if f"{name}_{own.name}" in values]
            values[name] = kind(**{key: values.pop(f"{name}_{key}") for key in inner})
    return declaring(**values, **more)


class BeamCommand(OptionsCommand):
    """A command whose arguments after `--` are Beam's; click would read them as inputs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["beam_args"] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] INPUT... --output OUT [-- BEAM OPTIONS]")


def echo(text: str, *, err: bool = False) -> None:
    """Prints lines for people. All that commands print goes through here, so that nothing steers a terminal."""
    text = shown(text)
    if (sys.stderr if err else sys.stdout).isatty():
        text = folded(text, shutil.get_terminal_size().columns)
    click.echo(text, err=err)


def folded(text: str, columns: int) -> str:
    """Returns lines no longer than a terminal is wide, broken between words; what goes on stands below the words.

    A word that is longer, such as a path, stays whole, so that it can be copied.
    """
    lines = []
    for line in text.split("\n"):
        label = re.match(r" *(?:\S+ {2,})?", line).end()
        indent = " " * (label if 0 < label <= columns // 2 else 2)
        lines += (
            textwrap.wrap(*(line, columns), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            if len(line) > columns
            else [line]
        )
    return "\n".join(lines)


def saying(*, quiet: bool = False) -> Callable[[str], None]:
    """Returns what prints lines on the work as it goes, on standard error; nothing if it is to be quiet."""
    return (lambda line: None) if quiet else (lambda line: echo(line, err=True))


def show(result: Any, to_json: Callable[[Any], Any], to_text: Callable[[Any], str], *, as_json: bool) -> int:
    """Prints a result for programs or for people; returns the exit code, 0."""
    if as_json:
        click.echo(shown(json.dumps(to_json(result), indent=2)))
    else:
        echo(to_text(result))
    return 0


class Terminal:
    """A terminal that gets rows as they are, but for what would steer it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(shown(text))

    def flush(self) -> None:
        self._stream.flush()


def debug_option(command: Callable) -> Callable:
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _option, value: set_up_logging(value),
        help="Show tracebacks, and Beam's and TensorFlow's log.",
    )(command)


def together(*options: Callable) -> Callable:
    """Returns one decorator for several options, shown in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Show the result as JSON on standard output.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that are there.")
result_options = together(
    click.option("--output", "-o", "rows", metavar="FILE", help="Write the result to a .parquet, .csv or .jsonl file."),
    click.option("--html", "page", metavar="PAGE", help="Write the result as a contact sheet with thumbnails."),
    overwrite_option,
    json_option,
)


def hand_out(
    found: Any,
    writers: Sequence[tuple[str | None, Callable]],
    to_json: Callable[[Any], Any],
    to_text: Callable[[Any], str],
    *,
    as_json: bool,
) -> int:
    """Writes a result to the files that are named, and prints it; returns the exit code, 0."""
    for path, write in writers:
        if path:
            write(found, path)
    show(found, to_json, to_text, as_json=as_json)
    for path, _ in writers:
        if path:
            echo(written(path), err=True)
    return 0


def written(path: str) -> str:
    """Returns the line that names a file that a command has written."""
    return f"written  {shown_within(path)}"


def failures_exit_code(rate: float, allowed: float, where: str) -> int:
    """Returns a command's exit code, after a line on standard error if too many images failed, or all."""
    if rate == 1:
        echo(f"featuremill: all images failed; see {where}", err=True)
        return EXIT_FAILURES
    if rate <= allowed:
        return 0
    echo(f"featuremill: {rate:.2%} of the images failed, over --max-failure-rate {allowed:.2%}; see {where}", err=True)
    return EXIT_FAILURES
