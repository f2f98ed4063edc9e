"""Likelihood of test images: the held-out loss by band of t, and bits per dimension."""

import math

import torch
from torch import Tensor

from diffusion import (
    Denoiser,
    DiffusionModel,
    HeldOut,
    Sampler,
    bounds,
    held_out_losses,
    x0_errors,
)
from diffusion.likelihood import TERMS
from evaluation.features import LabeledImages
from evaluation.tables import Row, show

POINTS, BANDS = 5_000, 10  # points of the held-out loss at most, bands of t
LEAST = 100  # points at least: fewer images are repeated, each time at another t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images from which the optimal variance is measured
FITTED = 256  # training images to which the decoder's variance is fitted


def held_out(model: DiffusionModel, test: LabeledImages, loss: str) -> dict[str, Row]:
    """The training loss at fixed points (test image, t, noise), by band of t.

    With its standard errors, unless images are repeated: their losses are not independent.
    """
    count = min(max(len(test), LEAST), POINTS)
    images = test[torch.arange(count) % len(test)]
    points = HeldOut.of(images.x_0, images.labels, model.diffusion)
    losses = held_out_losses(model.network, model.diffusion, points).double()
    summary = mean if count > len(test) else mean_and_error
    rows = {
        f"t = {t[0]} ... {t[-1]}": summary(part)
        for part, t in zip(losses.tensor_split(BANDS), points.t.tensor_split(BANDS), strict=True)
    }
    rows["all"] = summary(losses)
    show(f"Held-out loss ({loss}) of {min(len(test), POINTS)} test images", rows)
    return rows


def mean(values: Tensor) -> Row:
    """Of losses (N,)."""
    return {"loss": values.mean().item()}


def mean_and_error(values: Tensor) -> Row:
    """Of independent losses (N,), with the standard error of the mean; N is at least 2."""
    return mean(values) | {"se": (values.std() / math.sqrt(len(values))).item()}


def measured_x0_error(model: DiffusionModel, train: LabeledImages, clip: bool) -> Tensor:
    """The errors of x_0 that --variance optimal needs, (T + 1,).

    Without guidance: the optimal variance is exact there alone.
    """
    images = train[:ERRORS]
    return x0_errors(Denoiser(model.network, model.diffusion, clip), (images.x_0, images.labels))


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
    diffusion = model.diffusion

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = y if model.num_classes else None
        return sampler.guide(model.network, labels, model.num_classes, diffusion)(x, t)

    denoiser = Denoiser(network, diffusion, sampler.clip, model.x0_error)
    images, fitted = ((part.x_0, part.labels) for part in (test[:BITS], train[:FITTED]))
    count, every = len(images[0]), diffusion.count_trained(diffusion.timesteps)
    found = {}
    for steps in sorted({every, sampler.steps}, reverse=True):
        parts = bounds(denoiser, images, fitted, steps, every if all_terms else TERMS)
        found[f"{steps} steps"] = {name: bound.summary() for name, bound in parts.items()}
        title = f"Bits per dimension of {count} test images, ancestral chain of {steps} steps"
        show(title, found[f"{steps} steps"])
    if sampler.sampler != "ddpm":
        print(f"{sampler.sampler} has no bound; these are of ddpm's chain")
    return found
