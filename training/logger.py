"""Logging: TensorBoard curves and pictures, history.jsonl, lines on the console."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from config import differences
from data import ImageSet, report
from models.summary import Layer, layers, markdown
from training.clock import Clock
from training.events import EventWriter
from training.nonfinite import StepResult
from training.outputs import Outputs, warn_on_error
from training.screen import footer, header, listed_scores, rate, time_left
from training.state import TrainState
from training.validate import HeldOutLosses, Preview
from training.validation_schedule import Size
from utils import checkpoint, images, runs, tables
from utils.devices import peak_memory
from utils.process import StopSignal
from utils.progress import Progress
from utils.run_names import RUN_FILE
from utils.runs import Run
from utils.seeding import permutation

SHEET, SHEET_IMAGES, SHEET_COLUMNS = "data.png", 64, 8  # the contact sheet of the training images
STRIP, FILM = "reverse_process.png", "reverse_process.gif"  # of the newest validation
FILM_COLUMNS = 5
CURVES = {"loss": "loss/train", "gradient_norm": "training/gradient_norm", "lr": "training/lr"}


class Logger:
    """Logs of one run. Rank 0 alone writes, but all ranks must call: losses are averaged over them.

    Per-step values stay on the device until ``write_steps``, as reading one back synchronizes.
    """

    def __init__(self, run: Run, state: TrainState, sets: tuple[ImageSet, ImageSet]) -> None:
        self.run, self.state, self.sets = run, state, sets
        self.writer = EventWriter(run.logs, state.step + 1, silent=not state.ranks.first)
        self.outputs = Outputs(run.logs, run.claim)
        self.bar: Progress | None = None
        self.steps: list[int] = []
        self.values: dict[str, list[Any]] = {}
        self.images, self.seconds = 0, 0.0  # trained on since the last line of the history
        self.last: dict[str, float] = {}  # the newest values of curves
        self.scores: dict[str, float] = {}  # the newest ones
        self.about: dict[str, Any] = {}  # run.json, but for how far the run is

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error and self.about:
            self.write_status("failed")
        self.writer.close()

    def start(self, name: str, resumed: bool, scores: Iterable[str]) -> None:
        """Say what the run is; write it as files and on TensorBoard's pages, also of a resumed one.

        scores: the names of those that the run will have.
        """
        state, (train_set, test_set) = self.state, self.sets
        rows = layers(state.ema.module, state.config.image_shape)  # never compiled
        self.say("\n".join(header(state, train_set, test_set, rows[-1], self.run.logs)))
        self.outputs.json("config.json", asdict(state.config))
        self.about = self.description(name, rows)
        self.write_status("running")
        environment = {**runs.environment(state.device), "data": train_set.source}
        metrics = ["loss/held_out", *(f"score/{score}" for score in scores)]
        text = page(self.run.logs.name, self.about, environment, state.changes)
        self.writer.write_first("run", text, hparams(self.about, state), metrics)
        if resumed:
            self.outputs.go_back_to(state.step)
            return
        self.outputs.json("environment.json", environment)
        with warn_on_error("no contact sheet"):
            sheet = images.png(contact_sheet(train_set))
            self.writer.add_picture("training_images", sheet, 0)
            self.outputs.whole(SHEET, sheet)

    def description(self, name: str, rows: list[Layer]) -> dict[str, Any]:
        """What the run is, for run.json."""
        train_set, test_set = self.sets
        preset, changed = differences(self.state.config)
        return {
            "name": name,
            "preset": preset,
            "changed": changed,
            "class_names": list(train_set.class_names),
            "data": report(train_set, test_set),
            "layers": markdown(rows),
        }

    def write_status(self, status: str) -> None:
        """run.json: what the run is, and how far."""
        state = self.state
        total = state.schedule.total_steps if state.schedule else None
        progress = {"status": status, "step": state.step, "total_steps": total}
        progress["seconds"] = state.seconds
        self.outputs.json(RUN_FILE, {**self.about, **progress})

    def say(self, line: str) -> None:
        """Print, above the bars where there are any."""
        with tqdm.external_write_mode():
            print(line, flush=True)

    def progress_bar(self) -> Progress:
        """Of the whole run, on rank 0."""
        silent = self.state.ranks.silent
        done = self.state.step
        self.bar = Progress(self.title(), self.total(), "steps", done, silent, stays=True)
        return self.bar

    def title(self) -> str:
        """Called before the first step of an epoch, or within it."""
        per_epoch, total = self.state.epochs.steps, self.total()
        epochs = math.ceil(total / per_epoch) if total else "?"
        return f"Train :: Epoch: {max(self.state.step - 1, 0) // per_epoch + 1}/{epochs}"

    def total(self) -> int | None:
        """Steps of the run; None where it is limited by time and not scheduled yet."""
        return self.state.schedule.total_steps if self.state.schedule else None

    def add_step(self, result: StepResult) -> None:
        """Buffer the metrics of a step on the device."""
        self.steps.append(self.state.step)
        noted = {"loss": result.loss, "gradient_norm": result.grad_norm, "lr": self.state.lr}
        for name, value in noted.items():
            self.values.setdefault(name, []).append(value)
        quartile = (result.t - 1) * 4 // self.state.diffusion.timesteps
        finite = result.losses.isfinite()
        rows = torch.stack([result.losses.where(finite, 0), finite.to(result.losses.dtype)], dim=1)
        member = torch.arange(4, device=quartile.device)[:, None] == quartile  # (4, B)
        # Unlike index_add, the same bits every time on CUDA; unlike a product, not in TF32.
        self.state.loss_by_quartile += (member[:, :, None] * rows).sum(1)
        self.bar.update()

    def write_steps(self, clock: Clock) -> None:
        """Write the steps noted since the last call, the throughput and the memory."""
        steps, ranks = self.steps, self.state.ranks
        values = {
            name: ranks.mean(torch.stack(own)).tolist() if isinstance(own[0], Tensor) else own
            for name, own in self.values.items()
        }
        for name, own in values.items():
            for step, value in zip(steps, own, strict=True):
                self.writer.add_scalar(CURVES[name], value, step)
        seconds = clock.lap()
        self.write_speed(seconds / len(steps))
        self.images += sum(map(self.state.epochs.global_batch, steps))
        self.seconds += seconds
        norms = zip(steps, values["gradient_norm"], strict=True)
        skipped = [str(step) for step, norm in norms if not math.isfinite(norm)]
        if skipped and ranks.first:
            print(f"train.py: not finite, so skipped: step {', '.join(skipped)}", file=sys.stderr)
        loss = sum(values["loss"]) / len(steps)
        note = f"Loss: {loss:.4f}"
        if not self.bar.terminal:
            note += f", {rate(self.last['images_per_s'])}"
        self.bar.describe(self.title(), self.total(), note)
        total, count = self.state.loss_since
        finite = list(filter(math.isfinite, values["loss"]))
        self.state.loss_since = [total + sum(finite), count + len(finite)]
        self.steps, self.values = [], {}

    def write_speed(self, step_seconds: float) -> None:
        """What a step takes."""
        speed = self.state.config.train.batch_size / step_seconds
        curves = {"images_per_s": speed, "step_ms": 1000 * step_seconds}
        if memory := peak_memory(self.state.device):
            curves["memory_GiB"] = memory / 2**30
        for name, value in curves.items():
            self.writer.add_scalar(f"training/{name}", value, self.state.step)
        self.last |= curves

    def write_losses(self, found: HeldOutLosses | None, size: Size) -> None:
        """What a validation measured, and the training loss since the one before."""
        state, step = self.state, self.state.step
        train_by_t, by_quartile = self.mean_by_quartile(), found and found.by_quartile
        losses = {"held_out": found.ema, "held_out_raw": found.raw} if found else {}
        losses = {name: own.mean().item() for name, own in losses.items()}
        for name, value in losses.items():
            self.writer.add_scalar(f"loss/{name}", value, step)
        for kind, own in (("train", train_by_t), ("held_out", by_quartile)):
            for q, value in enumerate(own or (), start=1):
                if math.isfinite(value):  # no t was drawn in a quarter, in a few steps
                    self.writer.add_scalar(f"timesteps/{kind}_quartile_{q}", value, step)
        self.last |= losses
        points = len(found.ema) if found else None
        (total, count), state.loss_since = state.loss_since, [0.0, 0]
        row = {"step": step, "seconds": state.seconds, "train": total / count if count else None}
        row |= {"held_out": None, "held_out_raw": None} | losses
        row |= {"held_out_by_t": by_quartile, "points": points, "images_per_s": self.speed()}
        self.outputs.add_to_history(row | {"memory_gib": self.last.get("memory_GiB")})
        self.images, self.seconds = 0, 0.0
        measured = [f"{size.samples} samples"]
        if found:
            images = min(points, len(self.sets[1]))
            measured.insert(0, f"held-out loss {losses['held_out']:.5f} of {images:,} test images")
        self.say(f"Step {step:,}: {', '.join(measured)}")

    def speed(self) -> float | None:
        """Images per second since the last line of the history; None where there were none."""
        return self.images / self.seconds if self.seconds else None

    def write_scores(self, scores: dict[str, float]) -> None:
        """Those of this step's samples."""
        step = self.state.step
        for name, value in scores.items():
            self.writer.add_scalar(f"score/{name}", value, step)
        self.scores = scores
        self.outputs.add_scores(step, scores)
        self.say(f"Step {step:,}: {listed_scores(scores)}")

    def gather_quartiles(self) -> None:
        """Bring the sums of all ranks to the first."""
        self.state.ranks.sum(self.state.loss_by_quartile)
        if not self.state.ranks.first:
            self.state.loss_by_quartile.zero_()

    def mean_by_quartile(self) -> list[float]:
        """The training loss of each quarter of 1 ... T since the last validation."""
        sums = self.state.loss_by_quartile
        means = [total / count if count else math.nan for total, count in sums.tolist()]
        sums.zero_()
        return means

    def write_pictures(self, preview: Preview, states: list[Tensor]) -> None:
        """The grid of samples, the strip and the film of the reverse process."""
        step, chosen = self.state.step, preview.first_of_each
        grid = images.png(images.grid(states[-1], preview.columns, rows_of=preview.names))
        strip = images.png(images.filmstrip([x[chosen] for x in states]))
        film = images.gif([images.grid(x[chosen], FILM_COLUMNS) for x in states])
        self.writer.add_picture("samples/grid", grid, step)
        self.writer.add_picture("samples/reverse_process", strip, step)
        self.writer.add_picture("samples/reverse_process_film", film, step)
        self.outputs.whole(f"samples_{step:08d}.png", grid)
        self.outputs.whole(STRIP, strip)
        self.outputs.whole(FILM, film)

    def show_schedule(self, clock: Clock) -> None:
        """Print the throughput, once it is known, and the time that is left."""
        if self.state.ranks.first:
            self.bar.describe(self.title(), self.total(), self.bar.note)
            self.say(time_left(self.state, clock.step_seconds))

    def goodbye(self, stop: StopSignal, report: Callable[[Path], Path]) -> int:
        """Print what became of the run and the command that continues; the exit code.

        report: writes the report of a run into its logs.
        """
        stopped = stop.number and not self.state.finished
        if self.state.ranks.first:
            self.write_status("interrupted" if stopped else "finished")
            self.writer.end_hparams()
            if checkpoint.steps(self.run.checkpoints):  # else no step was taken
                self.outputs.attempt(lambda: print(f"report: {report(self.run.logs)}"))
        print("\n".join(footer(self.state, self.last, self.scores, stop)), flush=True)
        return stop.exit_code if stopped else 0


