"""Decoding whatever bytes come: an image or an `ImageError`, nothing else, and quietly."""

import csv
import io
import os
import pickle
import struct
import subprocess
import sys
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import ROOT
from tests.support.properties import examples
from tests.support.tiffs import tiff
from transforms.images.decode import PIXEL_CEILING, ImageError, decode_image
from transforms.spec import FeatureSpec

DATA = Path(os.environ.get("FEATUREMILL_SHARED", ROOT.parent / "shared")) / "data"
needs_shared = pytest.mark.skipif(not (DATA / "nasty.csv").exists(), reason="no shared data")


def decode(data: bytes, *, max_pixels: int = 89_000_000, **choices):
    return decode_image(data, FeatureSpec("vgg19", "0" * 64, (), **choices), max_pixels=max_pixels)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8))


def fail(data: bytes, **choices) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **choices)
    assert "\n" not in str(caught.value)
    return caught.value


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty", "no bytes"),
        (b"hello there", "not an image", "b'hello th'"),
        (bytes(1000), "not an image", "no known image format"),
        (b"%PDF-1.7 ...", "unsupported", "PDF files aren't read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "corrupt", "HEIF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "corrupt", "starts like a PNG"),
        (b"GIF89a" + bytes(40), "corrupt", "GIF"),
        (b"II*\0" + bytes(3), "corrupt", "TIFF"),
    ],
)
def test_reasons(data, reason, words):
    error = fail(data)
    assert error.reason == reason
    assert words in str(error)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "ICO"])
def test_half_a_file_is_truncated(form):
    options = {"bitmap_format": "bmp", "sizes": [(16, 16)]} if form == "ICO" else {}
    data = encode(noise(64, 64).convert("RGB"), form, **options)
    assert fail(data[: len(data) // 2]).reason == "truncated"


def test_the_error_survives_a_trip_to_another_process():
    error = pickle.loads(pickle.dumps(fail(b"hello")))
    assert (error.reason, str(error)) == ("not an image", str(fail(b"hello")))


# --- too many pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_the_limit_is_exact_and_checked_before_decoding(form, monkeypatch):
    data = encode(noise(20, 10).convert("RGB"), form)
    assert decode(data, max_pixels=200).width == 20
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    error = fail(data, max_pixels=199)
    assert error.reason == "too many pixels"
    assert "20 × 10 pixels are over the limit of 199; raise --max-pixels" in str(error)


def test_a_fast_decode_does_not_slip_under_the_limit():
    assert fail(encode(noise(2000, 1000).convert("RGB"), "JPEG"), max_pixels=10**6, decode="fast").reason == (
        "too many pixels"
    )


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(10))
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def icon(picture: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def dib_header(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, 0, 0, 0, 0, 0)


def tiff_with_tiles_of(side: int) -> bytes:
    """An 8×8 TIFF in one deflated tile of side × side."""
    tile = zlib.compress(bytes(side * side))
    at = 8 + 2 + 11 * 12 + 4
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 284: 1, 322: side, 323: side, 324: at, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + tile


def test_pictures_larger_than_their_container_says():
    assert fail(icon(png_header(9000, 9000)), max_pixels=10**6).reason == "too many pixels"
    assert fail(icon(dib_header(9000, 18000)), max_pixels=10**6).reason == "too many pixels"
    assert decode(tiff_with_tiles_of(16), max_pixels=256).width == 8
    assert fail(tiff_with_tiles_of(1024), max_pixels=10**6).reason == "too many pixels"


def test_over_the_ceiling_nothing_helps():
    error = fail(png_header(60_000, 60_000), max_pixels=10**12)
    assert error.reason == "too many pixels"
    assert f"{PIXEL_CEILING:,}" in str(error)
    assert "--max-pixels" not in str(error)
    assert PIXEL_CEILING == 2 * Image.MAX_IMAGE_PIXELS


# --- properties ------------------------------------------------------------------------------------------------------

pillow_heif.register_heif_opener()
RGB, RGBA = noise(24, 16).convert("RGB"), noise(24, 16)
FILES = {
    "jpeg": encode(RGB, "JPEG"),
    "progressive": encode(RGB, "JPEG", progressive=True),
    "cmyk": encode(RGB.convert("CMYK"), "JPEG"),
    "png": encode(RGBA, "PNG"),
    "palette": encode(RGB.quantize(16), "PNG", transparency=3),
    "gif": encode(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]),
    "webp": encode(RGBA, "WEBP"),
    "animated webp": encode(RGBA, "WEBP", save_all=True, append_images=[RGBA.rotate(90)]),
    "tiff": encode(RGB, "TIFF"),
    "float tiff": encode(RGB.convert("F"), "TIFF"),
    "int tiff": encode(RGB.convert("I"), "TIFF"),
    "bmp": encode(RGB, "BMP"),
    "ico": encode(RGBA, "ICO", sizes=[(16, 16)]),
    "jpeg2000": encode(RGB, "JPEG2000"),
    "ppm": encode(RGB, "PPM"),
    "heif": encode(RGB, "HEIF", quality=-1),
    "deep png": encode(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170), "PNG"),
    "deep tiff": tiff(np.arange(1152, dtype=np.uint16).reshape(16, 24, 3) * 56),
    "deflated tiff": tiff(np.arange(384, dtype=np.int16).reshape(16, 24) - 99, deflate=True),
}
SPECS = st.fixed_dictionaries(
    {
        "image_size": st.integers(1, 40),
        "resize": st.sampled_from(["squash", "crop", "pad"]),
        "interpolation": st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        "decode": st.sampled_from(["exact", "fast"]),
        "exif": st.booleans(),
    }
)


