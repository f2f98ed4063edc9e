"""The forward process q, its posterior, the parameterizations (Ho et al. 2020, Secs. 2-3).

t = 1 ... T as the paper counts, t = 0 is the clean image: every array has T + 1 entries, and
``alpha_bar[0] == 1``. Coefficients are float64, on the CPU, and cast where they meet an image.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from diffusion.losses import LOSSES, bound_terms, timestep_density
from diffusion.pixels import pixel_mean
from diffusion.schedules import make_alphas
from diffusion.tensors import Model, Time, expand
from diffusion.variance import single_steps
from utils.devices import real_dtype

TABLES = ("signal", "sigma", "loss_weight", "density", "step", "value_prior")  # on the device

PREDICTIONS = ("x0", "eps", "v")
LEAST_SIGNAL = 1e-10  # alpha_bar_T from which eps can be learnt: x_0 = (x_T - b eps) / a
VLB_WEIGHT = 1e-3  # of the bound in L_hybrid (Nichol & Dhariwal 2021, Sec. 3.1)


class Estimate(NamedTuple):
    """The network's estimate of x_0 from x_t, x̂_θ(x_t, t); (B, C, H, W) each.

    v: the network's variance output, where it learns one, see variance.interpolate_variance.
    continuous: of discrete pixels, the estimate before the posterior mean over pixel values.
    """

    x_0: Tensor
    v: Tensor | None = None
    continuous: Tensor | None = None


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

    def renoise(self, x_t: Tensor, t: int, s: int, noise: Tensor) -> Tensor:
        """x_s ~ q(x_s | x_t) for any s > t (Eq. 2, where s = t + 1): the process goes on from t."""
        beta = self.step_variance(s, t)
        return expand((1 - beta).sqrt(), x_t) * x_t + expand(beta.sqrt(), x_t) * noise

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
        continuous = self.predict_continuous(output, x_t, t)
        return self.round_x0(continuous, t) if self.discrete_pixels else continuous

    def predict_continuous(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``predict`` before ``round_x0``: the same, but of discrete pixels."""
        return self.precondition_x0(output, x_t, t) if self.precondition else output

    def round_x0(self, continuous: Tensor, t: Time) -> Tensor:
        """The posterior mean of x_0 among the 256 values, with the gradient of the identity.

        The squared error then has the gradient of a convex loss of ``continuous``, the one that
        matches this link function: where a pixel is surely black, the network need not say exactly
        -1, but anything below, and errors smaller than the distance of two values cost nothing.
        """
        a, b = self.scales(t, continuous)
        mean = pixel_mean(continuous.detach(), b / a, self.value_prior)
        return continuous + (mean - continuous).detach() if continuous.requires_grad else mean

    def precondition_x0(self, output: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """c_skip x_t + c_out F (Karras et al. 2022, Eq. 7), with a x_t + b F.

        At small t, x_0 is close to x_t, and the bound weights errors by the SNR; so F predicts the
        difference in units of the noise, a target of about unit variance.
        """
        a, b = self.scales(t, x_t)
        return a * x_t + b * output

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
        """``denoise``, with the network's variance output."""
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        output, v = self.split(model(x_t, times).to(x_t.dtype))  # from bfloat16
        continuous = self.predict_continuous(output, x_t, t)
        if self.discrete_pixels:
            return Estimate(self.round_x0(continuous, t), v, continuous)
        x_0 = self.solve_x0(continuous, x_t, t)
        return Estimate(x_0.clamp(-1, 1) if clip else x_0, v)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output (B, 2 C, H, W): its prediction, and v of the learned variance.

        Without a learned variance the output (B, C, H, W) is the prediction alone.
        """
        return output.chunk(2, dim=1) if self.learn_variance else (output, None)

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
            return bound_terms(self, x_0, t, self.solve_x0(prediction, x_t, t), v)
        error = (prediction - self.target(x_0, noise, t)).square().flatten(1).mean(1)
        losses = self.loss_weight[t].to(error.dtype) * error
        if v is None:
            return losses
        fixed = self.solve_x0(prediction.detach(), x_t, t)
        return losses + VLB_WEIGHT * self.timesteps * bound_terms(self, x_0, t, fixed, v)

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


def make_diffusion(
    schedule: str,
    timesteps: int,
    alphas: Sequence[float] = (),
    prediction: str = "v",
    precondition: bool = False,
    loss: str = "simple",
    first_timestep: int = 1,
    log_snr: Sequence[float] = (),
    zero_terminal: bool = False,
    discrete_pixels: bool = False,
    learn_variance: bool = False,
) -> GaussianDiffusion:
    """The process of a named schedule, or with "manual" of hand-set alphas.

    Arguments: see make_alphas and GaussianDiffusion, whose ValueErrors it raises.
    """
    hand_set = make_alphas(schedule, timesteps, alphas, log_snr, zero_terminal)
    options = {"discrete_pixels": discrete_pixels, "learn_variance": learn_variance}
    return GaussianDiffusion(hand_set, prediction, precondition, loss, first_timestep, **options)
