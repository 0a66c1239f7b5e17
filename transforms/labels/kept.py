"""Columns of an input that come along: their types, and values made to fit them."""

import datetime
from collections.abc import Collection, Iterable
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.errors import UsageError
from transforms.labels.values import WrongFieldError, as_text
from transforms.records import Kept

# Values of more bytes don't come along: some hundred of them are in memory before a part's rows are written.
KEPT_BYTES = 256 << 10
_NOT_UTF8 = "text that isn't UTF-8"


# Asked for with each value of each image.
@cache
def arrow_type(text: str) -> pa.DataType:
    """Returns the Arrow type of a name such as `int64`, `double`, `timestamp[us]` or `list<string>`.

    Raises:
        ValueError: There is no such type, or values of it can't come along.
    """
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(arrow_type(text[5:-1]))
    kind = pa.type_for_alias(text)
    types = pa.types
    # A time in nanoseconds isn't one of Python's.
    is_time = (types.is_timestamp(kind) or types.is_time(kind)) and kind.unit != "ns"
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_date)
    if not is_time and not any(is_a(kind) for is_a in plain):
        raise ValueError(f"{text} can't be kept")
    return kind


def type_name(kind: pa.DataType) -> str:
    """Returns the name of the type in which a column of this one comes along, empty if it can't."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = "" if pa.types.is_nested(kind.value_type) else type_name(kind.value_type)
        return inner and f"list<{inner}>"
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    try:
        return str(kind) if arrow_type(str(kind)) == kind else ""
    except ValueError:
        return ""


def type_of(value: object) -> str:
    """Returns the name of the type of a value of JSON or of a TFRecord, empty if it can't come along."""
    if isinstance(value, list):
        inner = {type_of(each) for each in value}
        return f"list<{inner.pop()}>" if len(inner) == 1 and not any("<" in name for name in inner) else ""
    names = {bool: "bool", int: "int64", float: "double", np.float32: "float", str: "string", bytes: "string"}
    return names.get(type(value), "")


def parse_keep(text: str) -> Kept:
    """Reads `COLUMN` or `COLUMN:TYPE`; without one, the type is empty.

    Raises:
        UsageError: No such type, or no column.
    """
    name, colon, kind = text.rpartition(":")
    if not colon:
        name, kind = text, ""
    try:
        if not name.strip() or not name.isprintable() or (kind and not arrow_type(kind)):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--keep {text!r} is not of the form COLUMN or COLUMN:TYPE, with a TYPE such as string, int64, float64, "
            "bool, date32, timestamp[us] or list<string>; a name with a colon in it needs a TYPE"
        ) from None
    return Kept(name, kind)


def names_beside(names: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """Returns {column that came along: its name beside a command's own}: `kept_NAME` where one of these has it.

    In any case of letters: to DuckDB `Score` is `score`.
    """
    found = {name: name for name in names}
    taken, others = ({name.lower() for name in some} for some in (own, found))
    for name in found:
        while found[name].lower() in taken or (found[name] != name and found[name].lower() in others):
            found[name] = f"kept_{found[name]}"
    return found


def fit(value: object, kind: pa.DataType) -> tuple[Any, str]:
    """Returns (a value as one of this type, None if it is missing or doesn't fit; why it doesn't, or empty)."""
    if isinstance(value, bytes):
        try:
            value = value[: KEPT_BYTES + 1].decode()
        except UnicodeDecodeError:
            return None, _NOT_UTF8 if len(value) <= KEPT_BYTES else _TOO_LONG
    if value is None:
        return None, ""
    if pa.types.is_list(kind):
        return _fit_all(value if isinstance(value, (list, tuple)) else [value], kind.value_type)
    try:
        if pa.types.is_string(kind):
            if isinstance(value, (datetime.date, datetime.time)):
                value = value.isoformat()
            text = value if isinstance(value, str) else as_text(value)
            return (text, "") if text is None or len(text.encode()) <= KEPT_BYTES else (None, _TOO_LONG)
        if isinstance(value, str):
            value = value.strip()[:100]
            return (pa.scalar(value).cast(kind).as_py(), "") if value else (None, "")
        if isinstance(value, (np.floating, Decimal)):
            value = float(value)
        if isinstance(value, float) and pa.types.is_integer(kind):
            # Arrow would cut off what is behind the point.
            if not value.is_integer():
                return None, "a number with a fraction"
            value = int(value)
        if pa.types.is_boolean(kind) and not isinstance(value, bool) and value in (0, 1):
            # TFRecords have no other booleans.
            value = bool(value)
        return pa.scalar(value, kind).as_py(), ""
    except UnicodeEncodeError:
        return None, _NOT_UTF8
    except WrongFieldError as error:
        return None, str(error)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None, _KINDS.get(type(value), "a value that it can't hold")


def as_plain(value: object) -> object:
    """Returns a value of Arrow as one of JSON, from which `fit` makes the same."""
    if isinstance(value, bytes):
        # It isn't UTF-8, as `fit` then says.
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return float(value) if isinstance(value, np.floating) else str(value)


def _fit_all(values: list | tuple, kind: pa.DataType) -> tuple[Any, str]:
    if 8 * len(values) > KEPT_BYTES:
        return None, _TOO_LONG
    fitted = [fit(value, kind) for value in values]
    found = [value for value, _ in fitted]
    if sum(len(value) for value in found if isinstance(value, str)) > KEPT_BYTES:
        return None, _TOO_LONG
    why = next((why for _, why in fitted if why), "")
    return (None, f"a list with {why}") if why else (found, "")


_TOO_LONG = f"over {KEPT_BYTES >> 10} KiB"
_KINDS = {str: "other text", bool: "true or false", list: "a list", dict: "an object"}
