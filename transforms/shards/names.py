"""Reads a file's name: image or not, of which kind, hidden or not."""

# One list for folders, globs and tar members: what Pillow opens and people keep photographs in.
IMAGE_EXTENSIONS = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "pjpeg",
        "pjp",
        "jfif",
        "mpo",
        "png",
        "apng",
        "gif",
        "webp",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "jp2",
        "j2k",
        "j2c",
        "jpc",
        "jpf",
        "jpx",
        "avif",
        "heic",
        "heif",
        "hif",
        "ico",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
    ]
)

# Pictures of kinds that aren't read. A file of one is listed as an image all the same: it becomes a failure that says
# so, where passing over it would lose it.
_RAW = "3fr arw cr2 cr3 crw dcr dng erf gpr iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
_OTHERS = {
    "jxl": "JPEG XL",
    "jxr": "JPEG XR",
    "wdp": "JPEG XR",
    "dcm": "DICOM",
    "dicom": "DICOM",
    "svg": "SVG",
    "svgz": "SVG",
    "psd": "Photoshop",
    "psb": "Photoshop",
    "xcf": "GIMP",
    "tga": "TGA",
    "exr": "OpenEXR",
    "hdr": "Radiance HDR",
    "eps": "EPS",
    "pcx": "PCX",
    "dds": "DDS",
    "icns": "icns",
    "wmf": "WMF",
    "emf": "EMF",
    "fits": "FITS",
    "qoi": "QOI",
    "bpg": "BPG",
}
UNREAD_EXTENSIONS = {extension: f"camera raw ({extension.upper()})" for extension in _RAW.split()} | _OTHERS


def base_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def extension(name: str) -> str:
    """Returns the last extension of a file's or member's name in lower case, without the dot; empty if it has none."""
    _, dot, last = base_name(name).rpartition(".")
    return last.lower() if dot else ""


def is_image(name: str) -> bool:
    """True if the last extension of a file's or member's name is that of an image."""
    return extension(name) in IMAGE_EXTENSIONS


def is_picture(name: str) -> bool:
    """True if it is that of an image, or of a picture of a kind that isn't read."""
    return is_image(name) or extension(name) in UNREAD_EXTENSIONS


def is_hidden(path: str) -> bool:
    """True if a part of a relative path starts with a dot, or is the shadow folder that macOS puts into archives."""
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
