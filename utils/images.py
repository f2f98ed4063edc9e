"""Batches in [-1, 1] as pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.files import whole_file

GAP, GAP_GREY = 2, 64  # pixels between the images of a grid, and how bright they are


def normalize(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 [-1, 1], ends included; ``to_uint8`` is its inverse."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0 ... 255, rounded to the nearest; what lies outside is clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(x: Tensor, columns: int = 10) -> Tensor:
    """Tile (B, C, H, W) in [-1, 1] into one uint8 picture (3, H', W').

    torchvision.utils.make_grid does the same, but importing it takes a second.
    """
    columns = min(columns, len(x))
    rows = -(-len(x) // columns)
    tiles = to_uint8(x).cpu().expand(-1, 3, -1, -1)
    tiles = F.pad(tiles, (GAP, 0, GAP, 0), value=GAP_GREY)  # left of each and above it
    empty = rows * columns - len(x)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, empty), value=GAP_GREY)
    tiles = tiles.unflatten(0, (rows, columns))  # (rows, columns, 3, H + GAP, W + GAP)
    picture = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return F.pad(picture, (0, GAP, 0, GAP), value=GAP_GREY)


def filmstrip(states: Sequence[Tensor], count: int = 11) -> Tensor:
    """x_T -> x_0, left to right, one image a row: ``count`` of the states (B, C, H, W)."""
    at = torch.linspace(0, len(states) - 1, min(count, len(states))).round().long().tolist()
    frames = torch.stack([states[i] for i in at], dim=1)  # (B, count, C, H, W)
    return grid(frames.flatten(0, 1), columns=len(at))


def save_png(picture: Tensor, path: str | Path) -> None:
    """Write a uint8 picture (C, H, W)."""
    with whole_file(path) as file:
        to_pil(picture).save(file, "PNG")


def save_gif(pictures: Sequence[Tensor], path: str | Path, seconds: float = 4.0) -> None:
    """Write uint8 pictures (3, H, W) as an endless animation that rests on its last frame."""
    frames: list[Image.Image] = [to_pil(p).convert("L" if grey(p) else "P") for p in pictures]
    times = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [1500]
    film = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    with whole_file(path) as file:
        frames[0].save(file, "GIF", **film)


def to_pil(picture: Tensor) -> Image.Image:
    """uint8 (C, H, W) as PIL has it: (H, W), or (H, W, C) for colour."""
    pixels = picture.permute(1, 2, 0)
    return Image.fromarray((pixels if len(picture) > 1 else pixels[..., 0]).numpy())


def grey(picture: Tensor) -> bool:
    """Whether the three channels of (3, H, W) are the same."""
    return bool((picture == picture[:1]).all())
