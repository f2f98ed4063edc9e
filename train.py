"""Train a DDPM: Algorithm 1 of Ho et al. (2020), epoch by epoch.

python train.py                         # MNIST, 30 epochs
python train.py --max-minutes 5         # the best that five minutes can give
python train.py --preset original       # the original's network, process and objective
python train.py --resume auto           # go on where the last run stopped
"""

import sys
import time
from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import report
import resume
from config import Config, ConfigError, TrainConfig
from data import DataError, ImageSet, ReadError, deaths_of_workers
from diffusion import GaussianDiffusion, HeldOut
from prepare import build, open_data, parse, prepare
from prove import prove
from replay import NotFiniteError, replay, stop_if_stuck
from training import Epochs, Training, blank, fix_plan
from utils import checkpoint, runs
from utils.checkpoint import CheckpointError
from utils.clock import Clock
from utils.devices import DeviceError, autocast, pick_device
from utils.distributed import RankError, Ranks, joined
from utils.lock import LockError, only_writer
from utils.logs import Log, StepLog, open_log
from utils.nonfinite import poison, skip_if_not_finite
from utils.output import steady_output
from utils.runs import Run, RunError
from utils.seeding import generator, mix, permutation
from utils.signals import StopSignal

BAD_INPUT = (ConfigError, DataError, CheckpointError, DeviceError, LockError, RunError)
LOG_EVERY, LOG_SECONDS = 50, 2.0  # between readings of the losses, which wait for the device
KEEP = 2  # newest checkpoints, beside the best


