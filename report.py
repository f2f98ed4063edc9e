"""What a run tells of itself: in TensorBoard, as files beside it, and on the screen."""

import math
import sys
from dataclasses import asdict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, flag
from data import ImageSet
from diffusion import GaussianDiffusion, HeldOut, guided, held_out_losses, make_sampler, x0_errors
from models import UNet
from training import Training
from utils import checkpoint, images, runs
from utils.clock import Clock
from utils.logs import Log, StepLog, add_graph, add_texts, not_fatal
from utils.runs import Run
from utils.seeding import image_noise, permutation
from utils.signals import StopSignal

HELD_OUT = 1024  # test images whose loss is measured
MEASURED = 1024  # training images for --variance optimal
PREVIEW = 20  # images drawn


def introduce(run: Run, writer: Log, config: Config, model: UNet, train_set: ImageSet) -> None:
    """Configuration and environment as files and as text, and the network as a graph.

    model: the averaged one, since a compiled one cannot be traced.
    """
    device = next(model.parameters()).device
    environment = {**runs.environment(device), "data": train_set.source}
    runs.write_json(run.logs / "config.json", asdict(config))
    runs.write_json(run.logs / "environment.json", environment)
    add_texts(writer, {**asdict(config), "environment": environment})
    x = torch.zeros(1, *train_set.image_shape, device=device)
    add_graph(writer, model, (x, torch.ones(1, dtype=torch.long, device=device)))


