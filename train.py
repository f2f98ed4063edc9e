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
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import report
import resume
from config import Config, ConfigError, TrainConfig
from data import DataError, ImageSet, ReadError
from diffusion import GaussianDiffusion, HeldOut
from prepare import Training, build, open_data, parse, prepare
from prove import prove
from replay import NotFiniteError, replay, stop_if_stuck
from utils import checkpoint, runs
from utils.checkpoint import CheckpointError
from utils.clock import Clock
from utils.devices import DeviceError, autocast, pick_device
from utils.lock import LockError, only_writer
from utils.logs import Log, StepLog, open_log
from utils.nonfinite import poison, skip_if_not_finite
from utils.optim import Plan
from utils.output import steady_output
from utils.runs import Run, RunError
from utils.seeding import generator, mix, permutation
from utils.signals import StopSignal

BAD_INPUT = (ConfigError, DataError, CheckpointError, DeviceError, LockError, RunError)
LOG_EVERY = 50  # steps between readings of the losses, each of which waits for the device
KEEP = 2  # newest checkpoints, beside the best
HELD_OUT = 1024  # images


class TrainingError(Exception):
    """A run that cannot go on: where it stopped, why, and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed on the way, 2: bad input, 130 / 143: interrupted, resumable."""
    try:
        config, flags, state = parse(argv, __doc__)
        if flags.prove_resume:
            return prove(sys.argv[1:] if argv is None else argv)
        with steady_output():
            return train(config, flags, state)
    except BAD_INPUT as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        return 2
    except (TrainingError, NotFiniteError, ReadError) as e:
        print(f"train.py: stopped: {e}", file=sys.stderr)
    except OSError as e:
        print(f"train.py: stopped: {e.filename or 'a file'}: {e.strerror or e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("train.py: interrupted at once; go on with --resume auto", file=sys.stderr)
        return 130
    return 1


def train(config: Config, flags: Namespace, state: dict[str, Any] | None) -> int:
    """Build, start, loop."""
    clock = Clock(pick_device(flags.device))
    config, train_set, test_set = open_data(config, flags.may_substitute, state)
    model, diffusion = build(config)
    model, diffusion = model.to(clock.device), diffusion.to(clock.device)
    if flags.dry_run:
        print(report.describe(config, model, train_set, clock.device))
        return 0
    training = prepare(model, config.train, len(train_set), state, flags)
    if flags.replay:
        train_set = train_set.to(clock.device)
        replay(training, train_step, diffusion, train_set, config, flags.replay)
        return 0
    if training.finished:
        print(f"Already finished at step {training.step}; --epochs or --max-steps train further")
        return 0

    run = runs.run_of(flags.resume) if state else runs.new_run(flags.run_root)
    resume.sweep(run)
    print(f"Logging at: {run.logs}\nModel Checkpoint at: {run.checkpoints}", flush=True)
    train_set, test_set = train_set.to(clock.device), test_set.to(clock.device)
    first = torch.arange(min(HELD_OUT, len(test_set)))
    held_out = HeldOut.of(*next(test_set.batches(first, HELD_OUT)), diffusion)
    with (
        only_writer(run.checkpoints),
        open_log(run.logs, training.step + 1) as writer,
        StopSignal() as stop,
    ):
        if state:
            resume.go_on(training, run, config, flags, state)
        else:
            report.introduce(run, writer, config, model, train_set)
        while not training.finished and not stop.number:
            ended = train_epoch(training, diffusion, train_set, config, writer, clock, stop)
            if ended:
                report.measure_errors(training, diffusion, train_set, config.sample.clip)
                report.end_of_epoch(training, diffusion, held_out, config, writer, run)
            writer.flush()  # first, so that the curves reach at least as far as the checkpoint
            save(training, train_set, config, run)
            clock.saved = time.monotonic()
    return goodbye(stop, run, training)


def train_epoch(
    training: Training,
    diffusion: GaussianDiffusion,
    train_set: ImageSet,
    config: Config,
    writer: Log,
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
                stop_if_stuck(training, train_step, diffusion, train_set, config)
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
    loss.backward(poison(loss))
    norm = nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip)
    skip_if_not_finite(training.optimizers, norm, training.streak)
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

    Says which updates were skipped because their gradient was not finite.
    """
    steps, values = log.steps, log.write()
    speed = len(steps) * batch_size / clock.lap()
    log.writer.add_scalar("train/images_per_s", speed, steps[-1])
    norms = zip(steps, values["gradient_norm"], strict=True)
    if skipped := [str(step) for step, norm in norms if not math.isfinite(norm)]:
        print(f"train.py: not finite, so skipped: step {', '.join(skipped)}", file=sys.stderr)
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
    path = run.checkpoints / checkpoint.name(training.step)
    try:
        checkpoint.save(path, state)
    except CheckpointError as e:
        raise TrainingError(f"{e}; the last good one is {training.saved}") from e
    training.saved = path
    checkpoint.prune(run.checkpoints, training.best and training.best["step"], KEEP)


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
