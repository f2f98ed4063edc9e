"""Reverse processes: generators that go from x_T to x_0 and yield the state after every step.

All have one signature. ``model(x, t)`` is the denoising network; ``x`` starts as x_T (B, C, H, W);
``grid`` are the timesteps T = t_0 > ... > t_n = 0, with one network evaluation at each but the
last; ``randn()`` returns standard normal noise of the batch's shape, so that the caller decides
what the noise of an image depends on; ``x0_error`` is the network's mean squared error of x_0 by t,
which the optimal variance needs (likelihood.x0_errors). Keyword-only arguments are options of this
sampler. The last state is the clean image, and no noise is added to it. ``at(model, t)`` is the
network at this t: with guidance, or without outside of its interval.
To add a sampler, write one function here, enter it in SAMPLERS and in config.SampleConfig.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.tensors import LabeledModel, Model, expand
from diffusion.variance import VARIANCES

Randn = Callable[[], Tensor]
Grid = Sequence[int]


@torch.no_grad()
def ddpm(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
    variance: str = "posterior",
) -> Iterator[Tensor]:
    """Ancestral sampling: Algorithm 2 of Ho et al. (2020), sigma^2 by a name in VARIANCES."""
    for t, s in pairwise(grid):
        found = diffusion.estimate(at(model, t), x, t, clip)
        x, _ = diffusion.posterior(found.x_0, x, t, s)
        if s > 0:
            sigma2 = VARIANCES[variance](diffusion, t, s, x0_error, found.v)
            x = x + expand(sigma2.sqrt(), x) * randn()
        yield x


@torch.no_grad()
def ddim(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Eqs. 12 and 16 of Song et al. (2021); eta = 0 is deterministic, 1 is ``ddpm``."""
    del x0_error
    for t, s in pairwise(grid):
        x_0 = diffusion.denoise(at(model, t), x, t, clip)
        noise = diffusion.predict_noise(x_0, x, t)
        alpha_bar = diffusion.alpha_bar[s]
        sigma2 = eta**2 * diffusion.posterior_variance(t, s)
        x = expand(alpha_bar.sqrt(), x) * x_0 + expand((1 - alpha_bar - sigma2).sqrt(), x) * noise
        if eta > 0 and s > 0:
            x = x + expand(sigma2.sqrt(), x) * randn()
        yield x


@torch.no_grad()
def dpmpp(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M): Algorithm 2 of Lu et al. (2022); deterministic, second order.

    lambda is half the log-SNR. Steps are even in t: even in lambda, a cosine schedule, which ends
    near SNR 0, would spend nearly half of 20 at t > 990. The last, onto x_0, is of first order.
    """
    del randn, x0_error
    x_0_before, h_before = None, None
    for t, s in pairwise(grid):
        x_0 = diffusion.denoise(at(model, t), x, t, clip)
        if s == 0:
            yield x_0
            return
        h = (diffusion.snr(s) / diffusion.snr(t)).log() / 2  # lambda_s - lambda_t
        D = x_0  # extrapolated to the middle of the step: the second-order correction
        if x_0_before is not None:
            D = x_0 + (x_0 - x_0_before) * expand(h / h_before, x) / 2
        (_, sigma_t), (alpha_s, sigma_s) = (diffusion.scales(n, x) for n in (t, s))
        x = sigma_s / sigma_t * x - alpha_s * expand(torch.expm1(-h), x) * D
        x_0_before, h_before = x_0, h
        yield x


SAMPLERS: dict[str, Callable[..., Iterator[Tensor]]] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


@dataclass(frozen=True)
class Sampler:
    """A reverse process with its settings: ``Sampler(**asdict(config.sample))``.

    guidance_interval: from and to which t / T guidance applies. Options that the named sampler does
    not have are ignored.
    """

    sampler: str
    steps: int
    variance: str = "posterior"
    eta: float = 0.0
    clip: bool = True
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x: Tensor,
        grid: Grid,
        randn: Randn,
        x0_error: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The states after x, which is the state at ``grid[0]``; model(x, t), guided or not."""
        own = {name: getattr(self, name) for name in options_of(self.sampler)}
        return SAMPLERS[self.sampler](model, diffusion, x, grid, randn, x0_error, **own)

    def guide(
        self,
        model: LabeledModel,
        labels: Tensor | None,
        null_label: int,
        diffusion: GaussianDiffusion,
    ) -> Model:
        """The network with these labels (B,) and this sampler's guidance; see ``guided``."""
        first, last = self.guidance_interval
        times = (first * diffusion.timesteps, last * diffusion.timesteps)
        return guided(model, labels, null_label, self.guidance, times)


