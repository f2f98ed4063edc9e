"""A class-conditional network as a classifier: the class y whose bound on -log p(x | y) is lowest.

Li et al. (2023), "Your diffusion model is secretly a zero-shot classifier"; with the bound's own
weights, with which it is Bayes' rule for equally likely classes where the bound is tight. x is the
image with a little noise, LEAST_SIGMA: below, the terms of the bound are the largest and hardly
depend on the class, so that small errors of the network would decide.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.generate import DiffusionModel, ignore
from diffusion.grids import sigmas
from diffusion.losses import kl, output_scale
from diffusion.tensors import LabeledModel
from utils.seeding import generator, image_noise

STAGES = (8, 16, 32, 64)  # draws of (t, noise) after which classes are eliminated
ERRORS = 2.0  # standard errors by which the bound of an eliminated class exceeds the lowest
LEAST_SIGMA = 0.1  # of the noise that x has, sqrt((1 - alpha_bar) / alpha_bar)
BITS = 32  # of an index


@torch.no_grad()
def classify_images(
    model: DiffusionModel,
    x_0: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 100,
    clip: bool = True,
    stages: Sequence[int] = STAGES,
    errors: float = ERRORS,
    progress: Callable[[int], object] = ignore,
) -> Tensor:
    """The bound (N, K) on -log p(x | y) of every class, in nats, without what they all share.

    x_0 (N, C, H, W) in [-1, 1]. The classes of an image are compared at the same draws of (t,
    noise), which depend on (seed, i) alone: of the large variance over draws little is left in the
    differences. After each stage, of so many draws, a class whose bound is higher than the lowest
    by so many standard errors of the difference is eliminated. Its bound is the lowest plus the
    difference that was found. progress is called with the number of network evaluations, an image
    each. No evaluation is guided.
    """
    indices = torch.arange(len(x_0)).split(batch_size)
    parts = [
        bounds_of(model, x_0[own], own.tolist(), seed, batch_size, clip, stages, errors, progress)
        for own in indices
    ]
    return torch.cat(parts)


def bounds_of(
    model: DiffusionModel,
    x_0: Tensor,
    indices: Sequence[int],
    seed: int,
    batch_size: int,
    clip: bool,
    stages: Sequence[int],
    errors: float,
    progress: Callable[[int], object],
) -> Tensor:
    """``classify_images`` of one batch; so many of its images and classes are evaluated at once."""
    diffusion, K = model.diffusion, model.num_classes
    x_0 = x_0.to(diffusion.device)
    t, weight = draws(diffusion, indices, seed, max(stages))  # (N, draws) each
    randn = image_noise(seed, indices, model.image_shape, diffusion.device, "classify")
    alive = torch.ones(len(x_0), K, dtype=torch.bool)
    bounds = torch.zeros(len(x_0), K, dtype=torch.float64)
    terms, done = torch.zeros(len(x_0), K, 0, dtype=torch.float64), 0
    for stage in stages:
        alive &= (alive.sum(1) > 1)[:, None]  # the others are decided
        if not alive.any():
            break
        rows, y = alive.nonzero().T
        new = torch.zeros(len(x_0), K, stage - done, dtype=torch.float64)
        for k in range(done, stage):
            times = t[:, k].to(x_0.device)
            x_t = diffusion.q_sample(x_0, times, randn())
            for own, labels in zip(rows.split(batch_size), y.split(batch_size), strict=True):
                at, where = (own.to(x_0.device), labels.to(x_0.device)), (own, labels, k - done)
                squared = squared_errors(model.network, diffusion, x_0, x_t, times, at, clip)
                new[where] = weight[own, k] * squared
                progress(len(own))
        terms, done = torch.cat([terms, new], dim=2), stage
        update(bounds, alive, terms, errors)
    return bounds


def update(bounds: Tensor, alive: Tensor, terms: Tensor, errors: float) -> None:
    """The bounds (N, K) after a stage, and which classes (N, K) are still in question.

    terms (N, K, draws). Images that were decided before, none of whose classes is alive, stay.
    """
    open_ = alive.any(1)
    mean = terms.mean(2).masked_fill(~alive, torch.inf)
    lowest, best = mean.min(1)
    rows = torch.arange(len(terms))
    difference = terms - terms[rows, best][:, None]
    shifted = lowest[:, None] + difference.mean(2)
    before = bounds - bounds.gather(1, best[:, None])  # of the eliminated: the difference it had
    current = torch.where(alive, shifted, lowest[:, None] + before)
    bounds[open_] = current[open_]
    error = difference.std(2) / terms.shape[2] ** 0.5
    alive &= difference.mean(2) <= errors * error
    alive[rows[open_], best[open_]] = True


def squared_errors(
    network: LabeledModel,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    at: tuple[Tensor, Tensor],
    clip: bool,
) -> Tensor:
    """|x_0 - x̂_θ(x_t, t, y)|^2 (M,), float64 on the CPU, of these rows and labels (M,)."""
    rows, y = at
    found = diffusion.denoise(lambda x, t: network(x, t, y), x_t[rows], t[rows], clip)
    return (found - x_0[rows]).square().flatten(1).sum(1).double().cpu()


def draws(
    diffusion: GaussianDiffusion, indices: Sequence[int], seed: int, count: int
) -> tuple[Tensor, Tensor]:
    """t (N, count) and the weight of its squared error of x_0, so that means are the bound.

    Image i has t from every part of ``angle_density``, at an offset of its own, in the order of van
    der Corput: every beginning covers all of them.
    """
    density = angle_density(diffusion)
    order = [int(f"{k:0{BITS}b}"[::-1], 2) / 2**BITS for k in range(count)]
    offsets = [torch.rand((), generator=generator("cpu", seed, "classify t", i)) for i in indices]
    u = (torch.tensor(order) + torch.stack(offsets)[:, None]) % 1
    t = torch.searchsorted(density.cumsum(0), u.double(), right=True)
    t = t.clamp(int(density.nonzero()[0]), diffusion.timesteps)
    gain = kl(diffusion) * output_scale(diffusion)  # of the squared error of x_0, by t
    return t, (gain / density)[t]


def angle_density(diffusion: GaussianDiffusion) -> Tensor:
    """The probability of each t (T + 1,): even in arccos sqrt(alpha_bar), from LEAST_SIGMA on.

    As t of a cosine schedule is, along which what tells classes apart is spread evenly.
    """
    angle = diffusion.alpha_bar.sqrt().acos()
    step = F.pad(angle.diff(), (1, 0))
    step[:-1][sigmas(diffusion)[:-1] < LEAST_SIGMA] = 0
    step[: diffusion.first_timestep] = 0
    return step / step.sum()
