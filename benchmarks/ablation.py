"""What each choice buys: one change at a time from the default, the same minutes for every row.

python -m benchmarks.ablation --data-root datasets             # the formulation
python -m benchmarks.ablation --data-root datasets --recipe --minutes 4 --num 2000  # rates, sizes

Each row trains for five minutes on its share of the cores and scores 1,000 samples. Rows already in
results/ablation.csv or results/recipe.csv are kept: a benchmark that was stopped goes on.
"""

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.trials import (
    CORES,
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

Rows = dict[str, dict[str, str]]  # flags of train.py: name of a row: flags of evaluate.py

ORIGINAL = (  # the code of the original, not its text
    "--prediction eps --loss simple --schedule linear --optimizer adamw --lr 2e-4 --decay constant "
    "--weight-decay 0.01 --ema-decay 0 --warmup-steps 0 --num-classes 0"
)
FORMULATION: Rows = {
    "": {
        "default": "",
        "variance: beta": "--variance beta",
        "variance: optimal": "--variance optimal",
        "no clipping": "--no-clip",
        "no guidance": "--guidance 1",
    },
    "--prediction eps": {"prediction: noise": ""},
    "--prediction x0": {"prediction: x_0": ""},
    "--loss kl": {"loss: kl": ""},
    "--loss min-snr": {"loss: min-snr": ""},
    "--prediction x0 --loss kl": {"prediction: x_0, loss: kl": ""},
    "--schedule linear": {"schedule: linear": ""},
    "--schedule sigmoid": {"schedule: sigmoid": ""},
    "--first-timestep 2": {"first timestep: 2": ""},
    ORIGINAL: {"the original code's choices": "--variance beta --no-clip"},
    "--optimizer adamw": {"optimizer: AdamW": ""},
    "--optimizer adamw --lr 2e-3": {"optimizer: AdamW, rate 2e-3": ""},
}
UNGUIDED = "--guidance 1 --steps 10"
RECIPE: Rows = {  # the first two differ in the seed alone; the last is the default now
    "--lr 2e-3 --decay cosine": {"rate 2e-3": UNGUIDED},
    "--lr 2e-3 --decay cosine --seed 1": {"rate 2e-3, another seed": UNGUIDED},
    "--lr 4e-3 --decay cosine": {"rate 4e-3": UNGUIDED},
    "--lr 1e-3 --decay cosine": {"rate 1e-3": UNGUIDED},
    "--lr 7e-4 --decay cosine": {"rate 7e-4": UNGUIDED},
    "--lr 5e-4 --decay cosine": {"rate 5e-4": UNGUIDED},
    "--lr 7e-4 --decay cosine --batch-size 16": {"rate 7e-4, batch 16": UNGUIDED},
    "--lr 7e-4 --decay cosine --batch-size 64": {"rate 7e-4, batch 64": UNGUIDED},
    "--lr 1e-3 --decay cosine --batch-size 64 --ema-power 6": {
        "rate 1e-3, batch 64, power 6": UNGUIDED
    },
    "--lr 1.4e-3 --decay cosine --batch-size 64 --ema-power 4": {
        "rate 1.4e-3, batch 64, power 4": UNGUIDED
    },
    "--lr 7e-4 --decay cosine --ema-power 6": {"rate 7e-4, power 6": UNGUIDED},
    "--lr 7e-4 --decay cosine --loss min-snr": {"rate 7e-4, min-snr": UNGUIDED},
    "--lr 7e-4 --decay cosine --base-channels 48": {"rate 7e-4, 48 channels": UNGUIDED},
    "--lr 7e-4 --decay linear": {"rate 7e-4, linear decay": UNGUIDED},
}


@dataclass(frozen=True)
class Args(PlaceArgs):
    """What was typed."""

    recipe: bool
    minutes: float  # of each row
    num: int  # samples of each row
    out: Path | None


def main() -> None:
    """Fill the CSV, row by row; print the table."""
    parser = Parser(prog="ablation", description=__doc__)
    add_place(parser, jobs=CORES)
    parser.add_argument("--recipe", action="store_true", help="the rows of the recipe")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each row [%(default)s]")
    parser.add_argument("--num", type=int, default=1000, help="samples of each row [%(default)s]")
    parser.add_argument("--out", type=Path, help="CSV [results/ablation.csv or recipe.csv]")
    args = Args(**parse(parser, None))
    rows = RECIPE if args.recipe else FORMULATION
    out = args.out or RESULTS / ("recipe.csv" if args.recipe else "ablation.csv")
    scores = Scores(out)
    with place(args) as where:
        trials = [partial(trial, where, scores, args, *row) for row in rows.items()]
        side_by_side(args.jobs, trials)
    print(table(scores.rows))


def trial(
    where: Place,
    scores: Scores,
    args: Args,
    train_flags: str,
    samplings: dict[str, str],
) -> None:
    """Train once and score every way of sampling from it, unless the CSV has them all."""
    seed = int(re.findall(r"--seed (\d+)", f"--seed 0 {train_flags}")[-1])
    known = {"train_flags": train_flags, "minutes": args.minutes, "seed": seed}
    known |= {"cores": where.cores}
    missing = {
        name: own
        for name, own in samplings.items()
        if not scores.has(**known, name=name, sample_flags=own, num=args.num)
    }
    if not missing:
        return
    print(f"training for {args.minutes:g} minutes: {train_flags}", file=sys.stderr, flush=True)
    ckpt = where.train([*train_flags.split(), "--max-minutes", f"{args.minutes:g}"])
    for name, own in missing.items():
        metrics = where.score(ckpt, args.num, own.split())
        score = read(metrics, **known, name=name, sample_flags=own)
        scores.add(score)
        print(line(score), file=sys.stderr, flush=True)


def table(rows: list[Score]) -> str:
    """As Markdown, best first."""
    n = rows[0].num
    head = (
        f"| change | steps | FID@{n} (floor {rows[0].floor:.2f}) | precision | recall | accuracy |"
    )
    return "\n".join([head, "|---" * 6 + "|", *map(line, sorted(rows, key=lambda row: row.fid))])


def line(row: Score) -> str:
    """A row of the table."""
    return f"| {row.name} | {row.steps:,} | {row.fid:.2f} | {row.cells} |"


if __name__ == "__main__":
    main()
