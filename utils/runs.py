"""Numbered run folders: <root>/Inference/version_N and <root>/checkpoints/version_N."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from utils.devices import has_bf16
from utils.files import whole_file


class RunError(Exception):
    """A run folder that cannot be made or found; the message names the path and the reason."""


@dataclass(frozen=True)
class Run:
    """The two folders of one version."""

    logs: Path
    checkpoints: Path


def new_run(root: Path) -> Run:
    """Claim the next free version, the same number in both trees.

    ``mkdir`` decides who gets a number, so that two runs which start together cannot share one;
    names that are not version_<number> are ignored. Raises RunError where nothing can be written.
    """
    try:
        (root / "Inference").mkdir(parents=True, exist_ok=True)
        (root / "checkpoints").mkdir(exist_ok=True)
        number = max(versions(root), default=-1) + 1
        while not claim(root, number):
            number += 1
    except OSError as e:
        raise RunError(f"cannot make a run folder in {root}: {e.strerror}") from e
    return run_at(root, number)


def claim(root: Path, number: int) -> bool:
    """Make version_<number> in both trees; False where it was already taken in either."""
    run = run_at(root, number)
    if run.checkpoints.exists():
        return False
    try:
        os.mkdir(run.logs)
    except FileExistsError:
        return False
    os.mkdir(run.checkpoints)
    return True


def versions(root: Path) -> list[int]:
    """The numbers taken in either tree, rising."""
    names = [path.name for path in root.glob("*/version_*")]
    return sorted({int(m[1]) for name in names if (m := re.fullmatch(r"version_(\d+)", name))})


def run_at(root: Path, number: int) -> Run:
    """The two folders of a number."""
    name = f"version_{number}"
    return Run(root / "Inference" / name, root / "checkpoints" / name)


def run_for(root: Path, resumed: Path | None) -> Run:
    """The run that the resumed checkpoint lies in; else, also for somebody's copy, a new one."""
    return run_of(resumed) if resumed and is_in_run(resumed) else new_run(root)


def is_in_run(checkpoint: Path) -> bool:
    """Whether this checkpoint file lies in the folder of a run; else it is somebody's copy."""
    folder = checkpoint.resolve().parent
    return folder.parent.name == "checkpoints" and bool(re.fullmatch(r"version_\d+", folder.name))


def run_of(checkpoint: Path) -> Run:
    """The run that wrote this checkpoint file."""
    folder = checkpoint.resolve().parent
    return Run(folder.parent.parent / "Inference" / folder.name, folder)


def logs_of(checkpoint: Path) -> Path:
    """Where what is made with a checkpoint goes: its run's logs; beside it, if it is a copy."""
    return run_of(checkpoint).logs if is_in_run(checkpoint) else checkpoint.resolve().parent


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Readable, and complete or absent."""
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())


def environment(device: torch.device) -> dict[str, str | int]:
    """What a result depends on besides the configuration."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "device": str(device),
        "gpu": gpu,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": "yes" if has_bf16(device) else "no",
        "threads": torch.get_num_threads(),
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "git": git_revision(),
    }


def git_revision() -> str:
    """The commit of this code, "-dirty" where it was changed since; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"
