"""What time has to do with a run: its speed, what fits into some minutes, when to save."""

import time

import torch

SETTLE_STEPS = 3  # they warm up caches and choose kernels
SPEED_SECONDS = 5.0  # of steps, after which the speed is taken as known,
PLAN_SECONDS = 15.0  # and where a plan is made from it, since others may use the machine too
RESERVE = 0.02  # of the minutes, for checkpoints and the end
FORWARD = 1 / 3  # of the time of a training step, which goes forward and twice that back


class Clock:
    """Starts when it is made. ``step_seconds`` is None until enough steps were counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = self.lapped = self.saved = time.monotonic()
        self.steps, self.settled = 0, 0.0
        self.step_seconds: float | None = None

    def count_step(self, max_minutes: float) -> bool:
        """True once: at the step after which the speed is known."""
        if self.step_seconds is not None:
            return False
        self.steps += 1
        if self.steps == SETTLE_STEPS:
            self.settled = self.now()
        enough = min(PLAN_SECONDS, 3 * max_minutes) if max_minutes else SPEED_SECONDS  # 5 % at most
        if self.steps <= SETTLE_STEPS or time.monotonic() - self.settled < enough:
            return False
        self.step_seconds = (self.now() - self.settled) / (self.steps - SETTLE_STEPS)
        return True

    def steps_left(self, max_minutes: float, epoch_steps: int, evaluation_steps: float) -> int:
        """How many more steps fit into the minutes since the start.

        At the end of every epoch, and of the run, as many forward passes as in evaluation_steps.
        """
        seconds = 60 * max_minutes * (1 - RESERVE) - (time.monotonic() - self.began)
        evaluation = FORWARD * evaluation_steps
        steps = (seconds / self.step_seconds - evaluation) / (1 + evaluation / epoch_steps)
        return max(0, int(steps))

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.lapped = self.lapped, time.monotonic()
        return self.lapped - before

    def minutes(self) -> float:
        """Since the start."""
        return (time.monotonic() - self.began) / 60

    def now(self) -> float:
        """The time once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
