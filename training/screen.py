"""What a run says on the screen: a header, lines on its way, a footer."""

import math
import shutil
import sys
import textwrap
from datetime import datetime, timedelta
from pathlib import Path

from torch import Tensor

from data import ImageSet, report
from models.summary import Layer
from training.state import TrainState
from utils.devices import device_name, has_bf16, peak_memory
from utils.process import StopSignal, command, shell
from utils.progress import duration
from utils.pytree import walk


def header(
    state: TrainState, train_set: ImageSet, test_set: ImageSet, total: Layer, logs: Path
) -> list[str]:
    """Device, data, network, schedule, and how to look at the curves; a line each, or more.

    total: the last row of the table of layers.
    """
    images = report(train_set, test_set)
    curves = shell("tensorboard", "--logdir", logs.parent)
    network = f"{total.parameters:,} parameters, {total.flops / 1e9:.3g} GFLOP a forward pass"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**4
    rows = [
        ("device", f"{device_name(state.device)}, {number_format(state)}"),
        ("data", images[0]),
        *(("", line) for line in images[1:]),
        ("network", network),
        ("schedule", schedule(state)),
        ("curves", curves),
    ]
    return [folded(f"{name:10}{line}", width if name != "curves" else 10**4) for name, line in rows]


def folded(line: str, width: int) -> str:
    """The line in several, below each other in the second column."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(line, width, subsequent_indent=" " * 10, **options)


def number_format(state: TrainState) -> str:
    """In which numbers the network computes."""
    precision = state.config.train.precision
    if precision == "bf16" or (precision == "auto" and has_bf16(state.device)):
        return "bf16"
    return "TF32" if state.device.type == "cuda" else "fp32"


def schedule(state: TrainState) -> str:
    """How long the run is, and how its steps make epochs."""
    epochs, minutes = state.epochs, state.config.train.max_minutes
    length = f"as many steps as fit into {minutes:g} minutes"
    if state.schedule:
        total = state.schedule.total_steps
        count = math.ceil(total / epochs.steps)
        length = f"{total:,} steps in {count:,} {'epoch' if count == 1 else 'epochs'}"
        if state.step:
            length += f", {total - state.step:,} of them left"
    return f"{length}; an epoch is {epochs}"


def time_left(state: TrainState, step_seconds: float) -> str:
    """The throughput, once it is known, and when the run will be done."""
    steps = state.schedule.total_steps - state.step
    validations = state.validations.cost_within(state.step, state.schedule.total_steps)
    seconds = (steps + validations) * step_seconds
    speed = state.epochs.batch_size / step_seconds
    return f"{speed:,.0f} images/s: {steps:,} more steps, {estimated_end(seconds)}"


def forecast_lines(state: TrainState, step_seconds: float, logs: Path) -> list[str]:
    """Minutes, memory, disk and folder of a run whose steps take this long; a line each."""
    total, step = state.schedule.total_steps, state.step
    validations = state.validations.cost_within(step, total)
    seconds = (total - step + validations) * step_seconds
    share = validations / max(total - step + validations, 1)
    one = sum(value.nbytes for _, value in walk(state.state_dict()) if isinstance(value, Tensor))
    keep, best = state.config.train.keep, 2 if state.config.train.score_every else 1
    kept = f"at most {keep + best} checkpoints" if keep else "a checkpoint every few minutes"
    memory = peak_memory(state.device)
    rows = [
        ("time", f"{duration(seconds)}: {total - step:,} steps of {step_seconds:.3g} s"),
        ("", f"{share:.1%} of it for validation"),
        ("memory", f"{memory / 2**30:.2f} GiB at most so far" if memory else "not known here"),
        ("disk", f"{kept} of {one / 2**20:,.1f} MiB"),
        ("folder", str(logs)),
    ]
    return [f"{name:26}{line}" for name, line in rows]


def estimated_end(seconds: float) -> str:
    """How long from now, and at what time."""
    end = datetime.now() + timedelta(seconds=seconds)
    day = "" if seconds < 12 * 3600 else f"{end:%a %d %b} "
    return f"about {duration(seconds)}, until {day}{end:%H:%M}"


def footer(state: TrainState, last: dict[str, float], stop: StopSignal) -> list[str]:
    """How far it came, how good it is, and the command that goes on.

    last: the newest values of the curves.
    """
    if state.saved is None:
        return ["Interrupted before the first step; start again with the same command"]
    stopped = stop.number and not state.finished
    found = [f"{'Interrupted' if stopped else 'Done'} after step {state.step:,}"]
    found.append(duration(state.seconds))
    if "held_out" in last:
        found.append(f"held-out loss {last['held_out']:.5f}")
    if state.best:
        found.append(f"best {state.best['loss']:.5f} at step {state.best['step']:,}")
    if "fid_classifier" in last:
        found.append(f"fid_classifier {last['fid_classifier']:.3g}")
    if stopped:
        return [", ".join(found), f"go on: {command('train.py', '--resume', state.saved)}"]
    return [", ".join(found), f"draw images: {command('sample.py', '--ckpt', state.saved)}"]
