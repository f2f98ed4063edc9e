"""How the steps of a run map onto epochs, and in which order an epoch takes the images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from config import TrainConfig
from utils.seeding import coins, permutation


@dataclass(frozen=True)
class Epochs:
    """How the global steps 1, 2, ... are divided into epochs of one or more passes over the images.

    Over few images it takes several, so that --epochs means much the same work for any set: at
    least min_images images. Where a pass ends within a batch, the next one fills it.
    """

    images: int
    batch_size: int
    min_images: int = 1

    @property
    def passes(self) -> int:
        """Passes per epoch: one, or as many as min_images images take."""
        return math.ceil(self.min_images / self.images)

    @property
    def steps(self) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return math.ceil(self.passes * self.images / self.batch_size)

    def limit(self, c: TrainConfig) -> float:
        """The smaller of --epochs and --max-steps, in steps; infinite if both are 0."""
        return min(filter(None, (c.epochs * self.steps, c.max_steps)), default=math.inf)

    def global_batch(self, step: int) -> int:
        """Images in the batch of this step, over all ranks."""
        done = (step - 1) % self.steps * self.batch_size
        return min(self.batch_size, self.passes * self.images - done)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The images of an epoch, (passes * images,): a permutation for each pass."""
        return torch.cat([permutation(self.images, seed, i) for i in self.numbers(epoch)])

    def flips(self, seed: int, epoch: int) -> Tensor:
        """Which of them are mirrored, in this order; keyed by (seed, pass, image)."""
        n = self.images
        return torch.cat([coins(n, seed, i)[permutation(n, seed, i)] for i in self.numbers(epoch)])

    def numbers(self, epoch: int) -> range:
        """The passes of an epoch, counted over the whole run."""
        return range(epoch * self.passes, (epoch + 1) * self.passes)

    def __str__(self) -> str:
        passes = f"{self.passes} passes" if self.passes > 1 else "one pass"
        return f"{self.steps:,} steps: {passes} over {self.images:,} images"
