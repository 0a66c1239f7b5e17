"""Decoding: Keras as the oracle, every mode, orientation and way to resize. Broken bytes: test_images_hostile.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin, features

from transforms.images.decode import PAD_COLOUR, decode_image
from transforms.images.modes import to_rgb
from transforms.spec import FeatureSpec

WHITE = (255, 255, 255)


def decode(data: bytes, *, max_pixels: int = 89_000_000, **choices):
    return decode_image(data, FeatureSpec("vgg19", "0" * 64, (), **choices), max_pixels=max_pixels)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Blocks of 8 pixels with random colours: sharp edges, but JPEG and resizing keep something of them."""
    shape = (-(-height // 8), -(-width // 8), 4)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    image = Image.fromarray(pixels)
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


def smooth(width: int, height: int) -> Image.Image:
    """Soft colours, which survive lossy formats and other ways to resize."""
    return noise(48, 48).resize((width, height), Image.Resampling.BICUBIC)


# --- Keras as the oracle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_squash_is_keras_bit_for_bit(interpolation):
    load_img = pytest.importorskip("keras").utils.load_img
    files = [
        encode(noise(width, height, mode, seed=width), form)
        for width, height in [(64, 64), (500, 375), (31, 200), (1, 1), (7, 900)]
        for mode, form in [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "BMP"), ("1", "PNG"), ("P", "PNG")]
    ]
    for data in files:
        for size in (64, 32):
            theirs = load_img(io.BytesIO(data), target_size=(size, size), interpolation=interpolation)
            ours = decode(data, image_size=size, interpolation=interpolation).pixels
            np.testing.assert_array_equal(ours, np.asarray(theirs))


# --- modes -----------------------------------------------------------------------------------------------------------


def flat(mode: str, colour, form: str = "TIFF", **options) -> tuple[int, ...]:
    """The colour that a one-coloured image of a mode becomes."""
    image = Image.new(mode, (9, 5), colour)
    pixels = decode(encode(image, form, **options), image_size=9).pixels
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("1", 1, "PNG", WHITE),
        ("L", 77, "PNG", (77, 77, 77)),
        ("RGB", (1, 2, 3), "PNG", (1, 2, 3)),
        ("LA", (0, 0), "PNG", WHITE),
        ("LA", (100, 255), "PNG", (100, 100, 100)),
        ("RGBA", (0, 0, 0, 0), "PNG", WHITE),
        ("RGBA", (200, 100, 0, 51), "PNG", (244, 224, 204)),
        ("RGBA", (10, 20, 30, 255), "WEBP", (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("LAB", (255, 128, 128), "TIFF", WHITE),
        ("I;16", 0, "PNG", (0, 0, 0)),
        ("I;16", 128, "PNG", (0, 0, 0)),
        ("I;16", 129, "PNG", (1, 1, 1)),
        ("I;16", 32896, "TIFF", (128, 128, 128)),
        ("I;16B", 32896, "TIFF", (128, 128, 128)),
        ("I;16", 65535, "PNG", WHITE),
        ("I", 100, "TIFF", (100, 100, 100)),
        ("I", 25700, "TIFF", WHITE),
        ("F", 0.5, "TIFF", (128, 128, 128)),
        ("F", 77.4, "TIFF", WHITE),
        ("F", float("nan"), "TIFF", (0, 0, 0)),
        ("F", -3.0, "TIFF", (0, 0, 0)),
    ],
)
def test_each_mode(mode, colour, form, expected):
    options = {"lossless": True} if form == "WEBP" else {}
    got = flat(mode, colour, form, **options)
    assert np.abs(np.subtract(got, expected)).max() <= (1 if mode == "LAB" or form == "JPEG" else 0), got


def test_all_16_bit_greys_are_scaled_and_rounded():
    image = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    expected = np.floor(np.arange(65536) / 257 + 0.5).reshape(256, 256)
    np.testing.assert_array_equal(decode(encode(image), image_size=256).pixels[:, :, 1], expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_other_greys_span_their_own_range(mode):
    image = Image.fromarray(np.array([[-1000, 0], [1000, 70000]], np.int32 if mode == "I" else np.float32))
    assert decode(encode(image, "TIFF"), image_size=2).pixels[:, :, 0].tolist() == [[0, 4], [7, 255]]


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX", "HSV", "YCbCr"])
def test_modes_that_files_rarely_have(mode):
    source = noise(16, 16, "RGB" if mode in ("RGBX", "HSV", "YCbCr") else "RGBA")
    # Pillow has no direct way between some modes.
    for step in {"La": ("LA", "La"), "PA": ("P", "PA")}.get(mode, (mode,)):
        source = source.convert(step)
    back = source.convert({"La": "LA", "HSV": "RGB", "YCbCr": "RGB"}.get(mode, "RGBA")).convert("RGBA")
    white = Image.new("RGBA", source.size, WHITE)
    expected = np.asarray(Image.alpha_composite(white, back).convert("RGB")).astype(int)
    assert np.abs(np.asarray(to_rgb(source)[0]) - expected).max() <= 1


def test_unknown_modes_are_refused():
    with pytest.raises(NotImplementedError, match="BGR;16"):
        to_rgb(type("Odd", (), {"info": {}, "mode": "BGR;16"})())


def test_transparent_colours_become_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    pixels = decode(encode(palette, transparency=1), image_size=2, interpolation="nearest").pixels
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    half = decode(encode(palette, transparency=bytes([255, 0])), image_size=2, interpolation="nearest").pixels
    assert half[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert flat("L", 9, "PNG", transparency=9) == WHITE
    assert flat("L", 9, "PNG", transparency=8) == (9, 9, 9)
    assert flat("RGB", (1, 2, 3), "PNG", transparency=(1, 2, 3)) == WHITE
    assert flat("I;16", 300, "PNG", transparency=300) == WHITE


def test_transparent_colours_of_16_bits_are_distinguished_from_others():
    # The pixel's high byte is the key's low byte: 44. They are not the same colour.
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0),
        b"tRNS" + struct.pack(">HHH", 300, 0, 0),
        b"IDAT" + zlib.compress(b"\0" + struct.pack(">HHH", 44 << 8, 0, 0)),
        b"IEND",
    ]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    assert decode(b"\x89PNG\r\n\x1a\n" + b"".join(packed), image_size=1).pixels.tolist() == [[[44, 0, 0]]]


def test_conversion_in_strips_equals_conversion_at_once():
    image = noise(1500, 1500, "RGBA")
    white = Image.new("RGB", image.size, WHITE)
    white.paste(image, mask=image)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)[0]), np.asarray(white))


