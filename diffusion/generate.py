"""Sampling with a trained network: images by index, from keyed noise, in batches."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.grids import Grid
from diffusion.samplers import States, replaced
from diffusion.sampling import Sampler
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
    ) -> States:
        """x_T, ..., x_0 of these images, each (B, C, H, W), at the t of ``sampler.grid``.

        Image i depends on (seed, i) and its label alone, not on the batch it is drawn in. labels
        (B,) or None. x: the state at ``start`` to begin with, not noise at T. A state that is sent
        back replaces the one that was yielded. Raises ValueError as ``sampler.grid`` does.
        """
        grid = sampler.grid(self.diffusion, start)
        randn = image_noise(seed, indices, self.image_shape, self.diffusion.device)
        network = sampler.guide(self.network, labels, self.num_classes, self.diffusion)
        x_T = randn()  # also where x is given: the noise of the steps must not be that of x_T
        x = x_T if x is None else x
        x = replaced(x, (yield x))
        yield from sampler(network, self.diffusion, x, grid, randn, self.x0_error)

    def evaluations(self, sampler: Sampler, grid: Grid, labeled: bool) -> list[int]:
        """Network evaluations for an image of every move along the grid; see the sampler's."""
        return sampler.evaluations(self.diffusion, grid, labeled)


def evenly_spaced(grid: Grid, count: int) -> set[int]:
    """At most ``count`` of the states 0 (x_T) ... of this grid, evenly, ends included."""
    end = len(grid) - 1
    return set(torch.linspace(0, end, min(end + 1, count)).round().int().tolist())


def ignore(_evaluations: int) -> None:
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
    State 0 is x_T; each has its t in ``sampler.grid``. progress is called after every step, with
    the network evaluations it took, all images counted. StoppedError where a state is not finite.
    """
    device, batches = model.diffusion.device, []
    grid = sampler.grid(model.diffusion, start)
    costs = model.evaluations(sampler, grid, labels is not None)
    keep = keep or {len(grid) - 1}
    if not len(indices):
        return [torch.empty(0, *model.image_shape) for _ in keep]
    for n in torch.arange(len(indices)).split(batch_size):
        y = None if labels is None else labels[n].to(device)
        state = None if x is None else x[n].to(device)
        batch = [int(indices[i]) for i in n]
        kept, finite = [], []
        for step, x_t in enumerate(model.states(sampler, batch, y, seed, start, state)):
            finite.append(x_t.isfinite().all())  # on the device: looked at once, at the end
            if step:
                progress(len(n) * costs[step - 1])
            if step in keep:
                kept.append(x_t.cpu())
        if not all(found := torch.stack(finite).tolist()):
            raise not_finite(found.index(False), grid, model, sampler, batch, y, seed, start, state)
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
    grid = sampler.grid(model.diffusion, options.get("start"))
    evaluations = sum(model.evaluations(sampler, grid, labels is not None))
    total = len(indices) * evaluations
    with Progress(title, total, "network evaluations", silent=silent) as progress:
        return generate(model, sampler, indices, labels, progress=progress.update, **options)


def not_finite(
    move: int, grid: Grid, model: DiffusionModel, sampler: Sampler, *arguments: Any
) -> StoppedError:
    """Which step was the first that is not finite, and from what.

    move: the number of its state; arguments: those of DiffusionModel.states that follow sampler.
    """
    if move == 0:
        return StoppedError("the given state is not finite: nothing was drawn")
    broken = []

    def watched(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        output = model.network(x, t, y)
        if not output.isfinite().all():
            broken.append(int(t[0]))
        return output

    again = replace(model, network=watched).states(sampler, *arguments)
    *_, before, _ = islice(again, move + 1)
    t = broken[0] if broken else grid[move - 1]
    cause = f"alpha_bar_t = {model.diffusion.alpha_bar[t]:.3g} leaves the step no finite value"
    if broken:
        cause = "the network's output there is not finite"
    falls = [n > 0 for n in model.evaluations(sampler, grid, False)]  # rises are no steps
    return StoppedError(
        f"the images are not finite from step {sum(falls[:move])} of {sum(falls)} (t = {t}) on: "
        f"{cause}, from a state of at most {before.abs().max().item():.3g}; nothing was drawn"
    )