def describe(config: Config, model: UNet, train_set: ImageSet, device: torch.device) -> str:
    """What --dry-run prints."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: 0.2 s

    x = torch.zeros(1, *train_set.image_shape, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, torch.ones(1, dtype=torch.long, device=device))
    lines = [
        f"{flag(name):24}{value}"
        for section in asdict(config).values()
        for name, value in section.items()
    ]
    return "\n".join(
        [
            *lines,
            f"parameters              {sum(p.numel() for p in model.parameters()):,}",
            f"FLOPs of one forward    {counter.get_total_flops():,} an image",
            f"data                    {len(train_set):,} images: {train_set.source}",
            f"device                  {device}",
        ]
    )


def end_of_epoch(
    training: Training,
    diffusion: GaussianDiffusion,
    held_out: HeldOut,
    config: Config,
    writer: Log,
    run: Run,
) -> None:
    """Held-out loss, a grid of samples and a strip of the reverse process, of the averaged net."""
    step = training.step
    loss = held_out_losses(training.ema, diffusion, held_out).mean().item()
    writer.add_scalar("held_out/loss", loss, step)
    if training.best is None or loss < training.best["loss"]:
        training.best = {"step": step, "loss": loss}
    states = preview(training.ema, diffusion, held_out.x_0.shape[1:], config)
    grid, strip = images.grid(states[-1]), images.filmstrip([x[:10] for x in states])
    writer.add_image("samples", grid, step)
    writer.add_image("reverse_process", strip, step)
    with not_fatal():
        images.save_png(grid, run.logs / f"samples_{step:08d}.png")
    print(f"Step {step}: held-out loss {loss:.5f}", flush=True)


def measure_errors(
    training: Training, diffusion: GaussianDiffusion, train_set: ImageSet, clip: bool
) -> None:
    """What the averaged network cannot know of x_0: --variance optimal is made from it."""
    some = permutation(len(train_set), 0, 0)[:MEASURED]
    x_0, y = next(train_set.batches(some, MEASURED))
    training.x0_error = x0_errors(training.ema, diffusion, x_0, y, clip)
    diffusion.x0_error = training.x0_error


def preview(
    model: nn.Module, diffusion: GaussianDiffusion, shape: tuple[int, ...], config: Config
) -> list[Tensor]:
    """x_T ... x_0 of some images, drawn from the same noise every time."""
    randn = image_noise(config.train.seed, range(PREVIEW), shape, diffusion.device)
    classes = config.model.num_classes
    y = torch.arange(PREVIEW, device=diffusion.device) % classes if classes else None
    denoiser = guided(model, y, classes, config.sample.guidance, config.guided_times)
    x_T = randn()
    sampler = make_sampler(**asdict(config.sample))
    return [x_T, *sampler(denoiser, diffusion, x_T, config.sample.steps, randn)]


def evaluated(config: Config, train_set: ImageSet, held_out: HeldOut) -> int:
    """Images that go through the network at the end of an epoch."""
    measured = min(MEASURED, len(train_set))
    return len(held_out.t) + measured + PREVIEW * config.sample.steps


def add_by_quarter(sums: Tensor, losses: Tensor, t: Tensor, timesteps: int) -> None:
    """Add each finite loss, and 1, to the row of its quarter of 1 ... T; sums (4, 2)."""
    quarter, finite = (t - 1) * 4 // timesteps, losses.isfinite()
    rows = torch.stack([losses.where(finite, 0), finite.to(losses.dtype)], dim=1)
    sums.index_add_(0, quarter, rows)


def write_quarters(training: Training, writer: Log, ended: bool) -> None:
    """Bring the sums of all ranks to the first; at the end of an epoch write them and begin anew.

    A quarter whose t were never drawn has no loss.
    """
    sums, ranks = training.by_quarter, training.ranks
    for q, (total, count) in enumerate(ranks.sum(sums).tolist(), start=1):
        if ended and count:
            writer.add_scalar(f"loss_by_t/quartile_{q}", total / count, training.step)
    if ended or not ranks.first:
        sums.zero_()


def write_steps(log: StepLog, clock: Clock, batch_size: int) -> float:
    """Write what was noted, and the speed since then; returns the mean loss.

    Says which updates were skipped because their gradient was not finite.
    """
    steps, values = log.steps, log.write()
    speed = len(steps) * batch_size / clock.lap()
    log.writer.add_scalar("train/images_per_s", speed, steps[-1])
    norms = zip(steps, values["gradient_norm"], strict=True)
    skipped = [str(step) for step, norm in norms if not math.isfinite(norm)]
    if skipped and log.ranks.first:
        print(f"train.py: not finite, so skipped: step {', '.join(skipped)}", file=sys.stderr)
    return sum(values["loss"]) / len(steps)


def progress_bar(training: Training) -> tqdm:
    """Of this epoch; silent where the output is not a terminal, and on all ranks but the first."""
    per_epoch = training.epochs.steps
    return tqdm(
        total=per_epoch,
        initial=training.step % per_epoch,
        desc=title(training),
        disable=training.ranks.no_bar,
        dynamic_ncols=True,
    )


def title(training: Training) -> str:
    """Before the first step of a call of train_epoch, or within it."""
    per_epoch = training.epochs.steps
    epochs = math.ceil(training.plan.total_steps / per_epoch) if training.plan else "?"
    return f"Train :: Epoch: {training.step // per_epoch + 1}/{epochs}"


def show_plan(bar: tqdm, training: Training, clock: Clock) -> None:
    """Once the speed is known: what it means for the rest of the run."""
    if not training.ranks.first:
        return
    left = training.plan.total_steps - training.step
    speed = training.epochs.batch_size / clock.step_seconds
    minutes = left * clock.step_seconds / 60
    bar.set_description_str(title(training))
    bar.write(f"{speed:.0f} images/s: {left} more steps, about {minutes:.1f} minutes")


def goodbye(stop: StopSignal, run: Run, training: Training) -> int:
    """Say what was reached and how to go on; the exit code."""
    path = run.checkpoints / checkpoint.name(training.step)
    if stop.number and not training.finished:
        print(f"Interrupted after step {training.step}; go on: python train.py --resume {path}")
        return stop.exit_code
    print(f"Done after step {training.step}; draw images: python sample.py --ckpt {path}")
    return 0
