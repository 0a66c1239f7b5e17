"""Functions and images that end, hold up or fill the process that runs them, as broken native code does.

Images do so where `codecs` is the environment: in processes that begin with it, PIL's decoder of BMP does what the
width of the image says. Nothing of it may be called in the tests' own process.
"""

import ctypes
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

# {what happens: width of the image}. Those of these tests have no such width.
WIDTHS = {"abort": 101, "segfault": 102, "loop": 103, "memory": 104, "exit": 105, "hold": 106}


def abort() -> None:
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def loop() -> None:
    while True:
        pass


def hold() -> None:
    """Keeps Python's lock, for hours."""
    sum(range(10**13))


def hang() -> None:
    """Computes for hours in C, without Python's lock."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9 * 2)


def wait() -> None:
    time.sleep(3600)


def memory() -> int:
    """Takes up to 6 GiB, in pieces that are written to; a machine has that, or its kernel ends the process."""
    # Large ones: to write many below a limit takes so long on a busy machine that it would count as too slow.
    pieces = [bytearray(b"x") * (256 << 20) for _ in range(24)]
    return len(pieces)


def leave() -> None:
    os._exit(3)


def count_then(function, count: int) -> Iterator[int]:
    yield from range(count)
    function()


_DEEDS = {
    "abort": abort,
    "segfault": segfault,
    "loop": loop,
    "memory": memory,
    "exit": leave,
    "hold": hold,
    "hang": hang,
}


def image(deed: str, height: int = 9) -> bytes:
    """Returns a BMP that does this to whom decodes it."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTHS[deed], height), "red").save(file, "BMP")
    return file.getvalue()


def codecs(folder: Path, **more: str) -> dict[str, str]:
    """Returns an environment in which images are deadly."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("from tests.support import deadly\ndeadly.install()\n")
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}", **more}


def install() -> None:
    """Makes PIL's decoder of BMP deadly in this process."""
    from PIL import BmpImagePlugin

    by_width = {width: _DEEDS[deed] for deed, width in WIDTHS.items()}
    load = BmpImagePlugin.BmpImageFile.load

    def deadly(self):
        if self.width in by_width:
            by_width[self.width]()
        return load(self)

    BmpImagePlugin.BmpImageFile.load = deadly
    if "DEADLY_ROW_GROUP" in os.environ:
        _install_reader(int(os.environ["DEADLY_ROW_GROUP"]), _DEEDS[os.environ.get("DEADLY_DEED", "abort")])


def _install_reader(deadly_group: int, deed: Callable[[], object]) -> None:
    """Makes Arrow do this in this process where it reads the so manieth row group."""
    from pyarrow import parquet

    iter_batches = parquet.ParquetFile.iter_batches

    def deadly(self, *args, row_groups=(), **more):
        if deadly_group in (row_groups or ()):
            deed()
        return iter_batches(self, *args, row_groups=row_groups, **more)

    parquet.ParquetFile.iter_batches = deadly
