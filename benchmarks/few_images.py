"""Learning from little: from another run's weights, and what validation costs with 90 images.

python -m benchmarks.few_images --data-root datasets

Two trainings on drawn digits from scratch, and two of half as many steps from the EMA weights of a
training on MNIST; then trainings on a folder of 90 digits, with an epoch of one pass and of the
default length. The default network; about 14 minutes of CPU time without bf16, with one thread
(OMP_NUM_THREADS=1).
"""

import csv
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest.mock import patch

import train
from benchmarks.trials import RESULTS
from config import Parser
from data.digits import draw_digits
from training.validate import Validation
from utils.images import save_png

IMAGES = 90  # in the folder, of which every tenth is held out
SOURCE, STEPS, ONE_PASS = 1000, 500, 30  # steps: on MNIST, from scratch, with epochs of one pass


@dataclass(frozen=True)
class Row:
    """A training: its last held-out loss, and what validation cost."""

    name: str
    seed: int
    steps: int
    held_out: float
    validation: float  # its share of the time


def main() -> None:
    """Train, print a table and write the CSV."""
    parser = Parser(prog="few_images", description=__doc__)
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    own, _ = parser.parse(None, [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*transfer(folder, own["data_root"]), *validation(folder)]
    with (RESULTS / "few_images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    print("| training | seed | steps | held-out loss | time of validation |")
    print("|---" * 5 + "|")
    for row in rows:
        cells = f"{row.steps:,} | {row.held_out:.4f} | {row.validation:.1%}"
        print(f"| {row.name} | {row.seed} | {cells} |")


def transfer(folder: Path, data_root: str) -> Iterator[Row]:
    """MNIST; then digits from scratch, and in half the steps from MNIST's EMA weights."""
    source = ["--run-root", str(folder / "mnist")]
    mnist = [*source, "--dataset", "mnist", "--data-root", data_root]
    yield trial("MNIST", 0, SOURCE, mnist)
    weights = str(folder / "mnist/checkpoints/version_0")
    for seed in (0, 1):
        flags = ["--run-root", str(folder / "digits"), "--dataset", "digits"]
        yield trial("digits, from scratch", seed, STEPS, flags)
        flags += ["--init-from", weights]
        yield trial("digits, from MNIST's weights", seed, STEPS // 2, flags)


def validation(folder: Path) -> Iterator[Row]:
    """A folder of few images, as PNG files of ten classes."""
    images, labels = draw_digits(True, IMAGES)
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / f"few/{label}").mkdir(parents=True, exist_ok=True)
        save_png(image, folder / f"few/{label}/{i}.png")
    flags = ["--run-root", str(folder / "few_runs"), "--dataset", "folder"]
    flags += ["--data-root", str(folder / "few"), "--image-size", "28"]
    one = [*flags, "--min-epoch-images", "1"]
    yield trial(f"{IMAGES} images, epochs of one pass", 0, ONE_PASS, one)
    yield trial(f"{IMAGES} images", 0, STEPS, flags)


def trial(name: str, seed: int, steps: int, flags: Sequence[str]) -> Row:
    """Train for so many steps."""
    began, spent, losses = time.monotonic(), [], []
    with watched(spent, losses):
        code = train.main([*flags, "--seed", str(seed), "--max-steps", str(steps)])
    if code:
        raise SystemExit(code)
    return Row(name, seed, steps, losses[-1], sum(spent) / (time.monotonic() - began))


@contextmanager
def watched(spent: list[float], losses: list[float]) -> Iterator[None]:
    """Within it, every validation adds its seconds and its held-out loss."""
    run = Validation.run

    def timed(validation: Validation, state: train.TrainState) -> tuple:
        began = time.monotonic()
        found = run(validation, state)
        spent.append(time.monotonic() - began)
        losses.append(found[0])
        return found

    with patch.object(Validation, "run", timed):
        yield


if __name__ == "__main__":
    main()
