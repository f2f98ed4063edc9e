"""How a run goes on: from which checkpoint, with which settings, and what changed since."""

import sys
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from config import Config, ConfigError, ModelConfig, SampleConfig, flag
from utils import checkpoint, runs
from utils.files import remove_partial
from utils.lock import NAME, LockError, only_writer
from utils.runs import Run

# They cannot change a weight.
HARMLESS = {"checkpoint_activations", "data_root", "save_minutes"}
HARMLESS |= {f.name for f in fields(SampleConfig)}
# The weights are worthless, or do not load, with another value.
FIXED = {f.name for f in fields(ModelConfig)} - {"dropout"}
FIXED |= {"dataset", "image_size", "optimizer", "prediction"}
# Other ones round differently.
SURROUNDINGS = ("torch", "device", "gpu", "cpu", "bf16", "threads", "ranks")


def resumed_state(flags: Namespace) -> dict[str, Any] | None:
    """The checkpoint that --resume names; None to start fresh.

    Sets flags.resume to its path and flags.damaged to newer ones that --resume auto passed over. A
    path that was named is taken or refused, never replaced by another.
    """
    flags.damaged = []
    if not flags.resume:
        return None
    if flags.resume != "auto":
        flags.resume = checkpoint.find(flags.resume, flags.run_root)
        return checkpoint.load(flags.resume)
    found = checkpoint.newest_intact(flags.run_root)
    if found is None:
        flags.resume = None
        print(f"Nothing to resume in {flags.run_root}: starting fresh")
        return None
    flags.resume, state, flags.damaged = found
    for path in flags.damaged:
        print(f"train.py: {path} is damaged: going on from {flags.resume}", file=sys.stderr)
    return state


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


def changed_surroundings(state: dict[str, Any], device: torch.device) -> list[str]:
    """What rounds differently than where the checkpoint was written, a line each."""
    before, now = state.get("environment", {}), runs.environment(device)
    lines = [
        f"{name}: {before[name]} -> {now[name]} (the same to rounding, not to the bit)"
        for name in SURROUNDINGS
        if name in before and before[name] != now[name]
    ]
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        lines.append("kernels of CUDA: the same to rounding, not to the bit")
    return lines


def check_replay(flags: Namespace, state: dict[str, Any] | None) -> None:
    """ConfigError unless the step of --replay lies behind the checkpoint."""
    if flags.replay is None:
        return
    if state is None:
        raise ConfigError("--replay needs --resume PATH, the checkpoint to start from")
    if flags.replay <= state["step"]:
        raise ConfigError(
            f"--replay must be a step after {state['step']}, that of {flags.resume}, "
            f"got {flags.replay}"
        )


def sweep(run: Run) -> None:
    """Delete what killed processes left half-written in this and its sister runs, and their locks.

    Not where a living process holds the lock, nor where deleting is not allowed.
    """
    for folder in run.checkpoints.parent.glob("version_*"):
        sister = runs.run_of(folder / "any")
        with suppress(LockError, OSError):
            if any(path.name.endswith((".partial", NAME)) for path in folder.iterdir()):
                with only_writer(folder):
                    remove_partial(sister.checkpoints)
                    remove_partial(sister.logs)


def go_on(training: Any, run: Run, config: Config, flags: Namespace, state: dict[str, Any]) -> None:
    """For the run's one writer: say what changed, record it, put damaged files aside."""
    checkpoint.set_aside(flags.damaged, "corrupt")
    found = checkpoint.steps(run.checkpoints)
    later = [path for step, path in found.items() if step > training.step]
    checkpoint.set_aside(later, "replaced")
    for path in later:
        print(f"{path}: that step is taken anew; kept as {path.name}.replaced", flush=True)
    device = next(training.model.parameters()).device
    print(f"Resuming after step {training.step}", flush=True)
    for line in (*flags.changes, *changed_surroundings(state, device)):
        print(line, flush=True)
        training.changes.append(f"after step {training.step}: {line}")
    runs.write_json(run.logs / "config.json", asdict(config))
