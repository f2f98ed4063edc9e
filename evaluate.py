"""How good a checkpoint is: its samples against real images, and the bound on its likelihood.

python evaluate.py --ckpt latest
python evaluate.py --ckpt latest --num 1000 --only scores
python evaluate.py --ckpt latest --samplers ddpm:50,ddim:20,dpmpp:10
"""

import math
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import Config, ConfigError, Parser, flag
from data import DataError, ImageSet, load
from diffusion import (
    DRAWS,
    SAMPLERS,
    GaussianDiffusion,
    HeldOut,
    bounds,
    guided,
    held_out_losses,
    last_variances,
    x0_errors,
)
from draw import (
    add_flags,
    asked_classes,
    build,
    draw_samples,
    exit_code,
    open_checkpoint,
    parse_flags,
)
from judge import Photos, judge_of, normalize
from scores import Read, Row, class_shares, memorisation, part_of, reasons, score
from utils import images, runs
from utils.devices import pick_device
from utils.distributed import Ranks, joined
from utils.tables import table

SECTIONS = ("scores", "memory", "held-out", "bits")
MOST = 60_000  # real images held in memory
GRID, BANDS = 5_000, 10  # points of the held-out loss, bands of t
BITS = 1_000  # test images of the bound
ERRORS = 1024  # training images that the optimal variance is fitted to
FITTED = 256  # training images that its last variance is fitted to


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and the real images it is compared with."""

    model: nn.Module
    diffusion: GaussianDiffusion
    config: Config
    flags: Namespace
    train: Photos
    test: Photos
    classes: int


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: measured, 1: failed on the way, 2: bad input, 130: interrupted."""

    def work() -> None:
        config, flags, state = parse(argv)
        device = pick_device(flags.device)
        with joined(device) as ranks:
            evaluate(config, flags, state, device, ranks)

    return exit_code("evaluate.py", work)


def evaluate(
    config: Config, flags: Namespace, state: dict[str, Any], device: torch.device, ranks: Ranks
) -> None:
    """Measure what was asked for; print it, and write metrics.json beside the run's logs.

    Each rank draws its part of the samples; the first one does all the rest.
    """
    train_set, test_set = open_data(config, state)
    model, diffusion = build(config, flags.ckpt, state, device)
    train, test = (Photos.of(part.to(device), MOST) for part in (train_set, test_set))
    classes = train_set.num_classes
    subject = Subject(model, diffusion, config, flags, train, test, classes)
    print(f"{flags.ckpt}: step {state['step']}; data: {train_set.source}", flush=True)
    if diffusion.x0_error is None:
        measure_errors(subject)
    logs = runs.logs_of(flags.ckpt)
    if ranks.first:
        logs.mkdir(parents=True, exist_ok=True)  # or fail before anything is drawn
    judged = {"scores", "memory"} & set(flags.only)
    drawn = draw_all(subject, ranks) if judged and classes > 1 else {}
    if not ranks.first:
        return

    found: dict[str, Any] = {"checkpoint": str(flags.ckpt), "step": state["step"]}
    found |= {"num": flags.num, "seed": flags.seed, "sample": asdict(config.sample)}
    if drawn:
        found |= judge_samples(subject, drawn, train_set, logs)
    elif judged:
        print(f"no scores, no memorisation: {train_set.name} has no classes to train a judge on")
    if "held-out" in flags.only:
        found["held_out"] = held_out(subject)
    if "bits" in flags.only:
        found["bits_per_dim"] = bits(subject)
    found["environment"] = runs.environment(device)
    runs.write_json(logs / "metrics.json", found)
    print(f"\n{logs / 'metrics.json'} (replaced as a whole each time)")


def open_data(config: Config, state: dict[str, Any]) -> list[ImageSet]:
    """The training and test set of the run. Raises DataError where they are not the run's."""
    sets = [load(**asdict(config.data), train=part) for part in (True, False)]
    if state["data"]["fingerprint"] != sets[0].fingerprint:
        raise DataError(f"the images ({sets[0].source}) are not those this run was trained on")
    return sets


# Samples.


def draw_all(subject: Subject, ranks: Ranks) -> dict[str, tuple[Photos, Row]]:
    """The samples of every sampler with the classes they were asked for, and what they cost."""
    flags, drawn = subject.flags, {}
    conditional = subject.config.model.num_classes > 0
    y = asked_classes(subject.train.labels, flags.num) if conditional else None
    for name, config in flags.samplers.items():
        print(f"drawing {flags.num} images: {name}", flush=True)
        x, cost = draw_samples(subject.model, subject.diffusion, config, flags, y, ranks)
        labels = torch.zeros(len(x)) if y is None else y[: len(x)]
        drawn[name] = Photos(x, labels).to(subject.train.images.device), cost
    return drawn


