"""Notes of units that are under way. One that lies there when a unit begins is of an attempt that ended its process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from transforms import storage

# As the names of all files of a unit in _tmp, so that it is removed with them.
_ENDING = f".{'0' * 32}.begun"


@contextmanager
def attempt(output: str, unit_id: str) -> Iterator[bool]:
    """Notes that a unit is under way, until it has ended with or without an error.

    Yields whether there is such a note already: an earlier attempt ended without a word. It is a small file in OUT's
    `_tmp`; on a store, three requests.
    """
    uri = storage.join(output, "_tmp", f"{unit_id}{_ENDING}")
    is_second = storage.stat(uri) is not None
    # Where no note can be written, no part can be, and who writes that says so.
    with suppress(OSError):
        storage.make_folder(storage.join(output, "_tmp"))
        with storage.open_write(uri) as file:
            file.write(b"begun")
    try:
        yield is_second
    finally:
        with suppress(OSError):
            storage.delete([uri])


def begun(output: str) -> set[str]:
    """Returns the ids of the units that are under way, or were when their process ended."""
    names = storage.list_folder(storage.join(output, "_tmp"))
    return {name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)}
