"""Real images changed with a trained network: noised and denoised, inverted, mixed, filled in.

Whatever changes images is a Sampler or a DiffusionModel, so that ``generate`` draws it: in batches,
image i from (seed, i) alone. x_0 (N, C, H, W) are clean images in [-1, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.generate import DiffusionModel
from diffusion.grids import Grid, descents, nearest, sigmas
from diffusion.guidance import at
from diffusion.samplers import Randn, States, options_of, replaced
from diffusion.sampling import CHURNS, Sampler
from diffusion.tensors import Model, expand
from utils.seeding import image_noise

PARALLEL = 1e-6  # angle in radians below which slerp is a straight line


def start_of(diffusion: GaussianDiffusion, strength: float) -> int:
    """The t to which SDEdit noises an image (Meng et al. 2022): strength T, at least the first t.

    ValueError unless 0 < strength <= 1.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie above 0 and be at most 1, got {strength:g}")
    return max(diffusion.first_timestep, round(strength * diffusion.timesteps))


def noise_level(diffusion: GaussianDiffusion, sigma: float) -> int:
    """The trained t whose x_t / a is x_0 with noise of this sigma = b / a, nearest in log sigma.

    So a y is x_t where y is an image with such noise. ValueError for a sigma that no t has.
    """
    first = diffusion.first_timestep
    known = sigmas(diffusion)[first:]
    known = known[known.isfinite()]
    if not known[0] <= sigma <= known[-1]:
        raise ValueError(f"sigma must lie in {known[0]:.3g} ... {known[-1]:.3g}, got {sigma:g}")
    return first + int(nearest(known, torch.tensor(sigma, dtype=torch.float64)))


# Inversion: the noise that becomes an image.


def is_deterministic(sampler: Sampler) -> bool:
    """Whether x_0 follows from x_T, so that an image can be inverted."""
    noisy = sampler.eta > 0 and "eta" in options_of(sampler.sampler)
    rises = sampler.restart > 0 or (sampler.churn > 0 and sampler.sampler == CHURNS)
    return not (noisy or rises or sampler.sampler == "ddpm")


@torch.no_grad()
def invert(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    *,
    clip: bool = True,
    iterations: int = 1,
) -> Iterator[Tensor]:
    """DDIM inversion (Song et al. 2021, Sec. 4.3): the states of its ODE along a grid that rises.

    x (B, C, H, W) is the state at grid[0], which may be 0. The step s -> t solves that of ``ddim``,
    t -> s, for x_t by fixed-point iteration (Pan et al. 2023), of one network evaluation each, from
    the eps of the step before. ``ddim`` then leads back to x, up to an error of order iterations +
    1 in the step; without iterations eps stays that of the step before, which is Euler's method.
    From t = 0, where no network is trained, the first eps is that of a x_0 and takes one more.
    """
    eps = None
    for s, t in pairwise(grid):
        (a_s, b_s), (a_t, b_t) = diffusion.scales(s, x), diffusion.scales(t, x)
        scaled, weight = a_t / a_s * x, b_t - a_t / a_s * b_s
        if eps is None or iterations == 0:
            at_t, x_at = (t, scaled) if s == 0 else (s, x)
            eps = noise_of(model, diffusion, x_at, at_t, clip)
        for _ in range(iterations):
            eps = noise_of(model, diffusion, scaled + weight * eps, t, clip)
        x = scaled + weight * eps
        yield x


def noise_of(model: Model, diffusion: GaussianDiffusion, x_t: Tensor, t: int, clip: bool) -> Tensor:
    """The network's estimate of the noise in x_t (B, C, H, W)."""
    return diffusion.predict_noise(diffusion.denoise(at(model, t), x_t, t, clip), x_t, t)


@dataclass(frozen=True)
class Inversion(Sampler):
    """Goes from x_0 to x_T, on the sampler's grid reversed; see ``invert``."""

    iterations: int = 1

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x: Tensor,
        grid: Grid,
        randn: Randn,
        x0_error: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The states after x, which is the state at ``grid[0]``."""
        del randn, x0_error
        return invert(model, diffusion, x, grid, clip=self.clip, iterations=self.iterations)

    def grid(self, diffusion: GaussianDiffusion, start: int | None = None) -> list[int]:
        """The timesteps from 0 to start (default T). ValueErrors of Sampler.grid."""
        return super().grid(diffusion, start)[::-1]

    def evaluations(self, diffusion: GaussianDiffusion, grid: Grid, labeled: bool) -> list[int]:
        """As Sampler.evaluations; each evaluation is at the end of its step."""
        costs = super().evaluations(diffusion, grid[::-1], labeled)[::-1]
        first, *others = (cost * self.iterations for cost in costs)
        return [first + costs[0], *others]


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985), (N, C, H, W): a at weight 0, b at 1.

    a, b (C, H, W); weights (N,) in [0, 1]. Between two x_T it keeps the norm, which noise of many
    pixels hardly varies in; a straight line would be too short in the middle.
    """
    start, end = a.double().flatten(), b.double().flatten()
    cosine = (start @ end / (start.norm() * end.norm())).clamp(-1, 1)
    angle, w = cosine.acos(), weights.double().to(a.device).view(-1, 1)
    if angle.sin().abs() < PARALLEL or not angle.isfinite():
        mixed = torch.lerp(start, end, w)
    else:
        mixed = (((1 - w) * angle).sin() * start + (w * angle).sin() * end) / angle.sin()
    return mixed.to(a.dtype).view(-1, *a.shape)


