"""One rule for all formats: what a value is as a label, and as text."""

import math
from decimal import Decimal
from uuid import UUID

import numpy as np

from transforms.text import clean

# No class is called by more letters: such text is a caption, or hostile, and a part's rows have to fit into memory.
LABEL_LETTERS = 1_000
TOO_LONG = f"over {LABEL_LETTERS:,} letters"
# An encoded letter takes so many bytes, or as many letters where it is written out; blanks around a label don't count.
_LETTER_BYTES = 8


class WrongFieldError(Exception):
    """A value of a kind that is neither text nor a number."""


def as_text(value: object) -> str | None:
    """Returns a label or name as text; None for a missing or empty value, and for NaN.

    Numbers are as they were written: float32's 0.1 is `0.1`. Whole floats and decimals become integers in text, because
    pandas turns an integer column with one gap into floats, and `3.0` in one shard must not become another class than
    `3` in the next. Booleans are `true` and `false`, as in JSON and SQL.

    Raises:
        WrongFieldError: The value is neither text nor a number; the message says what it is, in words that group.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return clean(value) or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, UUID)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == value.to_integral_value() else f"{value.normalize():f}"
    raise WrongFieldError(_KINDS.get(type(value)) or f"a value of type {type(value).__name__}")


def as_label(value: object) -> tuple[str | None, str]:
    """Returns (the label without blanks around it, or None; why a value that is there can't be one, or empty).

    The integer -1 stands for "no label", as Hugging Face and TensorFlow Datasets write it. What is very long isn't even
    decoded.
    """
    if isinstance(value, (bytes, str)) and len(value) > _LETTER_BYTES * LABEL_LETTERS:
        return None, TOO_LONG
    if isinstance(value, (int, Decimal)) and value == -1:
        return None, "-1"
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        return None, "NaN" if math.isnan(value) else "infinity"
    try:
        text = as_text(value)
    except WrongFieldError as error:
        return None, str(error)
    text = (text.strip() if text else None) or None
    return (None, TOO_LONG) if text and len(text) > LABEL_LETTERS else (text, "")


_KINDS = {list: "a list", tuple: "a list", dict: "an object"}
