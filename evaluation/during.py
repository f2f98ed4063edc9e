"""Scores of a run's samples while it trains: curves of quality."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from data import ImageSet
from evaluation.features import (
    MAX_REAL,
    FeatureExtractor,
    LabeledImages,
    cache_path,
    labels_or_zeros,
    load_or_train,
    seconds_to_train,
)
from evaluation.floor import Floor, Reference, proportional_labels
from evaluation.scores import missing_scores, score
from evaluation.tasks import task_of
from utils.images import to_uint8


@dataclass(frozen=True)
class Scorer:
    """What samples are compared with; labels (N,): of the samples to be scored, None without."""

    extractor: FeatureExtractor
    reference: Reference
    labels: Tensor | None
    num: int

    @classmethod
    def of(cls, sets: tuple[ImageSet, ImageSet], num: int, conditional: bool, folder: Path) -> Self:
        """With the classifier of these images from the folder, or trained once and stored there.

        Says how long that took, and which scores there cannot be. Keeps features of the real
        images, and none of themselves. Raises CheckpointError where it cannot be stored.
        """
        began = time.monotonic()
        train, test = (LabeledImages.of(images, MAX_REAL) for images in sets)
        task = task_of(sets[0])
        extractor = load_or_train(train, test, task, cache_path(folder, sets[0], task))
        real = extractor.extract(train), extractor.extract(test)
        labels = proportional_labels(train.labels, num) if conditional else None
        floor = Floor.of(labels_or_zeros(labels, num), real, conditional, most=1)
        reference = floor.reference.without_images()
        print(f"{extractor.summary}; {time.monotonic() - began:.0f} seconds", flush=True)
        for line in missing_scores(num, reference, conditional):
            print(line, flush=True)
        return cls(extractor, reference, labels, num)

    @torch.no_grad()
    def score(self, x_0: Tensor) -> dict[str, float]:
        """Fréchet and kernel distance, precision, recall, accuracy of samples (N, C, H, W).

        In [-1, 1], of the labels; those that apply to so many.
        """
        conditional, device = self.labels is not None, self.reference.few.features.device
        labels = labels_or_zeros(self.labels, len(x_0))
        samples = self.extractor.extract(LabeledImages(to_uint8(x_0), labels).to(device))
        row = score(samples, self.reference, conditional)
        return {name.partition("@")[0]: value for name, value in row.items()}


def names_of(images: ImageSet, conditional: bool) -> list[str]:
    """The scores of these images' samples, where there are enough of them."""
    task = task_of(images)
    names = [f"fid_{task.space}", f"kid_{task.space}", "precision", "recall"]
    return names + (["accuracy"] if conditional and not task.pretext else [])


def seconds_to_prepare(
    sets: tuple[ImageSet, ImageSet], folder: Path, device: torch.device
) -> float:
    """What ``Scorer.of`` takes, about, by a few timed steps; less where a classifier is stored."""
    task = task_of(sets[0])
    stored = cache_path(folder, sets[0], task).exists()
    count = min(MAX_REAL, len(sets[0])) + min(MAX_REAL, len(sets[1]))
    return seconds_to_train(sets[0].to(device), task, count, stored)
