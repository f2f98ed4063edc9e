"""The diffusion process and its samplers; independent of architecture, data and configuration."""

from diffusion.classify import classify_images
from diffusion.gaussian import PREDICTIONS, GaussianDiffusion, make_diffusion
from diffusion.generate import DiffusionModel, evenly_spaced, generate, generate_with_progress
from diffusion.grids import SPACINGS, uniform_grid
from diffusion.guidance import guided
from diffusion.held_out import HeldOut, held_out_losses, repeated
from diffusion.importance import LossMoments
from diffusion.likelihood import Bound, Denoiser, bounds, x0_errors
from diffusion.losses import LOSSES
from diffusion.pixels import value_prior
from diffusion.samplers import SAMPLERS, last, options_of
from diffusion.sampling import Sampler
from diffusion.schedules import SCHEDULES, make_alphas
from diffusion.variance import VARIANCES

__all__ = [
    "LOSSES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "VARIANCES",
    "Bound",
    "Denoiser",
    "DiffusionModel",
    "GaussianDiffusion",
    "HeldOut",
    "LossMoments",
    "Sampler",
    "bounds",
    "classify_images",
    "evenly_spaced",
    "generate",
    "generate_with_progress",
    "guided",
    "held_out_losses",
    "last",
    "make_alphas",
    "make_diffusion",
    "options_of",
    "repeated",
    "uniform_grid",
    "value_prior",
    "x0_errors",
]
