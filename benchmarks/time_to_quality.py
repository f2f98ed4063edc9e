"""How good after so many minutes: the default against the DDPM that one would write first.

python -m benchmarks.time_to_quality --data-root datasets           # all cores to each in turn
python -m benchmarks.time_to_quality --data-root datasets --jobs 2  # two at a time, half of them
python -m benchmarks.time_to_quality --data-root datasets --only ours  # one method

All methods train for the same minutes on as many cores. `ours` has a run for each of them, since
its learning rate decays to the end; the others, at a constant rate, have one run that is stopped on
its way. What is in results/time_to_quality.csv already is kept, and with --run-root the runs and
their classifier are.
"""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.plot import plot_grids, plot_quality
from benchmarks.trials import (
    RESULTS,
    Place,
    PlaceArgs,
    Score,
    Scores,
    add_place,
    parse,
    place,
    read,
    side_by_side,
)
from config import Parser
from evaluation.scores import PER_FEATURE
from models.classifier import WIDTHS

MINUTES = (3, 10, 25)
MIN_FOR_FID = PER_FEATURE * WIDTHS[-1]  # samples, in the features of the classifier
TEXTBOOK = (  # Ho et al. 2020 as tutorials write it
    "--prediction eps --loss simple --schedule linear --num-classes 0 --batch-size 128 "
    "--optimizer adamw --lr 2e-4 --warmup-steps 0 --decay constant --ema-decay 0.9999 --ema-power 8"
)
LARGE = (  # the original's network
    "--image-size 32 --base-channels 64 --channel-multipliers 1 2 4 8 --blocks-per-level 2 "
    "--attention-levels 2 --patch-size 1 --norm group --dropout 0.1"
)
TEXT = (  # the original's text
    "--prediction x0 --no-precondition --loss kl --schedule linear --first-timestep 2 "
    "--num-classes 0 --batch-size 128 "
    "--optimizer adamw --lr 2e-4 --warmup-steps 0 --decay constant --ema-decay 0.999 --ema-power 8"
)


@dataclass(frozen=True)
class Method:
    """Flags of train.py; flags of evaluate.py, and how many images (0: as many as --num says)."""

    flags: str
    samplings: dict[str, int]
    last: dict[str, int]  # after the last minutes also these, which take long
    decays: bool = False  # a schedule that ends: every number of minutes is a run of its own


METHODS = {
    "ours": Method("", {"": 0}, {}, decays=True),
    "textbook": Method(TEXTBOOK, {"--steps 50": 0}, {"--steps 1000": MIN_FOR_FID}),
    "the original's text": Method(TEXT, {"--steps 50": 0}, {"--steps 999": MIN_FOR_FID}),
    # An image of this network costs as much as 56 of the small one, in training and in sampling.
    "textbook, 57 M": Method(f"{TEXTBOOK} {LARGE}", {}, {"--steps 10": MIN_FOR_FID}),
}


@dataclass(frozen=True)
class Args(PlaceArgs):
    """What was typed."""

    only: str | None
    seed: int
    minutes: list[float]
    num: int
    out: Path


def main() -> None:
    """Fill the CSV, then draw the plot and the table from it."""
    parser = Parser(prog="time_to_quality", description=__doc__)
    add_place(parser, jobs=1)
    parser.add_argument("--only", choices=METHODS, help="one method [all]")
    parser.add_argument("--seed", type=int, default=0, help="of training [%(default)s]")
    parser.add_argument("--minutes", type=float, nargs="*", default=MINUTES, help="[%(default)s]")
    parser.add_argument("--num", type=int, default=2000, help="samples of most [%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder [%(default)s]")
    args = Args(**parse(parser, None))
    at = sorted(args.minutes)
    more = [b - a for a, b in pairwise([0, *at])]
    if any(a == b for a, b in pairwise(more)) or min(more, default=0) <= 0:
        parser.error("--minutes: above 0, and not rising by the same number twice in turn")
    scores = Scores(args.out / "time_to_quality.csv")
    names = [args.only] if args.only else list(METHODS)
    with place(args) as where:
        side_by_side(args.jobs, [partial(compare, where, scores, name, args) for name in names])
    print(table(scores.rows))
    plot_quality(scores.rows, args.out / "time_to_quality.png")
    pictures = {(name, m): picture(name, m, args) for name in METHODS for m in at}
    plot_grids(args.out, {key: path for key, path in pictures.items() if path.exists()})


def compare(where: Place, scores: Scores, name: str, args: Args) -> None:
    """Train a method for each of the minutes, and score it there, where the CSV does not."""
    method, wanted = METHODS[name], {}
    known = {"name": name, "train_flags": method.flags, "cores": where.cores, "seed": args.seed}
    for minutes in sorted(args.minutes):
        own = method.samplings | (method.last if minutes == max(args.minutes) else {})
        counted = {sampling: num or args.num for sampling, num in own.items()}
        wanted[minutes] = {
            sampling: num
            for sampling, num in counted.items()
            if not scores.has(**known, minutes=minutes, sample_flags=sampling, num=num)
        }
    before, ckpt = 0.0, None
    for minutes, own in wanted.items():
        needed = own if method.decays or not method.samplings else any(wanted.values())
        if not needed:
            continue
        if method.decays or ckpt is None:
            limit = ["--seed", str(args.seed), "--max-minutes", f"{minutes:g}"]
            ckpt = where.train([*method.flags.split(), *limit])
        else:
            ckpt = where.train(["--resume", str(ckpt), "--max-minutes", f"{minutes - before:g}"])
        before = minutes
        for sampling, num in own.items():
            metrics = where.score(ckpt, num, sampling.split())
            row = read(metrics, **known, minutes=minutes, sample_flags=sampling)
            scores.add(row)
            print(line(row), file=sys.stderr, flush=True)
        if own:
            grid = where.draw(ckpt, next(iter(own)).split())
            shutil.copy(grid, picture(name, minutes, args))


def picture(name: str, minutes: float, args: Args) -> Path:
    """The file of a method's samples."""
    seed = f"_seed{args.seed}" if args.seed else ""
    return args.out / f"grid_{''.join(filter(str.isalnum, name))}_{minutes:g}{seed}.png"


def table(rows: list[Score]) -> str:
    """As Markdown, method by method."""
    places = {name: at for at, name in enumerate(METHODS)}
    rows = sorted(rows, key=lambda row: (places[row.name], row.seed, row.minutes))
    head = (
        "| method | minutes | seed | steps | sampling | samples "
        "| FID (real images) | precision | recall | accuracy |"
    )
    return "\n".join([head, "|---" * 10 + "|", *map(line, rows)])


def line(row: Score) -> str:
    """A row of the table."""
    trained = f"{row.name} | {row.minutes:g} | {row.seed} | {row.steps:,}"
    scored = f"{row.fid:.2f} ({row.floor:.2f}) | {row.cells}"
    return f"| {trained} | {row.sample_flags or 'default'} | {row.num:,} | {scored} |"


if __name__ == "__main__":
    main()
