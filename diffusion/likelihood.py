"""The variational bound of the reverse process that is sampled, and the variance that minimizes it.

-log p(x_0) <= L_T + sum of KL(q(x_s | x_t, x_0) || p(x_s | x_t)) - log p(x_0 | x_t1)
(Ho et al. 2020, Eq. 5) over the jumps t -> s of the grid that ``ddpm`` uses; t1 -> 0 is the last.
x_0 (N, C, H, W) lies in [-1, 1] and has 256 values; y (N,) are its labels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion.gaussian import Estimate, GaussianDiffusion
from diffusion.generate import ignore
from diffusion.grids import uniform_grid
from diffusion.losses import bound_density, gaussian_kl, log1p_snr
from diffusion.pixels import HALF_BIN, discretised_nll, pixel_nll
from diffusion.tensors import LabeledModel, expand
from diffusion.variance import VARIANCES, learned_variance
from utils.devices import double

CHUNK = 256  # images per network evaluation
GROUPS = 32  # bins of t over which the error of x_0 is averaged
TERMS = 20  # KL terms sampled per image, where there are more
Images = tuple[Tensor, Tensor]  # x_0, y


@dataclass(frozen=True)
class Denoiser:
    """x̂_θ(x_t, t, y): a network with its process, and whether its estimates are clipped.

    network(x_t, t, y) predicts in the parameterization of ``diffusion``. clip: to [-1, 1].
    x0_error: mean squared error of the estimates by t, (T + 1,), see x0_errors; None: unknown.
    progress is called with the number of images that were evaluated.
    """

    network: LabeledModel
    diffusion: GaussianDiffusion
    clip: bool = True
    x0_error: Tensor | None = None
    progress: Callable[[int], object] = ignore

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Estimate:
        """The network's estimate of x_0 from x_t (N, C, H, W), each at its t (N,), in chunks."""
        estimates, network = [], self.network
        for x, n, own in zip(*(part.split(CHUNK) for part in (x_t, t, y)), strict=True):
            found = self.diffusion.estimate(lambda x, t, y=own: network(x, t, y), x, n, self.clip)
            estimates.append(found)
            self.progress(len(x))
        parts = zip(*estimates, strict=True)
        return Estimate(*(None if part[0] is None else torch.cat(part) for part in parts))


@dataclass(frozen=True)
class Bound:
    """The parts of the bound of every image, in bits per dimension, float64 on the CPU.

    Those of pixels at -1 or 1 are apart from those of the others. prior and decoder (N, 2); kl
    (N, K, 2) are the terms at t (N, K), times their importance weights.
    """

    prior: Tensor
    kl: Tensor
    decoder: Tensor
    t: Tensor

    def summary(self) -> dict[str, float]:
        """The means over the images, and the standard error of the total, which one image lacks."""
        parts = {"prior": self.prior, "kl": self.kl, "decoder": self.decoder}
        parts = {name: part.flatten(1).sum(1) for name, part in parts.items()}
        total = sum(parts.values())
        n = len(total)
        error = {"se": (total.std() / math.sqrt(n)).item()} if n > 1 else {}
        means = {name: part.mean().item() for name, part in parts.items()}
        return {"total": total.mean().item(), **error, **means}

    def table(self, bands: int) -> dict[str, dict[str, float]]:
        """The mean bits of bands of t and of the other parts, by kind of pixel; they add up."""
        first, last = int(self.t.min()), int(self.t.max())
        edges = torch.linspace(first, last + 1, bands + 1).round().long()
        rows = {"decoder": self.decoder.mean(0)}
        for low, high in pairwise(edges.tolist()):
            inside = ((low <= self.t) & (self.t < high)).unsqueeze(-1)
            rows[f"t = {low} ... {high - 1}"] = (self.kl * inside).sum(1).mean(0)
        rows["prior"] = self.prior.mean(0)
        rows["all"] = sum(rows.values())
        return {
            name: {"total": sum(row.tolist()), "saturated": row[0].item(), "others": row[1].item()}
            for name, row in rows.items()
        }


