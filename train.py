"""Train a DDPM: Algorithm 1 of Ho et al. (2020), epoch by epoch.

python train.py                         # MNIST, 30 epochs
python train.py --max-minutes 5         # the best that five minutes can give
python train.py --preset original       # the original's network, process and objective
python train.py --resume auto           # go on where the last run stopped
"""

import math
import sys
import time
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import PRESETS, Config, ConfigError, Parser, TrainConfig, add_options, flag
from data import DATASETS, DataError, DataNotFound, ImageSet, load
from diffusion import (
    LOSSES,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    VARIANCES,
    GaussianDiffusion,
    HeldOut,
    guided,
    held_out_losses,
    make_diffusion,
    make_sampler,
    options_of,
)
from models import NORMS, UNet, check_size
from utils import checkpoint, images, runs
from utils.checkpoint import CheckpointError
from utils.clock import Clock
from utils.devices import DeviceError, autocast, pick_device
from utils.logs import StepLog, add_graph, add_texts, open_log
from utils.optim import DECAYS, OPTIMIZERS, Plan, average
from utils.runs import Run, RunError
from utils.seeding import generator, image_noise, mix, permutation
from utils.signals import StopSignal

BAD_INPUT = (ConfigError, DataError, CheckpointError, DeviceError, RunError)
CHOICES = {
    "dataset": DATASETS,
    "norm": NORMS,
    "schedule": [*SCHEDULES, "manual"],
    "prediction": PREDICTIONS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "decay": DECAYS,
    "precision": ("auto", "bf16", "fp32"),
    "sampler": SAMPLERS,
    "variance": VARIANCES,
}
LOG_EVERY = 50  # steps between readings of the losses, each of which waits for the device
KEEP = 2  # newest checkpoints, beside the best
HELD_OUT, PREVIEW = 1024, 20  # images
PLAN_FIELDS = {"epochs", "max_steps", "max_minutes", "warmup_steps", "decay", "batch_size"}


class TrainingError(Exception):
    """A run that cannot go on: where it stopped, why, and what to do."""


@dataclass
class Training:
    """All that changes while training, and so all that a checkpoint must hold."""

    model: UNet
    ema: AveragedModel
    optimizers: list[torch.optim.Optimizer]
    plan: Plan | None  # None with --max-minutes, until the speed is known
    step: int = 0
    best: dict[str, float] | None = None  # step and loss of the lowest held-out loss

    @property
    def finished(self) -> bool:
        return self.plan is not None and self.step >= self.plan.total_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "scheduler": self.plan and asdict(self.plan),
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The plan excepted: see prepare."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        self.step, self.best = state["step"], state["best"]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed on the way, 2: bad input, 130 / 143: interrupted, resumable."""
    try:
        return train(*parse(argv))
    except BAD_INPUT as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        return 2
    except TrainingError as e:
        print(f"train.py: stopped: {e}", file=sys.stderr)
        return 1


def train(config: Config, flags: Namespace, state: dict[str, Any] | None) -> int:
    """Build, start, loop."""
    clock = Clock(pick_device(flags.device))
    config, train_set, test_set = open_data(config, flags.may_substitute, state)
    model, diffusion = build(config)
    model, diffusion = model.to(clock.device), diffusion.to(clock.device)
    if flags.dry_run:
        print(describe(config, model, train_set, clock.device))
        return 0
    training = prepare(model, config.train, len(train_set), state, flags.replan)
    if training.finished:
        print(f"Already finished at step {training.step}; --epochs or --max-steps train further")
        return 0

    run = runs.run_of(flags.resume) if state else runs.new_run(Path(flags.run_root))
    print(f"Logging at: {run.logs}\nModel Checkpoint at: {run.checkpoints}", flush=True)
    train_set, test_set = train_set.to(clock.device), test_set.to(clock.device)
    first = torch.arange(min(HELD_OUT, len(test_set)))
    held_out = HeldOut.of(*next(test_set.batches(first, HELD_OUT)), diffusion)
    with open_log(run.logs, training.step + 1) as writer, StopSignal() as stop:
        if state:
            print(f"Resuming after step {training.step}", flush=True)
        else:
            introduce(run, writer, config, model, train_set)
        while not training.finished and not stop.number:
            ended = train_epoch(training, diffusion, train_set, config, writer, clock, stop)
            if ended:
                report(training, diffusion, held_out, config, writer, run)
            writer.flush()  # first, so that the curves reach at least as far as the checkpoint
            save(training, train_set, config, run)
            clock.saved = time.monotonic()
    return goodbye(stop, run, training)


