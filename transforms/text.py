"""Text in messages: counts, sizes, names, and what other people's files hold."""

import codecs
import difflib
import unicodedata
from collections.abc import Iterable

LABEL_LENGTH = 60
_MOST_LETTERS = 240
_MOST_CHOICES = 30
# They turn what stands after them around, so that a key reads as another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Those of UTF-32 begin like those of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)


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


def duration(seconds: float) -> str:
    """Returns seconds as `12 s`, `3 min 05 s` or `2 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error sentence: the valid names nearest to a wrong one, or some if none is near."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    more = f" … ({len(valid):,} in all)" if len(valid) > _MOST_CHOICES else ""
    return f"; choose from {', '.join(valid[:_MOST_CHOICES])}{more}"


def marked_encoding(start: bytes) -> str:
    """Returns the encoding that the mark at a text's start stands for; `utf-8` where there is none."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def one_line(error: BaseException) -> str:
    """Returns the error's message on one line, or its type's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def clean(text: str) -> str:
    """Returns the text with what isn't valid Unicode written out as `\\udc80`: Arrow refuses lone surrogates.

    They come from file names that aren't UTF-8 (Python keeps such bytes as surrogates) and from JSON escapes.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: object, most: int = _MOST_LETTERS) -> str:
    """Returns other people's text as it can be shown: without control characters and such as turn the direction.

    Args:
        text: Its `str` is taken.
        most: Longer text is cut in its middle, because keys begin alike.
    """
    letters = str(text)
    if len(letters) > most:
        letters = f"{letters[: most // 2]} … {letters[-(most // 2) :]}"
    return _without_controls(letters)


def shown(text: str) -> str:
    """Returns lines for a terminal: what would steer it, or turn the text around, is written out as `\\x1b`.

    Other people's keys, labels and paths stand in our lines; line breaks and tabs are ours.
    """
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if letter not in "\n\t" and _is_control(letter) else letter
        for letter in text
    )


def shown_within(text: str) -> str:
    """Returns somebody's text as `shown` does, on one line: a line break of theirs would begin a line like ours."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """Returns the text as `printable` does, cut at its end to so many characters."""
    text = _without_controls(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _without_controls(text: str) -> str:
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(letter) else letter for letter in text)


def _is_control(letter: str) -> bool:
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Zl", "Zp")
