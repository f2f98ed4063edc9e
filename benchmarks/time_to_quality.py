"""How good after so many minutes: the default against the DDPM that one would write first.

python -m benchmarks.time_to_quality --data-root datasets           # all cores to each in turn
python -m benchmarks.time_to_quality --data-root datasets --jobs 2  # two at a time, half of them
python -m benchmarks.time_to_quality --data-root datasets --only ours  # one contender

Contenders train for the same minutes on as many cores. `ours` has a run for each of them, since its
rate falls to the end; the others, at a constant rate, have one run that is stopped on its way. What
is in results/time_to_quality.csv already is kept, and with --run-root the runs and their judge are.
"""

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trials import CORES, RESULTS, Place, Score, Scores, add_place, place, read
from config import Parser

MINUTES = (3, 10, 25)
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
class Contender:
    """What it is trained with, and how it is sampled: flags of evaluate.py, share of the images."""

    flags: str
    samplings: dict[str, float]
    last: dict[str, float]  # after the last minutes also these, which take long
    decays: bool = False  # a plan that ends, so every number of minutes is a run of its own


CONTENDERS = {
    "ours": Contender("", {"": 1}, {}, decays=True),
    "textbook": Contender(TEXTBOOK, {"--steps 50": 1}, {"--steps 1000": 1 / 8}),
    "the original's text": Contender(TEXT, {"--steps 50": 1}, {"--steps 999": 1 / 8}),
    # An image of this network costs as much as 56 of the small one.
    "textbook, 57 M": Contender(f"{TEXTBOOK} {LARGE}", {"--steps 10": 1 / 20}, {}),
}


def main() -> None:
    """Fill the CSV, then draw the plot and the table from it."""
    parser = Parser(prog="time_to_quality", description=__doc__)
    add_place(parser)
    parser.add_argument("--only", choices=CONTENDERS, help="one contender [all]")
    parser.add_argument("--seed", type=int, default=0, help="of training [%(default)s]")
    parser.add_argument("--minutes", type=float, nargs="*", default=MINUTES, help="[%(default)s]")
    parser.add_argument("--num", type=int, default=2000, help="samples of most [%(default)s]")
    parser.add_argument("--jobs", type=int, default=1, help="contenders at a time [%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder [%(default)s]")
    flags = parser.parse_args()
    scores = Scores(flags.out / "time_to_quality.csv")
    names = [flags.only] if flags.only else list(CONTENDERS)
    cores = max(1, CORES // flags.jobs)
    with place(flags, cores) as where, ThreadPoolExecutor(flags.jobs) as pool:
        for done in [pool.submit(compete, where, scores, name, flags) for name in names]:
            done.result()
    print(table(scores.rows))
    from benchmarks.plot import plot_grids, plot_quality

    plot_quality(scores.rows, flags.out / "time_to_quality.png")
    pictures = {(name, m): flags.out / picture(name, m) for name in CONTENDERS for m in MINUTES}
    plot_grids(flags.out, {at: path for at, path in pictures.items() if path.exists()})


def compete(where: Place, scores: Scores, name: str, flags: argparse.Namespace) -> None:
    """Train a contender for each of the minutes, and score it there."""
    contender = CONTENDERS[name]
    wanted = dict.fromkeys(sorted(flags.minutes), contender.samplings)
    wanted[max(wanted)] = contender.samplings | contender.last
    missing = {m: scores.missing(list(own), name, m, flags.seed) for m, own in wanted.items()}
    before, ckpt = 0.0, None
    for minutes, own in missing.items():
        if not (own if contender.decays else any(missing.values())):
            continue
        if contender.decays or ckpt is None:
            limit = ["--seed", str(flags.seed), "--max-minutes", f"{minutes:g}"]
            ckpt = where.train([*contender.flags.split(), *limit])
        else:
            ckpt = where.train(["--resume", str(ckpt), "--max-minutes", f"{minutes - before:g}"])
        before = minutes
        for sampling in own:
            num = int(flags.num * wanted[minutes][sampling])
            metrics = where.score(ckpt, num, sampling.split())
            known = {"name": name, "train_flags": contender.flags, "sample_flags": sampling}
            known |= {"minutes": minutes, "cores": where.cores, "seed": flags.seed}
            scores.add(read(metrics, **known))
            print(line(scores.rows[-1]), file=sys.stderr, flush=True)
        grid = where.draw(ckpt, next(iter(contender.samplings)).split())
        shutil.copy(grid, flags.out / picture(name, minutes))


def picture(name: str, minutes: float) -> str:
    """The file of a contender's samples."""
    return f"grid_{''.join(filter(str.isalnum, name))}_{minutes:g}.png"


def table(rows: list[Score]) -> str:
    """As Markdown."""
    head = (
        "| contender | minutes | seed | steps | sampling | samples "
        "| FID (real images) | precision | recall | accuracy |"
    )
    return "\n".join([head, "|---" * 10 + "|", *map(line, rows)])


def line(row: Score) -> str:
    """A row of the table."""
    right = f"{row.accuracy:.1%}" if row.accuracy >= 0 else ""
    trained = f"{row.name} | {row.minutes:g} | {row.seed} | {row.steps:,}"
    scored = f"{row.fid:.2f} ({row.floor:.2f}) | {row.precision:.3f} | {row.recall:.3f} | {right}"
    return f"| {trained} | {row.sample_flags or 'default'} | {row.num:,} | {scored} |"


if __name__ == "__main__":
    main()
