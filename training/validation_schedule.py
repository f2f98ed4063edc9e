"""Which steps are followed by a validation, how much it measures, and what that costs."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil, lcm
from typing import Self

from config import Config
from diffusion import Sampler, make_diffusion
from models.summary import FORWARD_SHARE

FIRST = 200  # steps before the first validation; the next ones at twice as many, while it is early
LATE = 3  # times ``every``: a validation before it is small, later ones are whole
SHARE = 0.027  # of the work of training up to any step, for the validations until then
POINTS, SMALL, FEWEST = 1024, 256, 64  # points of the held-out loss: whole, small, at least
PER_POINT = 64  # training images, at least, for each point
SAMPLES, ROWS, MOST_ROWS = 100, 10, 16  # of the grid, in rows of a class
FEWEST_SAMPLES = 4
MOST_DRAWN = 0.3  # of the work of training, which only the samples of a very short run would exceed
WIDEST = 1600  # pixels of the grid
AT_END = "at the end"


@dataclass(frozen=True)
class Size:
    """How much a validation measures: points of the held-out loss, and the grid of samples."""

    points: int
    rows: int
    columns: int

    @property
    def samples(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class ValidationSchedule:
    """Every so many steps, and with ``early`` before that at FIRST, 2 FIRST, 4 FIRST, ... steps.

    A function of the configuration alone: a resumed run validates where an unbroken one does, and
    the same. With ``early`` they take at most SHARE of the work up to any step, but for the one at
    the end of the run, which is in proportion to the run, and whole but for a very short one.

    rows, columns: of the whole grid; evaluations: of the network, for a sample; errors: whether
    every validation measures the errors of x_0, which the last one does.
    """

    every: int
    early: bool
    batch_size: int
    evaluations: float
    rows: int = ROWS
    columns: int = SAMPLES // ROWS
    errors: bool = False
    score_every: int = 0
    score_images: int = 0

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of --eval-every and --score-every; auto: as often as SHARE allows."""
        c, (rows, columns) = config.train, grid_of(config)
        schedule = cls(
            every=c.eval_every or FIRST,
            early=not c.eval_every,
            batch_size=c.batch_size,
            evaluations=evaluations_of(config),
            rows=rows,
            columns=columns,
            errors=config.sample.variance == "optimal",
            score_every=c.score_every,
            score_images=c.score_images,
        )
        return schedule.spaced() if schedule.early else schedule

    def spaced(self) -> Self:
        """As often as whole validations may come."""
        whole = self.cost_of(Size(POINTS, self.rows, self.columns), self.errors)
        return replace(self, every=max(FIRST, hundreds(whole / SHARE)))

    def due(self, step: int) -> bool:
        """Whether this step is followed by a validation; the last one of a run always is."""
        return step % self.every == 0 or step in self.early_steps or self.score_due(step)

    def score_due(self, step: int) -> bool:
        """Whether the samples are scored, too."""
        return bool(self.score_every) and step % self.score_every == 0

    @cached_property
    def early_steps(self) -> tuple[int, ...]:
        """Those before ``every``: FIRST, twice as many, ..., as far as SHARE allows them."""
        step, found, cost = FIRST, [], 0.0
        while self.early and step < self.every:
            if cost + self.cost(step) <= SHARE * step:
                found.append(step)
                cost += self.cost(step)
            step *= 2
        return tuple(found)

    def size(self, step: int, last: bool = False) -> Size:
        """What is measured after this step, in proportion to the training before it.

        last: the step is that of the end of the run.
        """
        images, small = step * self.batch_size, self.early and not last and step < LATE * self.every
        points = min(images // PER_POINT, SMALL if small else POINTS)
        points = max(FEWEST, 1 << points.bit_length() - 1 if points else 0)
        samples = int(MOST_DRAWN * images / FORWARD_SHARE / self.evaluations)
        columns = min(samples // self.rows, 1 if small else self.columns)
        if columns:
            return Size(points, self.rows, columns)
        return Size(points, min(self.rows, max(FEWEST_SAMPLES, samples)), 1)

    def cost(self, step: int, last: bool = False) -> float:
        """Of the validation after this step, in training steps, without scores."""
        return self.cost_of(self.size(step, last), self.errors or last)

    def cost_of(self, size: Size, errors: bool) -> float:
        """Of a validation of this size, in training steps: of two networks, and of samples."""
        evaluations = (3 if errors else 2) * size.points + size.samples * self.evaluations
        return FORWARD_SHARE * evaluations / self.batch_size

    @property
    def score_cost(self) -> float:
        """Of the samples that are scored, in training steps."""
        return FORWARD_SHARE * self.score_images * self.evaluations / self.batch_size

    def cost_within(self, first: int, last: int) -> float:
        """Of all validations after the steps first + 1 ... last, and of one at the end."""
        if first == last:
            return 0.0
        at_end = self.cost(last, last=True) + (self.score_cost if self.score_every else 0.0)
        return self.cost_up_to(last) - self.cost_up_to(first) + at_end

    def cost_up_to(self, last: int) -> float:
        """Of those after the steps 1 ... last."""
        steps, costs = self.growing
        scores = last // self.score_every if self.score_every else 0
        constant = max(0, self.count(last) - self.count(self.steady - 1))
        before = costs[bisect_right(steps, last)]
        return before + constant * self.cost(self.steady) + scores * self.score_cost

    def count(self, last: int) -> int:
        """How many validations follow the steps 1 ... last."""
        other = self.score_every
        early = sum(step <= last and not self.score_due(step) for step in self.early_steps)
        twice = last // lcm(self.every, other) if other else 0
        return last // self.every + (last // other if other else 0) - twice + early

    @cached_property
    def steady(self) -> int:
        """The step from which on all validations measure the same."""
        images = max(POINTS * PER_POINT, self.rows * self.columns * self.evaluations / MOST_DRAWN)
        return max(ceil(images / self.batch_size) + 1, LATE * self.every * self.early)

    @cached_property
    def growing(self) -> tuple[list[int], list[float]]:
        """The steps before ``steady`` that are due, and the cost of the first 0, 1, 2, ... ."""
        multiples = {
            n for k in (self.every, self.score_every) if k for n in range(k, self.steady, k)
        }
        steps = sorted(multiples.union(self.early_steps))
        return steps, list(running_sum(self.cost(step) for step in steps))

    def share(self, first: int, last: int) -> float:
        """Of a run of these steps, first + 1 ... last, that its validations and scores take."""
        cost = self.cost_within(first, last)
        return cost / max(last - first + cost, 1)

    def score_share(self) -> float:
        """Of a long run, that the scores take."""
        last = max(self.steady, 100 * self.score_every)
        scores = last // self.score_every * self.score_cost
        return scores / (last + self.cost_within(0, last))

    def when(self, done: int, total: float) -> str:
        """After which steps of a run of so many, of which some are done, in words."""
        early = ", ".join(f"{step:,}" for step in self.early_steps if done < step < total)
        parts = [f"after {early} steps"] if early else []
        if self.every < total:
            parts.append(f"every {self.every:,} steps")
        return ", ".join([*parts, AT_END])


def running_sum(values: Iterator[float]) -> Iterator[float]:
    """0, and after each value the sum so far."""
    total = 0.0
    yield total
    for value in values:
        total += value
        yield total


def hundreds(steps: float) -> int:
    """A round number of steps, no fewer."""
    return 100 * ceil(steps / 100)


def grid_of(config: Config) -> tuple[int, int]:
    """Rows and columns of the whole grid of samples: a row a class, as far as there are any."""
    rows = min(max(config.model.num_classes, ROWS), MOST_ROWS)
    width = config.data.image_size[1] or 1  # not known yet
    return rows, max(1, min(SAMPLES // rows, WIDEST // width))


def evaluations_of(config: Config) -> int:
    """Network evaluations for an image of the samples."""
    diffusion, sampler = (
        make_diffusion(**asdict(config.diffusion)),
        Sampler(**asdict(config.sample)),
    )
    grid = sampler.grid(diffusion)
    return sum(sampler.evaluations(diffusion, grid, config.model.num_classes != 0))
