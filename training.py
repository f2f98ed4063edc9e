"""A training: all that changes on the way, and how its steps go through the images."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from config import TrainConfig
from models import UNet
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.clock import Clock
from utils.distributed import Ranks
from utils.optim import Plan


@dataclass(frozen=True)
class Epochs:
    """How the steps 1, 2, ... go through the training set, again and again."""

    images: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Of one epoch; the last one takes what is left."""
        return math.ceil(self.images / self.batch_size)

    def limit(self, c: TrainConfig) -> float:
        """The steps of --epochs or --max-steps, whichever are fewer; both 0: no limit."""
        return min(filter(None, (c.epochs * self.steps, c.max_steps)), default=math.inf)

    def rows(self, step: int) -> int:
        """Images in the batch of this step, over all ranks."""
        done = (step - 1) % self.steps * self.batch_size
        return min(self.batch_size, self.images - done)


@dataclass
class Training:
    """All that changes while training, and so all that a checkpoint must hold; and what it uses."""

    model: UNet
    network: nn.Module  # the model as training calls it: wrapped where there are several ranks
    ranks: Ranks
    epochs: Epochs
    ema: AveragedModel
    optimizers: list[torch.optim.Optimizer]
    plan: Plan | None  # None with --max-minutes, until the speed is known
    limit: float  # steps of --epochs and --max-steps
    evaluated: int = 0  # images that go through the network at the end of an epoch
    step: int = 0
    best: dict[str, float] | None = None  # step and loss of the lowest held-out loss
    changes: list[str] = field(default_factory=list)  # of settings or machine, on the way
    saved: Path | None = None  # the newest checkpoint
    streak: Tensor = field(default_factory=lambda: torch.zeros(()))  # see utils.nonfinite
    x0_error: Tensor | None = None  # (T + 1,), of the averaged network, at the last epoch's end
    by_quarter: Tensor = field(default_factory=lambda: torch.zeros(4, 2))  # of t: loss sum, count

    @property
    def finished(self) -> bool:
        return self.step >= (self.plan.total_steps if self.plan else self.limit)

    @property
    def lr(self) -> float:
        """The rate of AdamW."""
        return self.optimizers[-1].param_groups[0]["lr"]

    def set_lr(self, warmup_steps: int) -> None:
        """The rates of this step. Until the plan is known, the warm-up, which all begin with."""
        factor = min(1.0, self.step / max(1, warmup_steps))
        if self.plan:
            factor = self.plan.factor(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "scheduler": self.plan and asdict(self.plan),
            "best": self.best,
            "changes": self.changes,
            "x0_error": self.x0_error,
            "by_quarter": self.by_quarter,
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """The plan excepted: see prepare. CheckpointError with what does not fit."""
        for name, module in (("model", self.model), ("ema", self.ema)):
            checkpoint.check_fits(path, name, state[name], module.state_dict())
            module.load_state_dict(state[name])
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path} does not fit its configuration: optimizer: {e}") from e
        self.step, self.best, self.saved = state["step"], state["best"], path
        self.changes = list(state.get("changes", []))
        self.x0_error = state.get("x0_error")
        if self.ranks.first:
            self.by_quarter.copy_(state.get("by_quarter", self.by_quarter))


def fix_plan(training: Training, clock: Clock, c: TrainConfig) -> None:
    """With --max-minutes: once the speed is known, choose the number of steps for good."""
    if training.plan is None:
        evaluation, per_epoch = training.evaluated / c.batch_size, training.epochs.steps
        left = training.ranks.from_first(
            lambda: clock.steps_left(c.max_minutes, per_epoch, evaluation)
        )
        total = min(training.step + left, training.limit)
        training.plan = Plan.over(total, c.warmup_steps, c.decay)


def blank(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One image that weighs nothing, for a rank that has none in a small last batch."""
    x_0, y, t, weight, noise = (rows.new_ones(1, *rows.shape[1:]) for rows in part)
    return x_0, y, t, 0 * weight, noise
