"""The demo's sample set: four classes of shapes and textures, a few images broken on purpose, in every format.

python -m pipeline.demo.samples FOLDER
"""

import gzip as gzip_module
import io
import json
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from transforms.shards import example, tfrecord


@dataclass(frozen=True)
class Item:
    """One image to write: its file name, its class (None if unknown) and its encoded bytes."""

    name: str
    label: str | None
    data: bytes


def draw_samples(folder: str, *, per_class: int = 15, size: int = 160, seed: int = 0) -> dict[str, str]:
    """Draws the sample set and writes it in every format; equal arguments give equal bytes.

    Args:
        folder: Where to write; made if it isn't there.
        per_class: Images in each of the four classes. The last of each class is broken, in four different ways.
        size: Height and width in pixels, about: the images vary around it.
        seed: Of the random numbers.

    Returns:
        Paths by format: `folder`, `tfrecord`, `tar` and `parquet`.
    """
    items = draw_items(per_class=per_class, size=size, seed=seed)
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    paths = {"folder": root / "photos"}
    paths |= {kind: root / f"photos.{kind}" for kind in ("tfrecord", "tar", "parquet")}
    write_folder(paths["folder"], items)
    write_tfrecord(paths["tfrecord"], items)
    write_tar(paths["tar"], items)
    write_parquet(paths["parquet"], items, row_group_size=max(1, per_class))
    return {kind: str(path) for kind, path in paths.items()}


def draw_items(*, per_class: int, size: int, seed: int) -> list[Item]:
    """Returns the images of the sample set; arguments as in `draw_samples`."""
    random = np.random.default_rng(seed)
    items = []
    for (label, draw), damage in zip(_CLASSES.items(), _DAMAGES, strict=True):
        for number in range(per_class - 1):
            height, width = random.integers(size * 3 // 4, size * 5 // 4, size=2, endpoint=True)
            pixels = _coloured(draw(random, int(height), int(width)), random)
            # Every fifth is a PNG, the others are JPEG, as photographs are.
            extension = "png" if number % 5 == 4 else "jpg"
            items.append(Item(f"{label}_{number:03}.{extension}", label, encode(pixels, extension)))
        whole = encode(_coloured(draw(random, size, size), random), "jpg")
        extension, data = damage(whole)
        items.append(Item(f"{label}_{per_class - 1:03}.{extension}", label, data))
    return items


def encode(pixels: np.ndarray, extension: str) -> bytes:
    """Returns the image file of uint8 pixels (H, W, 3); the extension is `jpg` or `png`."""
    target = io.BytesIO()
    if extension == "jpg":
        Image.fromarray(pixels).save(target, "JPEG", quality=90)
    else:
        Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def _grid(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns y and x (H, W) around a random centre, turned by a random angle, with 1 as half the shorter side."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    half = min(height, width) / 2
    y = (y - height / 2) / half - random.uniform(-0.3, 0.3)
    x = (x - width / 2) / half - random.uniform(-0.3, 0.3)
    angle = random.uniform(0, np.pi)
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def _disc(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(random, height, width)
    return np.hypot(y, x) < random.uniform(0.35, 0.7)


def _square(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(random, height, width)
    return np.maximum(abs(y), abs(x)) < random.uniform(0.3, 0.6)


def _stripes(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, _ = _grid(random, height, width)
    return np.sin(y * random.uniform(10, 25)) > 0


def _checker(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(random, height, width)
    frequency = random.uniform(8, 16)
    return (np.sin(y * frequency) > 0) ^ (np.sin(x * frequency) > 0)


def _coloured(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns uint8 pixels (H, W, 3): two random colours that differ clearly in brightness, and noise."""
    dark, bright = random.uniform(0, 100, size=3), random.uniform(140, 255, size=3)
    inside, outside = (dark, bright) if random.random() < 0.5 else (bright, dark)
    pixels = np.where(mask[..., None], inside, outside) + random.normal(0, 12, size=(*mask.shape, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def _cut_off(whole: bytes) -> tuple[str, bytes]:
    return "jpg", whole[: len(whole) // 2]


def _empty(whole: bytes) -> tuple[str, bytes]:
    return "jpg", b""


def _text(whole: bytes) -> tuple[str, bytes]:
    return "jpg", b"This is not an image.\n"


def _giant(whole: bytes) -> tuple[str, bytes]:
    """Returns a PNG of a hundred bytes that claims 60,000 by 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return "png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


_CLASSES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "disc": _disc,
    "square": _square,
    "stripes": _stripes,
    "checker": _checker,
}
_DAMAGES = (_cut_off, _empty, _text, _giant)


@contextmanager
def _opened(path: str | Path, gzip: bool) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        if not gzip:
            yield file
            return
        # No name and no time in the header: equal content gives equal bytes.
        with gzip_module.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
            yield packed


def write_folder(path: str | Path, items: Iterable[Item]) -> None:
    """Writes `PATH/LABEL/NAME`, or `PATH/NAME` where there is no label."""
    for item in items:
        file = Path(path, item.label or "", item.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(item.data)


def write_tfrecord(path: str | Path, items: Iterable[Item], *, gzip: bool = False) -> None:
    """Writes `tf.train.Example`s with `image/encoded`, `image/filename` and `image/class/text`."""
    with _opened(path, gzip) as file:
        for item in items:
            values = {"image/encoded": item.data, "image/filename": item.name}
            if item.label is not None:
                values["image/class/text"] = item.label
            file.write(tfrecord.frame(example.serialize(values)))


def write_tar(path: str | Path, items: Iterable[Item], *, gzip: bool = False) -> None:
    """Writes a WebDataset: each image, followed by a `.cls` member with its label if it has one."""
    with _opened(path, gzip) as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for item in items:
            members = [(item.name, item.data)]
            if item.label is not None:
                members.append((f"{item.name.rpartition('.')[0]}.cls", item.label.encode()))
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def write_parquet(path: str | Path, items: Sequence[Item], *, row_group_size: int = 100) -> None:
    """Writes Hugging Face's layout: a struct `image` of `bytes` and `path`, and `label` as a numbered class."""
    classes = sorted({item.label for item in items if item.label is not None})
    numbers = {label: number for number, label in enumerate(classes)}
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"image": {"bytes": item.data, "path": item.name}, "label": numbers.get(item.label, -1)} for item in items]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.demo.samples FOLDER")
    for kind, written in draw_samples(sys.argv[1]).items():
        print(f"{kind:9} {written}")
