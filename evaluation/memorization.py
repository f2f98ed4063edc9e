"""Memorization: distances of samples to training images, with test images as the baseline."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evaluation.features import Features
from evaluation.metrics import nearest
from evaluation.tables import Row, show
from utils.images import grid, normalize, save_png

PAIRS = 8  # of samples and training images, the closest, shown as a picture
COPIES, CLOSER = 0.01, 0.2  # thresholds on the shares of samples


def memorization(
    samples: Features, train: Features, test: Features, picture: Path
) -> dict[str, Row | str]:
    """Distances to the nearest training image in pixels and features, and a verdict.

    Test images are the baseline. Writes the closest pairs in pixels as a picture: samples above,
    training images below.
    """
    pixels = [f.source.images.flatten(1).float() / 255 for f in (samples, train, test)]
    distances, index = (part[:, 0] for part in nearest(pixels[0], pixels[1]))
    found: dict[str, Row | str] = {
        "pixels": closeness(distances, nearest(pixels[2], pixels[1])[0][:, 0]),
        "features": closeness(
            *(nearest(f.features, train.features)[0][:, 0] for f in (samples, test))
        ),
    }
    title = (
        f"Distance to the nearest training image: {len(samples)} samples, {len(test)} test images"
    )
    show(title, found)
    found["verdict"] = verdict(found["pixels"])
    closest = distances.argsort()[:PAIRS]
    pairs = torch.cat([samples.source.images[closest], train.source.images[index[closest]]])
    save_png(grid(normalize(pairs), len(closest)), picture)
    print(f"{found['verdict']}; the closest pairs: {picture}")
    return found


def closeness(samples: Tensor, test: Tensor) -> Row:
    """Distances to the nearest training image, (N,): of samples against those of test images.

    Medians and first percentiles, their ratios, and two shares: ``closer``, of samples nearer than
    the nearest hundredth of the test images (1 % where they are alike), and ``copies``, of
    samples within half of that.
    """
    samples, test = samples.double(), test.double()
    near = test.quantile(0.01)
    return {
        "median": samples.median().item(),
        "test_median": test.median().item(),
        "median_ratio": (samples.median() / test.median()).item(),
        "percentile_1": samples.quantile(0.01).item(),
        "test_percentile_1": near.item(),
        "closer": (samples < near).double().mean().item(),
        "copies": (samples < near / 2).double().mean().item(),
    }


def verdict(of_pixels: Mapping[str, float]) -> str:
    """What the distances in pixels say of memorization, in a line."""
    if of_pixels["copies"] > COPIES or of_pixels["closer"] > CLOSER:
        return "copies training images"
    if of_pixels["closer"] > CLOSER / 4:
        return "nearer to the training images than test images are: look at the pairs"
    return "no sign of memorization"
