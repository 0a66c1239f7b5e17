"""Formats' own quirks: kinds of JPEG, metadata of all, libtiff's words, formats that aren't read."""

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from tests import ROOT
from tests.support.tiffs import tiff
from transforms.images.decode import ImageError, decode_image
from transforms.images.jpeg import frame_of
from transforms.images.thumbnail import thumbnail
from transforms.images.unread import by_content, by_name
from transforms.rows.thumbnails import Thumbnailer
from transforms.shards.names import UNREAD_EXTENSIONS
from transforms.spec import FeatureSpec

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))


def decode(data: bytes, *, name: str = "", **choices):
    choices = {"image_size": 7, **choices}
    return decode_image(data, FeatureSpec("vgg19", "0" * 64, (), **choices), max_pixels=10**7, name=name)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def fail(data: bytes, **choices) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **choices)
    assert "\n" not in str(caught.value)
    return caught.value


# --- JPEG ------------------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame(marker: int, bits: int, components: int, width: int = 8, height: int = 8) -> bytes:
    body = struct.pack(">BHHB", bits, height, width, components)
    return segment(marker, body + b"".join(bytes([n + 1, 0x11, 0]) for n in range(components)))


def lossless(width: int, height: int) -> bytes:
    """A grey lossless JPEG in three components whose differences are all zero."""
    table = segment(0xC4, b"\0" + bytes([1, 1] + [0] * 14) + bytes([0, 1]))
    scan = segment(0xDA, b"\3\1\0\2\0\3\0\1\0\0")
    bits = width * height * 3
    pixels = bytes((bits + 7) // 8 - 1) + bytes([(1 << (-bits % 8)) - 1])
    head = b"\xff\xd8" + segment(0xEE, b"Adobe\0d\0\0\0\0\0") + frame(0xC3, 8, 3, width, height)
    return head + table + scan + pixels + b"\xff\xd9"


def test_only_what_libjpeg_scales_is_scaled(monkeypatch):
    drafted = []
    draft = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "draft", lambda self, *args: (drafted.append(True), draft(self, *args))[1]
    )
    data = lossless(640, 480)
    exact = decode(data)
    np.testing.assert_array_equal(decode(data, decode="fast").pixels, exact.pixels)
    assert (exact.width, exact.height) == (640, 480)
    decode(encode(PICTURE.convert("CMYK").resize((640, 480)), "JPEG"), decode="fast")
    assert not drafted
    for options in ({}, {"progressive": True}):
        for mode in ("RGB", "L"):
            decode(encode(PICTURE.convert(mode).resize((640, 480)), "JPEG", **options), decode="fast")
    assert len(drafted) == 4


def test_the_frame_is_found_behind_anything():
    data = encode(PICTURE, "JPEG")
    before = segment(0xE1, b"Exif\0\0" + frame(0xC3, 12, 1)) + b"\xff\xff\xff" + segment(0xFE, bytes(60_000))[1:]
    for found in (frame_of(data), frame_of(data[:2] + before + data[2:])):
        assert (found.marker, found.bits, found.components) == (0xC0, 8, 3)
        assert found.scales
    assert frame_of(b"\xff\xd8\xff\xda\0\x08" + data) is None
    for keep in range(len(data)):
        frame_of(data[:keep])


@pytest.mark.parametrize(
    ("marker", "bits", "components", "words"),
    [
        (0xC1, 12, 1, "1 components of 12 bits"),
        (0xC1, 12, 3, "3 components of 12 bits"),
        (0xC3, 16, 1, "lossless, 1 components of 16 bits"),
        (0xC3, 12, 3, "lossless"),
        (0xC0, 8, 2, "2 components"),
        (0xC0, 8, 5, "5 components"),
        (0xC5, 8, 3, "hierarchical"),
        (0xCB, 8, 3, "lossless, arithmetic-coded"),
    ],
)
def test_other_kinds_of_jpeg_are_named(marker, bits, components, words):
    scan = segment(0xDA, bytes([components]) + b"".join(bytes([n + 1, 0]) for n in range(components)) + b"\0\x3f\0")
    for mode in ("exact", "fast"):
        error = fail(b"\xff\xd8" + frame(marker, bits, components) + scan + bytes(99) + b"\xff\xd9", decode=mode)
        assert error.reason == "unsupported"
        assert words in str(error)
        assert "convert it" in str(error)


