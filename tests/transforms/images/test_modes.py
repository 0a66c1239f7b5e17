"""The rules for deep samples, pixel by pixel: every type, order and layout gives the picture that it holds."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.tiffs import tiff
from transforms.images.decode import DecodedImage, ImageError, decode_image
from transforms.spec import FeatureSpec

RAMP = np.linspace(0, 1, 48).reshape(6, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
PICTURE, COLOUR_PICTURE = np.rint(RAMP * 255), np.rint(COLOURS * 255)


def decode(data: bytes, **choices) -> DecodedImage:
    """Decodes an image of 8×6 pixels to the same pixels, 8×8 with the padding."""
    spec = FeatureSpec("vgg19", "0" * 64, (), image_size=8, resize="pad", interpolation="nearest", **choices)
    return decode_image(data, spec, max_pixels=10**6)


def pixels(data: bytes) -> np.ndarray:
    """6×8×3."""
    return decode(data).pixels[1:7].astype(int)


def grey(data: bytes) -> np.ndarray:
    """6×8."""
    found = pixels(data)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def fail(data: bytes, **choices) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, **choices)
    return caught.value


# --- sign, order, photometric interpretation -------------------------------------------------------------------------


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_unsigned_greys_are_the_same_picture(bits, white_is_zero, order, deflate):
    most = 2**bits - 1
    stored = np.rint(RAMP * most).astype(np.uint16 if bits > 8 else np.uint8)
    expected = np.rint(stored / most * 255)
    data = tiff(
        most - stored if white_is_zero else stored,
        photometric=0 if white_is_zero else 1,
        bits=None if bits in (8, 16) else bits,
        order=order,
        deflate=deflate,
    )
    np.testing.assert_array_equal(grey(data), expected)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("i1", -100, 127),
        ("i2", -1000, 3000),
        ("i4", -1_000_000, 2_000_000),
        ("u4", 0, 4_200_000_000),
        ("u4", 0, 255),
        ("i4", 0, 255),
        ("f2", 0, 1),
        ("f4", 0, 1),
        ("f4", -0.25, 1),
        ("f4", 0, 1e30),
        ("f8", 0, 1),
        ("f8", -5, 1000),
    ],
)
def test_other_greys_span_what_they_hold(dtype, low, high, white_is_zero, order, deflate):
    stored = (low + RAMP * (high - low)).astype(dtype)
    expected = np.rint((stored.astype(np.float64) - low) / (high - low) * 255)
    found = grey(tiff(stored, photometric=0 if white_is_zero else 1, order=order, deflate=deflate))
    # A float that lies between two greys may be rounded to either.
    assert np.abs(found - (255 - expected if white_is_zero else expected)).max() <= (dtype[0] == "f")


@pytest.mark.parametrize("most", [0.98, 1.0, 1.02, 254.0, 255.0, 256.0])
@pytest.mark.parametrize("least", [-0.02, 0.0])
def test_floats_have_no_cliffs(least, most):
    near = grey(tiff(np.float32(least + RAMP * (most - least))))
    # The picture itself, as far as 2 % of the range can change it.
    assert np.abs(near - PICTURE).max() <= 8


@pytest.mark.parametrize("dtype", ["i2", "i4", "u4"])
@pytest.mark.parametrize("most", [253, 255, 257, 65535, 65536])
def test_integers_have_no_cliffs(dtype, most):
    if dtype == "i2" and most > 32767:
        pytest.skip("doesn't fit")
    near = grey(tiff(np.rint(RAMP * most).astype(dtype)))
    assert np.abs(near - PICTURE).max() <= 3


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_flat_floats_keep_their_brightness(value):
    assert (grey(tiff(np.full((6, 8), value, np.float32))) == round(value * 255)).all()


# --- several samples -------------------------------------------------------------------------------------------------


def png(samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits: H×W×C, C by colour type."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2]]
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    bodies = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), *chunks]
    bodies += [b"IDAT" + zlib.compress(rows), b"IEND"]
    packed = (struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in bodies)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def deep(values: np.ndarray, most: int = 65535) -> np.ndarray:
    return np.rint(values * most).astype(np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_colours_of_16_bits_are_rounded_not_cut(order, deflate):
    expected = np.rint(deep(COLOURS) / 257)
    np.testing.assert_array_equal(pixels(png(deep(COLOURS))), expected)
    np.testing.assert_array_equal(pixels(tiff(deep(COLOURS), order=order, deflate=deflate)), expected)
    ignored = np.dstack([deep(COLOURS), deep(RAMP)])
    np.testing.assert_array_equal(pixels(tiff(ignored, extra=(0,), order=order, deflate=deflate)), expected)
    signed = np.rint(COLOURS * 3000 - 1000).astype(np.int16)
    np.testing.assert_array_equal(
        pixels(tiff(signed, order=order, deflate=deflate)), np.rint((signed + 1000) / 3000 * 255)
    )


@pytest.mark.parametrize("deflate", [False, True])
def test_planes_of_16_bits(deflate):
    found = pixels(tiff(deep(COLOURS), planar=2, deflate=deflate))
    assert np.abs(found - COLOUR_PICTURE).max() <= 1


@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_of_16_bits_lies_over_white(colours):
    alpha = RAMP.T.reshape(6, 8, 1)
    values = COLOURS[..., :colours]
    expected = np.rint(255 * (values * alpha + 1 - alpha))
    stored = deep(np.concatenate([values, alpha], axis=2))
    multiplied = deep(np.concatenate([values * alpha, alpha], axis=2))
    for data in (
        png(stored),
        tiff(stored, extra=(2,), photometric=1 if colours == 1 else 2),
        tiff(stored, extra=(2,), photometric=1 if colours == 1 else 2, order=">", deflate=True),
        tiff(multiplied, extra=(1,), photometric=1 if colours == 1 else 2),
    ):
        assert np.abs(pixels(data) - expected).max() <= 1


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("values", [RAMP, COLOURS])
def test_deep_tiffs_are_turned(values, deflate):
    turned = np.ascontiguousarray(np.rot90(deep(values)))
    found = decode(tiff(turned, tags={274: 6}, deflate=deflate))
    assert (found.width, found.height) == (8, 6)
    expected = np.rint(deep(values) / 257)
    np.testing.assert_array_equal(found.pixels[1:7], expected if values.ndim == 3 else expected[..., None].repeat(3, 2))


def test_a_transparent_colour_of_16_bits_becomes_white():
    values = np.full((6, 8, 3), 300, np.uint16)
    values[0, 0] = (300, 301, 300)
    found = pixels(png(values, b"tRNS" + struct.pack(">HHH", 300, 300, 300)))
    assert found[0, 0].tolist() == [1, 1, 1]
    assert (found[1:] == 255).all()


# --- what a file says of its values ----------------------------------------------------------------------------------


def test_the_largest_value_that_a_tiff_names_is_white():
    stored = deep(RAMP, 4095)
    for tag in (281, 341):
        np.testing.assert_array_equal(grey(tiff(stored, tags={tag: 4095})), np.rint(stored / 4095 * 255))
        np.testing.assert_array_equal(grey(tiff(stored, tags={tag: 8190})), np.rint(stored / 8190 * 255))
    # One that isn't true isn't believed.
    np.testing.assert_array_equal(grey(tiff(stored, tags={281: 100})), np.rint(stored / 4095 * 255))
    colours = deep(COLOURS, 4095)
    np.testing.assert_array_equal(pixels(tiff(colours, tags={281: 4095})), np.rint(colours / 4095 * 255))
    floats = np.float32(200 * RAMP)
    assert grey(tiff(floats, tags={340: 0.0, 341: 400.0})).max() == 128


def test_bits_that_a_png_names():
    chunk = b"sBIT" + bytes([12])
    twelve = deep(RAMP, 4095)[..., None]
    # As the standard wants them: scaled to 16 bits. Then nothing is left to do, however dark they are.
    scaled = twelve << 4 | twelve >> 8
    np.testing.assert_array_equal(pixels(png(scaled, chunk)), pixels(png(scaled)))
    dark = (twelve >> 4) << 4
    np.testing.assert_array_equal(pixels(png(dark, chunk)), pixels(png(dark)))
    np.testing.assert_array_equal(grey(png(twelve, chunk)), np.rint(twelve[..., 0] / 4095 * 255))
    np.testing.assert_array_equal(
        pixels(png(deep(COLOURS, 4095), b"sBIT" + bytes([12] * 3))), np.rint(deep(COLOURS, 4095) / 4095 * 255)
    )


@pytest.mark.parametrize(
    ("dtype", "missing"), [("f4", -9999), ("f4", -3.4028234663852886e38), ("i2", -32768), ("u1", 7)]
)
@pytest.mark.parametrize("photometric", [0, 1])
def test_no_data_is_black_and_stretches_nothing(dtype, missing, photometric):
    most = 1 if dtype == "f4" else 255
    stored = np.rint(RAMP * 255).astype(dtype) if most == 255 else RAMP.astype(dtype)
    holed = stored.copy()
    holed[2] = missing
    found = grey(tiff(holed, photometric=photometric, tags={42113: repr(missing)}))
    expected = PICTURE if photometric else 255 - PICTURE
    assert np.abs(np.delete(found - expected, 2, axis=0)).max() == 0
    assert (found[2] == 0).all()


def test_no_data_of_colours_is_a_whole_pixel():
    for dtype in (np.uint8, np.uint16):
        stored = np.full((6, 8, 3), 255, dtype)
        stored[0, 0] = (255, 0, 255)
        found = pixels(tiff(stored, tags={42113: "255"}))
        assert (found[1:] == 0).all()
        assert found[0, 0].tolist() == ([255, 0, 255] if dtype == np.uint8 else [1, 0, 1])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_black_and_stretches_nothing(odd):
    stored = np.float32(RAMP)
    stored[3, 3] = odd
    found = grey(tiff(stored))
    assert found[3, 3] == 0
    expected = PICTURE.copy()
    expected[3, 3] = 0
    np.testing.assert_array_equal(found, expected)


def test_a_file_of_nothing_but_holes_is_black():
    assert (grey(tiff(np.full((6, 8), np.nan, np.float32))) == 0).all()
    assert (grey(tiff(np.full((6, 8), 9, np.uint16), tags={42113: "9"})) == 0).all()


# --- notes -----------------------------------------------------------------------------------------------------------


def test_a_range_that_is_hardly_used_is_noted():
    words = "of 16 bits with less than 1/16 of the range in use"
    for values in (RAMP, COLOURS):
        assert decode(tiff(deep(values, 4095))).note == words
        assert decode(tiff(deep(values, 4200))).note is None
        assert decode(tiff(deep(values, 3000), tags={281: 4095})).note is None
    assert decode(png(deep(COLOURS, 4095))).note == words
    assert decode(tiff(np.float32(RAMP * 0.05))).note == "of floats with less than 1/16 of the range in use"
    assert decode(tiff(np.zeros((6, 8), np.uint16))).note is None
    assert decode(tiff(np.uint8(RAMP * 9))).note is None


# --- what isn't read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(np.zeros((6, 8, 5), np.uint16), extra=(0, 0)), "5 samples a pixel of 16 bits (unsigned), RGB"),
        (
            tiff(np.zeros((6, 8, 12), np.uint8), photometric=1, extra=(0,) * 11),
            "12 samples a pixel of 8 bits (unsigned)",
        ),
        (tiff(np.zeros((6, 8, 3), np.float32)), "3 samples a pixel of 32 bits (float), RGB"),
        (tiff(np.zeros((6, 8), np.complex64)), "1 samples a pixel of 64 bits (complex float)"),
        (tiff(np.zeros((6, 8), np.uint64)), "64 bits (unsigned), black is zero"),
        (tiff(np.zeros((6, 8, 3), np.uint16), bits=12), "3 samples a pixel of 12 bits"),
        (tiff(np.zeros((6, 8, 3), np.uint8), tags={50706: 1}), "DNG"),
        (tiff(np.zeros((6, 8), np.uint16), photometric=32803), "camera RAW"),
        (tiff(np.zeros((6, 8, 3), np.uint8), tags={254: 1, 330: 8}), "camera RAW"),
    ],
)
def test_other_layouts_are_named(data, words):
    error = fail(data)
    assert error.reason == "unsupported"
    assert words in str(error)
    assert "convert it to" in str(error) or "develop them" in str(error)


# --- versions of the rules -------------------------------------------------------------------------------------------


def test_earlier_rules_take_only_what_they_made_the_same():
    file = io.BytesIO()
    Image.fromarray(np.uint8(COLOUR_PICTURE)).save(file, "PNG")
    same = (
        file.getvalue(),
        png(deep(RAMP)[..., None]),
        tiff(deep(RAMP)),
        tiff(deep(RAMP), order=">"),
        tiff(np.uint8(PICTURE)),
    )
    for data in same:
        np.testing.assert_array_equal(decode(data, pixel_rules=1).pixels, decode(data).pixels)
    changed = (
        png(deep(COLOURS)),
        tiff(deep(COLOURS)),
        tiff(deep(RAMP), photometric=0),
        tiff(np.float32(RAMP)),
        tiff(np.int32(PICTURE)),
    )
    for data in changed:
        error = fail(data, pixel_rules=1)
        assert error.reason == "unsupported"
        assert "version 1, now 2); extract to a new folder" in str(error)
