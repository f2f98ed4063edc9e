"""Batches in [-1, 1] as pictures."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.files import anything_goes, whole_file

GAP, GAP_GREY = 2, 64  # pixels between the images of a grid, and how bright they are
TITLE, TITLE_GREY = 12, 220  # height of a line of titles
MOST_COLUMNS = 16  # with a class in each
LONGEST = 24  # characters of a name at the left of a row


def normalize(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 [-1, 1], ends included; ``to_uint8`` is its inverse."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0 ... 255, rounded to the nearest; what lies outside is clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(
    x: Tensor,
    columns: int | None = None,
    titles: Sequence[str] = (),
    rows_of: Sequence[str] = (),
) -> Tensor:
    """Tile (B, C, H, W) in [-1, 1], C 1, 3 or 4, into one uint8 picture (3, H', W').

    titles: of every image, such as its class; written once above a column where they agree.
    rows_of: what each row holds, written at its left.
    Transparency is composed over the gap's grey. torchvision.utils.make_grid tiles too, but
    importing it takes a second.
    """
    columns = min(columns or columns_of(titles, len(x)), len(x))
    rows = -(-len(x) // columns)
    tiles = F.pad(over_grey(to_uint8(x).cpu()), (GAP, 0, GAP, 0), value=GAP_GREY)
    empty = rows * columns - len(x)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, empty), value=GAP_GREY)
    tiles = tiles.unflatten(0, (rows, columns))  # (rows, columns, 3, H + GAP, W + GAP)
    lines = list(tiles.permute(0, 2, 3, 1, 4).flatten(3))  # (3, H + GAP, columns (W + GAP)) each
    if rows_of:
        lines[0] = torch.cat([row_titles(rows_of, tiles.shape[-2]), torch.cat(lines, dim=1)], dim=2)
        del lines[1:]
    elif titles:
        words = [titles[row * columns : (row + 1) * columns] for row in range(rows)]
        once = all(list(own) == list(words[0][: len(own)]) for own in words)
        above = [title_line(own, tiles.shape[-1], columns) for own in words[: 1 if once else None]]
        lines = [torch.cat(pair, dim=1) for pair in zip(above, lines, strict=False)] + (
            lines[1:] if once else []
        )
    return F.pad(torch.cat(lines, dim=1), (0, GAP, 0, GAP), value=GAP_GREY)


def columns_of(titles: Sequence[str], count: int) -> int:
    """Ten, or near the root of the count; if the titles repeat, a multiple of their period."""
    period = next((p for p in range(1, count) if titles and repeats(titles, p)), count)
    if 1 < period <= MOST_COLUMNS:
        return period * max(1, 10 // period)
    return 10 if count % 10 == 0 else math.ceil(math.sqrt(count))


def repeats(titles: Sequence[str], period: int) -> bool:
    """Whether each title is that of the image ``period`` before."""
    return all(title == titles[i % period] for i, title in enumerate(titles))


def title_line(titles: Sequence[str], width: int, columns: int) -> Tensor:
    """A line of titles for tiles of this width, uint8 (3, TITLE, columns * width)."""
    line, font = Image.new("L", (columns * width, TITLE), GAP_GREY), ImageFont.load_default()
    draw = ImageDraw.Draw(line)
    for i, title in enumerate(titles):
        while title and font.getlength(title) > width - GAP:
            title = title[:-1]
        left = i * width + (GAP + width - font.getlength(title)) / 2
        draw.text((left, 0), title, TITLE_GREY, font)
    return torch.from_numpy(np.array(line)).expand(3, -1, -1)


def row_titles(names: Sequence[str], height: int) -> Tensor:
    """Names below each other, a row of this height each: uint8 (3, rows * height, widest)."""
    font = ImageFont.load_default()
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026" for name in names]
    width = math.ceil(max(map(font.getlength, shown))) + 4 * GAP
    column = Image.new("L", (width, len(names) * height), GAP_GREY)
    draw = ImageDraw.Draw(column)
    for i, name in enumerate(shown):
        at = (width - 2 * GAP - font.getlength(name), i * height + (height - TITLE) / 2)
        draw.text(at, name, TITLE_GREY, font)
    return torch.from_numpy(np.array(column)).expand(3, -1, -1)


def over_grey(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) as RGB; of four channels the last is opacity."""
    if images.shape[1] < 4:
        return images.expand(-1, 3, -1, -1)
    opacity = images[:, 3:].float() / 255
    return (images[:, :3] * opacity + GAP_GREY * (1 - opacity)).round().to(torch.uint8)


def filmstrip(states: Sequence[Tensor], count: int = 11) -> Tensor:
    """x_T -> x_0, left to right, one image a row: ``count`` of the states (B, C, H, W)."""
    at = torch.linspace(0, len(states) - 1, min(count, len(states))).round().long().tolist()
    frames = torch.stack([states[i] for i in at], dim=1)  # (B, count, C, H, W)
    return grid(frames.flatten(0, 1), columns=len(at))


def save_png(picture: Tensor, path: str | Path, check: Callable[[], None] = anything_goes) -> None:
    """Write a uint8 picture (C, H, W). check: as of whole_file."""
    with whole_file(path, check) as file:
        file.write(png(picture))


def png(picture: Tensor) -> bytes:
    """A uint8 picture (C, H, W); a grey one has one channel in the file, which is smaller."""
    content = io.BytesIO()
    to_pil(picture[:1] if grey(picture) else picture).save(content, "PNG")
    return content.getvalue()


def gif(pictures: Sequence[Tensor], seconds: float = 4.0) -> bytes:
    """uint8 pictures (3, H, W) as an endless animation that rests on its last frame."""
    frames: list[Image.Image] = [to_pil(p).convert("L" if grey(p) else "P") for p in pictures]
    times = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [1500]
    film = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    content = io.BytesIO()
    frames[0].save(content, "GIF", **film)
    return content.getvalue()


def to_pil(picture: Tensor) -> Image.Image:
    """uint8 (C, H, W) as PIL has it: (H, W), or (H, W, C) for colour."""
    pixels = picture.permute(1, 2, 0)
    return Image.fromarray((pixels if len(picture) > 1 else pixels[..., 0]).numpy())


def grey(picture: Tensor) -> bool:
    """Whether all channels of (C, H, W) are the same."""
    return bool((picture == picture[:1]).all())