@torch.no_grad()
def bounds(
    model: Denoiser,
    images: Images,
    fitted: Images,
    steps: int,
    terms: int = TERMS,
) -> dict[str, Bound]:
    """The bound of the chain of so many steps, for each of VARIANCES that the network has.

    fitted: training images, from which the decoder's variance is computed. An image takes one
    network evaluation for the decoder, and one for each KL term; where there are more than
    ``terms`` of these, that many are sampled, in proportion to their expected size.
    """
    (x_0, _), diffusion = images, model.diffusion
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor(uniform_grid(diffusion, steps))
    which, weight = sample_jumps(diffusion, grid, len(x_0), terms, generator)
    saturated, bits = x_0.abs() > 1 - HALF_BIN, x_0[0].numel() * math.log(2)

    def parts(nats: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2): bits per dimension of the saturated pixels, and the others."""
        first = saturated.to(nats.device)
        kinds = torch.stack([nats * first, nats * ~first], 1)
        return kinds.flatten(2).sum(2).cpu() / bits

    kl: dict[str, list[Tensor]] = {}
    for jumps, importance in zip(which.T, weight.T, strict=True):
        t, s = grid[jumps], grid[jumps + 1]
        found = estimate_at(model, images, t, generator)
        squared = double(x_0 - found.x_0).square()
        for name in variances(diffusion):
            sigma2 = VARIANCES[name](diffusion, t, s, model.x0_error, found.v)
            term = parts(kl_terms(diffusion, sigma2, t, s, squared))
            kl.setdefault(name, []).append(importance[:, None] * term)
    nlls = decoder_terms(model, images, fitted, steps, generator)
    prior, empty = parts(prior_term(diffusion, x_0)), torch.zeros(len(x_0), 0, 2)
    return {
        name: Bound(prior, torch.stack(kl[name], 1) if kl else empty, parts(nll), grid[which])
        for name, nll in nlls.items()
    }


def variances(diffusion: GaussianDiffusion) -> list[str]:
    """The names in VARIANCES that the network has."""
    return [name for name in VARIANCES if name != "learned" or diffusion.learn_variance]


def evaluations(images: int, fitted: int, steps: int, terms: int = TERMS) -> int:
    """How many times ``bounds`` evaluates the network, for an image each."""
    return images * (min(steps - 1, terms) + 1) + fitted


def sample_jumps(
    diffusion: GaussianDiffusion, grid: Tensor, images: int, terms: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which jumps to evaluate for each image, and their importance weights: (N, K) both.

    All but the last where there are at most ``terms``. Else a stratified sample, see
    ``bound_density``.
    """
    count = len(grid) - 2
    if count <= terms:
        every_jump = torch.arange(count, device=grid.device).expand(images, count)
        return every_jump, torch.ones_like(every_jump, dtype=torch.float64)
    nats = log1p_snr(diffusion.alpha_bar[grid[:-1]])
    density = bound_density(1 / count, nats[1:] - nats[:-1])
    order = torch.randperm(images, generator=generator)
    offset = torch.rand((), generator=generator)  # else one image would always meet the same jumps
    u = ((order[:, None] + offset) / images + torch.arange(terms)) / terms
    which = torch.searchsorted(density.cumsum(0), u.double(), right=True).clamp(max=count - 1)
    return which, 1 / (terms * density[which])


def estimate_at(model: Denoiser, images: Images, t: Tensor, generator: torch.Generator) -> Estimate:
    """The estimate of x_0 from x_t ~ q(x_t | x_0), t (N,); the noise is generated on the CPU."""
    x_0, y = images
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    t = t.to(x_0.device)
    return model(model.diffusion.q_sample(x_0, t, noise), t, y)


def prior_term(diffusion: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) of each pixel in nats, the shape of x_0."""
    alpha_bar = diffusion.alpha_bar[-1]
    return (alpha_bar * double(x_0).square() - alpha_bar - torch.log1p(-alpha_bar)) / 2


def kl_terms(
    diffusion: GaussianDiffusion, sigma2: Tensor, t: Tensor, s: Tensor, squared: Tensor
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each pixel in nats, (N, C, H, W).

    From the squared error of x_0 of each pixel and p's sigma^2, (N,) or (N, C, H, W).
    """
    of_q = expand(diffusion.posterior_variance(t, s), squared)
    of_means = expand(diffusion.weight_of_x0(t, s) ** 2, squared) * squared
    return gaussian_kl(of_means, of_q, expand(double(sigma2), squared))


