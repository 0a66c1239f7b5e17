"""HEIC: turned once, in eight bits and more, limited before it is decoded, from several threads, whole or not."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from tests import ROOT
from transforms.images.decode import ImageError, decode_image
from transforms.spec import FeatureSpec

BLOCKS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
UPRIGHT = Image.fromarray(BLOCKS)
# How a camera that is held so stores an upright image.
STORED = {
    1: BLOCKS,
    2: BLOCKS[:, ::-1],
    3: BLOCKS[::-1, ::-1],
    4: BLOCKS[::-1],
    5: BLOCKS.swapaxes(0, 1),
    6: np.rot90(BLOCKS),
    7: np.rot90(BLOCKS, 2).swapaxes(0, 1),
    8: np.rot90(BLOCKS, -1),
}


def decode(data: bytes, *, max_pixels: int = 10**6, **choices):
    choices = {"image_size": 96, "resize": "pad", "interpolation": "nearest", **choices}
    return decode_image(data, FeatureSpec("vgg19", "0" * 64, (), **choices), max_pixels=max_pixels)


def heic(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    pillow_heif.register_heif_opener()
    image.save(file, "HEIF", quality=-1, chroma=444, **options)
    return file.getvalue()


def shown(data: bytes, **choices) -> np.ndarray:
    return decode(data, **choices).pixels[:, 16:80].astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif", [True, False])
def test_it_is_turned_once(orientation, exif):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = heic(Image.fromarray(np.ascontiguousarray(STORED[orientation])), exif=tags.tobytes())
    assert np.abs(shown(data, exif=exif) - BLOCKS).mean() < 3
    found = decode(data, exif=exif)
    assert (found.width, found.height) == (64, 96)


def test_modes():
    assert np.abs(shown(heic(UPRIGHT.convert("L"))) - np.asarray(UPRIGHT.convert("L"))[..., None]).mean() < 3
    clear = UPRIGHT.convert("RGBA")
    clear.putalpha(0)
    assert (shown(heic(clear)) == 255).all()


def test_more_bits_become_eight():
    deep = pillow_heif.from_bytes("RGB;16", (64, 96), (BLOCKS.astype(np.uint16) * 257).tobytes())
    file = io.BytesIO()
    deep.save(file, quality=-1, chroma=444)
    assert np.abs(shown(file.getvalue()) - BLOCKS).mean() < 3


def test_the_limit_is_checked_before_decoding(monkeypatch):
    data = heic(UPRIGHT)
    assert decode(data, max_pixels=64 * 96).width == 64
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="64 × 96 pixels are over the limit of 6,143") as caught:
        decode(data, max_pixels=64 * 96 - 1)
    assert caught.value.reason == "too many pixels"


def test_half_a_file_is_a_failure():
    data = heic(UPRIGHT)
    for keep in (20, len(data) // 2, len(data) - 9):
        with pytest.raises(ImageError) as caught:
            decode(data[:keep])
        assert caught.value.reason in ("corrupt", "truncated")


def test_threads_agree_with_one_thread():
    files = [heic(Image.fromarray(np.roll(BLOCKS, n, axis=0))) for n in range(8)]
    alone = [shown(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: shown(data).tobytes(), files * 4)) == alone * 4


def test_its_library_is_loaded_by_the_first_one_only():
    code = """
import io, sys
import numpy as np
from PIL import Image
from transforms.images.decode import decode_image
from transforms.spec import FeatureSpec
spec = FeatureSpec("", "", ())
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "JPEG")
decode_image(file.getvalue(), spec, max_pixels=100)
print("pillow_heif" in sys.modules)
decode_image(sys.stdin.buffer.read(), spec, max_pixels=10_000)
print("pillow_heif" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=heic(UPRIGHT), capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"True"]
