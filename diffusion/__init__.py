"""The diffusion process and its samplers; they know nothing of networks, data or configuration."""

from diffusion.gaussian import LOSSES, PREDICTIONS, GaussianDiffusion, make_diffusion
from diffusion.held_out import HeldOut, held_out_losses
from diffusion.likelihood import DRAWS, Bound, bounds, last_variances, x0_errors
from diffusion.samplers import SAMPLERS, VARIANCES, guided, last, make_sampler, options_of
from diffusion.schedules import SCHEDULES, make_alphas

__all__ = [
    "DRAWS",
    "LOSSES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "VARIANCES",
    "Bound",
    "GaussianDiffusion",
    "HeldOut",
    "bounds",
    "guided",
    "held_out_losses",
    "last",
    "last_variances",
    "make_alphas",
    "make_diffusion",
    "make_sampler",
    "options_of",
    "x0_errors",
]
