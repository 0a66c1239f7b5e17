"""Text in messages: counts, sizes, names, and what other people's files hold."""

import difflib
import unicodedata
from collections.abc import Iterable

# They turn what stands after them around, so that a key reads as another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_MOST_LETTERS = 240


def tame(text: object, most: int = _MOST_LETTERS) -> str:
    """Returns text of others' as it can be shown: no control characters, none that turn the direction, not too long."""
    letters = str(text)
    if len(letters) > most:
        # Both ends: keys begin alike.
        letters = f"{letters[: most // 2]} … {letters[-(most // 2) :]}"
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_wild(letter) else letter for letter in letters)


def _is_wild(letter: str) -> bool:
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs", "Cn")


def counted(count: int, noun: str) -> str:
    """Returns `1 row`, `2 rows`, `1,000,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size_text(count: int) -> str:
    """Returns bytes as `214 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} TB"


def threads_text(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error sentence: the valid names did_you_mean to a wrong one, or all if none is near."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; choose from {', '.join(valid)}"


LABEL_LENGTH = 60


def printable(text: str) -> str:
    """Returns the text on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """Returns the text as `printable` does, cut to so many characters."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def clean(text: str) -> str:
    """Returns the text with what isn't valid Unicode written out as `\\udc80`: Arrow refuses lone surrogates.

    They come from file names that aren't UTF-8 (Python keeps such bytes as surrogates) and from JSON escapes.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: BaseException) -> str:
    """Returns the error's message on one line, or its type's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
