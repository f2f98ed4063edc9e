"""Memorization: distances of samples to training images, with those of real images as the baseline.

The real images are test images. Where there are too few, they are the training images, each left
out in turn: to the others it is an unseen image.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evaluation.features import Features
from evaluation.metrics import nearest
from evaluation.tables import Row, show
from utils.devices import double
from utils.images import grid, normalize, save_png
from utils.progress import Progress

PAIRS = 8  # of samples and training images, the closest, shown as a picture
COPIES, CLOSER = 0.01, 0.2  # thresholds on the shares of samples
ENOUGH = 100  # real images, so that a hundredth of them is one
MOST = 5_000  # training images left out in turn: their distances to all others take minutes


def memorization(
    samples: Features, train: Features, test: Features, picture: Path
) -> dict[str, Row | str]:
    """Distances to the nearest training image in pixels and features, and a verdict.

    Writes the closest pairs in pixels as a picture: samples above, training images below.
    """
    pixels = [f.source.images.flatten(1).float() / 255 for f in (samples, train, test)]
    features = [f.features for f in (samples, train, test)]
    distances, index = to_nearest(pixels[0], pixels[1])
    of_real = real_distances(pixels[1], pixels[2])
    unseen = of_real > 0
    rows = {
        "pixels": closeness(distances, of_real[unseen]),
        "features": closeness(
            to_nearest(features[0], features[1])[0],
            real_distances(features[1], features[2])[unseen],
        ),
    }
    baseline = describe_baseline(unseen, len(test))
    found = {"baseline": baseline, **rows, "verdict": verdict(rows["pixels"])}
    title = f"Distance to the nearest training image of {len(samples)} samples"
    show(f"{title}; baseline: {baseline}", rows)
    closest = distances.argsort()[:PAIRS]
    pairs = torch.cat([samples.source.images[closest], train.source.images[index[closest]]])
    save_png(grid(normalize(pairs), len(closest)), picture)
    print(f"{found['verdict']}; the closest pairs: {picture}")
    return found


def to_nearest(points: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every point to its nearest row of the reference, 0 for a copy, and its index."""
    with Progress("nearest training images", len(points), "images") as progress:
        index = nearest(points, reference, progress=progress.update)[1][:, 0]
    return distance(points, reference[index]), index


def real_distances(train: Tensor, test: Tensor) -> Tensor:
    """The baseline (N,): of test images, or of training images to their nearest other one.

    The latter with fewer than ENOUGH test images; empty for a single training image.
    """
    if len(test) >= ENOUGH:
        return to_nearest(test, train)[0]
    if len(train) == 1:
        return train.new_empty(0)
    points = train[:MOST]
    with Progress("nearest other training images", len(points), "images") as progress:
        index = nearest(points, train, 2, progress.update)[1]
    itself = torch.arange(len(points), device=train.device)
    return distance(points, train[torch.where(index[:, 0] == itself, index[:, 1], index[:, 0])])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, of rows (N, D): (N,). Unlike that of ``nearest``, exactly 0 where they agree."""
    return (a - b).norm(dim=1)


def describe_baseline(unseen: Tensor, tests: int) -> str:
    """The baseline in words; unseen (N,): whether a real image is no copy of a training image."""
    n, copies = int(unseen.sum()), int((~unseen).sum())
    if not n:
        return "none"
    kind = "test images" if tests >= ENOUGH else "training images, each to its nearest other one"
    return f"{n} {kind}" + (f" ({copies} copies left out)" if copies else "")


def closeness(samples: Tensor, real: Tensor) -> Row:
    """Distances to the nearest training image: of samples (N,), against those of real images (M,).

    Medians and first percentiles, the ratio of the medians, and two shares: ``closer``, of samples
    nearer than the nearest hundredth of the real images (1 % where they are alike), and
    ``copies``, of samples within half of that. Where M is 0 the samples' own alone, and below
    ENOUGH, where the nearest hundredth is the nearest one, no ``closer``.
    """
    samples, real = double(samples), double(real)
    row = {"median": samples.median().item(), "percentile_1": samples.quantile(0.01).item()}
    if not len(real):
        return row
    median, near = real.median().item(), real.quantile(0.01)
    row |= {"real": len(real), "real_median": median, "real_percentile_1": near.item()}
    if median:
        row["median_ratio"] = row["median"] / median
    if len(real) >= ENOUGH:
        row["closer"] = (samples < near).double().mean().item()
    return row | {"copies": (samples < near / 2).double().mean().item()}


def verdict(of_pixels: Mapping[str, float]) -> str:
    """Whether the distances in pixels are a sign of memorization, in a line.

    Of samples like n real images, one in n + 1 is nearer than the nearest of these: few are no
    evidence for a smaller share of copies.
    """
    if "copies" not in of_pixels:
        return "no verdict: there are no other real images to compare with"
    copies, closer = of_pixels["copies"], of_pixels.get("closer", 0)
    if copies > max(COPIES, 1 / (of_pixels["real"] + 1)) or closer > CLOSER:
        return "copies training images"
    if closer > CLOSER / 4:
        return "nearer to the training images than unseen images are: look at the pairs"
    return "no sign of memorization"
