"""Likelihood of test images: the held-out loss by band of t, and bits per dimension."""

import math

from torch import Tensor

from diffusion import (
    DiffusionModel,
    HeldOut,
    Sampler,
    bounds,
    held_out_losses,
    last_variances,
    x0_errors,
)
from diffusion.likelihood import TERMS
from evaluation.features import LabeledImages
from evaluation.tables import Row, show

GRID, BANDS = 5_000, 10  # points of the held-out loss, bands of t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images from which the optimal variance is measured
FITTED = 256  # training images to which the decoder's variance is fitted


def held_out(model: DiffusionModel, test: LabeledImages, loss: str) -> dict[str, Row]:
    """The training loss on a fixed grid of (test image, t, noise), by band of t.

    Without standard errors where the grid repeats images: their losses are not independent.
    """
    images = test[:GRID]
    grid = HeldOut.of(images.x_0, images.labels, model.diffusion)
    losses = held_out_losses(model.network, model.diffusion, grid).double()
    summary = mean if len(losses) > len(images) else mean_and_error
    bands, rows = min(BANDS, max(1, len(losses) // 2)), {}
    for part, t in zip(losses.tensor_split(bands), grid.t.tensor_split(bands), strict=True):
        rows[f"t = {t[0]} ... {t[-1]}"] = summary(part)
    rows["all"] = summary(losses)
    show(f"Held-out loss ({loss}) of {len(images)} test images", rows)
    return rows


def mean(losses: Tensor) -> Row:
    """Of losses (N,)."""
    return {"loss": losses.mean().item()}


def mean_and_error(losses: Tensor) -> Row:
    """Of independent losses (N,), with the standard error of the mean, which one loss lacks."""
    n = len(losses)
    return mean(losses) | ({"se": (losses.std() / math.sqrt(n)).item()} if n > 1 else {})


def measure_x0_errors(model: DiffusionModel, train: LabeledImages, clip: bool) -> None:
    """Set the errors of x_0 that --variance optimal needs.

    Without guidance: the optimal variance is exact there alone.
    """
    images = train[:ERRORS]
    model.diffusion.x0_error = x0_errors(
        model.network, model.diffusion, images.x_0, images.labels, clip
    )


def bits_per_dim(
    model: DiffusionModel,
    sampler: Sampler,
    train: LabeledImages,
    test: LabeledImages,
    all_terms: bool,
) -> dict[str, dict[str, Row]]:
    """The bound of all T steps, and of the sampler's number of steps, for every variance.

    all_terms: evaluate every KL term of every image, instead of an importance sample.
    """
    diffusion, clip = model.diffusion, sampler.clip

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = y if model.num_classes else None
        return sampler.guide(model.network, labels, model.num_classes, diffusion)(x, t)

    images, fitted = test[:BITS], train[:FITTED]
    every = diffusion.timesteps - diffusion.first_timestep + 1
    found = {}
    for steps in sorted({every, sampler.steps}, reverse=True):
        last = last_variances(network, diffusion, fitted.x_0, fitted.labels, steps, clip)
        terms = every if all_terms else TERMS
        parts = bounds(network, diffusion, images.x_0, images.labels, steps, last, terms, clip)
        found[f"{steps} steps"] = {name: bound.summary() for name, bound in parts.items()}
        title = f"Bits per dimension of {len(images)} test images, ancestral chain of {steps} steps"
        show(title, found[f"{steps} steps"])
    if sampler.sampler != "ddpm":
        print(f"{sampler.sampler} has no bound; these are of ddpm's chain")
    return found
