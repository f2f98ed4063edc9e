"""Scores of samples by their features, beside those of as many real images."""

from typing import Any

from evaluation.features import Features
from evaluation.metrics import frechet_distance, histogram, precision_recall
from evaluation.tables import Row, show

MIN_FOR_FID = 2 * 128  # images for the covariance of 128 features
K = 3  # nearest neighbours of precision and recall


def score(samples: Features, train: Features, labeled: bool) -> Row:
    """One row of the table: every score that applies to this many images.

    The Fréchet distance is to the whole training set, precision and recall to as many images of
    it as there are samples. labeled: whether the labels say what the images should be.
    """
    n, row = len(samples), {}
    if min(n, len(train)) >= MIN_FOR_FID:
        row[f"fid_classifier@{n}"] = frechet_distance(samples.features, train.features)
    reference = train[-reference_size(train, n) :]
    if min(n, len(reference)) > K:
        pair = precision_recall(reference.features.double(), samples.features.double(), K)
        row |= dict(zip((f"precision@{n}", f"recall@{n}"), pair, strict=True))
    if labeled:
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
            f"no fid_classifier: {n} samples and {len(train)} training images; the covariance of "
            f"128 features needs {MIN_FOR_FID} of each"
        )
    if reference_size(train, n) <= K:
        lines.append(f"no precision and recall: they need more than {K} images")
    if not labeled:
        lines.append("no accuracy: the network was trained without classes")
    return lines


def score_all(
    samples: dict[str, Features],
    costs: dict[str, Row],
    train: Features,
    test: Features,
    num_classes: int,
    labeled: bool,
) -> dict[str, Any]:
    """Every sampler's scores beside those of as many real images, and the shares of the classes."""
    num = len(next(iter(samples.values())))
    rows = {name: costs[name] | score(own, train, labeled) for name, own in samples.items()}
    real = {
        "real train images": train[: reference_size(train, num)],
        "real test images": test[:num],
    }
    rows |= {name: score(images, train, True) for name, images in real.items()}
    shares = {name: histogram(f.predicted, num_classes) for name, f in (samples | real).items()}
    show("Samples, and real images as the floor", rows)
    title = f"Share of each class, as classified, of {num} samples and the real images"
    columns = [str(label) for label in range(num_classes)]
    show(title, {name: dict(zip(columns, own, strict=True)) for name, own in shares.items()})
    for line in missing_scores(num, train, labeled):
        print(line)
    return {"scores": rows, "class_shares": shares}
