"""Noise schedules: alpha_1 ... alpha_T, the hyper-parameters that are set by hand.

To add one, write a function T -> alphas (T,) float64 and enter it in SCHEDULES and in
config.DiffusionConfig.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, Sec. 3.2: no step may destroy everything at once
LEAST = 1e-300  # of alpha_bar before T: float64 loses its digits below


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


def log_snr(timesteps: int, first: float = 13.3, last: float = -5.0) -> Tensor:
    """log alpha_bar / (1 - alpha_bar) falls linearly from first to last (Kingma et al. 2021, VDM).

    Raises ValueError unless it falls.
    """
    if first <= last:
        raise ValueError(f"--log-snr must fall from its first value to its last: {first} {last}")
    alpha_bar = torch.linspace(first, last, timesteps, dtype=torch.float64).sigmoid()
    return alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "log-snr": log_snr,
}


def make_alphas(
    schedule: str,
    timesteps: int,
    alphas: Sequence[float] = (),
    ends: Sequence[float] = (),
    zero_terminal: bool = False,
) -> Tensor:
    """alpha_1 ... alpha_T (T,) float64: of a schedule, or the hand-written list if it is "manual".

    ends: the first and the last log-SNR of "log-snr". zero_terminal: see ``zero_at_T``. Raises
    ValueError for a list that is not T numbers between 0 and 1, or is given beside a schedule that
    computes its own, and where alpha_bar vanishes before T.
    """
    if schedule != "manual":
        if alphas:
            raise ValueError(f"--alphas has no effect on --schedule {schedule}: use manual")
        if len(ends) not in (0, 2):
            raise ValueError("--log-snr takes two numbers, the first and the last log-SNR")
        made = SCHEDULES[schedule](timesteps, *(ends if schedule == "log-snr" else ()))
    else:
        made = hand_set(timesteps, alphas)
    made = zero_at_T(made) if zero_terminal else made
    vanished = (made.cumprod(0)[:-1] < LEAST).nonzero()
    if len(vanished):
        raise ValueError(
            f"alpha_bar vanishes at t = {int(vanished[0]) + 1} of {timesteps}, so nothing is left "
            "for the steps behind it: use larger alphas, or fewer"
        )
    return made


def hand_set(timesteps: int, alphas: Sequence[float]) -> Tensor:
    """The list as a tensor (T,); its last value may be 0. Raises ValueError as make_alphas does."""
    if not alphas:
        raise ValueError("--schedule manual needs the list: --alphas 0.99 0.98 ... or @FILE")
    if len(alphas) != timesteps:
        raise ValueError(f"--alphas has {len(alphas)} values for {timesteps} --timesteps")
    if not (all(0 < alpha < 1 for alpha in alphas[:-1]) and 0 <= alphas[-1] < 1):
        raise ValueError(
            "every one of --alphas must lie between 0 and 1, both excluded; the last may be 0"
        )
    return torch.tensor(alphas, dtype=torch.float64)


def zero_at_T(alphas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) to 0 at T; it stays at t = 1 (Lin et al. 2024, Algorithm 1).

    So x_T is noise alone, as sampling assumes.
    """
    signal = alphas.cumprod(0).sqrt()
    alpha_bar = (signal[0] * (signal - signal[-1]) / (signal[0] - signal[-1])).square()
    return alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0)


def unit_interval(timesteps: int) -> Tensor:
    """t / T for t = 0 ... T."""
    return torch.arange(timesteps + 1, dtype=torch.float64) / timesteps


def alphas_of(alpha_bar: Tensor) -> Tensor:
    """The alphas whose products are alpha_bar (T + 1,), each beta at most MAX_BETA."""
    return (alpha_bar[1:] / alpha_bar[:-1]).clamp(min=1 - MAX_BETA)