def test_broken_metadata_of_jpegs_cost_nothing():
    plain = encode(PICTURE, "JPEG")
    expected = decode(plain).pixels
    rng = random.Random(0)
    starts = (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"MPF\0", b"MPF\0MM\0*\0\0\0\x08\0\1", b"ICC_PROFILE\0\1\2", b"")
    starts += (b"Photoshop 3.0\0008BIM\4\4", b"http://ns.adobe.com/xap/1.0/\0")
    for start in starts:
        for marker in (0xE1, 0xE2, 0xED, 0xFE):
            for length in (0, 3, 40, 65_000):
                data = plain[:2] + segment(marker, start + rng.randbytes(length)) + plain[2:]
                np.testing.assert_array_equal(decode(data).pixels, expected)


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes, *, right: bool = True) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not right))


BOMB = zlib.compress(bytes(30_000_000), 9)
METADATA = {
    "icc": chunk(b"iCCP", b"profile\0\0" + BOMB),
    "ztxt": chunk(b"zTXt", b"workflow\0\0" + BOMB),
    "itxt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + BOMB),
    "exif text": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "no icc": chunk(b"iCCP", b"profile\0\0rubbish"),
    "wrong sum": chunk(b"tEXt", b"a\0b", right=False),
    "short": chunk(b"pHYs", b"1"),
    "many": b"".join(chunk(b"zTXt", b"a%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(80)),
    "unknown": chunk(b"zzZz", bytes(99), right=False),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_of_pngs_cost_nothing(name, place):
    plain = encode(PICTURE, "PNG")
    at = 33 if place == "before" else -12
    data = plain[:at] + METADATA[name] + plain[at:]
    np.testing.assert_array_equal(decode(data).pixels, decode(plain).pixels)


def test_a_png_without_its_metadata_is_turned_all_the_same():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(PICTURE, "PNG", exif=exif)
    text = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    plain = encode(PICTURE, "PNG")
    as_text = plain[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + plain[33:]
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    as_xmp = plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + plain[33:]
    for data in (turned, as_text, as_xmp):
        assert decode(data).width == 5
        found = decode(data[:33] + METADATA["ztxt"] + data[33:])
        np.testing.assert_array_equal(found.pixels, decode(turned).pixels)


def test_pixels_of_pngs_are_still_checked():
    plain = bytearray(encode(PICTURE, "PNG"))
    plain[plain.index(b"IDAT") + 8] ^= 1
    assert fail(bytes(plain)).reason == "corrupt"
    assert fail(encode(PICTURE, "PNG")[:-40]).reason == "truncated"


# --- TIFF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_odd_tags_of_tiffs_cost_nothing(dtype):
    values = (np.asarray(PICTURE).astype(np.uint16) * (1 if dtype == np.uint8 else 257)).astype(dtype)
    expected = decode(encode(PICTURE, "PNG")).pixels
    for tag in (269, 270, 271, 272, 282, 283, 285, 296, 297, 305, 306, 315, 316, 318, 320, 333, 529, 530, 700, 33432):
        for odd in ("text", 2**31, 1.5):
            for deflate in (False, True):
                found = decode(tiff(values, tags={tag: odd}, deflate=deflate)).pixels
                np.testing.assert_array_equal(found, expected, err_msg=f"{tag} {odd}")
    for tag in (33723, 34377, 34665, 34675, 34853, 37724, 42112, 42113, 65000):
        for odd in ("text", 2**31, 1.5):
            np.testing.assert_array_equal(
                decode(tiff(values, tags={tag: odd})).pixels, expected, err_msg=f"{tag} {odd}"
            )


def test_libtiffs_words_are_in_the_message_and_nowhere_else():
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from transforms.images.decode import ImageError, decode_image
from transforms.spec import FeatureSpec
data = sys.stdin.buffer.read()
def outcome(data):
    try:
        return decode_image(data, FeatureSpec("", "", ()), max_pixels=10**6).width
    except ImageError as error:
        return f"{error.reason}: {error}"
at = data.index(b"|||")
good, bad = data[:at], data[at + 3:]
with ThreadPoolExecutor(4) as pool:
    for line in dict.fromkeys(map(str, pool.map(outcome, [good, bad] * 50))):
        print(line)
"""
    good = encode(PICTURE, "TIFF", compression="tiff_lzw")
    bad = bytearray(tiff(np.zeros((9, 9), np.uint16), deflate=True))
    bad[10:14] = b"\xff" * 4
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], input=good + b"|||" + bytes(bad), cwd=ROOT, capture_output=True
    )
    assert run.stderr == b""
    whole, broken = run.stdout.decode().splitlines()
    assert whole == "7"
    assert broken.startswith("corrupt: decoder error -2; ZIPDecode: Decoding error at scanline 0, ")


# --- formats that aren't read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"\xff\x0a" + bytes(50), "", "JPEG XL"),
        (bytes(128) + b"DICM" + bytes(50), "", "DICOM"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?><!-- x --><svg/>", "", "SVG"),
        (b"v/1\x01" + bytes(50), "", "OpenEXR"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "", "camera RAW"),
        (b"\0\0\0\x18ftypcrx " + bytes(99), "", "camera RAW"),
        (b"8BPS\0\1" + bytes(99), "", "Photoshop"),
        (bytes(99), "/x/a.tga", "Targa"),
        (bytes(99), "shard.tar#a/b.NEF", "camera RAW"),
        (b"II*\0" + bytes(99), "a.dng", "DNG"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name, words):
    error = fail(data, name=name)
    assert error.reason == "unsupported"
    assert f"{words} files aren't read" in str(error) or f"{words} (camera RAW) files aren't read" in str(error)
    assert "convert them to" in str(error) or "develop them to" in str(error)


def test_every_ending_of_a_picture_that_is_not_read_has_a_name():
    assert {ending for ending in UNREAD_EXTENSIONS if by_name(f"a.{ending.upper()}") is None} == set()


def test_an_ending_does_not_hide_a_picture():
    np.testing.assert_array_equal(
        decode(encode(PICTURE, "PNG"), name="a.tga").pixels, decode(encode(PICTURE, "PNG")).pixels
    )
    assert fail(b"no picture", name="a.jpg").reason == "not an image"
    assert fail(b"", name="a.tga").reason == "empty"


def test_what_is_read_is_not_taken_for_what_is_not():
    for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "ICO", "PPM"):
        assert by_content(encode(PICTURE.resize((32, 32)), form)) is None


def test_a_lossless_one_has_a_thumbnail_and_doesnt_crash():
    """Thumbnails are decoded at reduced size where they can be; nothing else of `map` and `query --html` touches it."""
    found = thumbnail(lossless(640, 480))
    assert bool(found.data) != bool(found.problem)
    with Thumbnailer() as thumbnailer:
        assert thumbnailer.make(lossless(640, 480)) == found


def test_a_progressive_one_of_many_scans_is_refused():
    data = encode(PICTURE.resize((640, 480)), "JPEG", progressive=True)
    assert decode(data).width == 640
    scan = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + scan * (4 * 10**9 // (640 * 480)) + b"\xff\xd9"
    error = fail(many)
    assert error.reason == "too slow"
    assert "its 13,030 scans" in str(error)


@pytest.mark.parametrize("kind", [b"P1", b"P4", b"P5", b"P6", b"Pf"])
def test_a_netpbm_header_is_short(kind):
    numbers = b"300 300" if kind in (b"P1", b"P4") else b"300 300 255"
    data = kind + b"\n# short\n" + numbers + b"\n" + b"1 " * 600_000
    assert decode(data).width == 300
    for comment in (b"#" + b"x" * 70_000, b"#" + b"x" * 70_000 + b"\n", b"#\n" * 40_000, b" " * 70_000):
        for place in (kind + b" ", kind + b" 300 "):
            broken = place + comment + data[len(place) :].replace(b"\n# short\n", b" ")
            error = fail(broken)
            assert (error.reason, "64" in str(error) or "65,536" in str(error)) == ("corrupt", True)
