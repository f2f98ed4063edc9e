"""How good a checkpoint is: its samples against real images, and the bound on its likelihood.

python evaluate.py --ckpt latest
python evaluate.py --ckpt latest --num 1000 --only scores
python evaluate.py --ckpt latest --samplers ddpm:50,ddim:20,dpmpp:10
"""

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bound import bits, held_out, measure_errors
from config import Config, ConfigError, Parser, flag
from data import DataError, ImageSet, load
from diffusion import SAMPLERS
from draw import (
    add_flags,
    asked_classes,
    build,
    draw_samples,
    exit_code,
    open_checkpoint,
    parse_flags,
)
from judge import Photos, Subject, judge_of
from scores import Read, Row, find_copies, score_all
from utils import runs
from utils.devices import pick_device
from utils.distributed import Ranks, joined

SECTIONS = ("scores", "memory", "held-out", "bits")
MOST = 60_000  # real images held in memory
FRESH = 1_000  # test images at least that samples' nearest neighbours are compared with


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
        fresh = test[: max(subject.flags.num, FRESH)]
        found["memorisation"] = find_copies(samples, train, fresh, logs / "nearest_pairs.png")
    return found


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
