"""Whether JSON values, which anybody may have written, are of the types that a class or a table of names wants."""

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin


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
