"""Picture formats that aren't read, so that a message can name them and what to do."""

import re

_PLAIN = "convert them to JPEG or PNG"
_RAW = "develop them to JPEG or to TIFF of 16 bits, such as with darktable-cli or dcraw_emu"
_DICOM = "convert them to PNG of 16 bits, such as with dcmj2pnm +on2"
_CAMERA_RAW = "camera RAW"

# By their first bytes, from the place named.
_STARTS = (
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"icns", "ICNS"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"AT&TFORM", "DjVu"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\0", "NIfTI"),
    (0, b"FUJIFILMCCD-RAW", _CAMERA_RAW),
    (0, b"IIRO", _CAMERA_RAW),
    (0, b"IIRS", _CAMERA_RAW),
    (0, b"MMOR", _CAMERA_RAW),
    (0, b"IIU\0", _CAMERA_RAW),
    (0, b"FOVb", _CAMERA_RAW),
    (0, b"\0MRM", _CAMERA_RAW),
    (4, b"ftypcrx ", _CAMERA_RAW),
    (8, b"CR\x02\0", _CAMERA_RAW),
)
_CAMERA_RAW_ENDINGS = (
    *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "erf", "gpr", "iiq", "kdc", "mef", "mos", "mrw"),
    *("nef", "nrw", "orf", "pef", "raf", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
)
# By the endings of their names: some have no bytes of their own, and of damaged ones the name is all there is to tell.
_ENDINGS = {
    **dict.fromkeys(_CAMERA_RAW_ENDINGS, _CAMERA_RAW),
    "dng": "DNG (camera RAW)",
    **dict.fromkeys(("dcm", "dicom"), "DICOM"),
    **dict.fromkeys(("tga", "vda", "icb", "vst"), "Targa"),
    **dict.fromkeys(("svg", "svgz"), "SVG"),
    **dict.fromkeys(("psd", "psb"), "Photoshop"),
    **dict.fromkeys(("eps", "ps", "ai"), "PostScript"),
    **dict.fromkeys(("jxr", "wdp", "hdp"), "JPEG XR"),
    **dict.fromkeys(("fits", "fit", "fts"), "FITS"),
    **dict.fromkeys(("wmf", "emf"), "Windows metafile"),
    "bpg": "BPG",
    "dds": "DDS",
    "djvu": "DjVu",
    "exr": "OpenEXR",
    "flif": "FLIF",
    "hdr": "Radiance HDR",
    "icns": "ICNS",
    "jls": "JPEG-LS",
    "jxl": "JPEG XL",
    "nii": "NIfTI",
    "pcx": "PCX",
    "pdf": "PDF",
    "qoi": "QOI",
    "sgi": "SGI",
    "xcf": "GIMP",
}
_SVG = re.compile(rb"\A(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)[^\0]*", re.DOTALL)


def by_content(data: bytes) -> str | None:
    """Returns the name of a format that isn't read, by the first bytes of a file."""
    for at, start, name in _STARTS:
        if data[at : at + len(start)] == start:
            return name
    head = data[:1024]
    return "SVG" if _SVG.match(head) and b"<svg" in head else None


def by_name(name: str) -> str | None:
    """Returns the name of a format that isn't read, by the ending of a file's name or a record's key."""
    return _ENDINGS.get(name.rpartition(".")[2].lower())


def message(name: str) -> str:
    """Returns what to say of a file of such a format, and the cure."""
    cure = _RAW if _CAMERA_RAW in name else _DICOM if name == "DICOM" else _PLAIN
    return f"{name} files aren't read; {cure}"
