"""Resuming: from which checkpoint, with which settings, and what differs from before."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from config import Config, ConfigError, ModelConfig, SampleConfig, flag
from utils import checkpoint, runs

# Settings that cannot change a weight.
HARMLESS = {"checkpoint_activations", "data_root", "save_minutes"}
HARMLESS |= {"eval_every", "score_every", "score_images", "keep", "keep_ema"}
HARMLESS |= {f.name for f in fields(SampleConfig)}
# Settings that must not change: the weights would not load, or lose their meaning.
FIXED = {f.name for f in fields(ModelConfig)} - {"dropout"}
FIXED |= {"dataset", "image_size", "fit", "background", "classes"}  # other images
FIXED |= {"optimizer", "prediction", "precondition"}
# Settings from which the learning-rate schedule is computed.
SCHEDULE = {"epochs", "max_steps", "max_minutes", "warmup_steps", "decay", "batch_size"}
SCHEDULE |= {"min_epoch_images"}
# Properties of the machine on which the last bits depend.
ENVIRONMENT = ("torch", "device", "gpu", "cpu", "bf16", "threads", "ranks")


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run continues from."""

    path: Path
    ckpt: dict[str, Any]  # its content; the weights only until TrainState.load takes them out
    damaged: tuple[Path, ...] = ()  # newer ones, which --resume auto skipped
    changes: tuple[str, ...] = ()  # settings typed differently, a line each
    reschedule: bool = False  # one of them is in SCHEDULE


def find_checkpoint(where: str | None, run_root: Path) -> Resumed | None:
    """What --resume names; None: start from scratch. A named path is taken or refused."""
    if not where:
        return None
    if where != "auto":
        path = checkpoint.find(where, run_root)
        return Resumed(path, checkpoint.load(path))
    found = checkpoint.newest_intact(run_root)
    if found is None:
        print(f"Nothing to resume in {run_root}: starting fresh")
        return None
    path, ckpt, damaged = found
    for other in damaged:
        print(f"train.py: {other} is damaged: going on from {path}", file=sys.stderr)
    return Resumed(path, ckpt, tuple(damaged))


def changed_settings(path: Path, stored: Config, config: Config) -> list[str]:
    """What was typed differently, a line each. ConfigError for what the weights do not allow."""
    lines = []
    for section, values in asdict(config).items():
        before = asdict(stored)[section]
        for name in (name for name in values if values[name] != before[name]):
            line = f"{flag(name)}: {before[name]} -> {values[name]}"
            if name in FIXED:
                raise ConfigError(f"{line} does not fit the weights in {path}: start a new run")
            lines.append(line if name in HARMLESS else f"{line} (changes the result)")
    return lines


def changed_environment(ckpt: dict[str, Any], device: torch.device) -> list[str]:
    """Changes of hardware or software that change rounding, a line each."""
    before, now = ckpt.get("environment", {}), runs.environment(device)
    lines = [
        f"{name}: {before[name]} -> {now[name]} (the same to rounding, not to the bit)"
        for name in ENVIRONMENT
        if name in before and before[name] != now[name]
    ]
    if device.type != "cpu" and not torch.are_deterministic_algorithms_enabled():
        lines.append(f"kernels of {device.type}: the same to rounding, not to the bit")
    return lines


def announce(resumed: Resumed, device: torch.device) -> list[str]:
    """Print where the run continues and what differs from before; the lines to record."""
    step = resumed.ckpt["step"]
    print(f"Resuming after step {step}", flush=True)
    changes = [*resumed.changes, *changed_environment(resumed.ckpt, device)]
    for line in changes:
        print(line, flush=True)
    return [f"after step {step}: {line}" for line in changes]
