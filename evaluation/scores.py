"""Scores of samples by their features, beside those of as many real images."""

from typing import Any

from evaluation.features import Features
from evaluation.metrics import frechet_distance, histogram, precision_recall
from evaluation.tables import Row, show
from evaluation.tasks import Task

MIN_FOR_FID = 2 * 128  # images for the covariance of 128 features
K = 3  # nearest neighbours of precision and recall


def score(samples: Features, train: Features, labeled: bool) -> Row:
    """One row of the table: every score that applies to this many images.

    The Fréchet distance is to the whole training set, precision and recall to as many images of
    it as there are samples. labeled: whether the labels say what the images should be.
    """
    n, row = len(samples), {}
    if min(n, len(train)) >= MIN_FOR_FID:
        row[f"{train.task.fid}@{n}"] = frechet_distance(samples.features, train.features)
    reference = train[-reference_size(train, n) :]
    if min(n, len(reference)) > K:
        pair = precision_recall(reference.features.double(), samples.features.double(), K)
        row |= dict(zip((f"precision@{n}", f"recall@{n}"), pair, strict=True))
    if labeled and not train.task.pretext:
        right = samples.predicted == samples.source.labels
        row[f"accuracy@{n}"] = right.double().mean().item()
    return row


def reference_size(train: Features, n: int) -> int:
    """How many training images n samples are compared with: at most half, the rest is the floor."""
    return min(n, len(train) // 2)


def missing_scores(n: int, train: Features, labeled: bool) -> list[str]:
    """A sentence for every score that does not apply to n samples, and why."""
    lines = []
    if min(n, len(train)) < MIN_FOR_FID:
        lines.append(
            f"no {train.task.fid}: {n} samples and {len(train)} training images; the covariance "
            f"of 128 features needs {MIN_FOR_FID} of each"
        )
    if reference_size(train, n) <= K:
        lines.append(
            f"no precision and recall: {n} samples and {len(train)} training images; they need "
            f"{K + 1} and {2 * (K + 1)}"
        )
    if train.task.pretext:
        lines.append("no accuracy, no shares of classes: the images have no classes to tell apart")
    elif not labeled:
        lines.append("no accuracy: the network was trained without classes")
    return lines


def score_all(
    samples: dict[str, Features],
    costs: dict[str, Row],
    train: Features,
    test: Features,
    labeled: bool,
) -> dict[str, Any]:
    """Every sampler's scores beside those of as many real images, and the shares of the classes."""
    num = len(next(iter(samples.values())))
    rows = {name: costs[name] | score(own, train, labeled) for name, own in samples.items()}
    real = {
        "real train images": train[: reference_size(train, num)],
        "real test images": test[:num],
    }
    real = {name: images for name, images in real.items() if len(images)}
    rows |= {name: score(images, train, True) for name, images in real.items()}
    show(title_of(train.task), rows)
    found: dict[str, Any] = {"scores": rows}
    if not train.task.pretext:
        found["class_shares"] = class_shares(samples | real)
    for line in missing_scores(num, train, labeled):
        print(line)
    return found


def title_of(task: Task) -> str:
    """What the features of the scores are, where a reader could take them for those of classes."""
    if not task.pretext:
        return "Samples, and real images as the floor"
    return (
        f"Samples, and real images as the floor, in the features of a classifier of {task.name}\n"
        "(no classes to tell apart; not comparable with scores in features of classes)"
    )


def class_shares(images: dict[str, Features]) -> dict[str, list[float]]:
    """The share of each class among the images, as classified; printed under their names."""
    first = next(iter(images.values()))
    names = first.task.outputs
    shares = {name: histogram(own.predicted, len(names)) for name, own in images.items()}
    rows = {name: dict(zip(names, own, strict=True)) for name, own in shares.items()}
    title = f"Share of each class, as classified, of {len(first)} samples and the real images"
    show(title, rows)
    return shares
