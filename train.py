"""Train a DDPM: Algorithm 1 of Ho et al. (2020), epoch by epoch.

python train.py                         # MNIST, 30 epochs
python train.py --max-minutes 5         # the best run that fits into five minutes
python train.py --preset original       # the original's network, process and objective
python train.py --resume auto           # continue the last run
"""

import os
import signal
import sys

if __name__ == "__main__":  # before all other imports, which take seconds
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback of an import
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from data import ImageSet, report
from evaluation.during import Scorer, names_of, seconds_to_prepare
from evaluation.report import write_report
from training import resume
from training.clock import Clock
from training.logger import Logger, save_contact_sheet
from training.nonfinite import (
    StepResult,
    output_gradient,
    raise_if_diverged,
    replay,
    skip_if_not_finite,
)
from training.outputs import warn_on_error
from training.saving import last_good, save_checkpoint, save_ema, saved_on_read_error
from training.screen import forecast_lines
from training.setup import CACHE, CLASSIFIERS, Args, data_entry, describe_run, load_data, parse_args
from training.state import TrainState
from training.validate import Validation, samples_to_score
from training.verify_resume import verify_resume
from utils import checkpoint
from utils.devices import autocast, memory_errors, pick_device, tune
from utils.distributed import Ranks, joined
from utils.process import StopSignal, exit_code, interruptible
from utils.progress import Progress
from utils.runs import Run, environment, open_run, upcoming
from utils.seeding import generator, mix

SPARE_MEMORY = "lower --batch-size, raise --grad-accum, or add --checkpoint-activations"
FORECAST_SECONDS, WARM_SECONDS = 2.0, 5.0  # of steps that --dry-run times; of one that suffices
LOG_EVERY = 50  # steps: reading a loss back synchronizes with the device


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed, 2: bad input, 128 + N: stopped by signal N, resumable."""
    interrupted = "interrupted before the first step"
    return exit_code("train.py", lambda: launch(parse_args(argv, __doc__)), interrupted)


def launch(args: Args) -> int:
    """Run on one device, or as one rank of a torchrun job."""
    if args.prove_resume:
        return verify_resume(args)
    device = pick_device(args.device)
    tune(device, args.config.train.deterministic)
    start = args.resumed and args.resumed.path
    with memory_errors(lambda: memory_advice(start)), joined(device) as ranks:
        return train(args, device, ranks)


def memory_advice(saved: Path | None) -> str:
    """What to do where memory was lacking; saved: the newest checkpoint."""
    return f"{SPARE_MEMORY}; {last_good(saved)}"


def train(args: Args, device: torch.device, ranks: Ranks) -> int:
    """Set up, then epoch by epoch until the schedule ends or a signal arrives."""
    clock, machine = Clock(device), environment(device)  # of the code that runs, not a later one
    config, train_set, test_set = load_data(args, ranks)
    start = args.resumed or args.pretrained
    state = TrainState.create(config, len(train_set), device, ranks, start)
    state.notes = {"name": args.name, "data": data_entry(train_set, test_set)}
    state.notes |= {"environment": machine}
    if not args.resumed:
        state.count_values(train_set)
    if args.dry_run:
        return dry_run(args, state, (train_set, test_set))
    ranks.check_equal((state.step, train_set.fingerprint), "checkpoint or images")
    stop = StopSignal(ranks)
    train_set, test_set = sets = tuple(
        part.to(device).stopped_by(lambda: stop.number > 0) for part in (train_set, test_set)
    )
    if args.replay:
        return replay(state, train_step, train_set, args.replay)
    if state.finished:
        more = "a higher --epochs or --max-steps, or other --max-minutes, trains further"
        print(f"Already finished at step {state.step:,}; {more}")
        return 0

    with (
        stop,
        memory_errors(lambda: memory_advice(state.saved)),
        open_run(args.run_root, args.resumed and args.resumed.path, ranks) as run,
        Logger(run, state, sets) as logger,
    ):
        with saved_on_read_error(run, state, logger, clock):
            begin(args, state, run, logger)
            validation, scorer = Validation(state, *sets), make_scorer(args, state, sets, stop)
            ranks.wait_for_first()
            clock.start(state)
            with logger.progress_bar():
                while not (state.finished or stop.agreed(ranks)):  # never left without being saved
                    while not train_epoch(state, train_set, logger, clock, stop):
                        pass  # the next epoch
                    if ranks.first and state.validation_due:
                        logger.write_losses(validation.measure(state), validation.size(state))
                    state.seconds = clock.seconds
                    if ranks.first:
                        logger.writer.flush()  # before the checkpoint: the curves never lag behind
                        save_checkpoint(run, state)
                    if ranks.first and state.validation_due:
                        sample_and_score(state, validation, scorer, logger, stop)
                    ranks.wait_for_first()
                    state.seconds = clock.seconds
                    clock.go_on()
        return logger.goodbye(stop, write_report)


def begin(args: Args, state: TrainState, run: Run, logger: Logger) -> None:
    """On the first rank: log what the run is; a resumed one goes back to its checkpoint's step."""
    if not state.ranks.first:
        return
    if args.resumed:
        checkpoint.set_aside(args.resumed.damaged, "corrupt")
        run.go_back_to(state.step)
        state.changes += resume.announce(args.resumed, state.device)
    train_set, conditional = logger.sets[0], state.model.num_classes > 0
    scores = names_of(train_set, conditional) if state.config.train.score_every else ()
    logger.start(args.name, args.resumed is not None, scores)