# The last jump; the errors of x_0, from which "optimal" is computed.


def decoder_terms(
    model: Denoiser, images: Images, fitted: Images, steps: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """-log p(x_0 | x_t1) of each pixel in nats, for each of VARIANCES; the shape of x_0.

    Of discrete pixels it is that of their values, whatever the variance.
    """
    (x_0, _), diffusion = images, model.diffusion
    t = uniform_grid(diffusion, steps)[-2]
    found = estimate_at(model, images, torch.full((len(x_0),), t), generator)
    if found.continuous is not None:
        a, b = diffusion.signal[t], diffusion.sigma[t]
        nll = pixel_nll(x_0, found.continuous, b / a, diffusion.value_prior)
        return dict.fromkeys(variances(diffusion), nll)
    last = last_variances(model, fitted, steps, found.v)
    return {name: discretised_nll(x_0, found.x_0, sigma2) for name, sigma2 in last.items()}


def last_variances(
    model: Denoiser, fitted: Images, steps: int, v: Tensor | None
) -> dict[str, Tensor]:
    """sigma^2 of the decoder for each of VARIANCES; "optimal" is that of the fitted images.

    v: the network's variance output. The posterior variance is 0 at s = 0: that of the jump before
    is used (as in Ho et al.'s code), and where there is none, beta.
    """
    (x_0, _), diffusion = fitted, model.diffusion
    t, s = (torch.tensor(n) for n in uniform_grid(diffusion, steps)[-2:])
    before = uniform_grid(diffusion, steps)[-3] if steps > 1 else None
    beta = diffusion.step_variance(t, s)
    posterior = beta if before is None else diffusion.posterior_variance(before, t)
    found = estimate_at(model, fitted, t.expand(len(x_0)), torch.Generator().manual_seed(1))
    known = {"posterior": posterior, "beta": beta, "optimal": fit_variance(x_0, found.x_0)}
    return known if v is None else known | {"learned": learned_variance(diffusion, t, s, None, v)}


def fit_variance(x_0: Tensor, mean: Tensor) -> Tensor:
    """The maximum-likelihood sigma^2, by three successively finer searches."""
    low, high = math.log(1e-8), math.log(4.0)
    for _ in range(3):
        candidates = torch.linspace(low, high, 17, dtype=torch.float64).exp()
        costs = torch.stack([discretised_nll(x_0, mean, v).mean() for v in candidates]).cpu()
        best, width = candidates[costs.argmin()].log().item(), (high - low) / 16
        low, high = best - width, best + width
    return candidates[costs.argmin()]


@torch.no_grad()
def x0_errors(model: Denoiser, images: Images) -> Tensor:
    """E |x_0 - x_0 hat(x_t, t)|^2 / dimension for every t, (T + 1,) float64 on the CPU; 0 at t = 0.

    One network evaluation per image, at t denser towards 0. What is averaged over neighbouring t is
    the error of v, 1 / (1 - alpha_bar) times that of x_0, as it varies little with t.
    """
    (x_0, _), diffusion = images, model.diffusion
    first, T = diffusion.first_timestep, diffusion.timesteps
    u = (torch.arange(len(x_0)) + 0.5) / len(x_0)
    t = (first + (T - first) * u**2).round().long()
    estimated = estimate_at(model, images, t, torch.Generator().manual_seed(2)).x_0
    squared = double(x_0 - estimated).square().flatten(1).mean(1).cpu()
    error = squared / (1 - diffusion.alpha_bar[t])
    groups = min(GROUPS, len(x_0))
    at = torch.stack([part.double().mean() for part in t.tensor_split(groups)])
    level = torch.stack([part.mean() for part in error.tensor_split(groups)])
    at, group = np.unique(at.numpy(), return_inverse=True)  # a small T repeats some t
    level = np.bincount(group, level.numpy()) / np.bincount(group)
    every = np.interp(np.arange(T + 1), at, level)
    return torch.from_numpy(every) * (1 - diffusion.alpha_bar)
