"""Labels and keys in messages: they come from files, and may be of any length and hold anything."""

LABEL_LENGTH = 60


def printable(text: str) -> str:
    """Returns the text on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """Returns the text as `printable` does, cut to so many characters."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"
