"""The held-out loss, at fixed points (test image, t, noise): same weights, same number."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.generate import ignore
from diffusion.tensors import LabeledModel

CHUNK = 256  # images per network evaluation
LEAST = 256  # points from which an average over 1 ... T is taken
BITS = 40  # of an index


@dataclass(frozen=True)
class HeldOut:
    """Points: test images x_0 (N, C, H, W) with labels y (N,), each with its t (N,) and noise."""

    x_0: Tensor
    y: Tensor
    t: Tensor
    noise: Tensor

    @classmethod
    def of(cls, x_0: Tensor, y: Tensor, diffusion: GaussianDiffusion) -> Self:
        """t evenly from first_timestep to T, noise from a fixed seed, generated on the CPU.

        Fewer than LEAST images are repeated, so that every part of 1 ... T is covered. ValueError
        without any.
        """
        x_0, y = repeated(x_0, y)
        t = torch.linspace(diffusion.first_timestep, diffusion.timesteps, len(x_0)).round().long()
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        return cls(x_0, y, t.to(x_0.device), noise.to(x_0.device))

    def low_discrepancy_order(self) -> Self:
        """The same points in the order of van der Corput: every beginning covers t evenly."""
        order = sorted(range(len(self.t)), key=lambda i: f"{i:0{BITS}b}"[::-1])
        return self[torch.tensor(order, device=self.t.device)]

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(self.x_0[index], self.y[index], self.t[index], self.noise[index])


def repeated(x_0: Tensor, y: Tensor, least: int = LEAST) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,), all of them equally often and at least so many in all.

    In turn, so that each meets t from all of 1 ... T where t rises along the batch. ValueError
    without any image.
    """
    if not len(x_0):
        raise ValueError("there are no images")
    times = math.ceil(least / len(x_0))
    return x_0.repeat(times, 1, 1, 1), y.repeat(times)


@torch.no_grad()
def held_out_losses(
    model: LabeledModel,
    diffusion: GaussianDiffusion,
    points: HeldOut,
    progress: Callable[[int], object] = ignore,
) -> Tensor:
    """The training loss at every point (N,), in their order; model(x, t, y).

    progress is called with the number of points that were evaluated.
    """
    losses, parts = [], (points.x_0, points.y, points.t, points.noise)
    for x_0, y, t, noise in zip(*(part.split(CHUNK) for part in parts), strict=True):
        losses.append(diffusion.losses(lambda x, t, y=y: model(x, t, y), x_0, t, noise))
        progress(len(t))
    return torch.cat(losses)