def train_epoch(
    training: Training,
    diffusion: GaussianDiffusion,
    train_set: ImageSet,
    config: Config,
    writer: SummaryWriter,
    clock: Clock,
    stop: StopSignal,
) -> bool:
    """Algorithm 1 from the current step to the end of its epoch, or of the plan: True.

    False: it was left early, for a checkpoint or a signal; the next call goes on at that batch.
    """
    batch_size = config.train.batch_size
    per_epoch = math.ceil(len(train_set) / batch_size)
    epoch, done = divmod(training.step, per_epoch)
    order = permutation(len(train_set), config.train.seed, epoch)[done * batch_size :]
    log, quartiles = StepLog(writer), torch.zeros(4, 2, device=clock.device)
    ended = False
    with progress_bar(training, epoch, done, per_epoch) as bar:
        for x_0, y in train_set.batches(order, batch_size):
            training.step += 1
            loss, norm, losses, t = train_step(training, diffusion, x_0, y, config)
            log.add(training.step, loss=loss, gradient_norm=norm, lr=lr_of(training))
            add_by_quartile(quartiles, losses, t, diffusion.timesteps)
            bar.update()
            if clock.count_step(config.train.max_minutes):
                fix_plan(training, clock, config.train)
                bar.set_description_str(title(training, epoch, per_epoch))
                bar.write(estimate(training, clock, batch_size))
            ended = training.finished or training.step % per_epoch == 0
            late = time.monotonic() - clock.saved > 60 * config.train.save_minutes
            leave = ended or stop.number or late
            if leave or training.step % LOG_EVERY == 0:
                bar.set_postfix_str(f"Loss: {write_steps(log, clock, batch_size):.4f}")
            if leave:
                break
    for q, (total, count) in enumerate(quartiles.tolist(), start=1):
        writer.add_scalar(f"loss_by_t/quartile_{q}", total / max(1, count), training.step)
    return ended


