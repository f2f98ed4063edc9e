"""The diffusion process and its samplers; they know nothing of networks, data or configuration."""

from diffusion.gaussian import LOSSES, PREDICTIONS, GaussianDiffusion, make_diffusion
from diffusion.held_out import HeldOut, held_out_losses
from diffusion.likelihood import DRAWS, Bound, bounds, last_variances, x0_errors
from diffusion.samplers import SAMPLERS, VARIANCES, guided, last, make_sampler, options_of
from diffusion.schedules import SCHEDULES, make_alphas

# The names that the settings of a process and its sampler can take.
NAMES = {
    "schedule": [*SCHEDULES, "manual"],
    "prediction": PREDICTIONS,
    "loss": LOSSES,
    "sampler": SAMPLERS,
    "variance": VARIANCES,
}

__all__ = [
    "DRAWS",
    "LOSSES",
    "NAMES",
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
