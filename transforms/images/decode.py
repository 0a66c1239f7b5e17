"""Encoded bytes in, pixels out: an image of any common format becomes uint8 S×S×3 (S: the spec's image size).

Input is hostile: whatever the bytes are, the answer is an image or an `ImageError`. Pillow does the decoding. The pixel
count is checked here, after the header is read and before any pixel is decoded. Pillow's own guard against
decompression bombs stays on behind it, for formats that allocate or decode as they are opened (GIF, ICO).

How each mode becomes RGB is in `transforms.images.modes`. Animations and files with several images give the first. EXIF
orientation is applied if the spec says so; a TIFF's own orientation always is (Pillow does so while it loads), and a
HEIC's turns and mirrors, which are part of its picture (libheif does so; a HEIC's EXIF orientation only repeats them).
Orientation that can't be read counts as upright.

Metadata never cost an image: a JPEG or PNG that fails is tried again without them, and of other formats none are read
that may break.
"""

import functools
import logging
import re
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin, IcoImagePlugin, Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from transforms.errors import FeaturemillError
from transforms.images import jpeg, png, tiff, unread
from transforms.images.modes import Samples, to_rgb
from transforms.spec import PIXEL_RULES, FeatureSpec

# Once, for the process: per call it can't be done safely in threads. What matters comes back as an ImageError; Pillow's
# remarks on damaged metadata and on large images stay off the screen.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# Over this many pixels Pillow's guard refuses an image, whatever `max_pixels` says: twice its MAX_IMAGE_PIXELS, which
# belongs to the whole process and so is left alone.
PIXEL_CEILING = 178_956_970

# What is read; nothing else is even tried. Left out on purpose: EPS (runs Ghostscript), PDF, WMF and the HDF5, GRIB and
# FITS stubs (they aren't pixels), TGA (it has no signature, so random bytes pass for it).
# HEIF is known to Pillow once one was met.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "ICO", "PPM")

# HEIF's container is that of AVIF, too, and only inside it says which of the two a file is.
_HEIF = re.compile(rb"....ftyp(?!avi[fs])(hei|hev|mif|msf)", re.DOTALL)

# Pillow reads the header of a PPM byte by byte, and a comment in it may be as long as the file. What it takes for one:
# the kind, and two or three numbers with white space and comments between them.
_PPM_BYTES = 64 << 10
_PBM_HEADER, _PPM_HEADER = (
    re.compile(rb"P[^\s#]{1,5}(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){%d}" % numbers) for numbers in (2, 3)
)
# Of a progressive JPEG, whose every scan takes about 3 ns a pixel.
_SCANNED_PIXELS = 4 * 10**9

# ImageNet's mean colour, rounded: after preprocessing, VGG's at least, padding of this colour is about zero.
PAD_COLOUR = (124, 117, 104)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Width and height change places.
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
_ORIENTATION = 0x0112


class ImageError(FeaturemillError):
    """An image that can't be decoded.

    Attributes:
        reason: Short and stable, to group by: `empty`, `not an image`, `unsupported`, `corrupt`, `truncated`,
            `too many pixels`, `too slow` or `out of memory`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image as the network sees it.

    Attributes:
        pixels: uint8 S×S×3, RGB; not to be written to.
        width: Pixels of the image at full size, upright.
        height: As `width`.
        note: What there is to know of its pixels, as in `UnitReport.notes`, if anything.
    """

    pixels: np.ndarray
    width: int
    height: int
    note: str | None = None


def decode_image(data: bytes, spec: FeatureSpec, *, max_pixels: int, name: str = "") -> DecodedImage:
    """Decodes one image, turns it upright and brings it to the size of the spec. Safe to call from several threads.

    `squash` with `exact` is `keras.utils.load_img(target_size=(S, S), interpolation=...)`, bit for bit, for 8-bit RGB
    and grey images without alpha or rotation. `crop` takes the centre S×S of the image with its short side at the
    spec's `whole_side`; `pad` brings its long side to S and centres it on `PAD_COLOUR`. `fast` has libjpeg decode JPEGs
    at 1/2, 1/4 or 1/8 of their size, but never below twice the size that they are resized to.

    Where `spec.pixel_rules` are older than `PIXEL_RULES`, an image whose pixels these rules changed is refused: what is
    stored under that spec was made by the old ones.

    Args:
        data: Encoded bytes, of one of `FORMATS`.
        spec: Its `image_size`, `resize`, `short_side`, `interpolation`, `decode`, `exif` and `pixel_rules` are used.
        max_pixels: Images with more pixels (width × height) are refused before they are decoded; at most
            `PIXEL_CEILING` has an effect.
        name: The image's name or key; its ending names the format of bytes that can't be decoded.

    Raises:
        ImageError: The image can't be decoded. Nothing else is raised, whatever the bytes.
    """
    if not data:
        raise ImageError("empty", "there are no bytes")
    try:
        return _decode(data, spec, max_pixels)
    except ImageError as error:
        bare = _without_metadata(data) if error.reason in ("corrupt", "truncated") else data
        if bare != data:
            return _decode(bare, spec, max_pixels)
        known = unread.by_name(name) if error.reason in ("corrupt", "not an image") else None
        if known:
            raise ImageError("unsupported", unread.message(known)) from error
        raise


