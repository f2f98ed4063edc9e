"""Wall-clock time: throughput, the schedule that fits --max-minutes, checkpoint intervals."""

import time
from bisect import bisect_right
from typing import NamedTuple

import torch

from training.optim import LRSchedule
from training.plan import Validations
from training.state import TrainState
from utils.process import StopSignal

SETTLE_STEPS = 3  # warm up caches and choose kernels; not timed
SPEED_SECONDS = 5.0  # timed before the throughput is printed
SCHEDULE_SECONDS = 15.0  # timed before --max-minutes fixes the schedule
RESERVE = 0.02  # of --max-minutes, for checkpoints and the end
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
        self.before = 0.0  # seconds of the run before this process
        self.steps, self.settled = 0, 0.0
        self.step_seconds: float | None = None

    def after_step(self, state: TrainState, stop: StopSignal) -> Due:
        """Rank 0 decides what depends on the time; a signal may reach any rank."""
        c, ranks = state.config.train, state.ranks
        state.seconds = self.before + time.monotonic() - self.began
        speed = self.count_step(c.max_minutes) and ranks.first
        save = ranks.first and time.monotonic() - self.saved > 60 * c.save_minutes
        log = ranks.first and time.monotonic() - self.lapped > LOG_SECONDS
        return Due(*map(bool, ranks.highest(stop.number, speed, save, log)))

    def count_step(self, max_minutes: float) -> bool:
        """True once: at the step after which the throughput is known."""
        if self.step_seconds is not None:
            return False
        planned = min(SCHEDULE_SECONDS, 3 * max_minutes)  # 5 % at most
        return self.time_step(planned if max_minutes else SPEED_SECONDS, SETTLE_STEPS)

    def time_step(self, enough: float, warm_up: int) -> bool:
        """Count a step; True once those after the warm-up have taken ``enough`` seconds."""
        self.steps += 1
        if self.steps == warm_up:
            self.settled = self.now()
        if self.steps <= warm_up or time.monotonic() - self.settled < enough:
            return False
        self.step_seconds = (self.now() - self.settled) / (self.steps - warm_up)
        return True

    def fit_schedule(self, state: TrainState) -> LRSchedule:
        """The longest schedule that ends within --max-minutes."""
        c, step = state.config.train, state.step
        left = state.ranks.from_first(
            lambda: self.steps_left(c.max_minutes, step, state.validations)
        )
        total = min(step + left, state.epochs.limit(c))
        return LRSchedule.over(total, c.warmup_steps, c.decay)

    def steps_left(self, max_minutes: float, step: int, validations: Validations) -> int:
        """How many more steps fit after this one, with their validations."""
        seconds = 60 * max_minutes * (1 - RESERVE) - (time.monotonic() - self.began)
        budget = seconds / self.step_seconds  # in training steps

        def needed(steps: int) -> float:
            return steps + validations.cost_within(step, step + steps)

        return bisect_right(range(max(0, int(budget)) + 1), max(budget, 0), key=needed) - 1

    def start(self, state: TrainState) -> None:
        """The first step comes next; what earlier parts of the run took stands in the state."""
        self.before = state.seconds
        self.go_on()

    def go_on(self) -> None:
        """A checkpoint was just written; what that took is not part of the throughput."""
        self.lapped = self.saved = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.lapped = self.lapped, time.monotonic()
        return self.lapped - before

    def now(self) -> float:
        """The time once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
