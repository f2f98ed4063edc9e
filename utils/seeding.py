"""Stateless randomness: every random number is keyed by (seed, purpose, index).

So a resumed run repeats an unbroken one bit for bit, and neither previews nor evaluation affect
training.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


def mix(*keys: int | str) -> int:
    """A 63-bit hash of the keys; unlike ``seed + step``, different purposes never share a key."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *keys: int | str) -> Generator:
    """A fresh generator on the device, keyed."""
    return Generator(device).manual_seed(mix(*keys))


def permutation(n: int, seed: int, number: int) -> Tensor:
    """The order of the training set in this pass over it: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=generator("cpu", seed, "permutation", number))


def coins(n: int, seed: int, number: int) -> Tensor:
    """A fair coin for every image of the training set in this pass: (n,) bool on the CPU."""
    return torch.rand(n, generator=generator("cpu", seed, "flip", number)) < 0.5


def image_noise(
    seed: int,
    indices: Sequence[int],
    shape: Sequence[int],
    device: torch.device,
    purpose: str = "image",
) -> Callable[[], Tensor]:
    """Source of standard normal noise (B, C, H, W) in which image i has its own stream.

    Stream i depends on (seed, purpose, i) alone, not on the batch. It is generated on the CPU, so
    that it is the same on every device; the device is not waited for, so that it computes a step
    while the noise of the next one is drawn.
    """
    streams = [generator("cpu", seed, purpose, i) for i in indices]
    pinned = torch.device(device).type == "cuda"  # else a copy waits until the GPU has finished

    def randn() -> Tensor:
        noise = torch.empty(len(streams), *shape, pin_memory=pinned)
        for own, stream in zip(noise, streams, strict=True):
            torch.randn(shape, generator=stream, out=own)
        return noise.to(device, non_blocking=True)

    return randn
