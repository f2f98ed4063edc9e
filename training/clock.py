"""Wall-clock time: throughput, the schedule that fits --max-minutes, checkpoint intervals."""

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import torch

from training.optim import LRSchedule
from training.state import TrainState
from training.step_timer import StepTimer, agree
from training.validation_schedule import ValidationSchedule
from utils.devices import synchronize
from utils.distributed import Ranks
from utils.process import StopSignal

SETTLE_STEPS = 3  # warm up caches and choose kernels; not timed
SPEED_SECONDS = 5.0  # timed before the throughput is printed
SCHEDULE_SECONDS = 15.0  # timed before --max-minutes is fitted, or until the speed is certain
PATIENCE = 1 / 4  # of --max-minutes, after which it is fitted to an uncertain speed
PARTS = 8  # of the schedule and of --max-minutes: after each the speed is measured again
RESERVE = 0.02  # of --max-minutes, for checkpoints and the end
LOG_SECONDS = 2.0  # at most, between readings of the losses
AGREE_SECONDS = 0.1  # between agreements of several ranks, each of which waits for the slowest


class Due(NamedTuple):
    """What has to happen after a step; all ranks agree on it."""

    stop: bool  # a signal arrived
    speed: bool  # the throughput is known, from this step on
    refit: bool  # the schedule of --max-minutes is to be fitted to it
    save: bool
    log: bool


NOTHING = Due(*[False] * len(Due._fields))


class Clock:
    """Of a run from its first step on. ``step_seconds`` is None until enough steps were timed.

    --max-minutes and ``seconds`` are of the same time: steps, validations, scores and checkpoints.
    What comes before the first step, such as loading images and training a feature extractor, is
    not in it.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.device, self.clock = device, clock
        self.began = self.lapped = self.saved = clock()
        self.steps, self.fits, self.timer = 0, 0, StepTimer()
        self.step_seconds: float | None = None
        self.before = 0.0  # seconds of the run before this process
        self.agree_at = 0  # the step after which the ranks agree next

    def after_step(self, state: TrainState, stop: StopSignal) -> Due:
        """Rank 0 decides what depends on the time; a signal may reach any rank.

        Several ranks agree after each step until the throughput is known, then every AGREE_SECONDS.
        In between nothing is due.
        """
        c, ranks = state.config.train, state.ranks
        state.seconds = self.seconds
        if state.step < self.agree_at:
            return NOTHING
        known = self.step_seconds
        measured = ranks.first and self.measure(state)
        refit = measured and self.refit_is_due(state)
        if measured and not refit and self.resumes_unrefitted(state):
            self.fits = 1  # from now on as in the process that fitted it
        speed = refit or (measured and known is None)
        save = ranks.first and self.clock() - self.saved > 60 * c.save_minutes
        log = ranks.first and self.clock() - self.lapped > LOG_SECONDS
        pause = self.steps_between(ranks) if ranks.first else 0
        *due, pause = ranks.highest(stop.number, speed, refit, save, log, pause)
        self.agree_at = state.step + pause
        return Due(*map(bool, due))

    def steps_between(self, ranks: Ranks) -> int:
        """The steps from one agreement to the next; one process agrees with itself at no cost."""
        if ranks.world == 1 or self.step_seconds is None:
            return 1
        return max(1, int(AGREE_SECONDS / self.step_seconds))

    def measure(self, state: TrainState) -> bool:
        """Whether ``step_seconds`` was measured anew at this step.

        With --max-minutes two measurements have to agree, and it goes on until the second fit.
        """
        if self.step_seconds is not None and self.fits != 1:
            return False
        self.steps += 1
        if self.steps <= SETTLE_STEPS:
            self.timer.begin(self.work(state), self.now())
            return False
        if not self.enough(state):
            return False
        minutes = state.config.train.max_minutes
        agreed = self.timer.end(self.work(state), self.now())
        patient = self.fits or self.clock() - self.began < PATIENCE * 60 * minutes
        if agreed is None and minutes and patient:
            return False
        self.step_seconds = agreed or self.timer.seconds
        return True

    def enough(self, state: TrainState) -> bool:
        """Whether this measurement of the throughput has taken long enough."""
        minutes, (done, since) = state.config.train.max_minutes, self.timer.began
        seconds = self.clock() - since
        if not minutes:
            return seconds >= SPEED_SECONDS
        if not self.fits:
            return seconds >= min(SCHEDULE_SECONDS, 3 * minutes) / 2  # twice: 5 % at most
        steps = self.work(state) - done
        return seconds >= 60 * minutes / PARTS or steps >= state.schedule.total_steps / PARTS

    def work(self, state: TrainState) -> float:
        """The steps up to this one, and the validations before it in units of steps."""
        return state.step + state.validation_schedule.cost_up_to(state.step - 1)

    def refit_is_due(self, state: TrainState) -> bool:
        """Whether --max-minutes needs a schedule, or, once, another than the one fitted here."""
        if not state.config.train.max_minutes or state.schedule is None:
            return state.schedule is None
        return self.fits == 1 and not agree(self.total_steps(state), state.schedule.total_steps)

    def resumes_unrefitted(self, state: TrainState) -> bool:
        """Whether an earlier process fitted the schedule, and none has fitted it anew."""
        fitted = state.config.train.max_minutes and state.minutes_since is not None
        return bool(fitted and self.fits == 0 and state.schedule.replanned is None)

    def fit_schedule(self, state: TrainState) -> LRSchedule:
        """The longest schedule that ends within --max-minutes, or the rest of an earlier one."""
        c, self.fits = state.config.train, self.fits + 1
        total = state.ranks.from_first(lambda: self.total_steps(state))
        if state.schedule is None:
            return LRSchedule.over(total, c.warmup_steps, c.decay)
        return state.schedule.refit(state.step, total)

    def total_steps(self, state: TrainState) -> int:
        """The steps of the run that ends in time."""
        c, step = state.config.train, state.step
        seconds = 60 * c.max_minutes * (1 - RESERVE) - (self.seconds - state.minutes_since)
        left = self.steps_within(seconds, step, state.validation_schedule)
        return min(step + left, state.epochs.limit(c))

    def steps_within(self, seconds: float, step: int, validations: ValidationSchedule) -> int:
        """How many more steps fit after this one, with their validations."""
        budget = max(0.0, seconds / self.step_seconds)  # in training steps

        def needed(steps: int) -> float:
            return steps + validations.cost_within(step, step + steps)

        return max(0, bisect_right(range(int(budget) + 1), budget, key=needed) - 1)

    def start(self, state: TrainState) -> None:
        """The first step comes next; what earlier parts of the run took stands in the state."""
        self.before, self.began = state.seconds, self.clock()
        self.go_on()

    def go_on(self) -> None:
        """A checkpoint was just written; what that took is not part of the throughput."""
        self.lapped = self.saved = self.clock()

    @property
    def seconds(self) -> float:
        """Of the run so far, from the first step on, over all resumes."""
        return self.before + self.clock() - self.began

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.lapped = self.lapped, self.clock()
        return self.lapped - before

    def now(self) -> float:
        """The time once the device has finished its work."""
        synchronize(self.device)
        return self.clock()
