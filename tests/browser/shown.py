"""The thumbnails that a page shows, as the browser decoded them, and what they should show by the file's content."""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Both are brought to squares of this side, so that they can be compared at all.
SIDE = 32

_TILES = """async (side) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  const tiles = [];
  for (const tile of document.querySelectorAll(".tile")) {
    const image = tile.querySelector("img"), gone = tile.querySelector("[role=img]");
    const found = {section: tile.closest("section").querySelector("h2").innerText, text: tile.innerText,
      marked: tile.classList.contains("marked")};
    if (image) {
      await image.decode();
      context.clearRect(0, 0, side, side);
      context.drawImage(image, 0, 0, side, side);
      const pixels = context.getImageData(0, 0, side, side).data;
      Object.assign(found, {name: image.alt, size: [image.naturalWidth, image.naturalHeight],
        pixels: btoa(String.fromCharCode(...pixels))});
    } else {
      Object.assign(found, {name: gone.getAttribute("aria-label"), size: [0, 0], pixels: ""});
    }
    tiles.push(found);
  }
  return tiles;
}"""


@dataclass(frozen=True)
class Shown:
    """A tile of a contact sheet.

    Attributes:
        section: Title of the section that it stands in.
        name: What is read aloud for it.
        text: The words below it, or on it.
        size: Pixels of the decoded image, width first; 0 of a grey tile.
        pixels: SIDE×SIDE×3 of it, None of a grey tile.
        marked: Whether it stands out.
    """

    section: str
    name: str
    text: str
    size: tuple[int, int]
    pixels: np.ndarray | None
    marked: bool


def tiles(page: "Page") -> list[Shown]:
    """Returns the tiles of a contact sheet in their order; fails where an image can't be decoded."""
    found = []
    for tile in page.evaluate(_TILES, SIDE):
        data = np.frombuffer(base64.b64decode(tile.pop("pixels")), np.uint8)
        pixels = data.reshape(SIDE, SIDE, 4)[:, :, :3].astype(float) if len(data) else None
        found.append(Shown(**{**tile, "size": tuple(tile["size"])}, pixels=pixels))
    return found


def expected(data: bytes) -> np.ndarray:
    """Returns SIDE×SIDE×3 of an encoded image, by Pillow alone."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), float)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean difference of two images, in levels of 255."""
    return float(np.abs(one - other).mean())