def judge_samples(
    subject: Subject, drawn: dict[str, tuple[Photos, Row]], train_set: ImageSet, logs: Path
) -> dict[str, Any]:
    """The scores of samples beside the floors, and how near they are to the training images."""
    in_run = runs.is_in_run(subject.flags.ckpt)
    kept = (logs.parent.parent if in_run else logs) / "classifiers"
    size = subject.config.data.image_size
    path = kept / f"{train_set.name}_{size}_{train_set.fingerprint[:16]}.pt"
    judge = judge_of(subject.train, subject.test, subject.classes, path)
    print(f"classifier: {100 * judge.accuracy:.2f} % of the test set; {judge.source}", flush=True)
    train, test = (Read.by(judge, photos) for photos in (subject.train, subject.test))
    reads = {name: Read.by(judge, photos) for name, (photos, _) in drawn.items()}
    found: dict[str, Any] = {"classifier_accuracy": judge.accuracy}
    if "scores" in subject.flags.only:
        costs = {name: cost for name, (_, cost) in drawn.items()}
        found |= score_all(subject, reads, costs, train, test)
    if "memory" in subject.flags.only:
        samples = next(iter(reads.values()))
        found["memorisation"] = find_copies(samples, train, test, logs / "nearest_pairs.png")
    return found


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
    images.save_png(pairs, picture)
    title = (
        f"Distance to the nearest training image: {len(samples)} samples, {len(test)} test images"
    )
    show(title, {space: found[space] for space in ("pixels", "features")})
    print(f"{found['verdict']}; the closest pairs: {picture}")
    return found


def by_class(shares: list[float]) -> dict[str, float]:
    """A row of a table: the share of each class."""
    return {str(label): share for label, share in enumerate(shares)}


# The network and its bound.


def held_out(subject: Subject) -> dict[str, dict[str, float]]:
    """The training loss on a fixed grid of (test image, t, noise), by band of t."""
    some = subject.test[:GRID]
    grid = HeldOut.of(normalize(some.images), some.labels, subject.diffusion)
    losses = held_out_losses(subject.model, subject.diffusion, grid).double()
    bands, rows = min(BANDS, max(1, len(some) // 2)), {}
    for part, t in zip(losses.tensor_split(bands), grid.t.tensor_split(bands), strict=True):
        rows[f"t = {t[0]} ... {t[-1]}"] = mean_and_error(part)
    rows["all"] = mean_and_error(losses)
    show(f"Held-out loss ({subject.config.diffusion.loss}) of {len(some)} test images", rows)
    return rows


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Of independent losses (N,), and the standard error of the mean."""
    return {"loss": values.mean().item(), "se": (values.std() / math.sqrt(len(values))).item()}


def measure_errors(subject: Subject) -> None:
    """For a checkpoint that lacks the errors of its network, or has those of the other --clip.

    As in training they are those without guidance: the optimal variance is exact there alone.
    """
    x_0, y = normalize(subject.train[:ERRORS].images), subject.train[:ERRORS].labels
    clip = subject.config.sample.clip
    subject.diffusion.x0_error = x0_errors(subject.model, subject.diffusion, x_0, y, clip)


def bits(subject: Subject) -> dict[str, Any]:
    """The bound of all T steps, and of as many as are sampled, for every variance."""
    c, diffusion, flags = subject.config, subject.diffusion, subject.flags
    null, scale, clip = c.model.num_classes, c.sample.guidance, c.sample.clip

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return guided(subject.model, y if null else None, null, scale, c.guided_times)(x, t)

    some, fitted = subject.test[:BITS], subject.train[:FITTED]
    every = diffusion.timesteps - diffusion.first_timestep + 1
    found = {}
    for steps in sorted({every, c.sample.steps}, reverse=True):
        last = last_variances(
            model, diffusion, normalize(fitted.images), fitted.labels, steps, clip
        )
        draws = every if flags.all_terms else DRAWS
        x_0, y = normalize(some.images), some.labels
        parts = bounds(model, diffusion, x_0, y, steps, last, draws, clip)
        found[f"{steps} steps"] = {name: bound.summary() for name, bound in parts.items()}
        title = f"Bits per dimension of {len(some)} test images, ancestral chain of {steps} steps"
        show(title, found[f"{steps} steps"])
    if c.sample.sampler != "ddpm":
        print(f"{c.sample.sampler} has no bound; these are of ddpm's chain")
    return found


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table under its title."""
    print("\n" + table(title, rows), flush=True)


def parse(argv: list[str] | None) -> tuple[Config, Namespace, dict[str, Any]]:
    """The checkpoint's configuration amended by the typed flags, the flags, the checkpoint."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_flags(parser, num=5000)
    parser.add_argument("--data-root", help="folder of the images [as in training]")
    parser.add_argument("--samplers", default="", help="others to compare: ddpm:50,dpmpp:10")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="any of %(default)s [all of them]"
    )
    parser.add_argument(
        "--all-terms", action="store_true", help="every KL term of every image [some, weighted]"
    )
    flags, typed = parse_flags(parser, argv)
    flags.only = flags.only.split(",")
    if unknown := [part for part in flags.only if part not in SECTIONS]:
        raise ConfigError(f"--only takes any of {','.join(SECTIONS)}, got {unknown[0]!r}")
    for name, part in (("samplers", "scores"), ("all_terms", "bits")):
        if getattr(flags, name) and part not in flags.only:
            raise ConfigError(f"{flag(name)} has no effect on --only {','.join(flags.only)}")
    if flags.data_root is not None:
        typed["data_root"] = flags.data_root
    config, state = open_checkpoint(flags, typed)
    s, others = config.sample, flags.samplers
    flags.samplers = {f"{s.sampler}:{s.steps}": config}
    for spec in filter(None, others.split(",")):
        name, _, steps = spec.partition(":")
        if name not in SAMPLERS or not steps.isdecimal():
            raise ConfigError(f"--samplers takes ddpm:50,ddim:20 and the like, got {spec!r}")
        flags.samplers[spec] = config.override(sampler=name, steps=int(steps))
        flags.samplers[spec].check_sampling((), ())
    return config, flags, state


if __name__ == "__main__":
    sys.exit(main())
