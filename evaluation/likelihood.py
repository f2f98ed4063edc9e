"""Likelihood of test images: the held-out loss by band of t, and bits per dimension."""

import math

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
from diffusion.likelihood import TERMS, evaluations
from evaluation.coders import coded_bits
from evaluation.features import LabeledImages
from evaluation.tables import Row, show
from utils.devices import double
from utils.progress import Progress

POINTS, BANDS = 5_000, 10  # points of the held-out loss, bands of t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images from which the optimal variance is measured
BY_BAND, CODERS = "by t and kind of pixel", "lossless coders"  # in metrics.json
FITTED = 256  # training images to which the decoder's variance is fitted


def held_out_loss(model: DiffusionModel, test: LabeledImages, loss: str) -> dict[str, Row]:
    """The training loss at fixed points (test image, t, noise), by band of t.

    Without standard errors where images are repeated: their losses are not independent.
    """
    images = test[:POINTS]
    points = HeldOut.of(images.x_0, images.labels, model.diffusion)
    with Progress("held-out loss", len(points.t), "images") as progress:
        found = held_out_losses(model.network, model.diffusion, points, progress.update)
    losses = double(found)
    summary = mean if len(losses) > len(images) else mean_and_error
    bands, rows = min(BANDS, max(1, len(losses) // 2)), {}
    for part, t in zip(losses.tensor_split(bands), points.t.tensor_split(bands), strict=True):
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


def measured_x0_error(model: DiffusionModel, train: LabeledImages, clip: bool) -> Tensor:
    """The errors of x_0 that --variance optimal needs, (T + 1,).

    Without guidance: the optimal variance is exact there alone.
    """
    images = train[:ERRORS]
    with Progress("errors of x_0", len(images), "images") as progress:
        denoiser = Denoiser(model.network, model.diffusion, clip, progress=progress.update)
        return x0_errors(denoiser, (images.x_0, images.labels))


def bits_per_dim(
    model: DiffusionModel,
    sampler: Sampler,
    train: LabeledImages,
    test: LabeledImages,
    all_terms: bool,
) -> dict[str, dict[str, Row]]:
    """The bound of all T steps, and of the sampler's number of steps, for every variance.

    That of all T steps and the sampler's variance also by band of t and kind of pixel, beside the
    code lengths of the same images by lossless coders. all_terms: evaluate every KL term of every
    image, instead of an importance sample.
    """
    diffusion = model.diffusion

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = y if model.num_classes else None
        return sampler.guide(model.network, labels, model.num_classes, diffusion)(x, t)

    images, fitted = ((part.x_0, part.labels) for part in (test[:BITS], train[:FITTED]))
    count, every = len(images[0]), diffusion.count_trained(diffusion.timesteps)
    found, more = {}, {}
    for steps in sorted({every, sampler.steps}, reverse=True):
        terms = every if all_terms else TERMS
        of_decoder = 0 if diffusion.discrete_pixels else len(fitted[0])
        total = evaluations(count, of_decoder, steps, terms)
        with Progress("bits per dimension", total, "evaluations") as progress:
            shown = progress.update
            denoiser = Denoiser(network, diffusion, sampler.clip, model.x0_error, shown)
            parts = bounds(denoiser, images, fitted, steps, terms)
        found[f"{steps} steps"] = {name: bound.summary() for name, bound in parts.items()}
        title = f"Bits per dimension of {count} test images, ancestral chain of {steps} steps"
        show(title, found[f"{steps} steps"])
        if steps == every:
            name = sampler.variance if sampler.sampler == "ddpm" else "posterior"
            more[BY_BAND] = parts[name].table(BANDS)
            title = f"Of these with the {name} variance, of pixels at -1 or 1 and of the others"
            show(title, more[BY_BAND])
    if sampler.sampler != "ddpm":
        print(f"{sampler.sampler} has no bound; these are of ddpm's chain")
    if sampler.spacing != "t" or sampler.restart:
        print("these are of a chain even in t, without restarts")
    more[CODERS] = coded_bits(train.images.cpu(), test.images[:BITS].cpu())
    show(f"Bits per dimension of the same {count} images by lossless coders", more[CODERS])
    return found | more
