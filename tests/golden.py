"""What a checkout computes, as hashes: a refactor that keeps every bit prints the same.

    git worktree add /tmp/before COMMIT
    python tests/golden.py /tmp/before > before.json  # both on one machine; two minutes each
    python tests/golden.py . > after.json
    diff before.json after.json

Some formulations are trained for eight steps; one of them is sampled from, evaluated and resumed.
Of the checkout only the three command lines and ``data.datasets`` are used, so that it works before
and after files have moved. One thread; every run is a process of its own. Its 12 steps lie within
one pass over the images: the order of later passes is not that of earlier releases.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

TINY = (
    "--dataset digits --device cpu --base-channels 16 --emb-channels 16 --channel-multipliers 1 "
    "--attention-levels 0 --patch-size 4 --timesteps 50 --steps 4 --warmup-steps 5 --batch-size 24 "
    "--epochs 0 --max-steps 8"
)
FORMULATIONS = {
    "default": "",
    "adamw": "--optimizer adamw --weight-decay 0.01 --decay cosine",
    "dropout, micro-batches": "--dropout 0.1 --grad-accum 3",
    "checkpointed activations": "--dropout 0.1 --checkpoint-activations",
    "x0, kl": "--prediction x0 --loss kl --first-timestep 2 --norm group",
    "eps, linear": "--prediction eps --schedule linear --num-classes 0",
    "min-snr, sigmoid, fp32": "--loss min-snr --schedule sigmoid --precision fp32",
}
SAMPLINGS = {
    "ddpm": "",
    "ddim": "--sampler ddim --eta 0.5",
    "dpmpp": "--sampler dpmpp",
    "optimal variance": "--variance optimal",
    "guided": "--guidance 3",
}
TIMES = r"\d+(\.\d+)? (seconds|minutes)|\d+ images/s|\d\d:\d\d"  # printed, and never the same
# Parts of a checkpoint, by their keys in the file.
PARTS = ("step", "epoch", "model", "ema", "optimizer", "scheduler", "best", "x0_error")
PARTS += ("by_quarter",)
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import data.datasets as datasets
from data.digits import draw_digits
def few(part, classes):
    return datasets.TensorSet("", "drawn", classes, *draw_digits(part, size=300))
def opened(*arguments):  # earlier releases opened one part at a time: (root, size, part, download)
    if len(arguments) == 4:
        return few(arguments[2], 10)
    return tuple(few(part, tuple("0123456789")) for part in (True, False))
datasets.DATASETS["digits"] = opened
sys.exit(__import__(sys.argv[1]).main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Checkout:
    """The code under test, and an empty folder in which its scripts run."""

    code: Path
    folder: Path

    def run(self, script: str, *argv: str) -> dict[str, Any]:
        """A script on 300 drawn digits: exit code, stdout by lines, the end of stderr."""
        variables = os.environ | {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT, script, *argv],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
        )
        printed = ended.stdout.splitlines()
        return {"code": ended.returncode, "out": printed, "err": ended.stderr[-300:]}

    def train(self, *flags: str) -> dict[str, Any]:
        """Train, or go on; what was printed, and the hashes of the checkpoint and the curves."""
        ended = self.run("train", *flags)
        return ended | {"checkpoint": self.checkpoint(), "curves": self.curves()}

    def checkpoint(self) -> dict[str, str]:
        """A hash of every part of the newest checkpoint."""
        paths = self.folder.glob("Logs_Checkpoints/checkpoints/version_0/step_*.pt")
        content = torch.load(max(paths), weights_only=True)
        return {part: digest(content.get(part)) for part in PARTS}

    def curves(self) -> dict[str, str]:
        """A hash of every curve in TensorBoard, except those of the machine."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder / "Logs_Checkpoints/Inference/version_0"))
        events.Reload()
        machine = ("images_per_s", "step_ms", "memory_GiB")
        tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(machine)]
        return {tag: digest([(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags}

    def sample(self, name: str) -> list[Any]:
        """The exit code, and hashes of the pixels and of the picture."""
        flags = f"--ckpt latest --num 12 --save npz,grid --device cpu --out {name.split()[0]}"
        ended = self.run("sample", *flags.split(), *SAMPLINGS[name].split())
        folder = self.folder / name.split()[0]
        with np.load(folder / "samples.npz") as arrays:
            pixels = torch.from_numpy(arrays["arr_0"])
        return [ended["code"], digest(pixels), digest(str((folder / "grid.png").read_bytes()))]

    def evaluate(self) -> list[Any]:
        """The exit code, the held-out loss and the bound."""
        flags = "--ckpt latest --device cpu --num 8 --only held-out,bits"
        ended = self.run("evaluate", *flags.split())
        path = self.folder / "Logs_Checkpoints/Inference/version_0/metrics.json"
        metrics = json.loads(path.read_text())
        measured = [metrics["held_out"], metrics["bits_per_dim"]]
        return [ended["code"], *({k: v for k, v in own.items() if k != "of"} for own in measured)]


def digest(value: Any) -> str:
    """The start of a SHA-256 over plain values and tensors, bit for bit."""
    sha = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, dict):
            for key, item in value.items():
                sha.update(repr(key).encode())
                feed(item)
        elif isinstance(value, list | tuple):
            for item in value:
                feed(item)
        else:
            sha.update(repr(value).encode())

    feed(value)
    return sha.hexdigest()[:16]


def golden(code: Path, names: Iterable[str]) -> dict[str, Any]:
    """All hashes of a checkout, for these formulations."""
    found: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            checkout = Checkout(code.resolve(), Path(folder))
            found[name] = checkout.train(*TINY.split(), *FORMULATIONS[name].split())
            if name == "default":
                found |= {f"sample, {own}": checkout.sample(own) for own in SAMPLINGS}
                found["evaluate"] = checkout.evaluate()
                on = "--resume auto --max-steps 12 --device cpu"
                found["resumed"] = checkout.train(*on.split())
    text = json.dumps(found).replace(f"{sys.executable} ", "python ")
    for own, common in ((f"{code.resolve()}/", ""), (r"/tmp/tmp\w+", "TMP"), (TIMES, "TIME")):
        text = re.sub(own, common, text)
    return json.loads(text)


def main() -> None:
    """Print the hashes as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("code", type=Path, help="a checkout of this repository")
    parser.add_argument("--only", nargs="*", choices=FORMULATIONS, default=list(FORMULATIONS))
    args = parser.parse_args()
    print(json.dumps(golden(args.code, args.only), indent=1))


if __name__ == "__main__":
    main()
