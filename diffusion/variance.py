"""sigma^2 of the reverse process p(x_s | x_t), for a jump t -> s: fixed, optimal or learned."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.tensors import Time, expand

if TYPE_CHECKING:  # which imports this module
    from diffusion.gaussian import GaussianDiffusion

MIN_VARIANCE = 1e-8  # learned at s = 0: a fortieth of a pixel's bin


def optimal_variance(
    diffusion: "GaussianDiffusion", t: Time, s: Time, x0_error: Tensor | None, _v: Tensor | None
) -> Tensor:
    """The sigma^2 that minimises the bound (Bao et al. 2022, Theorem 1).

    The posterior variance plus that of the network's error of x_0. ValueError if not measured.
    """
    if x0_error is None:
        raise ValueError("--variance optimal needs the network's errors: see x0_errors")
    return diffusion.posterior_variance(t, s) + diffusion.weight_of_x0(t, s) ** 2 * x0_error[t]


def learned_variance(
    diffusion: "GaussianDiffusion", t: Time, s: Time, _x0_error: Tensor | None, v: Tensor | None
) -> Tensor:
    """The network's own, of every pixel, from its variance output v; t, s on the CPU.

    Nichol & Dhariwal 2021, see ``interpolate_variance``. ValueError for a network without.
    """
    if v is None:
        raise ValueError("--variance learned needs a network that was trained with it")
    low = torch.as_tensor(diffusion.posterior_variance(t, s)).clamp(min=MIN_VARIANCE)
    return interpolate_variance(v, low.log(), torch.as_tensor(diffusion.step_variance(t, s)).log())


def interpolate_variance(v: Tensor, log_low: Tensor, log_high: Tensor) -> Tensor:
    """exp(u log beta + (1 - u) log sigma^2), u = (v + 1) / 2 (Nichol & Dhariwal 2021, Eq. 15).

    v (B, C, H, W); of the posterior's and of beta, one value or (B,). At s = 0 the posterior has no
    width: there it is between MIN_VARIANCE and beta.
    """
    low, high = (expand(log, v).expand_as(v) for log in (log_low, log_high))
    return torch.lerp(low, high, (v + 1) / 2).exp()


def single_steps(diffusion: "GaussianDiffusion") -> Tensor:
    """Of the step t -> t - 1, from the first t to 0: log sigma^2, log beta, the weight of x_0.

    (3, T + 1); sigma^2 is that of the posterior, at least MIN_VARIANCE. Computed here in float64,
    as differences of alpha_bar lose all their digits in float32.
    """
    t = torch.arange(1, diffusion.timesteps + 1)
    s = torch.where(t == diffusion.first_timestep, 0, t - 1)
    low = diffusion.posterior_variance(t, s).clamp(min=MIN_VARIANCE).log()
    rows = torch.stack([low, diffusion.step_variance(t, s).log(), diffusion.weight_of_x0(t, s)])
    return F.pad(rows, (1, 0))


# The choices of sigma^2 for a jump t -> s, from the errors of x_0 and the network's variance
# output; the first two are of Ho et al. (2020), Sec. 3.2.
Variance = Callable[["GaussianDiffusion", Time, Time, Tensor | None, Tensor | None], Tensor]
VARIANCES: dict[str, Variance] = {
    "posterior": lambda diffusion, t, s, *_: diffusion.posterior_variance(t, s),
    "beta": lambda diffusion, t, s, *_: diffusion.step_variance(t, s),
    "optimal": optimal_variance,
    "learned": learned_variance,
}
