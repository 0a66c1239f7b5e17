"""What the benchmarks read: photos if there are some, else drawn images of the same size."""

import itertools
import os
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.demo.samples import draw_items

SMALL, LARGE, BIG = 210, 2000, 96
# Of the photos that the small set stands for, and of a camera's.
_SIDES, _CAMERA = (500, 375), (4000, 3000)
_ENDINGS = {".jpg", ".jpeg", ".png", ".gif"}


def shared_data(name: str) -> Path:
    """Returns a file or folder of the shared data, which may not be there."""
    return Path(os.environ.get("FEATUREMILL_SHARED", "../shared"), "data", name)


def source(folder: str | None) -> tuple[list[Path], str]:
    """Returns the photos of a folder, by default the shared ones, and where they are from; none if there are none."""
    root = Path(folder) if folder else shared_data("hymenoptera")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS)
    return paths, f"{len(paths)} photos" if paths else "drawn images"


def fill(folder: Path, photos: list[Path], count: int) -> Path:
    """Fills a folder with class folders of `count` images: the photos, over and over under other names."""
    if not photos:
        photos = _drawn(folder.parent / "drawn")
    for number, path in enumerate(itertools.islice(itertools.cycle(photos), count)):
        target = folder / f"class{number % 2}" / f"{number:05}{path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def _drawn(folder: Path) -> list[Path]:
    """Draws images of a photo's size, once; the demo's own are smaller, and some are broken on purpose."""
    if not folder.exists():
        folder.mkdir()
        for item in draw_items(per_class=SMALL // 4, size=_SIDES[0], seed=0):
            try:
                with Image.open(BytesIO(item.data)) as image:
                    image.convert("RGB").resize(_SIDES).save(folder / f"{item.name}.jpg", quality=90)
            except (OSError, Image.DecompressionBombError):
                continue
    return sorted(folder.iterdir())


def fill_big(folder: Path, photos: list[Path], count: int) -> Path:
    """Fills a folder with JPEGs of 12 megapixels, each of 64 photos side by side: as rich in detail as a camera's."""
    folder.mkdir()
    tiles = []
    for path in photos or _drawn(folder.parent / "drawn"):
        with Image.open(path) as image:
            tiles.append(image.convert("RGB").resize(_SIDES))
    endless = itertools.cycle(tiles)
    across, down = _CAMERA[0] // _SIDES[0], _CAMERA[1] // _SIDES[1]
    for number in range(count):
        canvas = Image.new("RGB", _CAMERA)
        for x, y in itertools.product(range(across), range(down)):
            canvas.paste(next(endless), (x * _SIDES[0], y * _SIDES[1]))
        # One tile more, so that no two images are the same.
        next(endless)
        canvas.save(folder / f"{number:05}.jpg", quality=90)
    return folder