def _without_metadata(data: bytes) -> bytes:
    if data.startswith(png.SIGNATURE):
        return png.without_metadata(data)
    return jpeg.without_metadata(data) if data.startswith(jpeg.SIGNATURE) else data


def _decode(data: bytes, spec: FeatureSpec, max_pixels: int) -> DecodedImage:
    resample = Image.Resampling[spec.interpolation.upper()]
    fit = {"squash": _squash, "crop": _crop, "pad": _pad}[spec.resize]
    try:
        image = _open(data, max_pixels)
        size = image.size
        if spec.decode == "fast" and image.format == "JPEG" and (frame := jpeg.frame_of(data)) and frame.scales:
            width, height = _whole_size(size, spec)
            image.draft(None, (2 * width, 2 * height))
        samples = _load(image, data)
        turn = _turn(image) if spec.exif else None
        if spec.pixel_rules < PIXEL_RULES and _is_new(image, samples):
            raise ImageError(
                "unsupported",
                f"the rules by which it becomes 8-bit RGB changed since these features were begun (version "
                f"{spec.pixel_rules}, now {PIXEL_RULES}); extract to a new folder",
            )
        # Rebinding frees the image before, so that no more than two are held at once.
        image, note = to_rgb(image, samples)
        samples = None
        if turn is not None:
            image = image.transpose(turn)
        if turn in _SIDEWAYS:
            size = size[::-1]
        image = fit(image, size, spec, resample)
        # Not np.array(image), which copies these bytes once more.
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    except ImageError:
        raise
    except Exception as error:
        explained = _explain(error, max_pixels)
        kind = _unread_jpeg(data) if explained.reason == "corrupt" else None
        raise kind or explained from error
    return DecodedImage(pixels, *size, note)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Opens an image, without decoding it, and checks its size."""
    if data.startswith(b"\0\0\1\0"):
        # Pillow decodes icons as it opens them, so their size is looked up beforehand.
        _check_size(_icon_size(data), max_pixels)
    try:
        if data.startswith(b"P") and len(data) > _PPM_BYTES and _is_endless_ppm(data):
            raise ImageError("corrupt", f"its PPM header takes over {_PPM_BYTES:,} bytes")
        if data.startswith(jpeg.SIGNATURE):
            # Without a look at the list of further pictures (MPO), which may be broken.
            image = JpegImagePlugin.JpegImageFile(BytesIO(data))
        elif known := unread.by_content(data):
            raise ImageError("unsupported", unread.message(known))
        elif data.startswith(tiff.PREFIXES):
            image = tiff.TiffFile(BytesIO(data))
        else:
            heif = _HEIF.match(data)
            if heif:
                _register_heif()
            image = Image.open(BytesIO(data), formats=("HEIF", "AVIF") if heif else FORMATS)
    except (SyntaxError, UnidentifiedImageError) as error:
        raise _unidentified(data) from error
    _check_size(image.size, max_pixels)
    if "progressive" in image.info and image.width * image.height * data.count(jpeg.SCAN) > _SCANNED_PIXELS:
        raise ImageError(
            "too slow", f"its {data.count(jpeg.SCAN):,} scans go over all of its pixels each; save it anew to decode it"
        )
    if image.format == "TIFF":
        # libtiff decodes whole tiles, and a tile may be larger than the image.
        _check_size((image.tag_v2.get(322, 1), image.tag_v2.get(323, 1)), max_pixels)
    return image


def _is_endless_ppm(data: bytes) -> bool:
    if not Image.OPEN["PPM"][1](data[:2]):
        return False
    return not (_PBM_HEADER if data[1] in b"14" else _PPM_HEADER).match(data, 0, _PPM_BYTES)


@functools.cache
def _register_heif() -> None:
    """Lets Pillow read HEIF: at the first one that is met, because libheif takes 30 MB."""
    import pillow_heif

    # Threads decode side by side already. What is no pixel isn't looked at.
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _load(image: Image.Image, data: bytes) -> Samples | None:
    """Decodes an opened image, `data` being its file, and returns how to read it where its mode doesn't tell."""
    if isinstance(image, tiff.TiffFile):
        with tiff.explained():
            samples = tiff.whole_samples(image, data)
            image.load()
        return samples
    samples = png.whole_samples(image, data) if image.format == "PNG" else None
    image.load()
    # Pillow stretches a PGM's samples to 16 bits, in a mode of 32.
    return Samples(dtype="=u4", ends=(0, 65535)) if image.format == "PPM" and image.mode == "I" else samples


