"""Batches in [-1, 1] as pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from utils.files import whole_file


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0 ... 255, rounded to the nearest; what lies outside is clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(x: Tensor, columns: int = 10) -> Tensor:
    """Tile (B, C, H, W) in [-1, 1] into one uint8 picture (3, H', W')."""
    return make_grid(to_uint8(x).cpu(), nrow=columns, padding=2, pad_value=64)


def filmstrip(states: Sequence[Tensor], count: int = 11) -> Tensor:
    """x_T -> x_0, left to right, one image a row: ``count`` of the states (B, C, H, W)."""
    at = torch.linspace(0, len(states) - 1, min(count, len(states))).round().long().tolist()
    frames = torch.stack([states[i] for i in at], dim=1)  # (B, count, C, H, W)
    return grid(frames.flatten(0, 1), columns=len(at))


def save_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 picture (C, H, W)."""
    with whole_file(path) as file:
        to_pil_image(picture).save(file, "PNG")


def save_gif(pictures: Sequence[Tensor], path: Path, seconds: float = 4.0) -> None:
    """Write uint8 pictures (3, H, W) as an endless animation that rests on its last frame."""
    frames: list[Image.Image] = [to_pil_image(p).convert("L" if grey(p) else "P") for p in pictures]
    times = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [1500]
    film = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    with whole_file(path) as file:
        frames[0].save(file, "GIF", **film)


def grey(picture: Tensor) -> bool:
    """Whether the three channels of (3, H, W) are the same."""
    return bool((picture == picture[:1]).all())
