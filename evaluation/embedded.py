"""Pictures inside a page: as data URIs of a bounded size."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

LARGEST = 1200  # pixels of a side of what is encoded anew
QUALITY = 85  # of JPEG
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # of Pillow


@dataclass(frozen=True)
class Embedded:
    """A picture in a page. source: a data URI; width, height: pixels of the file."""

    source: str
    width: int
    height: int


def embedded(path: Path, most: int) -> Embedded | None:
    """The PNG as it is where it has at most so many bytes, else as a JPEG that has.

    None where there is no picture, or none that can be read.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
            kind, content = "image/png", path.read_bytes()
            if len(content) > most:
                kind, content = "image/jpeg", jpeg(image, most)
    except BROKEN:
        return None
    return Embedded(f"data:{kind};base64,{base64.b64encode(content).decode()}", width, height)


def jpeg(image: Image.Image, most: int) -> bytes:
    """Encoded in at most so many bytes; reduced in size as far as that takes."""
    image = image.convert("RGB")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    while True:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        if file.tell() <= most or max(image.size) == 1:
            return file.getvalue()
        share = 0.95 * math.sqrt(most / file.tell())
        size = [max(1, math.floor(share * side)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)


def evenly(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
