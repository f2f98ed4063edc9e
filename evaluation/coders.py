"""Bits per dimension of images by lossless coders: what a bound of the same images is beside."""

import bz2
import gzip
import lzma
from collections.abc import Callable

import numpy as np
from torch import Tensor

from evaluation.tables import Row

COUNTED = 10_000  # training images from which the context coder's counts are taken
LEVELS = (1, 128, 255)  # from which value on a neighbour is of the next kind
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # rows up, columns to the left
NEAR = 2  # of them make the shorter context
PRIOR = 32.0  # pixels that the prediction of a shorter context counts for

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def coded_bits(train: Tensor, test: Tensor) -> dict[str, Row]:
    """Of test images, uint8 (N, C, H, W), in one piece; the context coder knows training images."""
    data = test.contiguous().numpy().tobytes()
    found = {name: {"total": 8 * len(f(data)) / len(data)} for name, f in COMPRESSORS.items()}
    return found | {"context": {"total": context_bits(train[:COUNTED], test)}}


def context_bits(train: Tensor, test: Tensor) -> float:
    """The mean code length of a pixel, given how often its value followed these neighbours.

    An arithmetic coder needs at most two bits more in all. Counts of six causal neighbours are
    blended with those of the two nearest, and these with those of no neighbour.
    """
    parts = [np.ascontiguousarray(x.flatten(0, 1).numpy()) for x in (train, test)]  # (N C, H, W)
    values = parts[1].reshape(-1)
    p = np.full(len(values), 1 / 256)
    for order in (0, NEAR, len(NEIGHBOURS)):
        before, now = (context(x, order) for x in parts)
        size = (len(LEVELS) + 1) ** order
        counts = np.bincount(before * 256 + parts[0].reshape(-1), minlength=size * 256)
        total = counts.reshape(size, 256).sum(1)
        p = (counts[now * 256 + values] + PRIOR * p) / (total[now] + PRIOR)
    return float(-np.log2(p).mean())


def context(images: np.ndarray, order: int) -> np.ndarray:
    """The kinds of the first neighbours of every pixel as one number, (N H W,); outside: 0."""
    _, height, width = images.shape
    kinds = np.searchsorted(LEVELS, images, side="right")
    padded = np.pad(kinds, ((0, 0), (2, 0), (2, 2)))
    number = np.zeros(images.shape, np.int64)
    for up, left in NEIGHBOURS[:order]:
        shifted = padded[:, 2 - up : 2 - up + height, 2 - left : 2 - left + width]
        number = number * (len(LEVELS) + 1) + shifted
    return number.reshape(-1)
