"""Options that are declared once: a dataclass's field carries the help, choices and bounds of one option.

The check and its errors derive from it here, the command line's option in `pipeline.cli.options`. So does the check of
JSON values, which anybody may have written, against the types that a class declares.
"""

import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin

from transforms.errors import UsageError
from transforms.text import did_you_mean

_BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Bound:
    """A condition on a value; `error` may name `{flag}` and `{value}`. NaN must not meet it."""

    holds: Callable[[Any], bool]
    error: str


AT_LEAST_ONE = Bound(lambda value: value >= 1, "{flag} must be at least 1, not {value}")
ABOVE_ZERO = Bound(lambda value: 0 < value < float("inf"), "{flag} is a number above 0, not {value}")
SHARE = Bound(lambda value: 0 <= value <= 1, "{flag} is a share between 0 and 1, not {value}")
COSINE = Bound(lambda cosine: 0 < cosine <= 1, "{flag} is a cosine above 0 and at most 1, not {value}")
SEED = Bound(lambda value: 0 <= value < 2**32, "{flag} {value}: a seed is from 0 to " + str(2**32 - 1))


@dataclass(frozen=True)
class Option:
    """The facts about one option besides its name, type and default.

    Attributes:
        help: A sentence without its full stop; choices and default are added.
        choices: The valid values; of a tuple, of each of its values.
        bounds: What a value must meet, where it isn't None; of a tuple, each of its values.
        flags: Names on the command line, where it isn't `--` and the field's name.
        metavar: What stands for the value in the help.
        parse: Makes the value from text, where the field's type doesn't say how.
        unset: What stands in the help as the default, where that is None or computed.
    """

    help: str
    choices: Collection[str] = ()
    bounds: tuple[Bound, ...] = ()
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    unset: str = ""


def declared(default: Any = MISSING, **option: Any) -> Any:
    """Returns a dataclass's field that is an option; the keywords are those of `Option`."""
    return field(default=default, metadata={"option": Option(**option)})


def undecided(declaring: type, name: str, unset: str) -> Any:
    """Returns a class's field once more, for a class below it: without a default, as something else decides on that."""
    option = next(own for own in fields(declaring) if own.name == name).metadata["option"]
    return field(default=None, metadata={"option": replace(option, unset=unset)})


def check(options: Any) -> None:
    """Checks all declared fields of an options object, and of the options objects within it.

    Raises:
        UsageError: A value that isn't among the choices, with the nearest ones, or out of bounds.
    """
    for own in fields(options):
        option, value = own.metadata.get("option"), getattr(options, own.name)
        if option is None:
            if is_dataclass(value):
                check(value)
            continue
        flag = flags(own.name, option)[0]
        for part in value if isinstance(value, tuple) else (value,):
            if part is None:
                continue
            if option.choices and part not in option.choices:
                # "no backbone 'x'" is a sentence, "no engine per 'x'" and "no by 'x'" aren't.
                is_noun = "-" not in flag[2:] and flag != "--by"
                problem = f"no {flag[2:]} {part!r}" if is_noun else f"no {part!r} for {flag}"
                raise UsageError(f"{problem}{did_you_mean(str(part), option.choices)}")
            for bound in option.bounds:
                if not bound.holds(part):
                    raise UsageError(bound.error.format(flag=flag, value=part))


def flags(name: str, option: Option) -> tuple[str, ...]:
    """Returns an option's names on the command line, such as `--batch-size`."""
    return option.flags or (f"--{name.replace('_', '-')}",)


def shared(options: Any, declaring: type) -> dict[str, Any]:
    """Returns {name: value} of the fields that a class has, as another object has them."""
    return {own.name: getattr(options, own.name) for own in fields(declaring)}


def parse_bytes(text: str) -> int:
    """Reads `256MiB`, `64MB` or a plain number of bytes.

    Raises:
        UsageError: Neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match.group(2) not in _BYTE_UNITS:
        raise UsageError(f"{text!r} is not a size; write 256MiB, 64MB or a number of bytes")
    return int(float(match.group(1)) * _BYTE_UNITS[match.group(2)])


def parse_numbers(text: str) -> tuple[float, ...]:
    """Reads `0.1,1,10`.

    Raises:
        UsageError: Something between the commas is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} are not numbers with commas between them, such as 0.1,1,10") from None


def wrong_field(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Returns what is wrong with the first value of another type, such as `dims is text`; empty if all fit.

    Args:
        values: A JSON object; names that aren't wanted, and wanted ones that aren't there, are passed over.
        wanted: {name: type}: those of JSON, `Any`, and lists, dicts and unions of them. Tuples are lists.
    """
    for name, kind in wanted.items():
        if name in values and not _is(values[name], kind):
            return f"{name} is {_NAMES.get(type(values[name]), 'of another type')}, or holds what it shouldn't"
    return ""


_NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def _is(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_is(each, inner[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_is(n, inner[0]) and _is(each, inner[1]) for n, each in value.items())
    if isinstance(value, bool) or kind is None or kind is type(None):
        return kind is bool if isinstance(value, bool) else value is None
    return isinstance(value, (int, float) if kind is float else kind)
