"""What real images of MNIST score: drawn in the classes' proportions, and without regard to them.

OMP_NUM_THREADS=1 python -m benchmarks.floors --data-root datasets    # minutes on one core

Ten draws each of as many training images (beside the reference) and test images, as evaluate.py
draws them for a conditional and for an unconditional network. The feature extractor is that of
evaluate.py, which is trained where its folder lacks it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.trials import RESULTS
from config import Parser
from data import DataOptions, load_splits
from evaluation.features import Features, LabeledImages, cache_path, load_or_train
from evaluation.floor import Floor, proportional_labels
from evaluation.scores import floor_rows, over_draws
from evaluation.tables import Row, show
from evaluation.tasks import task_of
from training.trained import RUN_ROOT
from utils.runs import environment, write_json

NUMBERS, DRAWS = (300, 1_000, 5_000), 10
HOW = {"in proportion": True, "at random": False}  # for a conditional network, and for others


@dataclass(frozen=True)
class Args:
    """What was typed."""

    data_root: str
    classifiers: Path
    out: Path


def main() -> None:
    """Print mean and standard deviation of every score, and write them as JSON."""
    parser = Parser(prog="floors", description=__doc__)
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    parser.add_argument(
        "--classifiers",
        type=Path,
        default=RUN_ROOT / "classifiers",
        help="folder of the feature extractor [%(default)s]",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder [%(default)s]")
    own, _ = parser.parse(None, [])
    args = Args(**own)
    found = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    found["environment"] = environment(torch.device("cpu"))
    write_json(args.out / "floors.json", found)


def measure(args: Args) -> dict[str, Any]:
    """The accuracy of the classifier, and the floors by number of images."""
    train_set, test_set = load_splits(DataOptions("mnist", args.data_root))
    train, test = (LabeledImages.of(part, len(part)) for part in (train_set, test_set))
    task = task_of(train_set)
    path = cache_path(args.classifiers, train_set, task)
    extractor = load_or_train(train, test, task, path)
    print(extractor.summary)
    real = extractor.extract(train), extractor.extract(test)
    return {
        "classifier_accuracy": extractor.accuracy,
        "floors": {str(n): floors(real, n) for n in NUMBERS},
    }


def floors(real: tuple[Features, Features], n: int) -> dict[str, dict[str, Row]]:
    """Mean, deviation, least and greatest score of n real images, by how they are drawn."""
    labels, found = proportional_labels(real[0].source.labels, n), {}
    for how, conditional in HOW.items():
        floor = Floor.of(labels, real, conditional, DRAWS)
        for name, rows in floor_rows(floor, *real).items():
            found[f"{name}, {how}"] = {
                statistic.__name__: over_draws(statistic, rows)
                for statistic in (torch.mean, torch.std, torch.amin, torch.amax)
            }
    for statistic in ("mean", "std"):
        rows = {name: own[statistic] for name, own in found.items()}
        show(f"{n} images, {statistic} of {DRAWS} draws", rows)
    return found


if __name__ == "__main__":
    main()