@dataclass(frozen=True)
class Blend(DiffusionModel):
    """The model between two classes: image i has the outputs of both, mixed by weights[i].

    Its labels 0 ... N - 1 are the numbers of the blends, of first and second (N,) labels of the
    network. Outputs that are linear in the score make it that of p(x|a)^(1-w) p(x|b)^w (Liu et al.
    2022). An evaluation is two of the network's where the classes differ.
    """

    first: Tensor
    second: Tensor
    weights: Tensor

    def mixed(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network's outputs for the blends y (B,); y = N is "no class"."""
        none = torch.tensor([self.num_classes])
        a, b = (torch.cat([own, none]).to(y.device)[y] for own in (self.first, self.second))
        output = self.network(x, t, a)
        if not self.differ:
            return output
        w = torch.cat([self.weights, torch.zeros(1)]).to(y.device)[y]
        return torch.lerp(output, self.network(x, t, b), expand(w, output))

    @property
    def differ(self) -> bool:
        """Whether the classes do."""
        return not torch.equal(self.first, self.second)

    def states(self, sampler: Sampler, *arguments: Any) -> States:
        """As DiffusionModel.states."""
        basis = (self.mixed, self.diffusion, self.image_shape, len(self.weights), self.x0_error)
        return DiffusionModel(*basis).states(sampler, *arguments)

    def evaluations(self, sampler: Sampler, grid: Grid, labeled: bool) -> list[int]:
        """As DiffusionModel.evaluations."""
        costs = super().evaluations(sampler, grid, labeled)
        return [(1 + self.differ) * cost for cost in costs]


# Inpainting.


def repaint_grid(grid: Grid, jump: int, resample: int) -> list[int]:
    """RePaint's grid (Lugmayr et al. 2022, Sec. 4.2): ``jump`` steps at a time, ``resample`` times.

    After every jump steps it rises to where they began, until they were taken so often: each time
    what is filled in fits better to what is known. The parts are counted from the end; the last
    one begins at the first t. ValueError unless both are at least 1, and for a grid that rises.
    """
    if jump < 1 or resample < 1:
        raise ValueError(f"jump and resample must be at least 1, got {jump} and {resample}")
    if len(list(descents(grid))) > 1:
        raise ValueError("inpainting has a grid of its own: leave out restart and churn")
    last = len(grid) - 2  # the step onto x_0 is taken once
    found = list(grid[: last % jump + 1])
    for first in range(last % jump, last, jump):
        part = list(grid[first : first + jump + 1])
        found += part[1:] + part * (resample - 1)
    return [*found, grid[-1]]


@dataclass(frozen=True)
class Repaint(Sampler):
    """A sampler on ``repaint_grid``.

    While known pixels are noisy they tell the others too little, as x_t is not x_0. So it is the
    steps of little noise, and their repetitions, that make what is filled in fit: a spacing even in
    log-SNR has more of them.
    """

    jump: int = 5
    resample: int = 10

    def grid(self, diffusion: GaussianDiffusion, start: int | None = None) -> list[int]:
        """The timesteps, with every rise. ValueErrors of Sampler.grid and repaint_grid."""
        return repaint_grid(super().grid(diffusion, start), self.jump, self.resample)


@dataclass(frozen=True)
class Inpainting(DiffusionModel):
    """The model where some pixels are known: after every step they are those of q(x_t | x_0).

    x_0 (N, C, H, W); unknown (N, 1, H, W) bool, what is to be filled in. Image i of a drawing is
    that of row i. RePaint (Lugmayr et al. 2022, Algorithm 1) is this with ``Repaint``.
    """

    x_0: Tensor
    unknown: Tensor

    def states(self, sampler: Sampler, indices, labels, seed=0, start=None, x=None) -> States:
        """As DiffusionModel.states; the last one has the known pixels of x_0 itself."""
        device, rows = self.diffusion.device, torch.as_tensor(list(indices))
        x_0, unknown = self.x_0[rows].to(device), self.unknown[rows].to(device)
        randn = image_noise(seed, indices, self.image_shape, device, "known pixels")
        own, sent = super().states(sampler, indices, labels, seed, start, x), None
        for t in sampler.grid(self.diffusion, start):
            x_t = own.send(sent)
            known = self.diffusion.q_sample(x_0, t, randn()) if t else x_0
            x_t = torch.where(unknown, x_t, known)
            sent = replaced(x_t, (yield x_t))