def _is_new(image: Image.Image, samples: Samples | None) -> bool:
    """Returns whether it is an image of which the earlier rules made other pixels, or none."""
    if samples is None:
        return image.mode in ("F", "I")
    return not samples.is_old


def _icon_size(data: bytes) -> tuple[int, int]:
    """Returns the size of the picture in an icon that Pillow takes; the icon's own directory may be wrong."""
    entry = IcoImagePlugin.IcoFile(BytesIO(data)).entry[0]
    picture = data[entry.offset :]
    if picture.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(BytesIO(picture)).size
    return BmpImagePlugin.DibImageFile(BytesIO(picture)).size


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"its size is {width} × {height} pixels")
    if width * height > max_pixels:
        raise _too_many(f"{width} × {height}", max_pixels)


def _too_many(pixels: str, max_pixels: int) -> ImageError:
    cure = "raise --max-pixels to decode it" if max_pixels < PIXEL_CEILING else "make it smaller"
    return ImageError(
        "too many pixels", f"{pixels} pixels are over the limit of {min(max_pixels, PIXEL_CEILING):,}; {cure}"
    )


def _unidentified(data: bytes) -> ImageError:
    """Explains bytes that no format accepts: a known format's broken header, a format that isn't read, or no image."""
    if kind := _unread_jpeg(data):
        return kind
    if _HEIF.match(data):
        return ImageError("corrupt", "it starts like a HEIF file, but its header is broken")
    for name in FORMATS:
        verdict = Image.OPEN[name][1](data[:16])
        if isinstance(verdict, str):
            return ImageError("unsupported", f"this Pillow was built without {name}; install a wheel from PyPI")
        if verdict:
            return ImageError("corrupt", f"it starts like a {name} file, but its header is broken")
    return ImageError("not an image", f"its first bytes, {data[:8]!r}, are of no known image format")


def _unread_jpeg(data: bytes) -> ImageError | None:
    """Explains a JPEG that can't be decoded by what kind it is; None if it is of the common kinds, or no JPEG."""
    frame = jpeg.frame_of(data) if data.startswith(jpeg.SIGNATURE) else None
    if frame is None or frame.is_plain:
        return None
    words = f"a JPEG of a kind that isn't read ({frame}), or damaged; convert it to a JPEG of 8 bits or to PNG"
    return ImageError("unsupported", words)


def _explain(error: Exception, max_pixels: int) -> ImageError:
    """Sorts what Pillow raises for damaged files: nearly any exception, told apart by its words only."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        count = re.search(r"\d+", message)
        return _too_many(f"{int(count[0]):,}" if count else "its", max_pixels)
    words = message.lower()
    if isinstance(error, MemoryError) or "out of memory" in words:
        return ImageError(
            "out of memory", "decoding it needs more memory than there is; lower --max-pixels to refuse it"
        )
    if isinstance(error, EOFError) or "truncated" in words or "enough" in words:
        return ImageError("truncated", message)
    if isinstance(error, NotImplementedError) or "unsupported" in words:
        return ImageError("unsupported", message)
    return ImageError("corrupt", message)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns the operation that turns the image upright; None if it is, or if its EXIF data are broken."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Broken EXIF data raise nearly anything, and the pixels are fine.
        return None


def _whole_size(size: tuple[int, int], spec: FeatureSpec) -> tuple[int, int]:
    """Returns the size that a whole image of this size is brought to, before anything is cut off or padded."""
    if spec.resize == "squash":
        return spec.image_size, spec.image_size
    scale = spec.image_size / max(size) if spec.resize == "pad" else spec.whole_side / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _squash(image: Image.Image, full: tuple[int, int], spec: FeatureSpec, resample: Image.Resampling) -> Image.Image:
    side = spec.image_size
    # Pillow would copy it.
    return image if image.size == (side, side) else image.resize((side, side), resample)


def _crop(image: Image.Image, full: tuple[int, int], spec: FeatureSpec, resample: Image.Resampling) -> Image.Image:
    side = spec.image_size
    # Only the square that stays is resized: resizing the whole first, as the recipe is usually told, would make
    # 256 × 2,560,000 pixels of an image of 1 × 10,000.
    square = min(image.size) * side / spec.whole_side
    left, top = (image.width - square) / 2, (image.height - square) / 2
    return image.resize((side, side), resample, box=(left, top, left + square, top + square))


def _pad(image: Image.Image, full: tuple[int, int], spec: FeatureSpec, resample: Image.Resampling) -> Image.Image:
    side = spec.image_size
    scale = side / max(full)
    width, height = max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
    result = Image.new("RGB", (side, side), PAD_COLOUR)
    result.paste(image.resize((width, height), resample), ((side - width) // 2, (side - height) // 2))
    return result
