"""A value is the same label in every format, or none with a reason."""

from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

from transforms.labels.values import WrongFieldError, as_label, as_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", None),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"\xff", r"\xff"),
        ("\udcff", r"\udcff"),
        (0, "0"),
        (2**70, str(2**70)),
        (True, "true"),
        (False, "false"),
        (3.0, "3"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (np.float32(1e-7), "1e-07"),
        (np.float32(16777216), "16777216"),
        (float("nan"), None),
        (np.float32("nan"), None),
        (Decimal("7.00"), "7"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1.50"), "1.5"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_text(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1, 2), object(), Decimal("NaN")])
def test_what_is_neither_text_nor_a_number(value):
    with pytest.raises(WrongFieldError):
        as_text(value)
    label, why = as_label(value)
    assert label is None
    assert why


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" cat\n", ("cat", "")),
        ("  ", (None, "")),
        (None, (None, "")),
        (-1, (None, "-1")),
        (Decimal(-1), (None, "-1")),
        (-2, ("-2", "")),
        ("-1", ("-1", "")),
        (-1.0, ("-1", "")),
        (float("nan"), (None, "NaN")),
        (np.float32("-inf"), (None, "infinity")),
        ([1, 0], (None, "a list")),
        ({"a": 1}, (None, "an object")),
    ],
)
def test_labels(value, expected):
    assert as_label(value) == expected


@pytest.mark.parametrize("value", ["x" * 1001, b"x" * 1001, "ü" * 1001, b"\xff" * 900, " " * 9_000 + "x", b"x" * 2**24])
def test_text_that_is_too_long_for_a_label(value):
    assert as_label(value) == (None, "over 1,000 letters")


def test_the_longest_label():
    assert as_label(f"  {'ü' * 1000}  ".encode()) == ("ü" * 1000, "")
