"""--prove-resume: a killed and resumed run equals an unbroken one, bit for bit, on this machine."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from config import ConfigError
from training.setup import Args
from utils import checkpoint
from utils.pytree import differing, walk

STEPS, KILL_AFTER = 24, 7
OWN = {"--resume", "--run-root", "--dry-run", "--replay"}
OWN |= {"--max-minutes", "--max-steps", "--epochs", "--save-minutes"}
KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else 1  # Windows has no signals
SCRIPT = Path(__file__).parent.parent / "train.py"


def verify_resume(args: Args) -> int:
    """Train twice with these flags, once through a real SIGKILL, and compare every bit.

    Exit code 0: equal, 1: not. Everything happens in a temporary folder.
    """
    flags = [word for word in args.argv if word != "--prove-resume"]
    if typed := OWN.intersection(word.split("=")[0] for word in flags):
        raise ConfigError(f"--prove-resume chooses {', '.join(sorted(typed))} itself")
    flags += ["--epochs", "0", "--max-steps", str(STEPS)]
    if args.pretrained:  # "latest" is not under the temporary folder
        flags += ["--init-from", str(args.pretrained.path)]
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = Path(folder, "unbroken"), Path(folder, "killed")
        finish(start(flags, unbroken))
        print(f"{STEPS} steps without a break", flush=True)
        step = kill_midway(start([*flags, "--save-minutes", "0"], killed), killed)
        print(f"{STEPS} steps, killed (SIGKILL) after the checkpoint of step {step}", flush=True)
        finish(start(["--resume", "auto", "--device", args.device, "--save-minutes", "5"], killed))
        print("resumed to the end", flush=True)
        first, second = (
            checkpoint.result(checkpoint.load(checkpoint.find("latest", root)))
            for root in (unbroken, killed)
        )
    if names := differing(first, second):
        print(f"DIFFERENT in {len(names)} values, first in {names[0]}")
        return 1
    tensors = sum(isinstance(value, torch.Tensor) for _, value in walk(first))
    print(f"equal: all {tensors} tensors of network, EMA and optimizer, bit for bit")
    return 0


def start(flags: list[str], root: Path) -> subprocess.Popen[str]:
    """A training of its own process, silent."""
    command = [sys.executable, str(SCRIPT), *flags, "--run-root", str(root)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for it. ConfigError with its stderr where it fails."""
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
    if process.returncode != KILLED:
        raise ConfigError(f"it ended before it could be killed: {errors.strip()}")
    return max(checkpoint.steps(folder))