def test_first_frame_of_animations():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        pixels = decode(encode(frames[0], form, save_all=True, append_images=frames[1:])).pixels
        assert pixels[..., 0].min() > 230, form
        assert pixels[..., 2].max() < 20, form


@pytest.mark.parametrize("form", ["JPEG2000", "AVIF", "ICO", "PPM"])
def test_rarer_formats(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    data = encode(smooth(32, 32), form)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(decode(data, image_size=32).pixels, expected)


# --- orientation -----------------------------------------------------------------------------------------------------

UPRIGHT = noise(48, 32)
# How a camera that is held so stores an upright image: the inverse of what brings it upright.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: UPRIGHT.rotate(180),
    4: UPRIGHT.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: UPRIGHT.transpose(Image.Transpose.TRANSPOSE),
    6: UPRIGHT.transpose(Image.Transpose.ROTATE_90),
    7: UPRIGHT.transpose(Image.Transpose.TRANSVERSE),
    8: UPRIGHT.transpose(Image.Transpose.ROTATE_270),
}


def oriented(orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(STORED[orientation], form, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_orientation_is_undone(orientation, form, resize):
    upright = decode(encode(UPRIGHT), image_size=20, resize=resize)
    ours = decode(oriented(orientation, form), image_size=20, resize=resize)
    np.testing.assert_array_equal(ours.pixels, upright.pixels)
    assert (ours.width, ours.height) == (48, 32)


def test_orientation_of_jpegs_in_both_decode_modes():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(1200, 400), "JPEG", exif=exif)
    for mode in ("exact", "fast"):
        image = decode(data, decode=mode, image_size=32)
        assert (image.width, image.height) == (400, 1200)


def test_exif_can_be_left_alone():
    stored = decode(encode(STORED[6]), image_size=20)
    ours = decode(oriented(6, "PNG"), image_size=20, exif=False)
    np.testing.assert_array_equal(ours.pixels, stored.pixels)
    assert (ours.width, ours.height) == (32, 48)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"]
)
def test_broken_exif_is_ignored(exif):
    plain = decode(encode(UPRIGHT, "JPEG"))
    np.testing.assert_array_equal(decode(encode(UPRIGHT, "JPEG", exif=exif)).pixels, plain.pixels)


