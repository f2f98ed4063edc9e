"""Scores of samples by their features, beside those of as many real images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.features import Features
from evaluation.floor import Floor, Reference
from evaluation.metrics import frechet_distance, histogram, kernel_distance, precision_recall
from evaluation.tables import Row, show
from evaluation.tasks import Task
from utils.devices import double
from utils.progress import Progress, track

PER_FEATURE = 2  # images for each feature of a covariance
MIN_FOR_KID = 50
K = 3  # nearest neighbours of precision and recall
NEGATIVE = (
    "A negative kid is no error: it is unbiased, so that between sets that are alike it lies "
    "around 0, on either side."
)
TRAIN, TEST = "real train images", "real test images"  # rows of the table


def score(images: Features, reference: Reference, labeled: bool) -> Row:
    """One row of the table: every score that applies to this many images.

    labeled: whether the labels say what the images should be.
    """
    n, few, row = len(images), reference.few, {}
    for space, own in images.spaces.items():
        known = reference.spaces[space]
        if min(n, len(known)) >= min_for_fid(own):
            row[f"fid_{space}@{n}"] = frechet_distance(own, known)
        if min(n, len(few)) >= MIN_FOR_KID:
            row[f"kid_{space}@{n}"] = kernel_distance(own, few.spaces[space])
    if min(n, len(few)) > K:
        pair = precision_recall(double(few.features), double(images.features), K)
        row |= dict(zip((f"precision@{n}", f"recall@{n}"), pair, strict=True))
    if labeled and not images.task.pretext:
        right = images.predicted == images.source.labels
        row[f"accuracy@{n}"] = double(right).mean().item()
    return row


def min_for_fid(features: Tensor) -> int:
    """Images for the covariance of features (N, D)."""
    return PER_FEATURE * features.shape[1]


def missing_scores(n: int, reference: Reference, labeled: bool) -> list[str]:
    """A sentence for every score that does not apply to n samples, and why."""
    few, lines = len(reference.few), []
    compared = f"{n} samples and {few} training images (at most half of a class, the rest is the"
    compared += " floor)"
    for space, own in reference.spaces.items():
        known, needed = len(own), min_for_fid(own)
        if min(n, known) < needed:
            lines.append(
                f"no fid_{space}: {n} samples and {known} training images; the covariance "
                f"of {own.shape[1]} features needs {needed} of each"
            )
        if min(n, few) < MIN_FOR_KID:
            lines.append(f"no kid_{space}: {compared}; it needs {MIN_FOR_KID} of each")
    if min(n, few) <= K:
        lines.append(f"no precision and recall: {compared}; they need {K + 1} of each")
    if reference.few.task.pretext:
        lines.append("no accuracy, no shares of classes: the images have no classes to tell apart")
    elif not labeled:
        lines.append("no accuracy: the network was trained without classes")
    return lines


def score_all(
    samples: dict[str, Features],
    costs: dict[str, Row],
    train: Features,
    test: Features,
    conditional: bool,
) -> dict[str, Any]:
    """Every sampler's scores beside the floor, and the shares of the classes.

    conditional: whether the samples have labels, in whose proportions real images are drawn.
    """
    first = next(iter(samples.values()))
    floor = Floor.of(first.source.labels, (train, test), conditional)
    reference = floor.reference
    rows = {
        name: costs[name] | score(own, reference, conditional)
        for name, own in track(list(samples.items()), "scoring samples", "samplers")
    }
    floors = floor_rows(floor, train, test)
    rows |= {name: over_draws(torch.mean, own) for name, own in floors.items() if own}
    std = {name: over_draws(torch.std, own) for name, own in floors.items() if len(own) > 1}
    show(title_of(train.task), with_std(rows, std))
    found: dict[str, Any] = {"rows": rows, "std": std}
    found["draws"] = {name: len(own) for name, own in floors.items()}
    if not train.task.pretext:
        real = {TRAIN: [train[i] for i in floor.train[:1]], TEST: [test[i] for i in floor.test[:1]]}
        found["class_shares"] = class_shares(samples | {k: v[0] for k, v in real.items() if v})
    sizes = {TRAIN: floor.train, TEST: floor.test}
    for line in (
        negative_kid(rows)
        + missing_scores(len(first), reference, conditional)
        + too_few(len(first), sizes)
    ):
        print(line)
    return found


def floor_rows(floor: Floor, train: Features, test: Features) -> dict[str, list[Row]]:
    """The scores of every draw of real images."""
    reference = floor.reference
    draws = len(floor.train) + len(floor.test)
    with Progress("scoring real images", draws, "draws") as progress:

        def row(images: Features, against: Reference) -> Row:
            found = score(images, against, True)
            progress.update()
            return found

        return {
            TRAIN: [row(train[index], reference.without(index)) for index in floor.train],
            TEST: [row(test[index], reference) for index in floor.test],
        }


def over_draws(statistic: Callable[[Tensor], Tensor], rows: Sequence[Row]) -> Row:
    """The mean or the standard deviation of every column over the draws."""
    values = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        k: statistic(torch.tensor(own, dtype=torch.float64)).item() for k, own in values.items()
    }


def with_std(rows: dict[str, Row], std: dict[str, Row]) -> dict[str, Row]:
    """Each row followed by that of its standard deviations, where it has one."""
    shown: dict[str, Row] = {}
    for name, row in rows.items():
        shown |= {name: row} | ({f"{name}, std": std[name]} if name in std else {})
    return shown


def negative_kid(rows: dict[str, Row]) -> list[str]:
    """A sentence for who wonders at one, where there is one."""
    kids = [value for row in rows.values() for name, value in row.items() if name.startswith("kid")]
    return [NEGATIVE] if any(value < 0 for value in kids) else []


def too_few(n: int, draws: dict[str, list[Tensor]]) -> list[str]:
    """A sentence for every row of fewer real images than n samples."""
    return [
        f"{name}: {len(own[0]) if own else 0} instead of {n}, as no more can be drawn as the "
        "samples are; scores compare at one number only"
        for name, own in draws.items()
        if not own or len(own[0]) < n
    ]


def title_of(task: Task) -> str:
    """What the features of the scores are, where a reader could take them for those of classes."""
    title = "Samples, and real images drawn likewise as the floor (mean and deviation of draws)"
    if not task.pretext:
        return title
    return (
        f"{title}, in the features of a classifier of {task.name}\n"
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
