"""Samples against real images: by the judge's features, and by their nearest neighbours."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from judge import Judge, Photos
from utils.images import grid
from utils.metrics import closeness, frechet_distance, histogram, nearest, precision_recall, verdict

LEAST = 2 * 128  # images for the covariance of 128 features
K = 3  # nearest neighbours of precision and recall
PAIRS = 8

Row = dict[str, float]


@dataclass(frozen=True)
class Read:
    """Images as the judge reads them: features (N, D), predicted and true or asked classes (N,)."""

    photos: Photos
    features: Tensor
    predicted: Tensor

    @classmethod
    def by(cls, judge: Judge, photos: Photos) -> Self:
        return cls(photos, *judge.read(photos.images))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> "Read":
        return Read(self.photos[index], self.features[index], self.predicted[index])


def score(samples: Read, train: Read, asked: bool) -> Row:
    """One row of the table: every score that applies to this many images.

    The Fréchet distance is to the whole training set, precision and recall to as many images of
    it as there are samples. asked: whether the labels say what the images should be.
    """
    n, row = len(samples), {}
    if min(n, len(train)) >= LEAST:
        row[f"fid_classifier@{n}"] = frechet_distance(samples.features, train.features)
    reference = train[-part_of(train, n) :]
    if min(n, len(reference)) > K:
        pair = precision_recall(reference.features.double(), samples.features.double(), K)
        row |= dict(zip((f"precision@{n}", f"recall@{n}"), pair, strict=True))
    if asked:
        right = samples.predicted == samples.photos.labels
        row[f"accuracy@{n}"] = right.double().mean().item()
    return row


def part_of(train: Read, n: int) -> int:
    """How many training images stand beside n samples: no more than leaves as many others."""
    return min(n, len(train) // 2)


def reasons(samples: Read, train: Read, asked: bool) -> list[str]:
    """A sentence for every score that does not apply, and why."""
    said, n = [], len(samples)
    if min(n, len(train)) < LEAST:
        said.append(
            f"no fid_classifier: {n} samples and {len(train)} training images; the covariance of "
            f"128 features needs {LEAST} of each"
        )
    if part_of(train, n) <= K:
        said.append(f"no precision and recall: they need more than {K} images")
    if not asked:
        said.append("no accuracy: the network was trained without classes")
    return said


def class_shares(read: Read, classes: int) -> list[float]:
    """The share of each class as the judge sees it."""
    return histogram(read.predicted, classes)


def memorisation(samples: Read, train: Read, test: Read) -> tuple[dict[str, Row | str], Tensor]:
    """Distances to the nearest training image in pixels and features, and a verdict.

    The baseline are test images. Also the closest pairs in pixels as a picture: samples above,
    training images below.
    """
    pixels = [part.photos.images.flatten(1).float() / 255 for part in (samples, train, test)]
    of_samples, index = (part[:, 0] for part in nearest(pixels[0], pixels[1]))
    found = {"pixels": closeness(of_samples, nearest(pixels[2], pixels[1])[0][:, 0])}
    found["features"] = closeness(
        *(nearest(part.features, train.features)[0][:, 0] for part in (samples, test))
    )
    found["verdict"] = verdict(found["pixels"])
    closest = of_samples.argsort()[:PAIRS]
    pairs = torch.cat([samples.photos.images[closest], train.photos.images[index[closest]]])
    return found, grid(pairs / 127.5 - 1, len(closest))
