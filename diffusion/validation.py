"""The held-out loss, at fixed points (test image, t, noise): same weights, same number."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.samplers import LabeledModel

CHUNK = 256  # images per network evaluation


@dataclass(frozen=True)
class HeldOut:
    """Points: test images x_0 (N, C, H, W) with labels y (N,), each with its t (N,) and noise."""

    x_0: Tensor
    y: Tensor
    t: Tensor
    noise: Tensor

    @classmethod
    def of(cls, x_0: Tensor, y: Tensor, diffusion: GaussianDiffusion) -> Self:
        """t evenly from first_timestep to T, noise from a fixed seed, generated on the CPU."""
        t = torch.linspace(diffusion.first_timestep, diffusion.timesteps, len(x_0)).round().long()
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        return cls(x_0, y, t.to(x_0.device), noise.to(x_0.device))


@torch.no_grad()
def held_out_losses(model: LabeledModel, diffusion: GaussianDiffusion, points: HeldOut) -> Tensor:
    """The training loss at every point (N,), in the order of t; model(x, t, y)."""
    losses, parts = [], (points.x_0, points.y, points.t, points.noise)
    for x_0, y, t, noise in zip(*(part.split(CHUNK) for part in parts), strict=True):
        losses.append(diffusion.losses(lambda x, t, y=y: model(x, t, y), x_0, t, noise))
    return torch.cat(losses)
