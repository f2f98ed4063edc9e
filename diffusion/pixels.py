"""What follows from pixels having 256 values, -1, -1 + BIN ... 1: a likelihood, and an estimate."""

import math

import torch
from torch import Tensor

from utils.devices import real_dtype

BIN = 2 / 255  # between two values of a pixel
HALF_BIN = BIN / 2
REACH = 4  # values to either side from which a mean is taken
FINE = 0.7 * BIN  # a wider normal distribution hardly knows of the values: 4e-4 BIN of its mean
FAR = 1e6  # standard deviations: like infinity, but its gradient is 0 instead of NaN


def discretised_nll(x_0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the discretized Gaussian per pixel, in nats.

    Ho et al. 2020, Eq. 13; float64 where the device has it. The outermost bins are open. Intervals
    in the upper tail are reflected to the lower one, where log_ndtr is accurate.
    """
    x_0, mean = (x.to(real_dtype(x.device)) for x in (x_0, mean))
    difference, sigma = x_0 - mean, variance.to(mean).sqrt()
    upper = ((difference + HALF_BIN) / sigma).masked_fill(x_0 > 1 - HALF_BIN, FAR)
    lower = ((difference - HALF_BIN) / sigma).masked_fill(x_0 < -1 + HALF_BIN, -FAR)
    upper, lower = (
        torch.where(difference > 0, -lower, upper),
        torch.where(difference > 0, -upper, lower),
    )
    high, low = (torch.special.log_ndtr(end) for end in (upper, lower))
    return -(high + torch.log1p(-torch.exp(low - high)))


def pixel_mean(estimate: Tensor, sigma: Tensor) -> Tensor:
    """The mean of a pixel known to be about ``estimate``, give or take sigma; x's shape.

    sigma broadcasts. Where it is small against BIN, it is the posterior mean over the nearest of
    the 256 values, so that with sigma -> 0 the estimate is rounded; elsewhere the estimate itself,
    clipped to [-1, 1].
    """
    nearest = ((estimate + 1) / BIN).round().clamp(0, 255)
    around = torch.arange(-REACH, REACH + 1, device=estimate.device, dtype=estimate.dtype)
    index = nearest + around.view(-1, *[1] * estimate.ndim)
    values = index * BIN - 1
    log_weight = -((values - estimate) / sigma).square() / 2
    log_weight = log_weight.masked_fill((index < 0) | (index > 255), -math.inf)
    mean = (log_weight.softmax(0) * values).sum(0)
    return torch.where(sigma < FINE, mean, estimate.clamp(-1, 1))
