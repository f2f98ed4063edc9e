"""Sampling with a trained network: images by index, from keyed noise, in batches."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.samplers import Sampler, uniform_grid
from diffusion.tensors import LabeledModel
from utils.errors import StoppedError
from utils.progress import Progress
from utils.seeding import image_noise


@dataclass(frozen=True)
class DiffusionModel:
    """A denoising network with its process.

    network(x_t, t, y) predicts in the parameterization of ``diffusion``. image_shape: (C, H, W).
    num_classes: K labels 0 ... K - 1, and K for "no class"; 0: unconditional.
    x0_error: the network's mean squared error of x_0 by t, (T + 1,), see x0_errors; None: unknown.
    """

    network: LabeledModel
    diffusion: GaussianDiffusion
    image_shape: tuple[int, int, int]
    num_classes: int
    x0_error: Tensor | None

    def states(
        self,
        sampler: Sampler,
        indices: Sequence[int],
        labels: Tensor | None,
        seed: int = 0,
        start: int | None = None,
        x: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """x_T, ..., x_0 of these images, each (B, C, H, W); labels (B,) or None.

        Image i depends on (seed, i) and its label alone, not on the batch it is drawn in. x: the
        state at ``start`` to begin with, not noise at T. Raises ValueError as uniform_grid does.
        """
        grid = uniform_grid(self.diffusion, sampler.steps, start)
        randn = image_noise(seed, indices, self.image_shape, self.diffusion.device)
        network = sampler.guide(self.network, labels, self.num_classes, self.diffusion)
        x_T = randn()  # also where x is given: the noise of the steps must not be that of x_T
        x = x_T if x is None else x
        yield x
        yield from sampler(network, self.diffusion, x, grid, randn, self.x0_error)


def evenly_spaced(steps: int, count: int) -> set[int]:
    """At most ``count`` of the states 0 (x_T) ... steps (x_0), evenly, ends included."""
    return set(torch.linspace(0, steps, min(steps + 1, count)).round().int().tolist())


def ignore(_images: int) -> None:
    """No progress is shown."""


@torch.no_grad()
def generate(
    model: DiffusionModel,
    sampler: Sampler,
    indices: Sequence[int],
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int = 100,
    keep: Collection[int] = (),
    progress: Callable[[int], object] = ignore,
    start: int | None = None,
    x: Tensor | None = None,
) -> list[Tensor]:
    """Draw images in batches: [x_0], or the states in ``keep``; each (N, C, H, W), on the CPU.

    indices (N,), labels (N,) or None, x (N, C, H, W) or None are those of DiffusionModel.states.
    State 0 is x_T, state ``sampler.steps`` is x_0. progress is called after every step, with the
    size of the batch. StoppedError where a state is not finite.
    """
    device, batches = model.diffusion.device, []
    keep = keep or {sampler.steps}
    for n in torch.arange(len(indices)).split(batch_size):
        y = None if labels is None else labels[n].to(device)
        state = None if x is None else x[n].to(device)
        batch = [int(indices[i]) for i in n]
        kept, finite = [], []
        for step, x_t in enumerate(model.states(sampler, batch, y, seed, start, state)):
            finite.append(x_t.isfinite().all())  # on the device: looked at once, at the end
            if step:
                progress(len(n))
            if step in keep:
                kept.append(x_t.cpu())
        if not all(found := torch.stack(finite).tolist()):
            again = model.states(sampler, batch, y, seed, start, state)
            raise not_finite(model, sampler, list(islice(again, found.index(False))), y, start)
        batches.append(kept)
    return [torch.cat(states) for states in zip(*batches, strict=True)]


def generate_with_progress(
    title: str,
    model: DiffusionModel,
    sampler: Sampler,
    indices: Sequence[int],
    labels: Tensor | None = None,
    silent: bool = False,
    **options: Any,
) -> list[Tensor]:
    """``generate`` under a progress bar of this title; silent: without."""
    total = len(indices) * sampler.steps
    with Progress(title, total, "steps of an image", silent=silent) as progress:
        return generate(model, sampler, indices, labels, progress=progress.update, **options)


def not_finite(
    model: DiffusionModel,
    sampler: Sampler,
    before: Sequence[Tensor],
    labels: Tensor | None,
    start: int | None,
) -> StoppedError:
    """Which step was the first that is not finite, and from what; before: the states that are."""
    if not before:
        return StoppedError("the given state is not finite: nothing was drawn")
    diffusion, step = model.diffusion, len(before)
    t = uniform_grid(diffusion, sampler.steps, start)[step - 1]
    network = sampler.guide(model.network, labels, model.num_classes, diffusion)
    x_t = before[-1]
    output = network(x_t, torch.full((len(x_t),), t, device=x_t.device))
    cause = f"alpha_bar_t = {diffusion.alpha_bar[t]:.3g} leaves the step no finite value"
    if not output.isfinite().all():
        cause = "the network's output there is not finite"
    largest = x_t.abs().max().item()
    return StoppedError(
        f"the images are not finite from step {step} of {sampler.steps} (t = {t}) on: {cause}, "
        f"from a state of at most {largest:.3g}; nothing was drawn"
    )
