"""The forward process q, its posterior, parameterizations and losses (Ho et al. 2020, Secs. 2-3).

t = 1 ... T as the paper counts, t = 0 is the clean image: every array has T + 1 entries, and
``alpha_bar[0] == 1``. Coefficients are float64, on the CPU, and cast where they meet an image.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from diffusion.pixels import discretised_nll, pixel_mean
from diffusion.schedules import make_alphas
from utils.devices import real_dtype

Model = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, C, H, W), t (B,)) -> its prediction
Time = Tensor | int  # t: (B,) int64, or one t for all
TABLES = ("signal", "sigma", "loss_weight", "density", "step", "value_prior")  # on the device

PREDICTIONS = ("x0", "eps", "v")
MIN_SNR_GAMMA = 5.0
LEAST_SIGNAL = 1e-10  # alpha_bar_T from which eps can be learnt: x_0 = (x_T - b eps) / a
VLB_WEIGHT = 1e-3  # of the bound in L_hybrid (Nichol & Dhariwal 2021, Sec. 3.1)
MIN_VARIANCE = 1e-8  # learned at s = 0: a fortieth of a pixel's bin


class Estimate(NamedTuple):
    """What the network says of x_t: x̂_θ(x_t, t), and what it was made from; (B, C, H, W) each.

    v: where it learns the variance, see ``GaussianDiffusion.learned_variance``. located: of
    discrete pixels, the estimate before it was drawn to their values.
    """

    x_0: Tensor
    v: Tensor | None = None
    located: Tensor | None = None


class GaussianDiffusion:
    """A process with T steps, the parameterization of the network, and the loss.

    alphas: (T,) float64. prediction: "x0" the clean image, "eps" the noise, "v" their
    rotation sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022). precondition: x_0
    is computed from the output by ``precondition_x0`` instead of being the output.
    discrete_pixels: then by ``pixel_mean``, with ``value_prior`` (256,), which is uniform until it
    is set to that of the images. loss: a name in LOSSES. first_timestep: the smallest t
    trained and sampled; 2 is "let x_1 = x_0". learn_variance: the network has as many channels
    again, for the variance of the reverse process. Raises ValueError where first_timestep is not in
    1 ... T, where the noise cannot be predicted as x_T has no signal, and for weights of the loss
    that are not finite.
    """

    def __init__(
        self,
        alphas: Tensor,
        prediction: str = "v",
        precondition: bool = False,
        loss: str = "simple",
        first_timestep: int = 1,
        discrete_pixels: bool = False,
        learn_variance: bool = False,
    ) -> None:
        self.timesteps = len(alphas)
        if not 1 <= first_timestep <= self.timesteps:
            raise ValueError(
                f"--first-timestep must lie in 1..{self.timesteps}, got {first_timestep}"
            )
        if prediction == "eps" and alphas.prod() < LEAST_SIGNAL:
            raise ValueError(
                f"--prediction eps: x_T has no signal (alpha_bar_T = {alphas.prod():.1g}) from "
                "which x_0 could be computed; use v or x0, or end the schedule earlier"
            )
        self.prediction, self.first_timestep = prediction, first_timestep
        self.precondition = precondition and prediction == "x0"
        self.discrete_pixels = discrete_pixels and prediction == "x0"
        self.value_prior = torch.full((256,), -math.log(256), dtype=torch.float64)
        self.loss, self.learn_variance = loss, learn_variance
        self.alpha = F.pad(alphas, (1, 0), value=1.0)
        self.alpha_bar = self.alpha.cumprod(0)
        self.signal, self.sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        self.loss_weight = LOSSES[loss](self)
        bad = (~self.loss_weight[first_timestep:].isfinite()).nonzero()
        if len(bad):
            raise ValueError(
                f"--loss {loss} has no finite weight at t = {first_timestep + int(bad[0])}: the "
                "schedule changes too little there, or too much; use other alphas or another loss"
            )
        self.density = timestep_density(self, loss)
        self.step = single_steps(self)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.signal.device

    def to(self, device: torch.device | str) -> Self:
        """Move the tables, in float32 where the device has no float64; returns itself."""
        for name in TABLES:
            table = getattr(self, name)
            setattr(self, name, table.to(real_dtype(device)).to(device))
        return self

    @property
    def stored_value_prior(self) -> Tensor | None:
        """Of discrete pixels, what a checkpoint holds: log of how often each value occurs."""
        return self.value_prior.cpu().double() if self.discrete_pixels else None

    def count_trained(self, t: int) -> int:
        """The number of timesteps first_timestep ... t: the most steps from x_t to x_0."""
        return t - self.first_timestep + 1

    def snr(self, t: Time) -> Tensor:
        """alpha_bar / (1 - alpha_bar), the signal-to-noise ratio; infinite at t = 0."""
        return self.alpha_bar[t] / (1 - self.alpha_bar[t])

    # The forward process.

    def q_sample(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) (Eq. 4)."""
        signal, sigma = self.scales(t, x_0)
        return signal * x_0 + sigma * noise

    def scales(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped and cast to meet an image batch."""
        return expand(self.signal[t], like), expand(self.sigma[t], like)

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Time, s: Time) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x_0), any s < t (Eqs. 6-7, where s = t - 1).

        At the network's estimate of x_0 the mean is mu_theta, the mean of p(x_s | x_t). t and s are
        numbers, or on the CPU.
        """
        alpha = self.alpha_bar[t] / self.alpha_bar[s]
        of_x_t = alpha.sqrt() * (1 - self.alpha_bar[s]) / (1 - self.alpha_bar[t])
        mean = expand(of_x_t, x_t) * x_t + expand(self.weight_of_x0(t, s), x_t) * x_0
        return mean, expand(self.posterior_variance(t, s), x_t)

    def weight_of_x0(self, t: Time, s: Time) -> Tensor:
        """The coefficient of x_0 in the posterior's mean (Eq. 7); 1 at s = 0."""
        return self.alpha_bar[s].sqrt() * self.step_variance(t, s) / (1 - self.alpha_bar[t])

    def posterior_variance(self, t: Time, s: Time) -> Tensor:
        """sigma^2 (Eq. 7): (1 - alpha)(1 - alpha_bar_s) / (1 - alpha_bar_t); 0 at s = 0."""
        return self.step_variance(t, s) * (1 - self.alpha_bar[s]) / (1 - self.alpha_bar[t])

    def step_variance(self, t: Time, s: Time) -> Tensor:
        """beta of the jump, the variance of q(x_t | x_s): 1 - alpha_bar_t / alpha_bar_s."""
        return 1 - self.alpha_bar[t] / self.alpha_bar[s]

    # Parameterizations. With a, b = sqrt(alpha_bar), sqrt(1 - alpha_bar): x_t = a x_0 + b eps.

    def target(self, x_0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """The regression target at x_t = q_sample(x_0, t, noise): x_0, eps or v."""
        if self.prediction == "x0":
            return x_0
        if self.prediction == "eps":
            return noise
        a, b = self.scales(t, x_0)
        return a * noise - b * x_0

    def predict(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The estimate of ``target``, from the network's output."""
        located = self.locate(output, x_t, t)
        return self.round_x0(located, t) if self.discrete_pixels else located

    def locate(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``predict``, but for the values that a pixel can have."""
        return self.precondition_x0(output, x_t, t) if self.precondition else output

    def round_x0(self, located: Tensor, t: Time) -> Tensor:
        """The posterior mean of x_0 among the 256 values, with the gradient of the identity.

        The squared error then has the gradient of a convex loss of ``located``, the one that
        matches this link function: where a pixel is surely black, the network need not say exactly
        -1, but anything below, and errors smaller than the distance of two values cost nothing.
        """
        a, b = self.scales(t, located)
        mean = pixel_mean(located.detach(), b / a, self.value_prior)
        return located + (mean - located).detach() if located.requires_grad else mean

    def precondition_x0(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """c_skip x_t + c_out F (Karras et al. 2022, Eq. 7), with a x_t + b F.

        At small t, x_0 is close to x_t, and the bound weights errors by the SNR; so F predicts the
        difference in units of the noise, a target of about unit variance.
        """
        a, b = self.scales(t, x_t)
        return a * x_t + b * output

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """x̂_θ(x_t, t), the estimate of x_0, from the network's output."""
        return self.solve_x0(self.predict(output, x_t, t), x_t, t)

    def solve_x0(self, prediction: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """x_0 from ``target`` or its estimate."""
        if self.prediction == "x0":
            return prediction
        a, b = self.scales(t, x_t)
        return (x_t - b * prediction) / a if self.prediction == "eps" else a * x_t - b * prediction

    def denoise(self, model: Model, x_t: Tensor, t: Time, clip: bool) -> Tensor:
        """x̂_θ(x_t, t) by evaluating the network, (B, C, H, W); clip: to [-1, 1]."""
        return self.estimate(model, x_t, t, clip).x_0

    def estimate(self, model: Model, x_t: Tensor, t: Time, clip: bool) -> Estimate:
        """``denoise``, and what the network says of the variance."""
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        output, v = self.split(model(x_t, times).to(x_t.dtype))  # from bfloat16
        located = self.locate(output, x_t, t)
        if self.discrete_pixels:
            return Estimate(self.round_x0(located, t), v, located)
        x_0 = self.solve_x0(located, x_t, t)
        return Estimate(x_0.clamp(-1, 1) if clip else x_0, v)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output (B, 2 C, H, W): its prediction, and v of the learned variance.

        Without a learned variance the output (B, C, H, W) is the prediction alone.
        """
        return output.chunk(2, dim=1) if self.learn_variance else (output, None)

    def learned_variance(self, v: Tensor, t: Time, s: Time) -> Tensor:
        """sigma^2 of p(x_s | x_t) of each pixel; see ``interpolate_variance``. t, s on the CPU."""
        low = torch.as_tensor(self.posterior_variance(t, s)).clamp(min=MIN_VARIANCE)
        return interpolate_variance(v, low.log(), torch.as_tensor(self.step_variance(t, s)).log())

    def predict_noise(self, x_0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The noise in x_t if the clean image is x_0 (Eq. 4 solved for eps)."""
        a, b = self.scales(t, x_t)
        return (x_t - a * x_0) / b

    # Training.

    def losses(self, model: Model, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Algorithm 1, line 5: the loss of each image, mean over pixels, (B,).

        The weighted squared error; with a learned variance the bound's term in its place (L_vlb),
        or, unless the loss is "kl", beside it (L_hybrid), where it trains the variance alone.
        """
        x_t = self.q_sample(x_0, t, noise)
        output, v = self.split(model(x_t, t).to(x_0.dtype))  # from bfloat16
        prediction = self.predict(output, x_t, t)
        if v is not None and self.loss == "kl":
            return self.bound_terms(x_0, t, Estimate(self.solve_x0(prediction, x_t, t), v))
        error = (prediction - self.target(x_0, noise, t)).square().flatten(1).mean(1)
        losses = self.loss_weight[t].to(error.dtype) * error
        if v is None:
            return losses
        fixed = Estimate(self.solve_x0(prediction.detach(), x_t, t), v)
        return losses + VLB_WEIGHT * self.timesteps * self.bound_terms(x_0, t, fixed)

    def bound_terms(self, x_0: Tensor, t: Tensor, estimate: Estimate) -> Tensor:
        """The bound's term at t (B,) with the learned variance, in nats per dimension, (B,).

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at the first t, -log p(x_0 | x_t).
        """
        low, high, of_x_0 = self.step[:, t]
        sigma2 = interpolate_variance(estimate.v, low, high)
        ratio = expand(low.exp(), x_0) / sigma2
        of_means = (expand(of_x_0, x_0) * (x_0 - estimate.x_0)).square() / sigma2
        kl = (ratio - 1 - ratio.log() + of_means) / 2
        nll = discretised_nll(x_0, estimate.x_0, sigma2).to(kl.dtype)
        first = (t == self.first_timestep).view(-1, *[1] * (x_0.ndim - 1))
        return torch.where(first, nll, kl).flatten(1).mean(1)

    def sample_timesteps(
        self, batch_size: int, generator: Generator, density: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Timesteps first_timestep ... T, (B,) int64, and their importance weights (B,) float32.

        density: the probability of each t, (T + 1,); None: ``timestep_density``. E over t of
        (weight * loss) is the mean of the loss over all t, whatever it is (Nichol & Dhariwal 2021,
        Eq. 18). Low-discrepancy: image j has its t from the j-th of B equally likely intervals, all
        at one random offset (Kingma et al. 2021, App. I.1). So the images must come in random
        order.
        """
        density = self.density if density is None else density
        offset = torch.rand((), device=self.device, generator=generator, dtype=density.dtype)
        u = (torch.arange(batch_size, device=self.device) + offset) / batch_size  # in [0, 1)
        t = torch.searchsorted(density.cumsum(0), u, right=True).clamp(max=self.timesteps)
        return t, (1 / (self.count_trained(self.timesteps) * density[t])).float()


def timestep_density(diffusion: GaussianDiffusion, loss: str) -> Tensor:
    """The probability of each t in training, (T + 1,): uniform, except for the bound.

    The terms of the bound differ greatly in size. Half of its samples are drawn in proportion to
    the drop of log(1 + SNR), which approximates the term of a trained network at t.
    """
    t = torch.arange(1, diffusion.timesteps + 1)
    trained = (t >= diffusion.first_timestep).double()
    density = trained / trained.sum()
    if loss == "kl":
        nats = -(1 - diffusion.alpha_bar[1:]).log()  # log(1 + SNR)
        drop = F.pad(nats[:-1] - nats[1:], (1, 0))
        drop[0] = drop[1]  # at t = 1 the drop is infinite
        density = (density + trained * drop / (trained * drop).sum()) / 2
    return F.pad(density, (1, 0))


def single_steps(diffusion: GaussianDiffusion) -> Tensor:
    """Of the step t -> t - 1, from the first t to 0: log sigma^2, log beta, the weight of x_0.

    (3, T + 1); sigma^2 is that of the posterior, at least MIN_VARIANCE. Computed here in float64,
    as differences of alpha_bar lose all their digits in float32.
    """
    t = torch.arange(1, diffusion.timesteps + 1)
    s = torch.where(t == diffusion.first_timestep, 0, t - 1)
    low = diffusion.posterior_variance(t, s).clamp(min=MIN_VARIANCE).log()
    rows = torch.stack([low, diffusion.step_variance(t, s).log(), diffusion.weight_of_x0(t, s)])
    return F.pad(rows, (1, 0))


def interpolate_variance(v: Tensor, log_low: Tensor, log_high: Tensor) -> Tensor:
    """exp(u log beta + (1 - u) log sigma^2), u = (v + 1) / 2 (Nichol & Dhariwal 2021, Eq. 15).

    v (B, C, H, W); of the posterior's and of beta, one value or (B,). At s = 0 the posterior has no
    width: there it is between MIN_VARIANCE and beta.
    """
    low, high = (expand(log, v).expand_as(v) for log in (log_low, log_high))
    return torch.lerp(low, high, (v + 1) / 2).exp()


def make_diffusion(
    schedule: str,
    timesteps: int,
    alphas: Sequence[float],
    prediction: str,
    precondition: bool,
    loss: str,
    first_timestep: int,
    log_snr: Sequence[float] = (),
    zero_terminal: bool = False,
    discrete_pixels: bool = False,
    learn_variance: bool = False,
) -> GaussianDiffusion:
    """The process of a configuration. Raises ValueError as make_alphas and the process do."""
    hand_set = make_alphas(schedule, timesteps, alphas, log_snr, zero_terminal)
    options = {"discrete_pixels": discrete_pixels, "learn_variance": learn_variance}
    return GaussianDiffusion(hand_set, prediction, precondition, loss, first_timestep, **options)


def expand(values: Tensor, like: Tensor) -> Tensor:
    """One value, or one per image (B,) as (B, 1, ..., 1), in the dtype of ``like``.

    One value meets images of any device. One per pixel stays as it is.
    """
    values = values.to(like.dtype)
    if values.ndim == like.ndim:
        return values
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1)) if values.ndim else values


# Losses differ only in their weight on t. Each function returns it for the squared error of the
# parameterization, (T + 1,); the entry at t = 0 is never used.


def simple(diffusion: GaussianDiffusion) -> Tensor:
    """No weight: Eq. 14, where the network predicts the noise."""
    return torch.ones_like(diffusion.alpha_bar)


def kl(diffusion: GaussianDiffusion) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = |mu - mu_hat|^2 / (2 sigma^2(t)) (Eqs. 5, 8).

    The means differ by their coefficient of x_0. At t = 1 the posterior has no width, and
    sigma^2(2) stands in, as in Ho et al.'s code.
    """
    t = torch.arange(1, diffusion.timesteps + 1)
    sigma2 = diffusion.posterior_variance(t, t - 1)
    sigma2[0] = sigma2[1]
    of_x_0 = diffusion.weight_of_x0(t, t - 1)
    return F.pad(of_x_0**2 / (2 * sigma2), (1, 0)) / output_scale(diffusion)


def min_snr(diffusion: GaussianDiffusion) -> Tensor:
    """min(SNR, 5) on the error of x_0 (Hang et al. 2023, Eq. 8)."""
    t = torch.arange(1, diffusion.timesteps + 1)
    weight = diffusion.snr(t).clamp(max=MIN_SNR_GAMMA)
    return F.pad(weight, (1, 0)) / output_scale(diffusion)


def output_scale(diffusion: GaussianDiffusion) -> Tensor:
    """Squared error of the parameterization per that of x_0: x0 1, eps SNR, v SNR + 1."""
    t = torch.arange(1, diffusion.timesteps + 1)
    snr = F.pad(diffusion.snr(t), (1, 0), value=1.0)
    return {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[diffusion.prediction]


LOSSES: dict[str, Callable[[GaussianDiffusion], Tensor]] = {
    "kl": kl,
    "simple": simple,
    "min-snr": min_snr,
}
