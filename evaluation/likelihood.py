"""Likelihood of test images: the held-out loss by band of t, and bits per dimension."""

import math

import torch
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

GRID, BANDS = 5_000, 10  # points of the held-out loss at most, bands of t
LEAST = 100  # points at least: fewer images are repeated, each time at another t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images from which the optimal variance is measured
FITTED = 256  # training images to which the decoder's variance is fitted


def held_out(model: DiffusionModel, test: LabeledImages, loss: str) -> dict[str, Row]:
    """The training loss on a fixed grid of (test image, t, noise), by band of t.

    With its standard errors, unless images are repeated: their losses are not independent.
    """
    points = min(max(len(test), LEAST), GRID)
    images = test[torch.arange(points) % len(test)]
    grid = HeldOut.of(images.x_0, images.labels, model.diffusion)
    losses = held_out_losses(model.network, model.diffusion, grid).double()
    summary = mean if points > len(test) else mean_and_error
    rows = {
        f"t = {t[0]} ... {t[-1]}": summary(part)
        for part, t in zip(losses.tensor_split(BANDS), grid.t.tensor_split(BANDS), strict=True)
    }
    rows["all"] = summary(losses)
    show(f"Held-out loss ({loss}) of {min(len(test), GRID)} test images", rows)
    return rows


def mean(values: Tensor) -> Row:
    """Of losses (N,)."""
    return {"loss": values.mean().item()}


def mean_and_error(values: Tensor) -> Row:
    """Of independent losses (N,), with the standard error of the mean; N is at least 2."""
    return mean(values) | {"se": (values.std() / math.sqrt(len(values))).item()}


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
