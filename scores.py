"""Samples against real images: by the judge's features, and by their nearest neighbours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from judge import Judge, Photos, Subject
from utils.images import grid, save_png
from utils.metrics import closeness, frechet_distance, histogram, nearest, precision_recall, verdict
from utils.tables import show

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


def score_all(
    subject: Subject, reads: dict[str, Read], costs: dict[str, Row], train: Read, test: Read
) -> dict[str, Any]:
    """Every sampler's scores beside those of as many real images, and the shares of the classes."""
    num, classes = subject.flags.num, subject.classes
    asked = subject.config.model.num_classes > 0
    rows = {name: costs[name] | score(read, train, asked) for name, read in reads.items()}
    floors = {"train": train[: part_of(train, num)], "test": test[:num]}
    floors = {f"real {name} images": read for name, read in floors.items()}
    rows |= {name: score(read, train, True) for name, read in floors.items()}
    shares = {name: class_shares(read, classes) for name, read in (reads | floors).items()}
    show("Samples, and real images as the floor", rows)
    title = f"Share of each class, as classified, of {num} samples and the real images"
    show(title, {name: by_class(share) for name, share in shares.items()})
    print("\n".join(reasons(next(iter(reads.values())), train, asked)))
    return {"scores": rows, "class_shares": shares}


def find_copies(samples: Read, train: Read, test: Read, picture: Path) -> dict[str, Row | str]:
    """How near samples are to training images; the closest pairs as a picture."""
    found, pairs = memorisation(samples, train, test)
    save_png(pairs, picture)
    title = (
        f"Distance to the nearest training image: {len(samples)} samples, {len(test)} test images"
    )
    show(title, {space: found[space] for space in ("pixels", "features")})
    print(f"{found['verdict']}; the closest pairs: {picture}")
    return found


def by_class(shares: list[float]) -> dict[str, float]:
    """A row of a table: the share of each class."""
    return {str(label): share for label, share in enumerate(shares)}