def check(data: bytes, choices: dict) -> bool:
    """Decodes; True if that gave an image. Anything but an image or an ImageError is an error."""
    try:
        image = decode(data, max_pixels=10**6, **choices)
    except ImageError as caught:
        error = caught
    else:
        assert image.pixels.shape == (choices["image_size"], choices["image_size"], 3)
        assert image.pixels.dtype == np.uint8
        return True
    assert error.reason in {"empty", "not an image", "truncated", "corrupt", "too many pixels", "unsupported"}
    if error.__cause__:
        # A slip in our own code would pass for a corrupt image.
        innermost = traceback.extract_tb(error.__cause__.__traceback__)[-1].filename
        assert Path(innermost).parent.name != "transforms", error
    return False


@pytest.mark.parametrize("name", FILES)
@given(choices=SPECS)
@examples(10)
def test_intact_files_decode_with_any_spec(name, choices):
    assert check(FILES[name], choices)


@given(data=st.binary(max_size=200), choices=SPECS)
@examples(200)
def test_random_bytes(data, choices):
    check(data, choices)


@given(name=st.sampled_from(sorted(FILES)), keep=st.floats(0, 1), choices=SPECS)
@examples(200)
def test_cut_files(name, keep, choices):
    check(FILES[name][: int(len(FILES[name]) * keep)], choices)


@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.floats(0, 0.999) | st.floats(0, 0.1), st.binary(min_size=1, max_size=4)), max_size=8),
    choices=SPECS,
)
@examples(500)
def test_changed_files(name, edits, choices):
    data = bytearray(FILES[name])
    for place, new in edits:
        at = int(place * len(data))
        data[at : at + len(new)] = new
    check(bytes(data), choices)


def test_threads_agree_with_one_thread():
    files = [*FILES.values(), b"no image", FILES["jpeg"][:300]] * 8

    def outcome(data):
        try:
            return decode(data, image_size=32).pixels.tobytes()
        except ImageError as error:
            return error.reason

    one_by_one = [outcome(data) for data in files]
    assert len(set(one_by_one)) > 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == one_by_one


# --- real files ------------------------------------------------------------------------------------------------------


def nasty() -> list[dict]:
    with open(DATA / "nasty.csv", newline="") as file:
        return list(csv.DictReader(file))


REASONS = {
    "bmp_57bytes_151Mpix.bmp": "too many pixels",
    "bmp_badwidth.bmp": "too many pixels",
    "bmp_short.bmp": "truncated",
    "gif_bomb.gif": "too many pixels",
    "gif_zero_width.gif": "corrupt",
    "jpeg_corrupt_header.jpg": "truncated",
    "jpeg_giant_280Mpix.jpg": "too many pixels",
    "jpeg_is_text.jpg": "not an image",
    "jpeg_truncated_large.jpg": "truncated",
    "jpeg_truncated_progressive.jpg": "truncated",
    "jpeg_truncated_real.jpg": "truncated",
    "jpeg_ultrahdr_truncated.jpg": "truncated",
    "jpeg_zero_byte.jpg": "empty",
    "png_bomb_65536.png": "too many pixels",
    "png_broken.png": "corrupt",
    "png_truncated.png": "truncated",
    "png_truncated_end.png": "truncated",
}
# Wholly transparent or white, a single pixel, or 16-bit grey that uses 1 % of its range.
FLAT = {
    "jpeg_1x1_gray.jpg",
    "png_full_transparent.png",
    "png_trns_1x1.png",
    "tiff_16bit_gray.tif",
    "tiff_lab.tif",
    "webp_tall.webp",
}


@needs_shared
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nasty_files(mode):
    rows = nasty()
    assert len(rows) == 70
    for row in rows:
        data = (DATA / "nasty" / row["path"]).read_bytes()
        if row["path"] == "png_text_bomb.png":
            # Its text is of over a megabyte, its pixel is all right.
            assert (decode(data, decode=mode).width, decode(data, decode=mode).height) == (1, 1)
            continue
        if row["result"] != "ok":
            assert fail(data, decode=mode).reason == REASONS[row["path"]], row
            continue
        image = decode(data, decode=mode)
        size = f"{image.width}x{image.height}"
        turned = f"{image.height}x{image.width}"
        assert row["size"] == (turned if row["exif_orient"] in ("6", "8") else size), row
        if row["path"] not in FLAT:
            assert image.pixels.std() > 5, row


@needs_shared
def test_nothing_is_printed():
    """In a fresh process that shows all warnings: what Pillow remarks on damaged metadata stays off the screen."""
    code = """
import sys
from pathlib import Path
from transforms.store.features import FeatureSpec
from transforms.images.decode import ImageError, decode_image
good = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode_image(path.read_bytes(), FeatureSpec("vgg19", "", ()), max_pixels=89_000_000)
        good += 1
    except ImageError:
        pass
print(good)
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, str(DATA / "nasty")], cwd=ROOT, capture_output=True, text=True
    )
    good = sum(row["result"] == "ok" or row["path"] == "png_text_bomb.png" for row in nasty())
    assert (done.stdout.strip(), done.stderr) == (str(good), "")
