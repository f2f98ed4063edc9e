"""Non-finite gradients: the update is skipped; three in a row stop the run, with a diagnosis.

Decided on the device, as a check on the host would synchronize every step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import ConfigError
from data import ImageSet
from models.summary import watched
from training.state import TrainState
from utils import checkpoint
from utils.errors import StoppedError
from utils.process import command

LIMIT = 3  # skipped updates in a row


class StepResult(NamedTuple):
    """Metrics of one training step, on the device."""

    loss: Tensor  # its mean over the ranks is that of the global batch
    grad_norm: Tensor
    losses: Tensor  # of each image of this rank, (B,)
    t: Tensor  # its timestep, (B,)


Step = Callable[[TrainState, Tensor, Tensor], StepResult]  # train.train_step


class NotFiniteError(StoppedError):
    """Consecutive updates were not finite: which, from what, and what to do."""


def output_gradient(loss: Tensor) -> Tensor:
    """For ``loss.backward``: 1, or NaN if the loss is not finite.

    It then makes every gradient NaN, on every rank, so that checking the norm is enough.
    """
    return loss.detach() * 0 + 1


def skip_if_not_finite(
    optimizers: list[torch.optim.Optimizer], grad_norm: Tensor, skipped: Tensor
) -> None:
    """Turn the coming optimizer steps into no-ops where the norm of the gradient is not finite.

    ``skipped`` counts them in a row, in place; from LIMIT on nothing is updated any more, so that
    the weights stay those before the first skipped step.
    """
    skip = ~grad_norm.isfinite() | (skipped >= LIMIT)
    skipped.copy_((skipped + 1) * skip)
    for optimizer in optimizers:
        optimizer.found_inf = skip.float()  # as torch.amp.GradScaler tells fused optimizers


def raise_if_diverged(state: TrainState, step: Step, train_set: ImageSet) -> None:
    """NotFiniteError after LIMIT skipped updates in a row."""
    skipped = int(state.skipped)
    if skipped < LIMIT:
        return
    first, lr = state.step - skipped + 1, state.config.train.lr
    saved = checkpoint.steps(state.saved.parent) if state.saved else {}
    good = next((path for n, path in reversed(saved.items()) if n < first), None)
    line, images_finite = rerun(state, step, train_set, first)
    if not images_finite:
        raise NotFiniteError(f"{line}\nMend the images: no learning rate would help")
    if good is None:
        raise NotFiniteError(
            f"{line}\nNo checkpoint was written yet: start again with --lr {lr / 2:g}"
        )
    resume = partial(command, "train.py", "--resume")
    raise NotFiniteError(
        f"{line}\nThe last good checkpoint is {good}\n"
        f"Go on with a lower learning rate: {resume(good, '--lr', f'{lr / 2:g}')}\n"
        f"See the step again: {resume(good, '--replay', first)}"
    )


def replay(state: TrainState, step: Step, train_set: ImageSet, last: int) -> int:
    """--replay: run the steps after the checkpoint again, print the last; writes nothing."""
    if state.schedule and last > state.schedule.total_steps:
        raise ConfigError(f"--replay must be at most {state.schedule.total_steps}, got {last}")
    for number in range(state.step + 1, last + 1):
        line, _ = rerun(state, step, train_set, number)
    print(line)
    return 0


def rerun(state: TrainState, step: Step, train_set: ImageSet, number: int) -> tuple[str, bool]:
    """Run this step with the current weights; one line of diagnosis, whether images are finite."""
    state.step = number - 1
    x_0, y = next(state.batches(train_set, most=1))
    state.step = number
    eager = torch.compiler.set_stance("force_eager")  # a compiled network would not call the hooks
    with eager, non_finite_outputs(state.model) as modules:
        result = step(state, x_0, y)
    cause = f"first output that is not finite: {modules[0]}" if modules else "all outputs finite"
    images_finite = bool(x_0.isfinite().all())
    if not images_finite:
        cause = "the images themselves are not finite"
    line = (
        f"step {number} (seed {state.config.train.seed}): loss {result.loss.item():.9g}, "
        f"gradient norm {result.grad_norm.item():.9g}, learning rate {state.lr:.9g}, {cause}"
    )
    return line, images_finite


@contextmanager
def non_finite_outputs(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose output was not finite, in the order in which they ran."""
    found: list[str] = []

    def check(name: str, output: object) -> None:
        if name and isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    with watched(model, check):
        yield found