def sample_and_score(
    state: TrainState,
    validation: Validation,
    scorer: Scorer | None,
    logger: Logger,
    stop: StopSignal,
) -> None:
    """Samples, scores, EMA weights alone: once the checkpoint is there, as none is worth a run.

    A stop signal ends the scores, which may take minutes.
    """
    with warn_on_error("no samples"):
        logger.write_pictures(*validation.draw(state))
    if scorer and state.score_due and not stop.number:
        before, scores = state.best_score, None
        with warn_on_error("no scores"), stop.cuts_short():
            scores = score_samples(state, scorer)
        if scores is not None:
            logger.write_scores(scores)
        if state.best_score != before:
            save_checkpoint(logger.run, state)  # which is kept from now on
    if state.config.train.keep_ema:
        with warn_on_error("cannot keep the EMA weights"):
            save_ema(logger.run, state)


def dry_run(args: Args, state: TrainState, sets: tuple[ImageSet, ImageSet]) -> int:
    """Print what the run would be."""
    print("\n".join([*report(*sets), "", describe_run(state)]), flush=True)
    print("\n".join(forecast(args, state, sets)))
    if sets[0].notes and state.ranks.first:  # from files: show what becomes of them
        print(save_contact_sheet(sets[0], args.run_root / CACHE))
    return 0


def forecast(args: Args, state: TrainState, sets: tuple[ImageSet, ImageSet]) -> list[str]:
    """--dry-run: minutes, memory, disk and folder of the run, from a few timed steps of it."""
    clock, ranks, train_set, times = Clock(state.device), state.ranks, sets[0].to(state.device), []
    with Progress("timing a few steps", None, "steps", silent=ranks.silent) as progress:
        while any(ranks.highest(ranks.first and not enough(times))):
            began = clock.now()
            for x_0, y in state.batches(train_set, most=1):
                state.step += 1
                train_step(state, x_0, y)
            times.append(clock.now() - began)
            progress.update()
    clock.step_seconds = fmean(times[1:] or times)  # the first one also warms up
    state.step -= len(times)
    clock.start(state)
    if state.schedule is None:
        state.schedule = clock.fit_schedule(state)
    extractor, path = None, args.resumed and args.resumed.path
    if state.config.train.score_every and ranks.first:
        extractor = seconds_to_prepare(sets, args.run_root / CLASSIFIERS, state.device)
    return forecast_lines(state, clock.step_seconds, extractor, upcoming(args.run_root, path))


def enough(times: Sequence[float]) -> bool:
    """Whether these seconds of steps tell what a step takes; one so long that it warms up does."""
    return len(times) > 0 and (
        times[0] > WARM_SECONDS or (len(times) > 1 and sum(times[1:]) >= FORECAST_SECONDS)
    )


def make_scorer(
    args: Args, state: TrainState, sets: tuple[ImageSet, ImageSet], stop: StopSignal
) -> Scorer | None:
    """For --score-every, on the first rank: trains the feature extractor where there is none.

    A stop signal ends it, and the program, at once: there is no step yet to be saved.
    """
    c, conditional = state.config.train, state.model.num_classes > 0
    if not (c.score_every and state.ranks.first):
        return None
    with interruptible():
        if stop.number:
            return None
        share = state.validation_schedule.score_share()
        every = f"{c.score_images:,} samples every {c.score_every:,} steps and at the end"
        print(f"{'scores':12}{every}, about {share:.1%} of a long run", flush=True)
        with warn_on_error("no scores"):
            return Scorer.of(sets, c.score_images, conditional, args.run_root / CLASSIFIERS)
    return None


