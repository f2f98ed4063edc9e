"""How far rounding carries the losses of two ranks from those of one process.

python -m benchmarks.rounding --data-root datasets    # `mnist`, 40 steps; ten minutes on two cores

Every row compares a training with that of one process, which adds the same numbers in another
order; so do two micro-batches, without any ranks. All with one thread. Prints a table of the
largest relative differences of single losses.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.measure import ROOT, output
from config import Parser

WAYS = {  # ranks, and flags of train.py
    "2 ranks": (2, []),
    "2 micro-batches": (1, ["--grad-accum", "2"]),
}
FORMATS, OPTIMIZERS = ("fp32", "bf16"), ("adamw", "muon")


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = Parser(prog="rounding", description=__doc__)
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    parser.add_argument("--steps", type=int, default=40, help="[%(default)s]")
    own, _ = parser.parse(None, [])
    halves = [slice(0, own["steps"] // 2), slice(own["steps"] // 2, None)]
    print("| format | optimizer | against one process | first half | second half | median |")
    print("|---|---|---|---|---|---|")
    for precision in FORMATS:
        for optimizer in OPTIMIZERS:
            flags = ["--precision", precision, "--optimizer", optimizer]
            flags += ["--data-root", own["data_root"], "--max-steps", str(own["steps"])]
            alone = losses(flags, 1)
            for way, (ranks, own_flags) in WAYS.items():
                apart = np.abs(losses([*flags, *own_flags], ranks) / alone - 1)
                cells = [f"{apart[half].max():.1e}" for half in halves]
                cells.append(f"{np.median(apart):.1e}")
                print(f"| {precision} | {optimizer} | {way} | {' | '.join(cells)} |", flush=True)


def losses(flags: list[str], ranks: int) -> np.ndarray:
    """Of every step of a training on the CPU; the preset is `mnist`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--"]
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(launcher if ranks > 1 else ()), str(ROOT / "train.py")]
        output([*command, *flags, "--device", "cpu", "--steps", "1"], Path(folder))
        logs = Path(folder) / "Logs_Checkpoints/Inference/version_0"
        points = EventAccumulator(str(logs), {"scalars": 0}).Reload().Scalars("loss/train")
    return np.array([point.value for point in points])


if __name__ == "__main__":
    main()