def train_step(
    training: Training, diffusion: GaussianDiffusion, x_0: Tensor, y: Tensor, config: Config
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One gradient step (Algorithm 1, lines 2-5): the loss, the gradient's norm, and of every
    image its loss (B,) and t (B,).

    Everything drawn is keyed by (seed, step), so that a resumed run draws the same.
    """
    c, model = config.train, training.model
    random = generator(diffusion.device, c.seed, "step", training.step)
    t, weight = diffusion.draw_timesteps(len(x_0), random)
    noise = torch.randn(x_0.shape, device=diffusion.device, generator=random)
    if model.num_classes:
        dropped = torch.rand(y.shape, device=diffusion.device, generator=random) < c.label_drop
        y = y.masked_fill(dropped, model.num_classes)
    if config.model.dropout:
        torch.manual_seed(mix(c.seed, "dropout", training.step))

    with autocast(diffusion.device, c.precision):
        losses = diffusion.losses(lambda x, t: model(x, t, y), x_0, t, noise)
    loss = (weight * losses).mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip)
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor(training, c)
        optimizer.step()
        optimizer.zero_grad()
    training.ema.update_parameters(model)
    return loss.detach(), norm, losses.detach(), t


def lr_factor(training: Training, c: TrainConfig) -> float:
    """Until the plan is known, the warm-up, which every plan begins with."""
    if training.plan:
        return training.plan.factor(training.step)
    return min(1.0, training.step / max(1, c.warmup_steps))


def lr_of(training: Training) -> float:
    """The rate of AdamW."""
    return training.optimizers[-1].param_groups[0]["lr"]


def add_by_quartile(sums: Tensor, losses: Tensor, t: Tensor, timesteps: int) -> None:
    """Add each loss, and 1, to the row of its quarter of 1 ... T; sums (4, 2)."""
    quarter = (t - 1) * 4 // timesteps
    sums.index_add_(0, quarter, torch.stack([losses, torch.ones_like(losses)], dim=1))


def write_steps(log: StepLog, clock: Clock, batch_size: int) -> float:
    """Write what was noted, and the speed since then; returns the mean loss.

    Raises TrainingError at the first loss or gradient that is not finite. As this runs before
    every checkpoint, none is ever written with what came of it.
    """
    steps, values = log.steps, log.write()
    speed = len(steps) * batch_size / clock.lap()
    log.writer.add_scalar("train/images_per_s", speed, steps[-1])
    for step, loss, norm in zip(steps, values["loss"], values["gradient_norm"], strict=True):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step} has loss {loss} and gradient norm {norm}, and no checkpoint was "
                "written since; go on from the last one with --resume auto and a lower --lr"
            )
    return sum(values["loss"]) / len(steps)


def fix_plan(training: Training, clock: Clock, c: TrainConfig) -> None:
    """With --max-minutes: once the speed is known, choose the number of steps for good."""
    if training.plan is None:
        total = training.step + clock.steps_left(c.max_minutes)
        training.plan = Plan.over(min(total, c.max_steps or total), c.warmup_steps, c.decay)


def estimate(training: Training, clock: Clock, batch_size: int) -> str:
    """What the measured speed means for the rest of the run."""
    left = training.plan.total_steps - training.step
    return (
        f"{batch_size / clock.step_seconds:.0f} images/s: {left} more steps, "
        f"about {left * clock.step_seconds / 60:.1f} minutes"
    )


def progress_bar(training: Training, epoch: int, done: int, per_epoch: int) -> tqdm:
    """Silent where the output is not a terminal."""
    name = title(training, epoch, per_epoch)
    return tqdm(total=per_epoch, initial=done, desc=name, disable=None, dynamic_ncols=True)


def title(training: Training, epoch: int, per_epoch: int) -> str:
    epochs = math.ceil(training.plan.total_steps / per_epoch) if training.plan else "?"
    return f"Train :: Epoch: {epoch + 1}/{epochs}"


# What happens at the end of an epoch.


def report(
    training: Training,
    diffusion: GaussianDiffusion,
    held_out: HeldOut,
    config: Config,
    writer: SummaryWriter,
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
    images.save_png(grid, run.logs / f"samples_{step:08d}.png")
    print(f"Step {step}: held-out loss {loss:.5f}", flush=True)


def preview(
    model: nn.Module, diffusion: GaussianDiffusion, shape: tuple[int, ...], config: Config
) -> list[Tensor]:
    """x_T ... x_0 of some images, drawn from the same noise every time."""
    randn = image_noise(config.train.seed, range(PREVIEW), shape, diffusion.device)
    classes = config.model.num_classes
    y = torch.arange(PREVIEW, device=diffusion.device) % classes if classes else None
    denoiser = guided(model, y, classes, config.sample.guidance)
    x_T = randn()
    sampler = make_sampler(**asdict(config.sample))
    return [x_T, *sampler(denoiser, diffusion, x_T, config.sample.steps, randn)]


def save(training: Training, train_set: ImageSet, config: Config, run: Run) -> None:
    """A checkpoint of everything, then drop those no longer needed."""
    per_epoch = math.ceil(len(train_set) / config.train.batch_size)
    state = {
        **training.state_dict(),
        "epoch": training.step // per_epoch,
        "config": asdict(config),
        "data": {"source": train_set.source, "fingerprint": train_set.fingerprint},
        "environment": runs.environment(next(training.model.parameters()).device),
    }
    try:
        checkpoint.save(run.checkpoints / checkpoint.name(training.step), state)
    except CheckpointError as e:
        raise TrainingError(str(e)) from e
    checkpoint.prune(run.checkpoints, training.best and training.best["step"], KEEP)


# What happens before the first step.


def parse(argv: list[str] | None) -> tuple[Config, Namespace, dict[str, Any] | None]:
    """The preset, or the resumed run's configuration, amended by the typed flags; checked."""
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, help="what the flags amend [mnist]")
    parser.add_argument("--resume", metavar="PATH", help="checkpoint or version folder, or auto")
    parser.add_argument("--run-root", default="Logs_Checkpoints", help="[%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and exit")
    sections = vars(PRESETS["mnist"]).values()
    add_options(parser, list(sections), CHOICES)
    typed = vars(parser.parse_args(argv))
    flags = Namespace(
        **{name: typed.pop(name) for name in ("preset", "resume", "run_root", "device", "dry_run")}
    )
    if flags.preset and flags.resume:
        raise ConfigError("--preset and --resume exclude each other: a run keeps its configuration")

    state = resumed_state(flags)
    config = Config.from_dict(state["config"]) if state else PRESETS[flags.preset or "mnist"]
    flags.may_substitute = not state and config.data.dataset == "mnist" and "dataset" not in typed
    flags.replan = bool(typed.keys() & PLAN_FIELDS)
    if typed.keys() & {"max_steps", "max_minutes"} and "epochs" not in typed:
        typed["epochs"] = 0
    if "alphas" in typed:
        typed = {"schedule": "manual", "timesteps": len(typed["alphas"]), **typed}
    config = config.override(**typed)
    check(config, typed)
    return config, flags, state


def resumed_state(flags: Namespace) -> dict[str, Any] | None:
    """The checkpoint that --resume names; None to start fresh. Sets flags.resume to its path."""
    if flags.resume == "auto":
        flags.resume = checkpoint.newest_of_all(Path(flags.run_root))
        if flags.resume is None:
            print(f"Nothing to resume in {flags.run_root}: starting fresh")
    elif flags.resume:
        flags.resume = checkpoint.find(flags.resume, Path(flags.run_root))
    return checkpoint.load(flags.resume) if flags.resume else None