def score_samples(state: TrainState, scorer: Scorer) -> dict[str, float]:
    """The scores of the EMA's samples; updates state.best_score."""
    scores = scorer.score(samples_to_score(state, scorer.labels))
    distance = next((value for name, value in scores.items() if name.startswith("fid_")), None)
    if distance is not None and (not state.best_score or distance < state.best_score["score"]):
        state.best_score = {"step": state.step, "score": distance}
    return scores


def train_epoch(
    state: TrainState, train_set: ImageSet, logger: Logger, clock: Clock, stop: StopSignal
) -> bool:
    """Train to the end of the epoch; True: until a validation or a checkpoint is due, or a signal.

    At the end of the run a validation always is.
    """
    for x_0, y in state.batches(train_set):
        state.step += 1
        logger.add_step(train_step(state, x_0, y))
        due = clock.after_step(state, stop)
        if due.refit:
            state.schedule = clock.fit_schedule(state)
        if due.speed:
            logger.show_schedule(clock)
        pause = state.validation_due or due.stop or due.save
        if pause or due.log or state.step % LOG_EVERY == 0:
            logger.write_steps(clock)
            raise_if_diverged(state, train_step, train_set)
        if pause:
            logger.gather_quartiles()
            return True
    return False


def train_step(state: TrainState, x_0: Tensor, y: Tensor) -> StepResult:
    """One gradient step (Algorithm 1, lines 2-5) on this rank's share of the batch."""
    c, ranks = state.config.train, state.ranks
    t, weight, noise, y = sample_inputs(state, x_0, y)
    if state.config.model.dropout:
        rank_key = () if ranks.first else (ranks.rank,)
        torch.manual_seed(mix(c.seed, "dropout", state.step, *rank_key))

    inputs = (x_0, y, t, weight, noise)
    micro_batches = list(zip(*(part.chunk(c.grad_accum) for part in inputs), strict=True))
    loss, losses = 0, []
    for i, micro_batch in enumerate(micro_batches, start=1):
        with ranks.gradient_sync(state.network, i == len(micro_batches)):
            part, per_image = backward(state, *micro_batch)
        loss, losses = loss + part, [*losses, per_image]

    norm = nn.utils.clip_grad_norm_(state.model.parameters(), c.grad_clip)
    skip_if_not_finite(state.optimizers, norm, state.skipped)
    state.set_lr()
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    state.ema.update_parameters(state.model)
    losses = torch.cat(losses)
    if state.moments:
        state.moments.update(ranks.sum(state.moments.of(t, losses)))
    return StepResult(loss, norm, losses, t)


def sample_inputs(state: TrainState, x_0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """t (b,), importance weights (b,), noise (b, C, H, W), labels (b,) with label dropout.

    Sampled for the global batch from a generator keyed by (seed, step): they depend neither on
    where the run was resumed nor on the number of ranks.
    """
    c, ranks, device = state.config.train, state.ranks, state.device
    size = state.epochs.global_batch(state.step)
    random = generator(device, c.seed, "step", state.step)
    t, weight = state.diffusion.sample_timesteps(size, random, state.density)
    noise = torch.randn((size, *x_0.shape[1:]), device=device, generator=random)
    if null_label := state.model.num_classes:
        dropped = torch.rand(size, device=device, generator=random) < c.label_drop
        y = y.masked_fill(ranks.share(dropped), null_label)
    return ranks.share(t), ranks.share(weight), ranks.share(noise), y


def backward(
    state: TrainState, x_0: Tensor, y: Tensor, t: Tensor, weight: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Accumulate gradients; this micro-batch's part of the loss, and the loss of each image (B,).

    DDP averages over the ranks, regardless of how many images each holds: hence ``per_rank``.
    """
    images = len(x_0)
    if not images:  # a small last batch left this rank none: DDP needs a backward pass, of weight 0
        parts = (part.new_ones(1, *part.shape[1:]) for part in (x_0, y, t, weight, noise))
        x_0, y, t, weight, noise = parts
        weight = 0 * weight
    with autocast(state.device, state.config.train.precision), state.compilation():
        losses = state.diffusion.losses(lambda x, t: state.network(x, t, y), x_0, t, noise)
    per_rank = state.epochs.global_batch(state.step) / state.ranks.world
    loss = (weight * losses).sum() / per_rank
    loss.backward(output_gradient(loss))
    return loss.detach(), losses[:images].detach()


if __name__ == "__main__":
    sys.exit(main())
