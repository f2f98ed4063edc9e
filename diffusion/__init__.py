"""The diffusion process and its samplers; they know nothing of networks, data or configuration."""

from diffusion.gaussian import LOSSES, PREDICTIONS, GaussianDiffusion, make_diffusion
from diffusion.samplers import SAMPLERS, VARIANCES, guided, last, make_sampler, options_of
from diffusion.schedules import SCHEDULES, make_alphas

__all__ = [
    "LOSSES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "VARIANCES",
    "GaussianDiffusion",
    "guided",
    "last",
    "make_alphas",
    "make_diffusion",
    "make_sampler",
    "options_of",
]
