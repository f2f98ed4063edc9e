"""What an edit leaves, as pictures; and a film of how it came about."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion import DiffusionModel, Sampler, evenly_spaced, generate_with_progress
from training.trained import TrainedModel
from utils.images import grid

LEAST_TILE, MOST_ROWS = 72, 32  # pixels of a tile, so that titles fit; rows of a grid


@dataclass
class Film:
    """Draws with a progress bar; keeps frames of the states, and counts network evaluations.

    most: the frames of a drawing, at most; 0: none.
    """

    most: int
    frames: list[Tensor] = field(default_factory=list)
    evaluations: int = 0  # of an image each

    def counting(self, model: TrainedModel) -> TrainedModel:
        """The model, whose evaluations are counted."""

        def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            self.evaluations += len(x)
            return model.network(x, t, y)

        return replace(model, network=network)

    def draw(
        self,
        title: str,
        model: DiffusionModel,
        sampler: Sampler,
        indices: Sequence[int],
        labels: Tensor | None = None,
        **options: Any,
    ) -> list[Tensor]:
        """As diffusion.generate."""
        steps = sampler.grid(model.diffusion, options.get("start"))
        keep = evenly_spaced(steps, self.most) if self.most else ()
        states = generate_with_progress(
            title, model, sampler, indices, labels, keep=keep, **options
        )
        self.frames += states if self.most else []
        return states[-1:]


@dataclass(frozen=True)
class Edited:
    """What an edit leaves: ``beside`` its inputs (N, C, H, W) by title, ``drawn`` (N M, C, H, W).

    arrays: further ones of the npz; lines: to be printed.
    """

    beside: dict[str, Tensor]
    drawn: Tensor
    titles: list[str]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def picture(self, drawn: Tensor) -> Tensor:
        """A row for each input: what is beside, then the images drawn from it."""
        rows = len(next(iter(self.beside.values()))) if self.beside else 1
        own = drawn.unflatten(0, (rows, -1))[:MOST_ROWS]
        beside = [part[:MOST_ROWS, None] for part in self.beside.values()]
        tiles = torch.cat([*beside, own], dim=1)
        titles = [
            title
            for row in np.array(self.titles).reshape(rows, -1)[:MOST_ROWS].tolist()
            for title in [*self.beside, *row]
        ]
        return titled(tiles.flatten(0, 1), titles, tiles.shape[1])


def titled(tiles: Tensor, titles: Sequence[str], columns: int | None = None) -> Tensor:
    """A grid of images (N, C, H, W), enlarged so that their titles fit."""
    times = -(-LEAST_TILE // tiles.shape[-1])
    large = tiles.repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
    return grid(large, columns, titles)
