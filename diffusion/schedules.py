"""Noise schedules: alpha_1 ... alpha_T, the hyper-parameters that are set by hand.

To add one, write a function T -> alphas (T,) float64 and enter it in SCHEDULES.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, Sec. 3.2: no step may destroy everything at once


def linear(timesteps: int) -> Tensor:
    """beta from 1e-4 to 0.02 (Ho et al. 2020, Sec. 4), times 1000 / T.

    So alpha_bar_T hardly depends on T. Raises ValueError for a T so small that a beta reaches 1.
    """
    scale = 1000 / timesteps
    if 0.02 * scale >= 1:
        raise ValueError(
            f"the linear schedule needs T of at least 21, got {timesteps}: beta_T would be "
            f"{0.02 * scale:g}; use more --timesteps or another --schedule"
        )
    return 1 - torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)


def cosine(timesteps: int, s: float = 0.008) -> Tensor:
    """alpha_bar = cos^2 (Nichol & Dhariwal 2021, Eq. 17)."""
    u = unit_interval(timesteps)
    return alphas_of(torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2)


def sigmoid(timesteps: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    """alpha_bar = a sigmoid from start to end, rescaled to 1 at t = 0 and 0 at T.

    Jabri et al. 2022, Algorithm 1.
    """
    u = unit_interval(timesteps)
    falling = torch.sigmoid(-(start + (end - start) * u))
    return alphas_of((falling - falling[-1]) / (falling[0] - falling[-1]))


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
}


def make_alphas(schedule: str, timesteps: int, alphas: Sequence[float] = ()) -> Tensor:
    """alpha_1 ... alpha_T (T,) float64: of a schedule, or the hand-written list if it is "manual".

    Raises ValueError for a list that is not T numbers between 0 and 1, or is given beside a
    schedule that computes its own.
    """
    if schedule != "manual":
        if alphas:
            raise ValueError(f"--alphas has no effect on --schedule {schedule}: use manual")
        return SCHEDULES[schedule](timesteps)
    if not alphas:
        raise ValueError("--schedule manual needs the list: --alphas 0.99 0.98 ... or @FILE")
    if len(alphas) != timesteps:
        raise ValueError(f"--alphas has {len(alphas)} values for {timesteps} --timesteps")
    if not all(0 < alpha < 1 for alpha in alphas):
        raise ValueError("every one of --alphas must lie between 0 and 1, both excluded")
    return torch.tensor(alphas, dtype=torch.float64)


def unit_interval(timesteps: int) -> Tensor:
    """t / T for t = 0 ... T."""
    return torch.arange(timesteps + 1, dtype=torch.float64) / timesteps


def alphas_of(alpha_bar: Tensor) -> Tensor:
    """The alphas whose products are alpha_bar (T + 1,), each beta at most MAX_BETA."""
    return (alpha_bar[1:] / alpha_bar[:-1]).clamp(min=1 - MAX_BETA)
