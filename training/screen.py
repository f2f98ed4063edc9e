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
from training.validation_schedule import AT_END
from utils.devices import device_name, has_bf16, peak_memory
from utils.errors import number
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
    rows = [
        ("device", f"{device_name(state.device)}, {number_format(state)}"),
        ("data", images[0]),
        *(("", line) for line in images[1:]),
        ("network", network),
        ("schedule", schedule(state)),
        ("validation", validation(state, len(test_set))),
        ("curves", curves),
    ]
    whole = "curves"  # a command, to be pasted
    return [f"{name:12}{line}" if name == whole else folded(name, line, 12) for name, line in rows]


def folded(name: str, text: str, column: int) -> str:
    """A row of two columns, the second of which starts here; no wider than the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**4
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(f"{name:{column}}{text}", width, subsequent_indent=" " * column, **options)


def number_format(state: TrainState) -> str:
    """In which numbers the network computes."""
    precision = state.config.train.precision
    if precision == "bf16" or (precision == "auto" and has_bf16(state.device)):
        return "bf16"
    return "TF32" if state.device.type == "cuda" else "fp32"


def schedule(state: TrainState) -> str:
    """How long the run is, and how its steps make epochs."""
    epochs, minutes = state.epochs, state.config.train.max_minutes
    length = f"as many steps as fit into {minutes:g} {'minute' if minutes == 1 else 'minutes'}"
    if state.schedule:
        total = state.schedule.total_steps
        passes = number(math.ceil(total / epochs.steps), "epoch", "epochs")
        length = f"{number(total, 'step', 'steps')} in {passes}"
        if state.step:
            length += f", {total - state.step:,} of them left"
    return f"{length}; an epoch is {epochs}"


def validation(state: TrainState, tests: int) -> str:
    """After which steps, on what, and the share of the run, as far as its end is known."""
    validations, known = state.validation_schedule, state.schedule
    total = known.total_steps if known else math.inf
    most = validations.size(total if known else validations.steady, last=True)
    loss = f"held-out loss of {min(most.points, tests):,} images, " if tests else ""
    share = f"; about {validations.share(state.step, total):.1%} of the time" if known else ""
    early = "" if validations.when(state.step, total) == AT_END else ", fewer early on"
    return f"{validations.when(state.step, total)}: {loss}{most.samples} samples{early}{share}"


def time_left(state: TrainState, step_seconds: float) -> str:
    """The throughput, once it is known, and when the run will be done."""
    steps = state.schedule.total_steps - state.step
    validations = state.validation_schedule.cost_within(state.step, state.schedule.total_steps)
    seconds = (steps + validations) * step_seconds
    speed = rate(state.epochs.batch_size / step_seconds)
    return f"{speed}: {number(steps, 'more step', 'more steps')}, {estimated_end(seconds)}"


def rate(images: float) -> str:
    """Images per second, also where a large network has few of them."""
    return f"{images:,.0f} images/s" if images >= 10 else f"{images:.2g} images/s"


def forecast_lines(
    state: TrainState, step_seconds: float, extractor: float | None, logs: Path
) -> list[str]:
    """Minutes, memory, disk and folder of a run whose steps take this long; a line each.

    extractor: seconds before the first step, for the feature extractor of the scores.
    """
    total, step = state.schedule.total_steps, state.step
    validations = state.validation_schedule.cost_within(step, total)
    seconds = (total - step + validations) * step_seconds
    share = state.validation_schedule.share(step, total)
    of = "validation and scores" if state.config.train.score_every else "validation"
    one = sum(value.nbytes for _, value in walk(state.state_dict()) if isinstance(value, Tensor))
    keep, best = state.config.train.keep, 2 if state.config.train.score_every else 1
    kept = f"at most {keep + best} checkpoints" if keep else "a checkpoint every few minutes"
    memory = peak_memory(state.device)
    rows = [
        ("time", f"{duration(seconds)}: {total - step:,} steps of {step_seconds:.3g} s"),
        ("", f"{share:.1%} of it for {of}"),
        *extractor_rows(extractor),
        ("memory", f"{memory / 2**30:.2f} GiB at most so far" if memory else "not known here"),
        ("disk", f"{kept} of {one / 2**20:,.1f} MiB"),
        ("folder", str(logs)),
    ]
    return [folded(name, line, 26) for name, line in rows]


def extractor_rows(seconds: float | None) -> list[tuple[str, str]]:
    """Of the forecast."""
    if seconds is None:
        return []
    return [("", f"{duration(seconds)} before it, for the feature extractor")]


def estimated_end(seconds: float) -> str:
    """How long from now, and at what time."""
    end = datetime.now() + timedelta(seconds=seconds)
    day = "" if seconds < 12 * 3600 else f"{end:%a %d %b} "
    return f"about {duration(seconds)}, until {day}{end:%H:%M}"


def footer(
    state: TrainState, last: dict[str, float], scores: dict[str, float], stop: StopSignal
) -> list[str]:
    """How far it came, how good it is, and the command that goes on.

    last, scores: the newest values of the curves.
    """
    if state.saved is None:
        return ["Interrupted before the first step; start again with the same command"]
    stopped = stop.number and not state.finished
    found = [f"{'Interrupted' if stopped else 'Done'} after step {state.step:,}"]
    found.append(duration(state.seconds))
    if "held_out" in last:
        found.append(f"held-out loss {last['held_out']:.5f}")
    if state.best:
        found.append(best_loss(state))
    lines = [", ".join(found), *([listed_scores(scores)] if scores else [])]
    if stopped:
        return [*lines, f"go on: {command('train.py', '--resume', state.saved)}"]
    return [*lines, f"draw images: {command('sample.py', '--ckpt', state.saved)}"]


def best_loss(state: TrainState) -> str:
    """The lowest held-out loss; of how many images, where these are more at this step."""
    best, points = state.best, state.validation_schedule.size(state.step, state.finished).points
    of = f" of {best['points']:,} images" if best.get("points", points) < points else ""
    return f"best {best['loss']:.5f}{of} at step {best['step']:,}"


def listed_scores(scores: dict[str, float]) -> str:
    """The scores of samples, in a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in scores.items())
