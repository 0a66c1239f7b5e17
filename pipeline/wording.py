"""Counts and sizes in messages."""


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
