"""How well the network knows the test images: its loss by band of t, and the bound of its chain."""

import math
from typing import Any

from torch import Tensor

from diffusion import DRAWS, HeldOut, bounds, guided, held_out_losses, last_variances, x0_errors
from judge import Subject, normalize
from utils.tables import show

GRID, BANDS = 5_000, 10  # points of the held-out loss, bands of t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images that the optimal variance is fitted to
FITTED = 256  # training images that its last variance is fitted to


def held_out(subject: Subject) -> dict[str, dict[str, float]]:
    """The training loss on a fixed grid of (test image, t, noise), by band of t."""
    some = subject.test[:GRID]
    grid = HeldOut.of(normalize(some.images), some.labels, subject.diffusion)
    losses = held_out_losses(subject.model, subject.diffusion, grid).double()
    bands, rows = min(BANDS, max(1, len(some) // 2)), {}
    for part, t in zip(losses.tensor_split(bands), grid.t.tensor_split(bands), strict=True):
        rows[f"t = {t[0]} ... {t[-1]}"] = mean_and_error(part)
    rows["all"] = mean_and_error(losses)
    show(f"Held-out loss ({subject.config.diffusion.loss}) of {len(some)} test images", rows)
    return rows


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Of independent losses (N,), and the standard error of the mean."""
    return {"loss": values.mean().item(), "se": (values.std() / math.sqrt(len(values))).item()}


def measure_errors(subject: Subject) -> None:
    """For a checkpoint that lacks the errors of its network, or has those of the other --clip.

    As in training they are those without guidance: the optimal variance is exact there alone.
    """
    x_0, y = normalize(subject.train[:ERRORS].images), subject.train[:ERRORS].labels
    clip = subject.config.sample.clip
    subject.diffusion.x0_error = x0_errors(subject.model, subject.diffusion, x_0, y, clip)


def bits(subject: Subject) -> dict[str, Any]:
    """The bound of all T steps, and of as many as are sampled, for every variance."""
    c, diffusion, flags = subject.config, subject.diffusion, subject.flags
    null, scale, clip = c.model.num_classes, c.sample.guidance, c.sample.clip

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return guided(subject.model, y if null else None, null, scale, c.guided_times)(x, t)

    some, fitted = subject.test[:BITS], subject.train[:FITTED]
    every = diffusion.timesteps - diffusion.first_timestep + 1
    found = {}
    for steps in sorted({every, c.sample.steps}, reverse=True):
        last = last_variances(
            model, diffusion, normalize(fitted.images), fitted.labels, steps, clip
        )
        draws = every if flags.all_terms else DRAWS
        x_0, y = normalize(some.images), some.labels
        parts = bounds(model, diffusion, x_0, y, steps, last, draws, clip)
        found[f"{steps} steps"] = {name: bound.summary() for name, bound in parts.items()}
        title = f"Bits per dimension of {len(some)} test images, ancestral chain of {steps} steps"
        show(title, found[f"{steps} steps"])
    if c.sample.sampler != "ddpm":
        print(f"{c.sample.sampler} has no bound; these are of ddpm's chain")
    return found
