"""Reverse processes: generators that walk from x_T to x_0 and yield the state after every step.

All have one signature. ``model(x, t)`` is the network; ``x`` starts as x_T (B, C, H, W); ``steps``
is the number of network evaluations; ``randn()`` draws standard normal noise of the batch's shape,
which leaves it to the caller what the noise of an image depends on. What follows the star are the
sampler's own options. The last state is always the clean image, and no noise is added to it.
To add a sampler, write one function here and enter it in SAMPLERS.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model, expand

Randn = Callable[[], Tensor]


@torch.no_grad()
def ddpm(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    steps: int,
    randn: Randn,
    *,
    clip: bool = True,
    variance: str = "posterior",
) -> Iterator[Tensor]:
    """Ancestral sampling: Algorithm 2 of Ho et al. (2020), sigma^2 by a name in VARIANCES."""
    for t, s in pairwise(uniform_grid(diffusion, steps)):
        x_0 = denoise(model, diffusion, x, t, clip)
        x, _ = diffusion.posterior(x_0, x, t, s)
        if s > 0:
            x = x + VARIANCES[variance](diffusion, t, s).sqrt() * randn()
        yield x


def optimal_variance(diffusion: GaussianDiffusion, t: int, s: int) -> Tensor:
    """The sigma^2 that minimises the bound (Bao et al. 2022, Theorem 1).

    The posterior's, and what the network cannot know of x_0. ValueError before that was measured.
    """
    if diffusion.x0_error is None:
        raise ValueError("--variance optimal needs the network's errors: see x0_errors")
    unknown = diffusion.weight_of_x0(t, s) ** 2 * diffusion.x0_error[t]
    return diffusion.posterior_variance(t, s) + unknown


# The choices of sigma^2 for a jump t -> s; the first two are of Ho et al. (2020), Sec. 3.2.
VARIANCES: dict[str, Callable[[GaussianDiffusion, int, int], Tensor]] = {
    "posterior": GaussianDiffusion.posterior_variance,
    "beta": GaussianDiffusion.step_variance,
    "optimal": optimal_variance,
}


@torch.no_grad()
def ddim(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    steps: int,
    randn: Randn,
    *,
    clip: bool = True,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Eqs. 12 and 16 of Song et al. (2021); eta = 0 is deterministic, 1 is ``ddpm``."""
    for t, s in pairwise(uniform_grid(diffusion, steps)):
        x_0 = denoise(model, diffusion, x, t, clip)
        noise = diffusion.predict_noise(x_0, x, t)
        alpha_bar = diffusion.alpha_bar[s]
        sigma2 = eta**2 * diffusion.posterior_variance(t, s)
        x = alpha_bar.sqrt() * x_0 + (1 - alpha_bar - sigma2).sqrt() * noise
        if eta > 0 and s > 0:
            x = x + sigma2.sqrt() * randn()
        yield x


@torch.no_grad()
def dpmpp(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    steps: int,
    randn: Randn,
    *,
    clip: bool = True,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M): Algorithm 2 of Lu et al. (2022); deterministic, second order.

    lambda is half the log-SNR. Steps are even in t: even in lambda, a cosine schedule, which ends
    near SNR 0, would spend nearly half of 20 at t > 990. The last, onto x_0, is of first order.
    """
    del randn
    x_0_before, h_before = None, None
    for t, s in pairwise(uniform_grid(diffusion, steps)):
        x_0 = denoise(model, diffusion, x, t, clip)
        if s == 0:
            yield x_0
            return
        h = (diffusion.snr(s) / diffusion.snr(t)).log() / 2  # lambda_s - lambda_t
        ahead = x_0  # D, the estimate of x_0 halfway through the step
        if x_0_before is not None:
            ahead = x_0 + (x_0 - x_0_before) * (h / h_before) / 2
        (_, sigma_t), (alpha_s, sigma_s) = (diffusion.scales(n, x) for n in (t, s))
        x = sigma_s / sigma_t * x - (alpha_s * torch.expm1(-h)).to(x.dtype) * ahead
        x_0_before, h_before = x_0, h
        yield x


Sampler = Callable[..., Iterator[Tensor]]
SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


def make_sampler(sampler: str, **settings: object) -> Sampler:
    """The named sampler with its own options bound; settings of others are passed over."""
    return partial(SAMPLERS[sampler], **{name: settings[name] for name in options_of(sampler)})


def options_of(sampler: str) -> set[str]:
    """The names of a sampler's own options."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def denoise(model: Model, diffusion: GaussianDiffusion, x: Tensor, t: int, clip: bool) -> Tensor:
    """The clean image the network sees in x_t."""
    output = model(x, torch.full((len(x),), t, device=x.device))
    x_0 = diffusion.predict_x0(output, x, t)
    return x_0.clamp(-1, 1) if clip else x_0


def uniform_grid(diffusion: GaussianDiffusion, steps: int) -> list[int]:
    """T = t_0 > ... > t_steps = 0, even in t. ValueError unless 1 <= steps <= most."""
    check_steps(diffusion, steps)
    last = diffusion.first_timestep - 1
    grid = torch.linspace(diffusion.timesteps, last, steps + 1, dtype=torch.float64)
    return [*grid.round().long().tolist()[:-1], 0]


def check_steps(diffusion: GaussianDiffusion, steps: int) -> None:
    """ValueError unless the process has so many steps to walk."""
    most = diffusion.timesteps - diffusion.first_timestep + 1
    if not 1 <= steps <= most:
        raise ValueError(f"steps must lie in 1..{most}, got {steps}")


def guided(
    model: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    labels: Tensor | None,
    null_label: int,
    scale: float = 1.0,
    times: tuple[float, float] = (0.0, math.inf),
) -> Model:
    """Classifier-free guidance (Ho & Salimans 2022): none + scale * (class - none).

    labels (B,); None: the network without classes. Only at times[0] <= t <= times[1] (Kynkäänniemi
    et al. 2024): outside, and at scale 1, it is the plain conditional network at one evaluation
    instead of two.
    """
    if labels is None or scale == 1:
        return lambda x, t: model(x, t, labels)

    both = torch.cat([torch.full_like(labels, null_label), labels])

    def guide(x: Tensor, t: Tensor) -> Tensor:
        inside = (times[0] <= t) & (t <= times[1])
        if not inside.any():
            return model(x, t, labels)
        none, of_class = model(x.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return torch.lerp(none, of_class, expand(torch.where(inside, scale, 1.0), x))

    return guide


def last(states: Iterable[Tensor]) -> Tensor:
    """Run a sampler to its end, holding one state at a time."""
    return deque(states, maxlen=1).pop()
