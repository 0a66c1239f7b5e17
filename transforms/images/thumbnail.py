"""One small image for a page. It is made in child processes, so little is imported here."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from transforms.images.decode import PIXEL_CEILING, ImageError, decode_image
from transforms.spec import FeatureSpec

SIDE = 160
QUALITY = 75


@dataclass(frozen=True)
class Thumbnail:
    """A small image for a page, or why there is none.

    Attributes:
        data: WebP; empty where there is none.
        width: Its pixels.
        height: Its pixels.
        problem: Empty where there is one.
    """

    data: bytes = b""
    width: int = SIDE
    height: int = SIDE
    problem: str = ""

    @property
    def uri(self) -> str:
        """`data:` URI, empty where there is no image."""
        return f"data:image/webp;base64,{base64.b64encode(self.data).decode()}" if self.data else ""


def thumbnail(data: bytes, *, side: int = SIDE, quality: int = QUALITY) -> Thumbnail:
    """Returns a small image, its longer side `side` pixels, of an encoded one; decodes in this process."""
    # How the whole image is brought to that size; nothing else of it matters here.
    spec = FeatureSpec("", "", (), image_size=side, resize="pad", interpolation="bilinear", decode="fast")
    try:
        decoded = decode_image(data, spec, max_pixels=PIXEL_CEILING)
    except ImageError as error:
        return Thumbnail(problem=f"can't be decoded: {error}")
    scale = side / max(decoded.width, decoded.height)
    width, height = max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale))
    left, top = (side - width) // 2, (side - height) // 2
    image = Image.fromarray(decoded.pixels[top : top + height, left : left + width])
    target = io.BytesIO()
    image.save(target, "WEBP", quality=quality)
    return Thumbnail(target.getvalue(), width, height)
