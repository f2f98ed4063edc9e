"""A world in which everything is known: x_0 ~ N(m, s^2), every pixel by itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion import GaussianDiffusion


class GaussianWorld:
    """The best possible network for x_0 ~ N(m, s^2), whatever it is asked to predict."""

    def __init__(self, diffusion: GaussianDiffusion, m: float = 0.3, s: float = 0.1) -> None:
        self.diffusion, self.m, self.s = diffusion, m, s

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """E[target | x_t], from Bayes' rule."""
        alpha_bar = self.diffusion.alpha_bar[t].reshape(-1, *[1] * (x.ndim - 1))
        variance = alpha_bar * self.s**2 + 1 - alpha_bar
        x_0 = self.m + alpha_bar.sqrt() * self.s**2 / variance * (x - alpha_bar.sqrt() * self.m)
        noise = (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0
        return {"x0": x_0, "eps": noise, "v": v}[self.diffusion.prediction].to(x.dtype)

    def flow(self, x_T: Tensor, t: int) -> Tensor:
        """Where the probability-flow ODE takes x_T: its standardized value never changes."""
        T = self.diffusion.timesteps
        return self.mean(t) + self.std(t) * (x_T - self.mean(T)) / self.std(T)

    def mean(self, t: int) -> Tensor:
        return self.diffusion.alpha_bar[t].sqrt() * self.m

    def std(self, t: int) -> Tensor:
        alpha_bar = self.diffusion.alpha_bar[t]
        return (alpha_bar * self.s**2 + 1 - alpha_bar).sqrt()


def moments(
    world: GaussianWorld, run: Callable[..., object], grid: Sequence[int], **options: object
) -> list[tuple[float, float]]:
    """Mean and standard deviation of the state at every t of the grid, without sampling error.

    In this world a state is affine in x_T and the noises: of the images of one batch the first has
    none of them, and each of the others one alone, of unit size.
    """
    calls, count = 0, len(grid) + 2

    def randn() -> Tensor:
        nonlocal calls
        calls += 1
        noise = torch.zeros(count, 1, dtype=torch.float64)
        noise[calls + 1] = 1
        return noise

    x = world.mean(grid[0]).expand(count, 1).clone()
    x[1] += world.std(grid[0])
    states = [x, *run(world, world.diffusion, x, grid, randn, clip=False, **options)]
    return [(x[0].item(), (x[1:] - x[0]).square().sum().sqrt().item()) for x in states]


def x0_from(diffusion, output, x_t, t):
    """The estimate of x_0 where this is the network's output."""
    return diffusion.denoise(lambda *_: output, x_t, t, clip=False)
