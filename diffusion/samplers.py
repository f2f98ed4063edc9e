"""Reverse processes: generators that go from x_T to x_0 and yield the state after every step.

All have one signature. ``model(x, t)`` is the denoising network; ``x`` starts as x_T (B, C, H, W);
``grid`` are the timesteps T = t_0, t_1, ..., t_n = 0; ``randn()`` returns standard normal noise of
the batch's shape, so that the caller decides what the noise of an image depends on; ``x0_error`` is
the network's mean squared error of x_0 by t, which the optimal variance needs
(likelihood.x0_errors). Keyword-only arguments are options of this sampler. The last state is the
clean image, and no noise is added to it. ``at(model, t)`` is the network at this t: with guidance,
or without outside of its interval.

Where the grid rises, the forward process goes on, and the state is x_s ~ q(x_s | x_t). A state that
is sent to the generator replaces the one that it yielded; it is a new tensor, not that one changed
in place. ``sampler`` does both.
To add a sampler, write one function here, enter it in SAMPLERS and in config.SampleConfig.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import wraps
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.exponential import Known, data_step, extrapolate, half_log_snr
from diffusion.gaussian import GaussianDiffusion
from diffusion.grids import Grid, descents
from diffusion.guidance import at
from diffusion.tensors import Model, expand
from diffusion.variance import VARIANCES

Randn = Callable[[], Tensor]
States = Generator[Tensor, Tensor | None, None]
NOISE_ALONE = 1e-6  # SNR; sigma is 1000


def sampler(steps: Callable[..., States]) -> Callable[..., States]:
    """A sampler of any grid, from one of falling grids that takes back every state it yields.

    A sampler that looks back at earlier steps begins anew where the grid has risen.
    """

    @wraps(steps)
    @torch.no_grad()
    def states(
        model: Model,
        diffusion: GaussianDiffusion,
        x: Tensor,
        grid: Grid,
        randn: Randn,
        x0_error: Tensor | None = None,
        **options: object,
    ) -> States:
        t = grid[0]
        for part in descents(grid):
            if part[0] > t:
                x = diffusion.renoise(x, t, part[0], randn())
                x = replaced(x, (yield x))
            own, taken = steps(model, diffusion, x, part, randn, x0_error, **options), None
            for _ in part[1:]:
                x = own.send(taken)
                x = taken = replaced(x, (yield x))
            t = part[-1]

    return states


def replaced(x: Tensor, sent: Tensor | None) -> Tensor:
    """The state to go on from: the one that was sent, if any."""
    return x if sent is None else sent


@sampler
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
) -> States:
    """Ancestral sampling: Algorithm 2 of Ho et al. (2020), sigma^2 by a name in VARIANCES."""
    for t, s in pairwise(grid):
        found = diffusion.estimate(at(model, t), x, t, clip)
        x, _ = diffusion.posterior(found.x_0, x, t, s)
        if s > 0:
            sigma2 = VARIANCES[variance](diffusion, t, s, x0_error, found.v)
            x = x + expand(sigma2.sqrt(), x) * randn()
        x = yield x


@sampler
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
) -> States:
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
        x = yield x


@sampler
def heun(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
) -> States:
    """Heun's method, second order (Karras et al. 2022, Algorithm 1); deterministic.

    d x / d sigma = eps for x_t / a, sigma = b / a: the step of ``ddim`` is Euler's. See is_heun.
    """
    del randn, x0_error
    for t, s in pairwise(grid):
        x_0 = diffusion.denoise(at(model, t), x, t, clip)
        eps = diffusion.predict_noise(x_0, x, t)
        (a_t, b_t), (a_s, b_s) = diffusion.scales(t, x), diffusion.scales(s, x)
        x = a_s * x_0 + b_s * eps
        if is_heun(diffusion, t, s):
            x_0 = diffusion.denoise(at(model, s), x, s, clip)
            x = x + (b_s - a_s / a_t * b_t) * (diffusion.predict_noise(x_0, x, s) - eps) / 2
        x = yield x


def is_heun(diffusion: GaussianDiffusion, t: int, s: int) -> bool:
    """Whether Heun's step t -> s has its second evaluation, at s: not onto the clean image.

    Nor from noise alone, where sigma is infinite, or so large that a step divides it by hundreds:
    a trapezoid over it takes the slope at s for half of sigma, and ends further off than Euler's.
    """
    return s > 0 and diffusion.snr(t).item() > NOISE_ALONE


@sampler
def dpmpp(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
    eta: float = 0.0,
) -> States:
    """DPM-Solver++(2M): Algorithm 2 of Lu et al. (2022); second order, deterministic at eta = 0.

    lambda is half the log-SNR. eta = 1 solves the reverse SDE, their SDE-DPM-Solver++(2M); between
    the two, the noise of a step has eta times the rate. The last step, onto x_0, is of first order.
    """
    del x0_error
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
        x = data_step(diffusion, x, D, t, s, eta)
        if eta > 0:
            _, b_s = diffusion.scales(s, x)
            x = x + b_s * expand((-torch.expm1(-2 * eta * h)).sqrt(), x) * randn()
        x_0_before, h_before = x_0, h
        x = yield x


@sampler
def unipc(
    model: Model,
    diffusion: GaussianDiffusion,
    x: Tensor,
    grid: Grid,
    randn: Randn,
    x0_error: Tensor | None = None,
    *,
    clip: bool = True,
    order: int = 2,
) -> States:
    """UniPC: Algorithms 1 and 2 of Zhao et al. (2023), of x_0, with B(h) = e^h - 1; deterministic.

    The evaluation at s, which the next step needs anyway, first corrects x_s (UniC); ``order`` is
    that of the prediction (UniP), lower in the first and the last steps. A state that was replaced
    is not corrected.
    """
    del randn, x0_error
    known: list[Known] = []  # of the steps before, the newest first
    used, before, predicted = known, x, None  # by the last step: of which, from where, to where
    for i, (t, s) in enumerate(pairwise(grid)):
        x_0 = diffusion.denoise(at(model, t), x, t, clip)
        if s == 0:
            yield x_0
            return
        now = (half_log_snr(diffusion, t), x_0)
        if x is predicted:
            x = data_step(diffusion, before, extrapolate(used, now[0], now), grid[i - 1], t)
        known = [now, *(own for own in known[: order - 1] if math.isfinite(own[0]))]
        used = known[: min(order, len(grid) - 1 - i)]
        before, D = x, extrapolate(used, half_log_snr(diffusion, s))
        predicted = data_step(diffusion, x, D, t, s)
        x = yield predicted


SAMPLERS: dict[str, Callable[..., States]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "heun": heun,
    "dpmpp": dpmpp,
    "unipc": unipc,
}


def evaluated_at(name: str, diffusion: GaussianDiffusion, t: int, s: int) -> list[int]:
    """The timesteps at which this sampler evaluates the network on its step t -> s."""
    return [t, s] if name == "heun" and is_heun(diffusion, t, s) else [t]


def options_of(sampler: str) -> set[str]:
    """The names of a sampler's own options."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def last(states: Iterable[Tensor]) -> Tensor:
    """The last state of a sampler, holding one at a time."""
    return deque(states, maxlen=1).pop()