def options_of(sampler: str) -> set[str]:
    """The names of a sampler's own options."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def uniform_grid(diffusion: GaussianDiffusion, steps: int, start: int | None = None) -> list[int]:
    """start = t_0 > ... > t_steps = 0, even in t; start defaults to T.

    ValueError unless start is a trained t, and steps at most the number of trained t up to it.
    """
    start, first = diffusion.timesteps if start is None else start, diffusion.first_timestep
    if not first <= start <= diffusion.timesteps:
        raise ValueError(f"start must lie in {first}..{diffusion.timesteps}, got {start}")
    most = diffusion.count_trained(start)
    if not 1 <= steps <= most:
        raise ValueError(f"steps must lie in 1..{most}, got {steps}")
    grid = torch.linspace(start, first - 1, steps + 1, dtype=torch.float64)
    return [*grid.round().long().tolist()[:-1], 0]


def guided(
    model: LabeledModel,
    labels: Tensor | None,
    null_label: int,
    scale: float = 1.0,
    times: tuple[float, float] = (0.0, math.inf),
) -> Model:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + scale * (cond - uncond).

    labels (B,); None: the unconditional network. null_label: the one that means "no class". Applies
    only at times[0] <= t <= times[1] (Kynkäänniemi et al. 2024): outside, and at scale 1, it is the
    conditional network at one evaluation instead of two. A learned variance, in the channels behind
    those of x, stays the conditional network's.
    """
    if labels is None or scale == 1:
        return lambda x, t: model(x, t, labels)
    return Guided(model, labels, null_label, scale, times)


@dataclass(frozen=True)
class Guided:
    """What ``guided`` returns, a Model; ``at`` spares samplers from reading t from the device."""

    model: LabeledModel
    labels: Tensor
    null_label: int
    scale: float
    times: tuple[float, float]

    def at(self, t: int) -> Model:
        """The network to evaluate at this t for all images: with guidance or without."""
        if self.times[0] <= t <= self.times[1]:
            return self.both
        return lambda x, t: self.model(x, t, self.labels)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """At any t (B,): whether guidance applies to some image is read from the device."""
        inside = (self.times[0] <= t) & (t <= self.times[1])
        return self.both(x, t) if inside.any() else self.model(x, t, self.labels)

    def both(self, x: Tensor, t: Tensor) -> Tensor:
        """The conditional and the unconditional network, in one batch."""
        inside = (self.times[0] <= t) & (t <= self.times[1])
        labels = torch.cat([torch.full_like(self.labels, self.null_label), self.labels])
        outputs = self.model(x.repeat(2, 1, 1, 1), t.repeat(2), labels).to(x.dtype)
        (uncond, cond), channels = outputs.chunk(2), x.shape[1]
        scale = expand(torch.where(inside, self.scale, 1.0), x)
        means = torch.lerp(uncond[:, :channels], cond[:, :channels], scale)
        return torch.cat([means, cond[:, channels:]], dim=1)


def at(model: Model, t: int) -> Model:
    """The network to evaluate at t: whether it is guided is decided here, on the host."""
    return model.at(t) if isinstance(model, Guided) else model


def last(states: Iterable[Tensor]) -> Tensor:
    """The last state of a sampler, holding one at a time."""
    return deque(states, maxlen=1).pop()
