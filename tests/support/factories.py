"""Small shards for tests, with sizes as arguments. What writes real formats is the demo's own writer."""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.demo.samples import Item, draw_items, write_folder, write_parquet, write_tar, write_tfrecord
from tests import ROOT
from transforms import storage
from transforms.records import EncodedImage, Failure, Shard, Unit
from transforms.shards import Fields, find, read

__all__ = ["Item", "draw_items", "write_folder", "write_parquet", "write_tar", "write_tfrecord"]

WRITERS = {"tfrecord": write_tfrecord, "tar": write_tar, "parquet": write_parquet}


def shared_data() -> Path:
    """Returns the folder with the real test data; skips the test where it is missing."""
    shared = Path(os.environ.get("FEATUREMILL_SHARED", ROOT / ".." / "shared")) / "data"
    if not shared.is_dir():
        pytest.skip("no shared data")
    return shared.resolve()


def fake_items(count: int, *, size: int = 100, classes: int = 2) -> list[Item]:
    """Returns items whose bytes are no image but all different; readers don't look at them."""
    return [
        Item(f"{i:04}.jpg", f"class{i % classes}", f"payload {i} ".encode().ljust(size, b".")) for i in range(count)
    ]


def write_shard(folder: Path, kind: str, items: Sequence[Item], **options) -> Shard:
    """Writes a shard as `FOLDER/shard.KIND` and finds it again."""
    path = folder / f"shard.{kind}"
    WRITERS[kind](path, items, **options)
    return found_shard(path)


def write_every_format(folder: Path, items: Sequence[Item], *, row_group_size: int) -> None:
    """Writes the items as `photos`, a folder, and as `photos.tar`, `photos.tfrecord` and `photos.parquet` beside it."""
    write_folder(folder / "photos", items)
    write_tar(folder / "photos.tar", items)
    write_tfrecord(folder / "photos.tfrecord", items)
    write_parquet(folder / "photos.parquet", items, row_group_size=row_group_size)


def found_shard(path: Path, **fields: str) -> Shard:
    """Returns the one shard that a path leads to."""
    [shard] = find([str(path)], Fields(**fields)).shards
    return shard


def raw_shard(path: Path, kind: str, data: bytes, *, compression: str = "") -> Shard:
    """Writes bytes, whatever they are, and calls them a shard with the usual fields."""
    path.write_bytes(data)
    fields = {
        "tfrecord": ("image/encoded", "image/class/text", "image/filename"),
        "tar": ("", "", ""),
        "parquet": ("image.bytes", "label", "image.path"),
    }
    return Shard(storage.stat(str(path)), kind, compression, *fields[kind])


def cuts(shard: Shard) -> Iterator[tuple[int, list[EncodedImage | Failure]]]:
    """Yields each length below the shard's own, with what is read of it when it is cut there; spoils the file."""
    # From the long to the short, each by a cut: writing the file anew takes ten times as long.
    for length in reversed(range(shard.file.size)):
        os.truncate(shard.file.uri, length)
        yield length, rows(shard)


def rows(shard: Shard) -> list[EncodedImage | Failure]:
    """Reads a whole shard."""
    return list(read(Unit(shard)))


def tar_bytes(members: Sequence[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Returns an archive by the standard library, with these names and contents; `NAME/` is a folder."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()
