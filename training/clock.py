"""Wall-clock time: throughput, the schedule that fits --max-minutes, checkpoint intervals."""

import time
from typing import NamedTuple

import torch

from training.optim import LRSchedule
from training.state import TrainState
from utils.process import StopSignal

SETTLE_STEPS = 3  # warm up caches and choose kernels; not timed
SPEED_SECONDS = 5.0  # timed before the throughput is printed
SCHEDULE_SECONDS = 15.0  # timed before --max-minutes fixes the schedule
RESERVE = 0.02  # of --max-minutes, for checkpoints and the end
FORWARD = 1 / 3  # of the time of a training step is its forward pass
LOG_SECONDS = 2.0  # at most, between readings of the losses


class Due(NamedTuple):
    """What has to happen after a step; all ranks agree on it."""

    stop: bool  # a signal arrived
    speed: bool  # the throughput is known, from this step on
    save: bool
    log: bool


class Clock:
    """Starts on construction. ``step_seconds`` is None until enough steps were timed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = self.lapped = self.saved = time.monotonic()
        self.steps, self.settled = 0, 0.0
        self.step_seconds: float | None = None
        self.validation_images = 0  # images that pass through the network at the end of an epoch

    def after_step(self, state: TrainState, stop: StopSignal) -> Due:
        """Rank 0 decides what depends on the time; a signal may reach any rank."""
        c, ranks = state.config.train, state.ranks
        speed = self.count_step(c.max_minutes) and ranks.first
        save = ranks.first and time.monotonic() - self.saved > 60 * c.save_minutes
        log = ranks.first and time.monotonic() - self.lapped > LOG_SECONDS
        return Due(*map(bool, ranks.highest(stop.number, speed, save, log)))

    def count_step(self, max_minutes: float) -> bool:
        """True once: at the step after which the throughput is known."""
        if self.step_seconds is not None:
            return False
        self.steps += 1
        if self.steps == SETTLE_STEPS:
            self.settled = self.now()
        enough = (
            min(SCHEDULE_SECONDS, 3 * max_minutes) if max_minutes else SPEED_SECONDS
        )  # 5 % at most
        if self.steps <= SETTLE_STEPS or time.monotonic() - self.settled < enough:
            return False
        self.step_seconds = (self.now() - self.settled) / (self.steps - SETTLE_STEPS)
        return True

    def fit_schedule(self, state: TrainState) -> LRSchedule:
        """The longest schedule that ends within --max-minutes."""
        c, epochs = state.config.train, state.epochs
        done = state.step % epochs.steps
        left = state.ranks.from_first(
            lambda: self.steps_left(c.max_minutes, done, epochs.steps, c.batch_size)
        )
        total = min(state.step + left, epochs.limit(c))
        return LRSchedule.over(total, c.warmup_steps, c.decay)

    def steps_left(self, max_minutes: float, done: int, epoch_steps: int, batch_size: int) -> int:
        """How many more steps fit, with a validation after every epoch; done: steps of this one."""
        seconds = 60 * max_minutes * (1 - RESERVE) - (time.monotonic() - self.began)
        validation = FORWARD * self.validation_images / batch_size  # in training steps
        whole, rest = divmod(seconds / self.step_seconds + done, epoch_steps + validation)
        steps = whole * epoch_steps + max(0, rest - validation)
        return max(0, int(steps) - done)

    def restart_save(self) -> None:
        """A checkpoint was just written."""
        self.saved = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.lapped = self.lapped, time.monotonic()
        return self.lapped - before

    def now(self) -> float:
        """The time once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
