"""--prove-resume: a run that was killed and resumed against one that was not, on this machine."""

import itertools
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from config import ConfigError
from utils import checkpoint
from utils.content import walk

STEPS, KILL_AFTER = 24, 7
COMPARED = ("step", "epoch", "model", "ema", "optimizer", "scheduler", "best", "x0_error")
COMPARED += ("by_quarter",)
OWN = {"--resume", "--run-root", "--dry-run", "--replay"}
OWN |= {"--max-minutes", "--max-steps", "--epochs", "--save-minutes"}
SCRIPT = Path(__file__).with_name("train.py")


def prove(argv: list[str]) -> int:
    """Train twice with these flags, once through a real SIGKILL, and compare every bit.

    Exit code 0: equal, 1: not. Everything happens in a temporary folder.
    """
    flags = [word for word in argv if word != "--prove-resume"]
    if typed := OWN.intersection(word.split("=")[0] for word in flags):
        raise ConfigError(f"--prove-resume chooses {', '.join(sorted(typed))} itself")
    flags += ["--epochs", "0", "--max-steps", str(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = Path(folder, "unbroken"), Path(folder, "killed")
        finish(start(flags, unbroken))
        print(f"{STEPS} steps without a break", flush=True)
        step = kill_midway(start([*flags, "--save-minutes", "0"], killed), killed)
        print(f"{STEPS} steps, killed (SIGKILL) after the checkpoint of step {step}", flush=True)
        device = [f"--device={word}" for word in device_of(flags)]
        finish(start(["--resume", "auto", *device, "--save-minutes", "5"], killed))
        print("resumed to the end", flush=True)
        first, second = (
            checkpoint.load(checkpoint.find("latest", root)) for root in (unbroken, killed)
        )
    difference = first_difference(first, second)
    if difference:
        print(f"DIFFERENT, first in {difference}")
        return 1
    tensors = sum(isinstance(value, torch.Tensor) for _, value in walk(compared(first)))
    print(f"equal: all {tensors} tensors of network, average and optimizer, bit for bit")
    return 0


def start(flags: list[str], root: Path) -> subprocess.Popen[str]:
    """A training of its own process, silent."""
    command = [sys.executable, str(SCRIPT), *flags, "--run-root", str(root)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for it. ConfigError with its own words where it fails."""
    try:
        _, errors = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        raise ConfigError(f"a training of --prove-resume failed: {errors.strip()}")


def kill_midway(process: subprocess.Popen[str], root: Path) -> int:
    """SIGKILL once a few steps are saved; the newest saved step."""
    folder = root / "checkpoints" / "version_0"
    try:
        while process.poll() is None and max(checkpoint.steps(folder), default=0) < KILL_AFTER:
            time.sleep(0.002)
    finally:
        process.kill()
    _, errors = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise ConfigError(f"it ended before it could be killed: {errors.strip()}")
    return max(checkpoint.steps(folder))


def device_of(flags: list[str]) -> list[str]:
    """What was typed after --device, as a resumed run must be told again."""
    pairs = itertools.pairwise([*flags, ""])
    return [after for word, after in pairs if word == "--device"] + [
        word.removeprefix("--device=") for word in flags if word.startswith("--device=")
    ]


def bits(value: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: 0 and -0 are equal numbers, but not equal bits."""
    return value.contiguous().flatten().view(torch.uint8)


def compared(state: dict[str, Any]) -> dict[str, Any]:
    """What must be equal of a checkpoint."""
    return {part: state[part] for part in COMPARED}


def first_difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """The name of the first value that differs, and by how much; None where there is none."""
    pairs = itertools.zip_longest(walk(compared(first)), walk(compared(second)))
    for one, other in pairs:
        if one is None or other is None or one[0] != other[0]:
            return f"{(one or other)[0]}: only in one of them"
        (name, a), (_, b) = one, other
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{name}: of different shape"
            if not torch.equal(bits(a), bits(b)):
                return f"{name}: by up to {(a.double() - b.double()).abs().max().item():.3g}"
        elif not isinstance(a, dict | list | tuple) and a != b:
            return f"{name}: {a} and {b}"
    return None
