"""Seconds per training step, measured again and again: what --max-minutes is scheduled from.

A machine that sleeps, or computes something else for a while, makes one measurement wrong. So a
speed counts only where two measurements in a row agree on it.
"""

AGREE = 1.2  # two numbers agree within this factor


class StepTimer:
    """Seconds for a training step; a validation counts as so many steps of work."""

    def __init__(self) -> None:
        self.began = 0.0, 0.0  # the work done and the time at the start of this measurement
        self.seconds: float | None = None  # for a step, in the last measurement that ended

    def begin(self, work: float, now: float) -> None:
        self.began = work, now

    def end(self, work: float, now: float) -> float | None:
        """End a measurement and begin the next: the seconds, None unless it agrees with the last.

        Not the mean of both: where the machine became free on the way, that was in the earlier one.
        work: the training steps since the start, and validations in units of them; now: seconds.
        """
        before, (done, since) = self.seconds, self.began
        self.seconds, self.began = (now - since) / (work - done), (work, now)
        if before is None or not agree(before, self.seconds):
            return None
        return self.seconds


def agree(a: float, b: float) -> bool:
    """Whether they are within AGREE of each other."""
    return max(a, b) <= AGREE * min(a, b)
