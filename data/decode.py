"""From an image file to the pixels that a viewer shows, at the size that is learnt.

Orientation is applied, deep pixels are scaled to 8 bits, transparency is composed over a
background, grey stays grey. ICC profiles are not applied.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageCms, ImageColor
from torch import Tensor

from data.errors import DataError

ORIENTATION = 0x0112  # EXIF; from 5 on, width and height change places
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, SAMPLE_FORMAT, S_MIN, S_MAX = 258, 262, 339, 340, 341  # TIFF
UNSIGNED, SIGNED, MIN_IS_WHITE = 1, 2, 0
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}  # modes with more than 8 bits a channel
FULL_16_BIT = {"PNG", "PPM", "JPEG2000", "ICO", "ICNS"}  # formats whose 16-bit pixels end at 65535
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FILTER = Image.Resampling.BICUBIC
warnings.filterwarnings("ignore", module="PIL")  # of bombs below the limit, odd metadata


@dataclass(frozen=True)
class Rendering:
    """How an image becomes a tensor (channels, height, width)."""

    size: tuple[int, int]  # height and width
    channels: Literal[1, 3, 4]
    fit: Literal["crop", "pad", "stretch"]
    background: tuple[int, int, int]


def render(image: Image.Image, how: Rendering) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (C, H, W), and the height and width that a viewer shows.

    Raises what Pillow raises for a damaged file, and ValueError where the range is not known.
    """
    tile = getattr(image, "tile", None)  # an array has none, an image that is loaded no more
    packing = str(tile[0].args) if tile else ""
    keyed = transparent_colour(image, packing)
    turned = orientation(image)  # which decodes a PNG
    shown = image.size if turned >= 5 else image.size[::-1]
    height, width = (
        2 * side for side in (how.size if shown == image.size[::-1] else how.size[::-1])
    )
    image.draft("RGB", (width, height))  # JPEG: decode at 1/2, 1/4, 1/8 where that much is left
    image.load()
    image = eight_bit(uncovered(image, tile), packing)
    if keyed is not None:
        image.putalpha(keyed)
    if turned in TURNS:
        image = image.transpose(TURNS[turned])
    if how.channels < 4:
        image = opaque(image, how.background)
    image = fitted(coloured(image, MODES[how.channels]), how)
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, C)
    if how.channels == 4:
        pixels[pixels[..., 3] == 0] = 0  # a colour that nobody sees is not to be learnt
    return pixels.reshape(*how.size, -1).permute(2, 0, 1).contiguous(), shown


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as a viewer shows them; for most formats without decoding."""
    width, height = image.size
    late = image.format == "PNG" and "exif" not in image.info  # to look for it would decode all
    return (width, height) if not late and orientation(image) >= 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 ... 8; 1, upright, where the EXIF data cannot be read, as viewers have it."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in TURNS else 1
    except Exception:  # the parser raises what it likes; damaged pixels are found by `load`
        return 1


def colour(name: str) -> tuple[int, int, int]:
    """A colour's name or #rrggbb as RGB. Raises DataError."""
    try:
        red, green, blue, *opacity = ImageColor.getrgb(name)
    except ValueError as e:
        raise DataError(
            f"--background takes white, black, #808080 and the like, got {name!r}"
        ) from e
    if opacity not in ([], [255]):
        raise DataError(f"--background must be opaque, got {name!r}")
    return red, green, blue