def check(config: Config, typed: dict[str, Any]) -> None:
    """ConfigError for values out of range, and for flags that would have no effect."""
    config.check()
    config.check_sampling(typed, options_of(config.sample.sampler))
    c = config.train
    if not (c.epochs or c.max_steps or c.max_minutes):
        raise ConfigError("--epochs 0 needs --max-steps or --max-minutes")
    if "label_drop" in typed and config.model.num_classes == 0:
        raise ConfigError("--label-drop has no effect on a network without classes")
    with torch.device("meta"):  # shapes without memory
        build(config.override(num_classes=max(0, config.model.num_classes)))


def open_data(
    config: Config, may_substitute: bool, state: dict[str, Any] | None
) -> tuple[Config, ImageSet, ImageSet]:
    """The training and test set, and the configuration with what follows from them filled in."""
    try:
        train_set, test_set = (load(**asdict(config.data), train=part) for part in (True, False))
    except DataNotFound as e:
        if not may_substitute:
            raise
        print(SUBSTITUTE.format(reason=e), file=sys.stderr, flush=True)
        return open_data(config.override(dataset="digits"), False, state)
    if state and state["data"]["fingerprint"] != train_set.fingerprint:
        raise DataError(f"the images ({train_set.source}) are not those this run was trained on")
    classes = config.model.num_classes
    if classes > train_set.num_classes:
        raise ConfigError(
            f"--num-classes must be at most the {train_set.num_classes} of {train_set.name}, "
            f"got {classes}"
        )
    classes = train_set.num_classes if classes < 0 else classes
    return (
        config.override(
            image_channels=train_set.image_shape[0],
            image_size=train_set.image_shape[1],
            num_classes=classes,
        ),
        train_set,
        test_set,
    )


SUBSTITUTE = """
!!! MNIST is not here and cannot be downloaded. {reason}
!!! Training goes on with `digits` INSTEAD: digits drawn by this program, which are NOT MNIST.
!!! The run's configuration and checkpoints say so. To insist on MNIST: --dataset mnist
"""


def build(config: Config) -> tuple[UNet, GaussianDiffusion]:
    """The network with its first weights, and the process. ConfigError for what cannot be."""
    torch.manual_seed(mix(config.train.seed, "weights"))
    try:
        diffusion = make_diffusion(**asdict(config.diffusion))
        model = UNet(**asdict(config.model))
        check_size([config.data.image_size] * 2, model.size_multiple)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return model.to(memory_format=torch.channels_last), diffusion


def prepare(
    model: UNet, c: TrainConfig, images: int, state: dict[str, Any] | None, replan: bool
) -> Training:
    """Optimizers, average and plan: new, or as the checkpoint has them."""
    optimizers = OPTIMIZERS[c.optimizer](model, c.lr, c.weight_decay)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    total = c.epochs * math.ceil(images / c.batch_size)
    total = min(total or c.max_steps, c.max_steps or total)
    plan = None if c.max_minutes else Plan.over(total, c.warmup_steps, c.decay)
    training = Training(model, average(model, c.ema_power, c.ema_decay), optimizers, plan)
    if state:
        training.load_state_dict(state)
        if state["scheduler"] and not replan:
            training.plan = Plan(**state["scheduler"])
    return training


def introduce(
    run: Run, writer: SummaryWriter, config: Config, model: UNet, train_set: ImageSet
) -> None:
    """Configuration and environment as files and as text, and the network as a graph."""
    device = next(model.parameters()).device
    environment = {**runs.environment(device), "data": train_set.source}
    runs.write_json(run.logs / "config.json", asdict(config))
    runs.write_json(run.logs / "environment.json", environment)
    add_texts(writer, {**asdict(config), "environment": environment})
    x = torch.zeros(1, *train_set.image_shape, device=device)
    add_graph(writer, model.eval(), (x, torch.ones(1, dtype=torch.long, device=device)))
    model.train()


def describe(config: Config, model: UNet, train_set: ImageSet, device: torch.device) -> str:
    """What --dry-run prints."""
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


def goodbye(stop: StopSignal, run: Run, training: Training) -> int:
    """Say what was reached and how to go on; the exit code."""
    path = run.checkpoints / checkpoint.name(training.step)
    if stop.number and not training.finished:
        print(f"Interrupted after step {training.step}; go on: python train.py --resume {path}")
        return stop.exit_code
    print(f"Done after step {training.step}; draw images: python sample.py --ckpt {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
