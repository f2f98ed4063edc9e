"""Logging: TensorBoard curves and images, a progress bar, lines on the console."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from data import ImageSet, report
from models.summary import layers, markdown
from training.clock import Clock
from training.events import EventWriter
from training.nonfinite import StepResult
from training.state import TrainState
from utils import images, runs
from utils.files import Claim
from utils.process import StopSignal, command
from utils.runs import Run
from utils.seeding import permutation

SHEET, SHEET_IMAGES, SHEET_COLUMNS = "data.png", 64, 8  # the contact sheet of the training images


class Logger:
    """Logs of one run. Rank 0 alone writes, but all ranks must call: losses are averaged over them.

    Per-step values stay on the device until ``write_steps``, as reading one back synchronizes.
    """

    def __init__(self, run: Run, state: TrainState, class_names: Sequence[str]) -> None:
        self.run, self.state, self.class_names = run, state, class_names
        self.writer = EventWriter(run.logs, state.step + 1, silent=not state.ranks.first)
        self.bar: tqdm | None = None
        self.steps: list[int] = []
        self.values: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def write_config(self) -> None:
        """The configuration as a file; rewritten after a resume, which may have changed it."""
        runs.write_json(self.run.logs / "config.json", asdict(self.state.config))

    def start(self, train_set: ImageSet, test_set: ImageSet) -> None:
        """Of a new run: its configuration, environment and images, as text and as files."""
        config = asdict(self.state.config)
        environment = {**runs.environment(self.state.device), "data": train_set.source}
        runs.write_json(self.run.logs / "environment.json", environment)
        for title, rows in {**config, "environment": environment}.items():
            table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
            self.writer.add_text(title, f"| | |\n|---|---|\n{table}", 0)
        model = self.state.ema.module  # the EMA's copy is never compiled
        table = markdown(layers(model, self.state.config.image_shape))
        self.writer.add_text("layers", table, 0)
        self.writer.add_text("data", "  \n".join(report(train_set, test_set)), 0)
        sheet = contact_sheet(train_set)
        self.writer.add_image("data", sheet, 0)
        save_picture(sheet, self.run.logs / SHEET, self.run.claim)

    def progress_bar(self) -> tqdm:
        """Of this epoch; disabled without a terminal and on ranks other than 0."""
        per_epoch = self.state.epochs.steps
        self.bar = tqdm(
            total=per_epoch,
            initial=self.state.step % per_epoch,
            desc=self.title(),
            disable=self.state.ranks.no_bar,
            dynamic_ncols=True,
        )
        return self.bar

    def title(self) -> str:
        """Called before the first step of an epoch, or within it."""
        schedule, per_epoch = self.state.schedule, self.state.epochs.steps
        epochs = math.ceil(schedule.total_steps / per_epoch) if schedule else "?"
        return f"Train :: Epoch: {self.state.step // per_epoch + 1}/{epochs}"

    def add_step(self, result: StepResult) -> None:
        """Buffer the metrics of a step on the device."""
        self.steps.append(self.state.step)
        noted = {"loss": result.loss, "gradient_norm": result.grad_norm, "lr": self.state.lr}
        for name, value in noted.items():
            self.values.setdefault(name, []).append(value)
        quartile = (result.t - 1) * 4 // self.state.diffusion.timesteps
        finite = result.losses.isfinite()
        rows = torch.stack([result.losses.where(finite, 0), finite.to(result.losses.dtype)], dim=1)
        self.state.loss_by_quartile.index_add_(0, quartile, rows)
        self.bar.update()

    def write_steps(self, clock: Clock) -> None:
        """Write the steps noted since the last call, and the throughput."""
        steps, ranks = self.steps, self.state.ranks
        values = {
            name: ranks.mean(torch.stack(own)).tolist() if isinstance(own[0], Tensor) else own
            for name, own in self.values.items()
        }
        for name, own in values.items():
            for step, value in zip(steps, own, strict=True):
                self.writer.add_scalar(f"train/{name}", value, step)
        speed = len(steps) * self.state.config.train.batch_size / clock.lap()
        self.writer.add_scalar("train/images_per_s", speed, steps[-1])
        norms = zip(steps, values["gradient_norm"], strict=True)
        skipped = [str(step) for step, norm in norms if not math.isfinite(norm)]
        if skipped and ranks.first:
            print(f"train.py: not finite, so skipped: step {', '.join(skipped)}", file=sys.stderr)
        self.bar.set_postfix_str(f"Loss: {sum(values['loss']) / len(steps):.4f}")
        self.steps, self.values = [], {}

    def write_quartiles(self, epoch_finished: bool) -> None:
        """The mean loss of each quarter of 1 ... T, over the epoch and all ranks."""
        sums, ranks = self.state.loss_by_quartile, self.state.ranks
        for q, (total, count) in enumerate(ranks.sum(sums).tolist(), start=1):
            if epoch_finished and count:
                self.writer.add_scalar(f"loss_by_t/quartile_{q}", total / count, self.state.step)
        if epoch_finished or not ranks.first:
            sums.zero_()

    def note(self, line: str) -> None:
        """Print a line that holds for the whole run, and keep it beside the curves."""
        print(line, flush=True)
        self.writer.add_text("notes", line, self.state.step)

    def write_validation(self, loss: float | None, samples: list[Tensor]) -> None:
        """The held-out loss, if there is one, a grid of samples, a strip of the reverse process."""
        step = self.state.step
        if loss is not None:
            self.writer.add_scalar("held_out/loss", loss, step)
        names = self.class_names if self.state.model.num_classes else ()
        titles = [name for name, _ in zip(cycle(names), samples[-1], strict=False)]
        grid = images.grid(samples[-1], titles=titles)
        self.writer.add_image("samples", grid, step)
        self.writer.add_image("reverse_process", images.filmstrip([x[:10] for x in samples]), step)
        save_picture(grid, self.run.logs / f"samples_{step:08d}.png", self.run.claim)
        found = "samples drawn" if loss is None else f"held-out loss {loss:.5f}"
        print(f"Step {step}: {found}", flush=True)

    def show_schedule(self, clock: Clock) -> None:
        """Print the throughput, once it is known, and the time that is left."""
        if not self.state.ranks.first:
            return
        left = self.state.schedule.total_steps - self.state.step
        speed = self.state.epochs.batch_size / clock.step_seconds
        minutes = left * clock.step_seconds / 60
        self.bar.set_description_str(self.title())
        self.bar.write(f"{speed:.0f} images/s: {left} more steps, about {minutes:.1f} minutes")

    def goodbye(self, stop: StopSignal) -> int:
        """Print the last step and the command that continues; the exit code."""
        step, path = self.state.step, self.state.saved
        if stop.number and not self.state.finished:
            if path is None:
                print("Interrupted before the first step; start again with the same command")
            else:
                print(
                    f"Interrupted after step {step}; go on: {command('train.py', '--resume', path)}"
                )
            return stop.exit_code
        print(f"Done after step {step}; draw images: {command('sample.py', '--ckpt', path)}")
        return 0


def contact_sheet(train_set: ImageSet) -> Tensor:
    """Training images as the network gets them, with their classes: uint8 (3, H, W)."""
    chosen = permutation(len(train_set), 0, 0)[:SHEET_IMAGES]
    x_0, y = next(train_set.batches(chosen.sort().values, SHEET_IMAGES))
    titles = [train_set.class_names[label] for label in y.tolist()] if train_set.class_names else ()
    return images.grid(x_0, SHEET_COLUMNS, titles)


def save_contact_sheet(train_set: ImageSet, folder: Path) -> str:
    """Write it, and say where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(contact_sheet(train_set), folder / SHEET)
    return f"images as the network gets them: {folder / SHEET}"


def save_picture(picture: Tensor, path: Path, claim: Claim | None = None) -> None:
    """Write a PNG; what cannot be written is a warning, not the end of the run."""
    try:
        if claim:
            claim.check()
        images.save_png(picture, path)
    except OSError as e:
        print(f"warning: cannot write {e.filename}: {e.strerror}", file=sys.stderr)