def eight_bit(image: Image.Image, packing: str = "") -> Image.Image:
    """The image with 8 bits a channel; what is transparent stays so.

    packing: how its pixels lie in the file, as Pillow writes it. Pillow gives a PNG's transparent
    value as the file has it, of 2 or 4 bits, but its pixels as 8.
    """
    transparent = image.info.get("transparency")
    if image.mode not in DEEP:
        if image.format == "TIFF" and one(image.tag_v2.get(SAMPLE_FORMAT, UNSIGNED)) == SIGNED:
            raise ValueError("its TIFF pixels are signed, of no stated range: convert it to 8 bits")
        if isinstance(transparent, int) and packing in ("L;2", "L;4"):
            image.info["transparency"] = transparent * 255 // (2 ** int(packing[2]) - 1)
        return image
    low, high = value_range(image)
    values = np.asarray(image).astype(np.float64)
    outside = (values < min(low, high)) | (values > max(low, high))
    if not np.isfinite(values).all() or outside.any():
        raise ValueError(f"pixels outside the range that the file states, {low:g} ... {high:g}")
    scaled = ((values - low) / (high - low) * 255).round().astype(np.uint8)
    grey = Image.fromarray(scaled)
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def transparent_colour(image: Image.Image, packing: str) -> Image.Image | None:
    """The opacity of a PNG with 16-bit colours one of which is transparent, before it is loaded.

    Pillow keeps the upper halves of such colours, by which many are taken for that one.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or "RGB;16B" not in packing or not isinstance(colour, tuple):
        return None
    image.fp.seek(0)
    content, halves = image.fp.read(), []
    for byte_order in ("RGB;16B", "RGB;16L"):  # the upper and the lower half of each
        again = Image.open(io.BytesIO(content), formats=["PNG"])
        again.tile = [part._replace(args=byte_order) for part in again.tile]
        halves.append(np.asarray(again).astype(np.uint16))
    same = (halves[0] << 8 | halves[1]) == np.array(colour, np.uint16)
    image.info.pop("transparency")
    image.fp.seek(image.tile[0].offset)
    return Image.fromarray(np.where(same.all(-1), 0, 255).astype(np.uint8))


def value_range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white, from the file. ValueError where it does not state them."""
    black, white = None, None
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = one(tags.get(BITS, 1)), one(tags.get(SAMPLE_FORMAT, UNSIGNED))
        if S_MAX in tags:
            black, white = float(one(tags.get(S_MIN, 0))), float(one(tags[S_MAX]))
        elif kind == UNSIGNED and bits <= 16:
            black, white = 0.0, 2.0**bits - 1
        if white is not None and tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
            black, white = white, black
    elif image.format in FULL_16_BIT and image.mode != "F":
        black, white = 0.0, 65535.0
    if white is None or black == white:
        raise ValueError(
            f"its {image.format} pixels of mode {image.mode} have no stated range: convert it to 8 "
            "or 16 bits"
        )
    return black, white


def one(value: object) -> float:
    """The first of a TIFF tag's values."""
    return value[0] if isinstance(value, tuple) else value


def uncovered(image: Image.Image, tile: list | None) -> Image.Image:
    """The first frame of an animation, transparent where it leaves the canvas free.

    So viewers show it; Pillow fills that with the first colour of a GIF's palette, and with black
    in a WebP. tile: of the image before it was loaded.
    """
    if image.format == "GIF" and "transparency" not in image.info:
        box = tile[0].extents if tile else (0, 0, *image.size)
        if box == (0, 0, *image.size):
            return image
        frame = Image.new("L", image.size, 0)
        frame.paste(255, box)
        image = image.convert("RGBA")
        image.putalpha(frame)
    elif image.format == "WEBP" and image.mode == "RGB" and image.info.get("duration"):
        canvas = Image.frombytes("RGBA", image.size, image.tobytes("raw", "RGBX"))  # X: its alpha
        return canvas if canvas.getchannel("A").getextrema()[0] < 255 else image
    return image


def opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image over the background, where it is transparent."""
    if not image.has_transparency_data and image.mode not in ("La", "RGBa"):
        return image
    above = coloured(image, "RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(above)
    return canvas.convert("RGB")


def coloured(image: Image.Image, mode: str) -> Image.Image:
    """Converted to L, RGB or RGBA, from any of Pillow's modes."""
    if image.mode == mode:
        return image
    if image.mode == "LAB":  # which `convert` cannot
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    return image.convert(mode)


def fitted(image: Image.Image, how: Rendering) -> Image.Image:
    """Brought to the size: cropped at the centre, padded, or stretched."""
    height, width = how.size
    if how.fit == "crop":
        box = crop_box(image.size, how.size)
        return image.resize((width, height), FILTER, box, reducing_gap=3.0)
    if how.fit == "stretch":
        return image.resize((width, height), FILTER, reducing_gap=3.0)
    scale = min(width / image.width, height / image.height)
    inner = [max(1, round(scale * side)) for side in image.size]
    fill = {"RGBA": (0, 0, 0, 0), "RGB": how.background}.get(image.mode)
    if fill is None:
        fill = Image.new("RGB", (1, 1), how.background).convert("L").getpixel((0, 0))
    canvas = Image.new(image.mode, (width, height), fill)
    at = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(tuple(inner), FILTER, reducing_gap=3.0), at)
    return canvas


def crop_box(shown: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box of (width, height) ``shown`` with the proportions of (H, W) size."""
    height, width = size
    scale = max(width / shown[0], height / shown[1])
    w, h = width / scale, height / scale
    left, top = (shown[0] - w) / 2, (shown[1] - h) / 2
    return max(0.0, left), max(0.0, top), min(left + w, shown[0]), min(top + h, shown[1])


def cut_off(shown: tuple[int, int], size: tuple[int, int]) -> float:
    """The share of an image of height and width ``shown`` that cropping cuts off."""
    left, top, right, bottom = crop_box(shown[::-1], size)
    return 1 - (right - left) * (bottom - top) / (shown[0] * shown[1])
