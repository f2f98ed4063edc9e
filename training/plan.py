"""Which steps are followed by a validation, and what the validations cost."""

from dataclasses import dataclass
from typing import Self

from config import Config

FIRST = 200  # steps before the first validation; the next ones at twice as many, while it is early
SHARE = 0.027  # of the work of training; a long run's, with those early in it, take less than 3 %
FORWARD = 1 / 3  # of the time of a training step is its forward pass
HELD_OUT = 1024  # test images of the held-out loss
PREVIEW = 100  # samples of the grid


@dataclass(frozen=True)
class Validations:
    """Every so many steps, and with ``early`` before that at FIRST, 2 FIRST, 4 FIRST, ... steps.

    A function of the configuration alone: a resumed run validates where an unbroken one does.
    cost: of a validation, in training steps; score_cost: of the scores at every score_every-th.
    """

    every: int
    early: bool
    cost: float
    score_every: int = 0
    score_cost: float = 0.0

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of --eval-every and --score-every; auto: as often as SHARE allows."""
        c, evaluations = config.train, evaluations_of(config)
        cost = FORWARD * (2 * HELD_OUT + PREVIEW * evaluations) / c.batch_size
        score_cost = FORWARD * c.score_images * evaluations / c.batch_size
        every = c.eval_every or max(FIRST, round(cost / SHARE))
        return cls(every, not c.eval_every, cost, c.score_every, score_cost)

    def due(self, step: int) -> bool:
        """Whether this step is followed by a validation; the last one of a run always is."""
        return step % self.every == 0 or step in self.early_steps or self.score_due(step)

    def score_due(self, step: int) -> bool:
        """Whether the samples are scored, too."""
        return bool(self.score_every) and step % self.score_every == 0

    @property
    def early_steps(self) -> set[int]:
        """Those before ``every``."""
        doubled = (FIRST * 2**k for k in range(self.every.bit_length()))
        return {step for step in doubled if self.early and step < self.every}

    def cost_within(self, first: int, last: int) -> float:
        """Of all validations after the steps first + 1 ... last, and of one at the end."""
        if first == last:
            return 0.0
        at_end = self.cost + (self.score_cost if self.score_every else 0.0)
        return self.cost_up_to(last) - self.cost_up_to(first) + at_end

    def cost_up_to(self, last: int) -> float:
        """Of those after the steps 1 ... last; one that is due for two reasons counts twice."""
        scores = last // self.score_every if self.score_every else 0
        count = last // self.every + sum(step <= last for step in self.early_steps)
        return (count + scores) * self.cost + scores * self.score_cost


def evaluations_of(config: Config) -> float:
    """Network evaluations for an image: one a step, two where guidance applies."""
    sample, (low, high) = config.sample, config.sample.guidance_interval
    guided = sample.guidance != 1 and config.model.num_classes != 0
    return sample.steps * (1 + (high - low) * guided)
