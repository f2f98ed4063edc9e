"""The diffusion process and its samplers; independent of architecture, data and configuration."""

from diffusion.gaussian import LOSSES, PREDICTIONS, GaussianDiffusion, make_diffusion
from diffusion.generate import DiffusionModel, generate, spread
from diffusion.importance import LossMoments
from diffusion.likelihood import Bound, Denoiser, bounds, x0_errors
from diffusion.pixels import value_prior
from diffusion.samplers import SAMPLERS, VARIANCES, Sampler, guided, last, options_of, uniform_grid
from diffusion.schedules import SCHEDULES, make_alphas
from diffusion.validation import HeldOut, held_out_losses, repeated

__all__ = [
    "LOSSES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "VARIANCES",
    "Bound",
    "Denoiser",
    "DiffusionModel",
    "GaussianDiffusion",
    "HeldOut",
    "LossMoments",
    "Sampler",
    "bounds",
    "generate",
    "guided",
    "held_out_losses",
    "last",
    "make_alphas",
    "make_diffusion",
    "options_of",
    "repeated",
    "spread",
    "uniform_grid",
    "value_prior",
    "x0_errors",
]