def test_exif_that_is_no_hexadecimal_text_is_ignored():
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\n\n\nno hex")
    np.testing.assert_array_equal(decode(encode(UPRIGHT, pnginfo=text)).pixels, decode(encode(UPRIGHT)).pixels)


# --- resizing --------------------------------------------------------------------------------------------------------


def test_crop_takes_the_centre():
    image = Image.new("RGB", (700, 256), "red")
    image.paste("blue", (700 // 2 - 112, 16, 700 // 2 + 112, 240))
    pixels = decode(encode(image), resize="crop", interpolation="nearest").pixels
    assert (pixels == (0, 0, 255)).all()


def test_crop_is_close_to_resize_then_crop():
    image = smooth(400, 300)
    whole = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((58, 16, 282, 240))).astype(int)
    pixels = decode(encode(image), resize="crop").pixels
    assert np.abs(pixels - expected)[2:-2, 2:-2].mean() < 1


@pytest.mark.parametrize("short_side", [32, 36, 64])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_of_another_share_is_resize_then_crop(short_side, interpolation):
    spec = {"resize": "crop", "image_size": 32, "short_side": short_side, "interpolation": interpolation}
    image, edge = noise(4 * short_side, 2 * short_side), (short_side - 32) // 2
    whole = image.resize((2 * short_side, short_side), Image.Resampling[interpolation.upper()])
    left = short_side // 2 + edge
    expected = np.asarray(whole.crop((left, edge, left + 32, edge + 32)))
    # Where whole pixels are cut, to the bit.
    np.testing.assert_array_equal(decode(encode(image), **spec).pixels, expected)
    # `fast` decodes twice of what the whole image is resized to.
    assert decode(encode(image, "JPEG"), **spec, decode="fast").pixels.shape == (32, 32, 3)


def test_pad_keeps_the_aspect_and_pads_with_the_mean():
    pixels = decode(encode(Image.new("RGB", (200, 100), "red")), resize="pad", image_size=64).pixels
    assert (pixels[16:48] == (255, 0, 0)).all()
    assert (pixels[:16] == PAD_COLOUR).all()
    assert (pixels[48:] == PAD_COLOUR).all()


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (13, 16_997), (1, 1), (2, 3)])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("image_size", [1, 32, 224])
def test_extreme_shapes(size, resize, image_size):
    image = decode(encode(noise(*size), "JPEG"), resize=resize, image_size=image_size, decode="fast")
    assert image.pixels.shape == (image_size, image_size, 3)
    assert (image.width, image.height) == size


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_fast_reduces_but_never_below_twice_the_target(resize, monkeypatch):
    decoded = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1])
    data = encode(noise(2000, 1000), "JPEG")
    exact = decode(data, resize=resize, image_size=56)
    fast = decode(data, resize=resize, image_size=56, decode="fast")
    full, reduced = set(decoded[:1]), decoded[-1]
    targets = {"squash": (56, 56), "crop": (128, 64), "pad": (56, 28)}
    assert full == {(2000, 1000)}
    assert reduced[0] * reduced[1] < 2_000_000 / 3
    assert all(side >= 2 * target for side, target in zip(reduced, targets[resize], strict=True))
    assert (fast.width, fast.height) == (exact.width, exact.height) == (2000, 1000)
    assert np.abs(fast.pixels.astype(int) - exact.pixels).mean() < 8


def test_fast_leaves_small_and_other_images_alone():
    for data in (encode(noise(300, 300), "JPEG"), encode(noise(2000, 1000), "PNG")):
        np.testing.assert_array_equal(decode(data).pixels, decode(data, decode="fast").pixels)
