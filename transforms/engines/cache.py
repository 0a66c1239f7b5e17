"""The cache of converted weights: files that engines make once per machine, and check whenever they take one."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.machine import home_folder
from transforms.text import one_line

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns the folder of converted weights: `$FEATUREMILL_CACHE`, by default `~/.cache/featuremill`."""
    return Path(os.environ.get("FEATUREMILL_CACHE") or Path(home_folder(), ".cache", "featuremill"))


@contextmanager
def cached_file(
    name: str, holds: Callable[[Path], bool], load: Callable[[], Callable[[BinaryIO], None]]
) -> Iterator[str]:
    """Yields the path of converted weights: from the cache if they are there and are those, else made now.

    Where the cache can't be written, the file is one of this process alone, and is gone afterwards; what is mapped into
    memory stays there.

    Args:
        name: The file's name in the cache.
        holds: Whether a file has the right content, whoever wrote it.
            Raises ValueError if it is of another form.
        load: Returns what writes the content; never called where the cache has it.

    Raises:
        FeaturemillError: There is no room for them anywhere.
    """
    path = cache_folder() / name
    if _is_right(path, holds):
        yield str(path)
        return
    write = load()
    try:
        _write(path, write)
    except OSError as error:
        _log.warning(
            "cannot keep converted weights in %s (%s): they are made anew for each process; set FEATUREMILL_CACHE",
            path.parent,
            one_line(error),
        )
    else:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="featuremill-") as folder:
        path = Path(folder, name)
        try:
            _write(path, write)
        except OSError as error:
            raise FeaturemillError(
                f"cannot write {path}: {one_line(error)}; free some space, or set FEATUREMILL_CACHE to another disk"
            ) from error
        yield str(path)


def _is_right(path: Path, holds: Callable[[Path], bool]) -> bool:
    try:
        is_right = holds(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("cannot read %s (%s): the weights are converted again", path, one_line(error))
        return False
    except ValueError:
        is_right = False
    if not is_right:
        _log.warning("%s is damaged or cut off, or was replaced: the weights are converted again", path)
    return is_right


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes the file whole or not at all: several workers may do so at once, and any may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed_file(str(path)) as file:
        write(file)
