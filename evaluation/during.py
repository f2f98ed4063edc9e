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
    Features,
    LabeledImages,
    cache_path,
    load_or_train,
)
from evaluation.floor import Floor, proportional_labels
from evaluation.scores import score
from evaluation.tasks import task_of
from utils.images import to_uint8


@dataclass(frozen=True)
class Scorer:
    """Real images and their features; labels (N,): of the samples to be scored, None without."""

    extractor: FeatureExtractor
    train: Features
    test: Features
    labels: Tensor | None
    num: int

    @classmethod
    def of(cls, sets: tuple[ImageSet, ImageSet], num: int, conditional: bool, folder: Path) -> Self:
        """With the classifier of these images from the folder, or trained once and stored there.

        Says how long that took. Raises CheckpointError where it cannot be stored.
        """
        began = time.monotonic()
        train, test = (LabeledImages.of(images, MAX_REAL) for images in sets)
        task = task_of(sets[0])
        extractor = load_or_train(train, test, task, cache_path(folder, sets[0], task))
        features = [extractor.extract(images) for images in (train, test)]
        print(f"{extractor.summary}; {time.monotonic() - began:.0f} seconds", flush=True)
        labels = proportional_labels(train.labels, num) if conditional else None
        return cls(extractor, *features, labels, num)

    @torch.no_grad()
    def score(self, x_0: Tensor) -> dict[str, float]:
        """fid_classifier, kid_classifier, precision, recall, accuracy of samples (N, C, H, W).

        In [-1, 1], of the labels; those that apply to so many.
        """
        labels, device = self.labels, self.train.features.device
        if labels is None:
            labels = torch.zeros(len(x_0), dtype=torch.int64)
        samples = LabeledImages(to_uint8(x_0), labels).to(device)
        floor = Floor.of(samples.labels, (self.train, self.test), self.labels is not None, most=1)
        row = score(self.extractor.extract(samples), floor.reference, self.labels is not None)
        return {name.partition("@")[0]: value for name, value in row.items()}
