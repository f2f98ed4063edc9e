"""Do features of rotations rank sets of images as features of classes do?

python -m benchmarks.pretext --data-root datasets    # minutes on one core; --quick: seconds

Test images of MNIST are corrupted in several ways, each to six degrees. The Fréchet distance of
every such set to the training images is taken in the features of a classifier of classes, and in
those of a classifier of rotations, trained and, as the control, after a single step. Spearman's
rank correlation compares all of them with the degree, and the latter two with the first.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.trials import RESULTS
from config import Parser
from data import DataOptions, load_splits
from data.digits import draw_digits
from evaluation.features import FeatureExtractor, LabeledImages, load_or_train
from evaluation.metrics import frechet_distance
from evaluation.tables import Row, show
from evaluation.tasks import ROTATIONS, Task, task_of
from utils.images import normalize, to_uint8
from utils.runs import environment, write_json
from utils.seeding import generator

RADIUS = 9  # of the Gaussian filter, pixels
DRAWN = 2_000  # drawn digits, at most
drawn = functools.cache(draw_digits)


@dataclass(frozen=True)
class Size:
    """Training images, images of every corrupted set, steps of the classifiers.

    About half the steps of evaluate.py, which are most of the time.
    """

    train: int = 10_000
    images: int = 1_000
    steps: int = 1_000


QUICK = Size(train=1_000, images=300, steps=60)


# Corruptions: test images -> uint8 (N, 1, H, W), the more so the greater the degree.


def noisy(test: LabeledImages, sigma: float) -> Tensor:
    """Normal noise on pixels in [-1, 1]."""
    x = normalize(test.images)
    return to_uint8(x + sigma * torch.randn(x.shape, generator=generator("cpu", "noise")))


def blurred(test: LabeledImages, sigma: float) -> Tensor:
    """A Gaussian filter; sigma in pixels."""
    at = torch.arange(-RADIUS, RADIUS + 1)
    kernel = (-at.square() / (2 * sigma**2)).softmax(0)
    x = F.conv2d(test.images.float(), kernel.view(1, 1, -1, 1), padding=(RADIUS, 0))
    x = F.conv2d(x, kernel.view(1, 1, 1, -1), padding=(0, RADIUS))
    return x.round().to(torch.uint8)


def erased(test: LabeledImages, side: int) -> Tensor:
    """A black square in the middle; side in pixels."""
    images, start = test.images.clone(), (test.images.shape[-1] - side) // 2
    images[..., start : start + side, start : start + side] = 0
    return images


def replaced(test: LabeledImages, share: float) -> Tensor:
    """A share of other images: digits that are drawn, not written."""
    others = drawn(False, min(len(test), DRAWN))[0]
    others = others[torch.arange(len(test)) % len(others)]
    chosen = torch.rand(len(test), generator=generator("cpu", "replaced")) < share
    return torch.where(chosen[:, None, None, None], others, test.images)


def fewer_classes(test: LabeledImages, missing: int) -> Tensor:
    """Only the first of the ten classes."""
    return test.images[test.labels < 10 - missing]


def repeated(test: LabeledImages, times: int) -> Tensor:
    """Every image so many times: less variety."""
    return test.images.repeat_interleave(times, 0)


CORRUPTIONS: dict[str, tuple[Callable[[LabeledImages, Any], Tensor], tuple[float, ...]]] = {
    "noise, sigma": (noisy, (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)),
    "blur, sigma": (blurred, (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)),
    "erased square, side": (erased, (2, 4, 6, 8, 10, 14)),
    "other images, share": (replaced, (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)),
    "missing classes": (fewer_classes, (1, 2, 3, 4, 6, 8)),
    "repeats of an image": (repeated, (2, 4, 10, 20, 50, 100)),
}


@dataclass(frozen=True)
class Args:
    """What was typed."""

    data_root: str
    quick: bool
    out: Path


def main() -> None:
    """Print the distances and the correlations, and write them as JSON."""
    parser = Parser(prog="pretext", description=__doc__)
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    parser.add_argument("--quick", action="store_true", help="a trial; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder [%(default)s]")
    own, _ = parser.parse(None, [])
    args, began = Args(**own), time.monotonic()
    found = measure(args.data_root, QUICK if args.quick else Size())
    found |= {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time()}
    if not args.quick:
        args.out.mkdir(parents=True, exist_ok=True)
        command = "python -m benchmarks.pretext"
        found["environment"] = environment(torch.device("cpu")) | {"command": command}
        write_json(args.out / "pretext.json", found)


def measure(data_root: str, size: Size) -> dict[str, Any]:
    """Accuracies of the classifiers, distances, correlations."""
    train_set, test_set = load_splits(DataOptions("mnist", data_root))
    train, test = (LabeledImages.of(part, len(part)) for part in (train_set, test_set))
    train, few = train[: size.train], test[: size.images]
    with tempfile.TemporaryDirectory() as folder:
        extractors = train_extractors(train, few, task_of(train_set), size.steps, Path(folder))
    for extractor in extractors.values():
        print(extractor.summary)
    rows = distances(extractors, train, test, size.images)
    show(f"Fréchet distance of {size.images} images to {size.train} training images", rows)
    found = correlations(rows)
    show("Spearman's rank correlation with the degree, and of all sets with the classes", found)
    accuracy = {name: extractor.accuracy for name, extractor in extractors.items()}
    return {"accuracy": accuracy, "distances": rows, "correlations": found}


def train_extractors(
    train: LabeledImages, test: LabeledImages, classes: Task, steps: int, folder: Path
) -> dict[str, FeatureExtractor]:
    """By the names of the columns."""
    recipes = {
        "classes": (classes, steps),
        "rotations": (ROTATIONS, steps),
        "one step": (ROTATIONS, 1),
    }
    return {
        name: load_or_train(train, test, task, folder / f"{name}.pt", steps)
        for name, (task, steps) in recipes.items()
    }


def distances(
    extractors: dict[str, FeatureExtractor], train: LabeledImages, test: LabeledImages, n: int
) -> dict[str, Row]:
    """The Fréchet distance of n images of every corruption and degree, in each of the features."""
    real = {name: e.extract(train).features for name, e in extractors.items()}
    rows = {}
    for name, (corrupt, degrees) in CORRUPTIONS.items():
        for degree in degrees:
            images = corrupt(test, degree)[:n]
            corrupted = LabeledImages(images, torch.zeros(len(images)))
            rows[f"{name} {degree:g}"] = {
                column: frechet_distance(e.extract(corrupted).features, real[column])
                for column, e in extractors.items()
            }
    return rows


def correlations(rows: dict[str, Row]) -> dict[str, Row]:
    """Of every column with the degrees of each corruption, and with the first column over all."""
    columns = list(next(iter(rows.values())))
    found = {}
    for name, (_, degrees) in CORRUPTIONS.items():
        own = [rows[f"{name} {degree:g}"] for degree in degrees]
        found[name] = {c: spearman(degrees, [row[c] for row in own]) for c in columns}
    first = [row[columns[0]] for row in rows.values()]
    found["all, with classes"] = {
        c: spearman(first, [row[c] for row in rows.values()]) for c in columns
    }
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of as many numbers without ties, -1 ... 1."""
    ranks = torch.tensor([a, b], dtype=torch.float64).argsort(1).argsort(1)
    return torch.corrcoef(ranks.double())[0, 1].item()


if __name__ == "__main__":
    main()