def page(
    version: str,
    about: dict[str, Any],
    environment: Mapping[str, object],
    changes: Sequence[str] = (),
) -> str:
    """What a run is, in Markdown: TensorBoard's text page. changes: at its resumes, a line each."""
    typed = about["changed"].items()
    name = f"{about['name']} ({version})" if about["name"] else version
    return "\n\n".join(
        [
            f"# {name}: preset {about['preset']}",
            table("settings that differ from the preset", typed) if typed else "as in the preset",
            *(["\n".join(f"- {line}" for line in changes)] if changes else []),
            "\n".join(f"- {line}" for line in about["data"]),
            about["layers"],
            table("environment", environment.items()),
        ]
    )


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Two columns of Markdown."""
    return tables.markdown([(title, ""), *((key, str(value)) for key, value in rows)], left=2)


def hparams(about: dict[str, Any], state: TrainState) -> dict[str, str | int | float | bool]:
    """The columns of TensorBoard's table of runs: what they are told apart by."""
    c = state.config.train
    typed = {name.removeprefix("--").replace("-", "_"): v for name, v in about["changed"].items()}
    chosen = {"name": about["name"], "preset": about["preset"]}
    chosen |= {"dataset": state.config.data.dataset, "seed": c.seed}
    chosen |= {"batch_size": c.batch_size, "lr": c.lr}
    return {k: v for k, v in (typed | chosen).items() if k != "data_root"}


def contact_sheet(train_set: ImageSet) -> Tensor:
    """Training images as the network gets them, with their classes: uint8 (3, H, W)."""
    chosen = permutation(len(train_set), 0, 0)[:SHEET_IMAGES]
    x_0, y = next(train_set.batches(chosen.sort().values, SHEET_IMAGES))
    titles = [train_set.class_names[label] for label in y.tolist()] if train_set.class_names else ()
    return images.grid(x_0, SHEET_COLUMNS, titles)


def save_contact_sheet(train_set: ImageSet, folder: Path) -> str:
    """Write it, and say where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    Outputs(folder).whole(SHEET, images.png(contact_sheet(train_set)))
    return f"images as the network gets them: {folder / SHEET}"
