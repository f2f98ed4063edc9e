"""A step run once more: to say where a loss that is not finite came from, or with --replay."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from config import Config, ConfigError
from data import ImageSet
from diffusion import GaussianDiffusion
from training import Training
from utils import checkpoint
from utils.nonfinite import LIMIT, watch
from utils.seeding import permutation

# train.train_step; a step is its Training with ``step`` already counted up.
Step = Callable[
    [Training, GaussianDiffusion, Tensor, Tensor, Config], tuple[Tensor, Tensor, Tensor, Tensor]
]


class NotFiniteError(Exception):
    """Some steps in a row gave no finite gradient: which, from what, and what to do."""


def run_step(
    training: Training,
    train_step: Step,
    diffusion: GaussianDiffusion,
    train_set: ImageSet,
    config: Config,
    step: int,
) -> str:
    """Run this step with the weights as they are; its numbers in a line."""
    batch_size, training.step = config.train.batch_size, step
    epoch, done = divmod(step - 1, math.ceil(len(train_set) / batch_size))
    order = permutation(len(train_set), config.train.seed, epoch)
    order = order[done * batch_size : (done + 1) * batch_size]
    x_0, y = next(iter(train_set.batches(order, batch_size, training.ranks.share)))
    eager = torch.compiler.set_stance("force_eager")  # a compiled network does not see hooks
    with eager, watch(training.model) as modules:
        loss, norm, _, _ = train_step(training, diffusion, x_0, y, config)
    rate = training.optimizers[-1].param_groups[0]["lr"]
    blame = f"first output that is not finite: {modules[0]}" if modules else "all outputs finite"
    if not x_0.isfinite().all():
        blame = "the images themselves are not finite"
    return (
        f"step {step} (seed {config.train.seed}): loss {loss.item():.9g}, "
        f"gradient norm {norm.item():.9g}, learning rate {rate:.9g}, {blame}"
    )


def replay(
    training: Training,
    train_step: Step,
    diffusion: GaussianDiffusion,
    train_set: ImageSet,
    config: Config,
    last: int,
) -> None:
    """Run the steps after the checkpoint's again and print what the last gives; write nothing."""
    if training.plan and last > training.plan.total_steps:
        raise ConfigError(f"--replay must be at most {training.plan.total_steps}, got {last}")
    for step in range(training.step + 1, last + 1):
        line = run_step(training, train_step, diffusion, train_set, config, step)
    print(line)


def stop_if_stuck(
    training: Training,
    train_step: Step,
    diffusion: GaussianDiffusion,
    train_set: ImageSet,
    config: Config,
) -> None:
    """NotFiniteError after LIMIT skipped updates in a row; the weights are as before the first."""
    streak = int(training.streak)
    if streak < LIMIT:
        return
    first = training.step - streak + 1
    before = checkpoint.steps(training.saved.parent) if training.saved else {}
    saved = next((path for step, path in reversed(before.items()) if step < first), None)
    line = run_step(training, train_step, diffusion, train_set, config, first)
    lower = f"--lr {config.train.lr / 2:g}"
    if saved is None:
        raise NotFiniteError(f"{line}\nNo checkpoint was written yet: start again with {lower}")
    raise NotFiniteError(
        f"{line}\nThe last good checkpoint is {saved}\n"
        f"Go on with a lower learning rate: python train.py --resume {saved} {lower}\n"
        f"See the step again: python train.py --resume {saved} --replay {first}"
    )
