"""Digits drawn with strokes: an MNIST-like set from code alone, the same on every machine.

A glyph is a few polylines in the unit square (x right, y down). Every image is one glyph, deformed
and drawn with a random pen width.

Shapes: B images of a chunk, G glyphs, S line segments, P pixels.
"""

import math

import torch
from torch import Generator, Tensor

from utils.progress import track

SIDE = 28
CHUNK = 500  # images drawn at once; each chunk has its own generator, so prefixes agree
SEEDS = {True: 0x5EED, False: 0x7E57}  # True: the training set, False: the test set
SIZES = {True: 12_000, False: 2_000}


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> list:
    """Points on an ellipse; angles in degrees, where 0 is right and 90 is down."""
    count = max(4, round(abs(end - start) / 18))
    angles = [math.radians(start + (end - start) * i / (count - 1)) for i in range(count)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


# (digit, strokes)
GLYPHS: list[tuple[int, list[list]]] = [
    (0, [arc(0.5, 0.5, 0.27, 0.40, -90, 270)]),
    (0, [arc(0.5, 0.5, 0.33, 0.36, -60, 300)]),
    (0, [arc(0.5, 0.5, 0.20, 0.40, -110, 260)]),
    (1, [[(0.5, 0.1), (0.5, 0.9)]]),
    (1, [[(0.36, 0.26), (0.52, 0.1), (0.52, 0.9)]]),
    (1, [[(0.58, 0.08), (0.44, 0.92)]]),
    (2, [[*arc(0.5, 0.30, 0.25, 0.20, -170, 40), (0.25, 0.9), (0.77, 0.88)]]),
    (2, [[*arc(0.48, 0.32, 0.25, 0.22, -150, 60), *arc(0.38, 0.82, 0.1, 0.08, 180, 400)]]),
    (2, [[*arc(0.48, 0.30, 0.22, 0.20, -190, 50), (0.22, 0.86), (0.5, 0.84), (0.8, 0.92)]]),
    (3, [arc(0.47, 0.29, 0.24, 0.19, -160, 90) + arc(0.46, 0.68, 0.28, 0.21, -90, 150)]),
    (3, [[(0.25, 0.12), (0.72, 0.12), (0.46, 0.44), *arc(0.46, 0.67, 0.26, 0.23, -80, 140)]]),
    (3, [arc(0.46, 0.30, 0.20, 0.20, -140, 80) + arc(0.45, 0.70, 0.24, 0.20, -80, 170)]),
    (4, [[(0.60, 0.1), (0.22, 0.60), (0.80, 0.60)], [(0.62, 0.35), (0.62, 0.92)]]),
    (4, [[(0.28, 0.12), (0.26, 0.52), (0.72, 0.50)], [(0.72, 0.12), (0.70, 0.9)]]),
    (4, [[(0.30, 0.12), (0.22, 0.48), (0.50, 0.54), (0.76, 0.42)], [(0.74, 0.16), (0.60, 0.92)]]),
    (5, [[(0.74, 0.11), (0.34, 0.12), (0.31, 0.46), *arc(0.47, 0.66, 0.27, 0.23, -130, 140)]]),
    (5, [[(0.78, 0.1), (0.36, 0.14), (0.32, 0.46), *arc(0.46, 0.66, 0.24, 0.22, -120, 150)]]),
    (6, [[(0.64, 0.1), (0.42, 0.32), *arc(0.48, 0.68, 0.22, 0.22, -160, 200)]]),
    (6, [[(0.46, 0.08), (0.30, 0.44), *arc(0.50, 0.70, 0.22, 0.20, -190, 160)]]),
    (6, [arc(0.62, 0.52, 0.34, 0.42, -110, -180) + arc(0.46, 0.70, 0.18, 0.20, 180, -170)]),
    (7, [[(0.24, 0.13), (0.77, 0.13), (0.42, 0.9)]]),
    (7, [[(0.24, 0.13), (0.77, 0.13), (0.42, 0.9)], [(0.36, 0.52), (0.72, 0.48)]]),
    (7, [[(0.22, 0.26), (0.26, 0.14), (0.76, 0.12), (0.56, 0.50), (0.50, 0.92)]]),
    (8, [arc(0.5, 0.29, 0.20, 0.19, 90, 450), arc(0.5, 0.69, 0.25, 0.21, -90, 270)]),
    (8, [arc(0.5, 0.31, 0.17, 0.20, 60, 420), arc(0.47, 0.70, 0.21, 0.19, -60, 300)]),
    (9, [[*arc(0.5, 0.32, 0.23, 0.21, 20, -340), (0.66, 0.9)]]),
    (9, [arc(0.48, 0.30, 0.20, 0.20, 0, -350) + arc(0.46, 0.66, 0.23, 0.24, -20, 100)]),
]


def segments(strokes: list[list]) -> Tensor:
    """Polylines as line segments (S, 2 ends, 2 coordinates), centred on the origin."""
    lines = [torch.tensor(stroke, dtype=torch.float32) - 0.5 for stroke in strokes]
    return torch.cat([torch.stack([line[:-1], line[1:]], dim=1) for line in lines])


def glyph_bank() -> tuple[Tensor, Tensor, Tensor]:
    """All glyphs (G, S, 2, 2), and for each digit the index of its first (10,) and how many (10,).

    Glyphs with fewer segments repeat their last one, which draws nothing new.
    """
    drawn = [segments(strokes) for _, strokes in GLYPHS]
    longest = max(len(s) for s in drawn)
    bank = torch.stack([torch.cat([s, s[-1:].expand(longest - len(s), 2, 2)]) for s in drawn])
    digits = torch.tensor([digit for digit, _ in GLYPHS])
    count = digits.bincount(minlength=10)
    return bank, count.cumsum(0) - count, count


def draw_digits(train: bool, size: int | None = None, silent: bool = True) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64; every ten in a row are all ten digits.

    A smaller size gives the first images of a larger one. silent: show no progress.
    """
    size = SIZES[train] if size is None else size
    bank, first, count = glyph_bank()
    images, labels = [], []
    chunks = range(math.ceil(size / CHUNK))
    for chunk in track(chunks, "drawing digits", f"times {CHUNK} images", silent):
        g = torch.Generator().manual_seed(SEEDS[train] * 1_000_003 + chunk)
        digits = torch.stack([torch.randperm(10, generator=g) for _ in range(CHUNK // 10)])
        digits = digits.flatten()
        variant = (torch.rand(CHUNK, generator=g) * count[digits]).long()
        strokes = deform(bank[first[digits] + variant], g)
        images.append(rasterize(strokes, g))
        labels.append(digits)
    return torch.cat(images)[:size], torch.cat(labels)[:size]


def deform(strokes: Tensor, g: Generator) -> Tensor:
    """Bend, turn, slant, scale and move each glyph; (B, S, 2, 2), about in 0 ... 1."""
    B = len(strokes)
    bend = torch.zeros_like(strokes)
    for frequency in (1.0, 2.0, 3.5):  # three waves across the glyph on each axis
        direction = torch.randn(B, 1, 2, 2, generator=g)
        direction = direction / direction.norm(dim=2, keepdim=True)
        phase = torch.rand(B, 1, 1, 2, generator=g) * 2 * math.pi
        amplitude = torch.randn(B, 1, 1, 2, generator=g) * 0.045 / frequency
        wave = (strokes.unsqueeze(-1) * direction.unsqueeze(1)).sum(-2)
        bend += amplitude * torch.sin(0.6 * 2 * math.pi * frequency * wave + phase)

    turn, slant = torch.randn(2, B, generator=g) * torch.tensor([[0.13], [0.20]])
    wide, high = torch.randn(2, B, generator=g)
    wide = 0.60 * (1 + 0.13 * wide).clamp(0.6, 1.3)
    high = 0.72 * (1 + 0.07 * high).clamp(0.8, 1.15)
    x, y = (strokes + bend).unbind(-1)
    cos, sin, slant, wide, high = (
        v[:, None, None] for v in (turn.cos(), turn.sin(), slant, wide, high)
    )
    moved = torch.stack([wide * (x * cos + y * (slant * -1 - sin)), high * (x * sin + y * cos)], -1)
    return moved + 0.5 + torch.randn(B, 1, 1, 2, generator=g) * 0.018


def rasterize(strokes: Tensor, g: Generator) -> Tensor:
    """(B, S, 2, 2) -> (B, 1, 28, 28) uint8: brightness falls with the distance to the stroke."""
    at = (torch.arange(SIDE) + 0.5) / SIDE
    pixels = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).view(1, -1, 2)  # (1, P, 2)
    distance = distance_to_segments(pixels, strokes[:, :, 0], strokes[:, :, 1])
    pen = (0.040 + 0.011 * torch.randn(len(strokes), 1, generator=g)).clamp(0.024, 0.07)
    brightness = ((pen + 0.022 - distance) / 0.036).clamp(0, 1).pow(0.8)
    return (brightness * 255).round().to(torch.uint8).view(-1, 1, SIDE, SIDE)


def distance_to_segments(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """From each point p (1, P, 2) to the nearest of the segments a-b, (B, S, 2) each: (B, P).

    Matrix products instead of a vector per pair of point and segment (B, P, S, 2): less memory.
    """
    ab = b - a
    length2 = ab.square().sum(-1).clamp_min(1e-9)[:, None]  # (B, 1, S)
    along = p @ ab.mT - (a * ab).sum(-1)[:, None]  # (p - a) . (b - a)
    apart2 = p.square().sum(-1)[..., None] - 2 * p @ a.mT + a.square().sum(-1)[:, None]
    part = (along / length2).clamp(0, 1)
    return (apart2 - part * (2 * along - part * length2)).amin(-1).clamp_min(0).sqrt()
