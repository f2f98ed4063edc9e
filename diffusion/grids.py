"""Grids: the timesteps of a reverse process, from T, or a start below it, to 0.

A grid may rise: between t and a larger s the forward process adds noise, x_s ~ q(x_s | x_t). So
restart sampling and EDM's churn are grids. Noise levels are sigma = sqrt((1 - alpha_bar) /
alpha_bar), as Karras et al. (2022) have them. To add a spacing, write a function here, enter it in
SPACINGS and in config.SampleConfig.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion

Grid = Sequence[int]
LARGEST_SIGMA = 80.0  # EDM's sigma_max: above, x_t is noise alone, and one step jumps over it
RHO = 7  # of EDM's steps
MOST_CHURN = math.sqrt(2) - 1  # gamma at which churn adds as much variance as there is


def uniform_grid(diffusion: GaussianDiffusion, steps: int, start: int | None = None) -> list[int]:
    """start = t_0 > ... > t_steps = 0, even in t; start defaults to T.

    ValueError unless start is a trained t, and steps at most the number of trained t up to it.
    """
    start = checked_start(diffusion, steps, start)
    grid = torch.linspace(start, diffusion.first_timestep - 1, steps + 1, dtype=torch.float64)
    return [*grid.round().long().tolist()[:-1], 0]


def log_snr_grid(diffusion: GaussianDiffusion, steps: int, start: int | None = None) -> list[int]:
    """Even in log-SNR, that is in log sigma (Lu et al. 2022). ValueErrors of uniform_grid."""
    return sigma_grid(diffusion, steps, start, torch.log, torch.exp)


def karras_grid(diffusion: GaussianDiffusion, steps: int, start: int | None = None) -> list[int]:
    """Even in sigma^(1 / 7) (Karras et al. 2022, Eq. 5). ValueErrors of uniform_grid."""
    return sigma_grid(diffusion, steps, start, lambda v: v ** (1 / RHO), lambda v: v**RHO)


Spacing = Callable[[GaussianDiffusion, int, int | None], list[int]]
SPACINGS: dict[str, Spacing] = {"t": uniform_grid, "log-snr": log_snr_grid, "karras": karras_grid}


def checked_start(diffusion: GaussianDiffusion, steps: int, start: int | None) -> int:
    """The start, T by default. ValueErrors of uniform_grid."""
    start, first = diffusion.timesteps if start is None else start, diffusion.first_timestep
    if not first <= start <= diffusion.timesteps:
        raise ValueError(f"start must lie in {first}..{diffusion.timesteps}, got {start}")
    most = diffusion.count_trained(start)
    if not 1 <= steps <= most:
        raise ValueError(f"steps must lie in 1..{most}, got {steps}")
    return start


def sigma_grid(
    diffusion: GaussianDiffusion,
    steps: int,
    start: int | None,
    scale: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
) -> list[int]:
    """Steps even in a scale of sigma, from start (or LARGEST_SIGMA) to the first trained t; then 0.

    Each is the trained t that is nearest in log sigma. Those that would share one move apart.
    """
    start, first = checked_start(diffusion, steps, start), diffusion.first_timestep
    sigma = sigmas(diffusion)
    ends = sigma[[start, first]].clamp(max=LARGEST_SIGMA)
    wanted = inverse(torch.linspace(*scale(ends).tolist(), steps, dtype=torch.float64))
    trained = torch.arange(first, start + 1)
    grid = [start, *(first + nearest(sigma[trained], wanted[1:])).tolist()]
    for i in range(1, steps):  # one below the other
        grid[i] = min(grid[i], grid[i - 1] - 1)
    for i in range(1, steps):  # and none below the first
        grid[-i] = max(grid[-i], first + i - 1)
    return [*grid, 0]


def sigmas(diffusion: GaussianDiffusion) -> Tensor:
    """sigma of every t, (T + 1,) float64 on the CPU; infinite where x_t has no signal."""
    return diffusion.snr(torch.arange(diffusion.timesteps + 1)).rsqrt()


def nearest(sigma: Tensor, wanted: Tensor) -> Tensor:
    """The indices of those of sigma (N,), rising, that are nearest to the wanted (M,), in log."""
    middles = (sigma[1:].log() + sigma[:-1].log()) / 2
    return torch.searchsorted(middles, wanted.log())


def restarted(grid: Grid, interval: tuple[float, float], times: int) -> list[int]:
    """Restart sampling (Xu et al. 2023): from the lower t up to the upper and down again, so often.

    The steps are those of the grid, and the interval (from, to; in t) ends at its nearest t but 0.
    ValueError where it holds no step.
    """
    lower, upper = (min(grid[:-1], key=lambda t: abs(t - end)) for end in interval)
    if lower == upper:
        raise ValueError(f"--restart-interval holds no step: of the grid, only t = {lower} is near")
    first, last = grid.index(upper), grid.index(lower)
    return [*grid[: last + 1], *(list(grid[first : last + 1]) * times), *grid[last + 1 :]]


def churned(diffusion: GaussianDiffusion, grid: Grid, churn: float, steps: int) -> list[int]:
    """EDM's churn (Karras et al. 2022, Algorithm 2): noise before every step, but not above T.

    It rises to the t whose sigma is nearest to sigma (1 + gamma), with gamma = min(churn / steps,
    sqrt(2) - 1). churn: S_churn. ValueError where that is no other t.
    """
    gamma, sigma = min(churn / steps, MOST_CHURN), sigmas(diffusion)
    raised = nearest(sigma[1:], sigma[1:] * (1 + gamma)) + 1  # raised[t - 1]: from t
    found = []
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        found.append(t)
        if s < t < (up := int(raised[t - 1])):
            found.append(up)
    if len(found) == len(grid):
        raise ValueError(f"--churn {churn:g} has no effect: no t of the grid rises to another")
    return found


def descents(grid: Grid) -> Iterator[list[int]]:
    """The falling parts of a grid: between the last t of one and the first of the next it rises."""
    part = [grid[0]]
    for t in grid[1:]:
        if t > part[-1]:
            yield part
            part = []
        part.append(t)
    yield part