class TrainingError(Exception):
    """A run that cannot go on: where it stopped, why, and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed on the way, 2: bad input, 130 / 143: interrupted, resumable."""
    try:
        config, flags, state = parse(argv, __doc__)
        if flags.prove_resume:
            return prove(sys.argv[1:] if argv is None else argv)
        device = pick_device(flags.device)
        with steady_output(), deaths_of_workers(), joined(device) as ranks:
            return train(config, flags, state, Clock(device), ranks)
    except BAD_INPUT as e:
        print(f"train.py: error: {e}", file=sys.stderr)
        return 2
    except (TrainingError, NotFiniteError, RankError, ReadError) as e:
        print(f"train.py: stopped: {e}", file=sys.stderr)
    except OSError as e:
        print(f"train.py: stopped: {e.filename or 'a file'}: {e.strerror or e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("train.py: interrupted at once; go on with --resume auto", file=sys.stderr)
        return 130
    return 1


def train(
    config: Config, flags: Namespace, state: dict[str, Any] | None, clock: Clock, ranks: Ranks
) -> int:
    """Build, start, loop."""
    config, train_set, test_set = open_data(config, flags.may_substitute, state)
    model, diffusion = build(config)
    model, diffusion = model.to(clock.device), diffusion.to(clock.device)
    if flags.dry_run:
        print(report.describe(config, model, train_set, clock.device))
        return 0
    epochs = Epochs(len(train_set), config.train.batch_size)
    training = prepare(model, config.train, epochs, state, flags, ranks)
    ranks.check_equal((training.step, train_set.fingerprint), "checkpoint or images")
    if flags.replay:
        train_set = train_set.to(clock.device)
        replay(training, train_step, diffusion, train_set, config, flags.replay)
        return 0
    if training.finished:
        print(f"Already finished at step {training.step}; --epochs or --max-steps train further")
        return 0

    resumed = flags.resume if state else None
    run = ranks.from_first(lambda: runs.run_for(flags.run_root, resumed))
    if ranks.first:
        resume.sweep(run)
    print(f"Logging at: {run.logs}\nModel Checkpoint at: {run.checkpoints}", flush=True)
    train_set, test_set = train_set.to(clock.device), test_set.to(clock.device)
    some = permutation(len(test_set), 0, 0)[: report.HELD_OUT]  # a folder's are in order of class
    held_out = HeldOut.of(*next(test_set.batches(some, report.HELD_OUT)), diffusion)
    training.evaluated = report.evaluated(config, train_set, held_out)
    with (
        ranks.alone(only_writer(run.checkpoints)),
        open_log(run.logs, training.step + 1, silent=not ranks.first) as writer,
        StopSignal() as stop,
    ):
        if state and ranks.first:
            resume.go_on(training, run, config, flags, state)
        elif ranks.first:
            report.introduce(run, writer, config, training.ema.module, train_set)
        while not training.finished and not stop.agreed(ranks):
            ended = train_epoch(training, diffusion, train_set, config, writer, clock, stop)
            if ended and ranks.first:
                with autocast(clock.device, config.train.precision):
                    report.measure_errors(training, diffusion, train_set, config.sample.clip)
                    report.end_of_epoch(training, diffusion, held_out, config, writer, run)
            writer.flush()  # first, so that the curves reach at least as far as the checkpoint
            if ranks.first:
                save(training, train_set, config, run)
            clock.saved = time.monotonic()
    return report.goodbye(stop, run, training)


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
    c, ranks, batch_size = config.train, training.ranks, config.train.batch_size
    epoch, done = divmod(training.step, training.epochs.steps)
    order = permutation(len(train_set), c.seed, epoch)[done * batch_size :]
    log, ended = StepLog(writer, ranks), False
    clock.lap()
    with report.progress_bar(training) as bar:
        for x_0, y in train_set.batches(order, batch_size, ranks.share):
            training.step += 1
            loss, norm, losses, t = train_step(training, diffusion, x_0, y, config)
            log.add(training.step, loss=loss, gradient_norm=norm, lr=training.lr)
            report.add_by_quarter(training.by_quarter, losses, t, diffusion.timesteps)
            bar.update()
            # What depends on the clock the first rank decides; a signal may reach any of them.
            known = clock.count_step(c.max_minutes) and ranks.first
            late = ranks.first and time.monotonic() - clock.saved > 60 * c.save_minutes
            stale = ranks.first and time.monotonic() - clock.lapped > LOG_SECONDS
            asked, known, late, stale = ranks.highest(stop.number, known, late, stale)
            if known:
                fix_plan(training, clock, c)
                report.show_plan(bar, training, clock)
            ended = training.finished or training.step % training.epochs.steps == 0
            leave = ended or asked or late
            if leave or stale or training.step % LOG_EVERY == 0:
                bar.set_postfix_str(f"Loss: {report.write_steps(log, clock, batch_size):.4f}")
                stop_if_stuck(training, train_step, diffusion, train_set, config)
            if leave:
                break
    report.write_quarters(training, writer, ended)
    return ended


def train_step(
    training: Training, diffusion: GaussianDiffusion, x_0: Tensor, y: Tensor, config: Config
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One gradient step (Algorithm 1, lines 2-5), with this rank's images of the batch.

    The loss (its mean over the ranks is the batch's), the gradient's norm, all losses and t (B,).
    """
    c, ranks = config.train, training.ranks
    t, weight, noise, y = draw(training, diffusion, x_0, y, config)
    if config.model.dropout:
        own = () if ranks.first else (ranks.rank,)
        torch.manual_seed(mix(c.seed, "dropout", training.step, *own))

    parts = zip(*(part.chunk(c.grad_accum) for part in (x_0, y, t, weight, noise)), strict=True)
    *early, last = parts
    with ranks.without_averaging(training.network):
        results = [backward(training, diffusion, part, c) for part in early]
    results.append(backward(training, diffusion, last, c))
    losses = torch.cat([losses for _, losses in results])

    norm = nn.utils.clip_grad_norm_(training.model.parameters(), c.grad_clip)
    skip_if_not_finite(training.optimizers, norm, training.streak)
    training.set_lr(c.warmup_steps)
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    training.ema.update_parameters(training.model)
    return sum(loss for loss, _ in results), norm, losses, t


def draw(
    training: Training, diffusion: GaussianDiffusion, x_0: Tensor, y: Tensor, config: Config
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t, its weight, the noise and the labels, some dropped, of this rank's images.

    Keyed by (seed, step), for the whole batch: a resumed run, and any number of ranks, draw alike.
    """
    ranks, rows, device = training.ranks, training.epochs.rows(training.step), diffusion.device
    random = generator(device, config.train.seed, "step", training.step)
    t, weight = diffusion.draw_timesteps(rows, random)
    noise = torch.randn((rows, *x_0.shape[1:]), device=device, generator=random)
    if classes := training.model.num_classes:
        dropped = torch.rand(rows, device=device, generator=random) < config.train.label_drop
        y = y.masked_fill(ranks.part(dropped), classes)
    return ranks.part(t), ranks.part(weight), ranks.part(noise), y


def backward(
    training: Training, diffusion: GaussianDiffusion, part: tuple[Tensor, ...], c: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Add the gradient of some images; their part of the batch's loss, and the loss of each (B,).

    The gradients of the ranks are averaged, whatever their rows; hence the division.
    """
    x_0, y, t, weight, noise = part if len(part[0]) else blank(part)
    with autocast(diffusion.device, c.precision):
        losses = diffusion.losses(lambda x, t: training.network(x, t, y), x_0, t, noise)
    rows = training.epochs.rows(training.step) / training.ranks.world
    loss = (weight * losses).sum() / rows
    loss.backward(poison(loss))
    return loss.detach(), losses[: len(part[0])].detach()


def save(training: Training, train_set: ImageSet, config: Config, run: Run) -> None:
    """A checkpoint of everything, then drop those no longer needed."""
    state = {
        **training.state_dict(),
        "epoch": training.step // training.epochs.steps,
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


if __name__ == "__main__":
    sys.exit(main())
