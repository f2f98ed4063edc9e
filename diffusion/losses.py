"""What training minimizes: weights on t, the bound's terms, and how timesteps are sampled.

Losses differ only in their weight on t. To add one, write a function that returns it, and enter it
in LOSSES and in config.DiffusionConfig. A weight (T + 1,) is for the squared error of the
parameterization; the entry at t = 0 is never used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.pixels import discretised_nll
from diffusion.tensors import expand
from diffusion.variance import interpolate_variance

if TYPE_CHECKING:  # which imports this module
    from diffusion.gaussian import GaussianDiffusion

MIN_SNR_GAMMA = 5.0


def simple(diffusion: "GaussianDiffusion") -> Tensor:
    """No weight: Eq. 14, where the network predicts the noise."""
    return torch.ones_like(diffusion.alpha_bar)


def kl(diffusion: "GaussianDiffusion") -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = |mu - mu_hat|^2 / (2 sigma^2(t)) (Eqs. 5, 8).

    The means differ by their coefficient of x_0. At t = 1 the posterior has no width, and
    sigma^2(2) stands in, as in Ho et al.'s code.
    """
    t = torch.arange(1, diffusion.timesteps + 1)
    sigma2 = diffusion.posterior_variance(t, t - 1)
    sigma2[0] = sigma2[1]
    of_x_0 = diffusion.weight_of_x0(t, t - 1)
    return F.pad(of_x_0**2 / (2 * sigma2), (1, 0)) / output_scale(diffusion)


def min_snr(diffusion: "GaussianDiffusion") -> Tensor:
    """min(SNR, 5) on the error of x_0 (Hang et al. 2023, Eq. 8)."""
    t = torch.arange(1, diffusion.timesteps + 1)
    weight = diffusion.snr(t).clamp(max=MIN_SNR_GAMMA)
    return F.pad(weight, (1, 0)) / output_scale(diffusion)


def output_scale(diffusion: "GaussianDiffusion") -> Tensor:
    """Squared error of the parameterization per that of x_0: x0 1, eps SNR, v SNR + 1."""
    t = torch.arange(1, diffusion.timesteps + 1)
    snr = F.pad(diffusion.snr(t), (1, 0), value=1.0)
    return {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[diffusion.prediction]


LOSSES: dict[str, Callable[["GaussianDiffusion"], Tensor]] = {
    "kl": kl,
    "simple": simple,
    "min-snr": min_snr,
}


# The bound, and the sampling of its terms.


def bound_terms(
    diffusion: "GaussianDiffusion", x_0: Tensor, t: Tensor, estimate: Tensor, v: Tensor
) -> Tensor:
    """The bound's term at t (B,) with the learned variance, in nats per dimension, (B,).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at the first t, -log p(x_0 | x_t). estimate: of
    x_0; v: the network's variance output, see ``interpolate_variance``; (B, C, H, W) both.
    """
    log_low, log_high, of_x_0 = diffusion.step[:, t]
    sigma2 = interpolate_variance(v, log_low, log_high)
    squared = (expand(of_x_0, x_0) * (x_0 - estimate)).square()  # of the means' difference
    kl = gaussian_kl(squared, expand(log_low.exp(), x_0), sigma2)
    nll = discretised_nll(x_0, estimate, sigma2).to(kl.dtype)
    first = (t == diffusion.first_timestep).view(-1, *[1] * (x_0.ndim - 1))
    return torch.where(first, nll, kl).flatten(1).mean(1)


def gaussian_kl(squared: Tensor, variance_q: Tensor, variance_p: Tensor) -> Tensor:
    """KL(q || p) of normal distributions in nats, elementwise; squared: |mean_q - mean_p|^2."""
    ratio = variance_q / variance_p
    return (ratio - 1 - ratio.log() + squared / variance_p) / 2


def timestep_density(diffusion: "GaussianDiffusion", loss: str) -> Tensor:
    """The probability of each t in training, (T + 1,): uniform, except for the bound."""
    t = torch.arange(1, diffusion.timesteps + 1)
    trained = (t >= diffusion.first_timestep).double()
    density = trained / trained.sum()
    if loss == "kl":
        nats = log1p_snr(diffusion.alpha_bar[1:])
        drop = F.pad(nats[:-1] - nats[1:], (1, 0))
        drop[0] = drop[1]  # at t = 1 the drop is infinite
        density = bound_density(density, trained * drop)
    return F.pad(density, (1, 0))


def log1p_snr(alpha_bar: Tensor) -> Tensor:
    """log(1 + SNR), which falls with t."""
    return -(1 - alpha_bar).log()


def bound_density(uniform: Tensor | float, drop: Tensor) -> Tensor:
    """The probability with which each KL term of the bound is sampled: as ``drop``, (K,).

    The terms differ greatly in size. Half of the samples are uniform, half in proportion to the
    drop of log(1 + SNR) over the jump, which approximates the term of a trained network.
    """
    return (uniform + drop / drop.sum()) / 2
