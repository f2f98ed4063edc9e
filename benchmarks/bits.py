"""Bits per dimension after equal steps: what each part of the preset `likelihood` buys.

python -m benchmarks.bits --data-root datasets    # eight trainings; goes on where it was stopped
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.trials import RESULTS, Place, PlaceArgs, add_place, parse, place
from config import Parser
from evaluation.likelihood import BY_BAND, CODERS
from utils.runs import run_of

LIKELIHOOD = "--preset likelihood"
ROWS = {
    "likelihood": LIKELIHOOD,
    "t evenly": f"{LIKELIHOOD} --no-importance-sampling",
    "a learned variance": f"{LIKELIHOOD} --learn-variance --variance learned",
    "any real number as an estimate": f"{LIKELIHOOD} --no-discrete-pixels",
    "the same, unweighted": f"{LIKELIHOOD} --no-discrete-pixels --loss simple",
    "v, unweighted": f"{LIKELIHOOD} --no-discrete-pixels --prediction v --loss simple",
    "cosine schedule": f"{LIKELIHOOD} --schedule cosine",
    "the default preset": "--preset mnist --guidance 1",
}


@dataclass(frozen=True)
class Args:
    """The checked command line."""

    steps: int
    seed: int
    place: PlaceArgs
    out: Path


def main() -> None:
    """Measure the rows that are missing; print them all."""
    args = parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    with place(args.place) as where:
        for name, flags in ROWS.items():
            key = f"{name}, {args.steps} steps, seed {args.seed}"
            if key not in found:
                run = ["--max-steps", str(args.steps), "--seed", str(args.seed)]
                found[key] = measured(where, [*flags.split(), *run])
                measure.write(args.out, found)
            bits = found[key]["bits"]
            print(f"| {name} | {bits['total']:.3f} ± {bits['se']:.3f} | {bits['decoder']:.3f} |")


def measured(where: Place, flags: list[str]) -> dict[str, Any]:
    """The bound of a training by these flags with all T steps, and its parts by t and pixel."""
    ckpt = where.train(flags)
    where.run("evaluate.py", "--ckpt", str(ckpt), "--only", "bits", *where.data)
    logs = run_of(ckpt).logs
    bits = json.loads((logs / "metrics.json").read_text())["bits_per_dim"]
    variance = json.loads((logs / "config.json").read_text())["sample"]["variance"]
    chain = next(own for name, own in bits.items() if name.endswith(" steps"))
    return {
        "flags": " ".join(flags),
        "bits": chain[variance],
        "parts": bits[BY_BAND],
        "coders": bits[CODERS],
        "hardware": measure.hardware(torch.device("cpu")),
    }


def parse_args(argv: Sequence[str] | None = None) -> Args:
    """The command line."""
    parser = Parser(prog="bits", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of each training [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits.json", help="[%(default)s]")
    add_place(parser, 1)
    own = parse(parser, argv)
    where = PlaceArgs(own["data_root"], own["run_root"], own["jobs"])
    return Args(own["steps"], own["seed"], where, own["out"])


if __name__ == "__main__":
    main()
