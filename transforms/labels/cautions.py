"""Cautions about labels that look wrong: names of sides, numbers of shards, one class in two spellings …"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from transforms.labels.folders import HOLDERS, side_of
from transforms.text import short

_NAMED = 3
_NAME_LENGTH = 30
# 00000, 00001 …, as folders and shards of images are numbered; classes 0 to 9 are not.
_SHARD_NUMBER = re.compile(r"(?:(?:shard|part|chunk|batch)[-_]?)?\d{3,}", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_MISSING = frozenset(["", "-1", "nan", "null", "none", "n/a", "na", "<na>", "nil", "?"])
# Labels of which this share is numbers and the rest names were numbered in one place and named in another.
_MIXED_SHARE = 0.2


def cautions(counts: Mapping[str | None, int], *, whole: bool = True) -> list[str]:
    """Returns a line for each thing about these labels that is seldom meant, none where all looks well.

    Args:
        counts: {label: rows}; None stands for rows without a label.
        whole: Whether these are all labels. Of the first rows alone nothing is reported that more rows may disprove.
    """
    labels = sorted(label for label, count in counts.items() if label is not None and count)
    if not labels:
        return []
    found = _names_of_something_else(labels)
    if not found and whole and len(labels) == 1:
        found = f"there is only one class, {_names(labels)}: a head needs two or more"
    return [line for line in (found, *(look(labels) for look in _LOOKS)) if line]


def _names_of_something_else(labels: list[str]) -> str:
    """Returns why none of the labels is likely to be a class."""
    sides = [label for label in labels if side_of(label)]
    # A train is a class beside a bus; beside a test it isn't.
    if len(sides) == len(labels) or len(set(map(side_of, sides))) > 1:
        return f"{_names(sides)} {'are' if len(sides) > 1 else 'is'} among the labels: names of sides, not of classes"
    if all(label.strip().casefold() in HOLDERS for label in labels):
        return f"the labels are {_names(labels)}: names of folders that hold images, not of classes"
    # Numbers of one width, filled up with zeros.
    if len({len(label) for label in labels}) == 1 and all(map(_SHARD_NUMBER.fullmatch, labels)):
        digits = [re.sub(r"\D", "", label) for label in labels]
        if any(number.startswith("0") for number in digits):
            return f"the labels are {_names(labels)}: they look like numbers of shards, not like classes"
    return ""


def _spellings(labels: list[str]) -> str:
    """Returns the labels that differ only by blanks, case, Unicode form or form of number."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[_plain(label)].append(label)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return ""
    shown = "; ".join(" and ".join(map(_quoted, group[:_NAMED])) for group in groups[:_NAMED])
    more = f"; and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return (
        f"labels differ only by blanks, case, Unicode form or form of number: {shown}{more}; each spelling is a class "
        "of its own"
    )


def _plain(label: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    if _NUMBER.fullmatch(text):
        try:
            number = Decimal(text)
            return str(number.normalize()) if number else "0"
        except ArithmeticError:
            # Too large even for that; compared as text.
            pass
    # A second time, because folding case may take a form apart again.
    return unicodedata.normalize("NFKC", text)


def _missing(labels: list[str]) -> str:
    """Returns the labels by which people mean that there is none."""
    found = [label for label in labels if label.strip().casefold() in _MISSING]
    verb = "are labels" if len(found) > 1 else "is a label"
    return f"{_names(found)} {verb} like any other here, but often means that there is none" if found else ""


def _mixed(labels: list[str]) -> str:
    """Returns that some classes are numbered and others named, as where one of two shards has no names."""
    numbers = [label for label in labels if label.isascii() and label.isdigit()]
    # Letters and digits together are the classes of character recognition.
    names = [label for label in labels if len(label) > 1 and not _NUMBER.fullmatch(label)]
    if not names or len(numbers) < max(2, _MIXED_SHARE * len(labels)):
        return ""
    return (
        f"{len(numbers):,} labels are numbers ({_names(numbers)}), others names ({_names(names)}): are these the same "
        "classes, numbered in some inputs and named in others?"
    )


_LOOKS: tuple[Callable[[list[str]], str], ...] = (_spellings, _missing, _mixed)


def _names(labels: Iterable[str]) -> str:
    labels = list(labels)
    shown = ", ".join(map(_quoted, labels[:_NAMED]))
    return f"{shown} and {len(labels) - _NAMED:,} more" if len(labels) > _NAMED else shown


def _quoted(label: str) -> str:
    text = short(label, _NAME_LENGTH)
    # Two Unicode forms of one word look the same.
    return f"'{text}'" if text.isascii() or unicodedata.is_normalized("NFC", text) else ascii(text)
