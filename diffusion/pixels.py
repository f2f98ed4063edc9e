"""What follows from pixels having 256 values, -1, -1 + BIN ... 1: a likelihood, and an estimate."""

import math

import torch
from torch import Tensor

from utils.devices import real_dtype

BIN = 2 / 255  # between two values of a pixel
HALF_BIN = BIN / 2
REACH = 13  # values to either side from which a mean is taken: 27 times the memory of the images
FINE = 3 * BIN  # a wider normal distribution reaches further; the network knows its few values
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


def window(estimate: Tensor, sigma: Tensor, log_prior: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The values near an estimate, and the logarithm of their weights: (2 reach + 1, *shape) both.

    Bayes' rule: the prior of the value times N(estimate; value, sigma^2), not normalized.
    """
    nearest = ((estimate + 1) / BIN).round().clamp(0, 255)
    around = torch.arange(-reach, reach + 1, device=estimate.device, dtype=estimate.dtype)
    index = nearest + around.view(-1, *[1] * estimate.ndim)
    values = index * BIN - 1
    known = index.clamp(0, 255).nan_to_num().long()  # what is not finite stays so in the values
    prior = log_prior.to(estimate.dtype)[known]
    log_weight = prior - ((values - estimate) / sigma).square() / 2
    return values, log_weight.masked_fill((index < 0) | (index > 255), -math.inf)


def pixel_mean(estimate: Tensor, sigma: Tensor, log_prior: Tensor) -> Tensor:
    """The mean of a pixel known to be about ``estimate``, give or take sigma; its shape.

    sigma broadcasts; log_prior (256,): of every value. Where sigma is small against BIN, it is the
    posterior mean over the values nearby, so that with sigma -> 0 the estimate is rounded;
    elsewhere the estimate itself, clipped to [-1, 1].
    """
    values, log_weight = window(estimate, sigma, log_prior, REACH)
    mean = (log_weight.softmax(0) * values).sum(0)
    return torch.where(sigma < FINE, mean, estimate.clamp(-1, 1))


def pixel_nll(x_0: Tensor, estimate: Tensor, sigma: Tensor, log_prior: Tensor) -> Tensor:
    """-log p(x_0) of that posterior over all 256 values, in nats per pixel (N, C, H, W).

    Kingma et al. 2021, Eq. 8; one image at a time, as 256 of each are held.
    """
    parts = []
    values = torch.arange(256, device=x_0.device, dtype=log_prior.dtype) * BIN - 1
    for x, mean in zip(x_0, estimate.to(log_prior), strict=True):
        log_p = log_prior - ((values - mean[..., None]) / sigma).square() / 2
        index = ((x + 1) / BIN).round().long()[..., None]
        parts.append(-log_p.log_softmax(-1).gather(-1, index)[..., 0])
    return torch.stack(parts)


def value_prior(counts: Tensor) -> Tensor:
    """log of how often each of the 256 values occurs, (256,) float64; counts (256,).

    A value that does not occur counts as one that does once.
    """
    counts = counts.double().clamp(min=1)
    return (counts / counts.sum()).log()
