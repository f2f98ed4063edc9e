"""When validations are due, what they measure and cost, and the share of a run they take."""

import math
from dataclasses import replace

import pytest

from config import PRESETS
from training.validation_schedule import FIRST, POINTS, SAMPLES, SHARE, ValidationSchedule

MNIST = ValidationSchedule.of(PRESETS["mnist"])
SCHEDULES = [
    MNIST,
    ValidationSchedule(every=7, early=False, batch_size=32, evaluations=18.0),
    ValidationSchedule(every=1500, early=True, batch_size=8, evaluations=9.0, errors=True),
    replace(MNIST, score_every=400, score_images=1000),
    replace(MNIST, score_every=350, score_images=50, early=False, every=500),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("first", "last"), [(0, 1), (0, 5000), (199, 200), (800, 4100), (90_000, 91_000)]
)
def test_the_cost_is_that_of_the_steps_that_are_due(schedule, first, last):
    """And of one at the end, which counts once more where that step is due anyway."""
    due = [step for step in range(first + 1, last + 1) if schedule.due(step)]
    scored = [step for step in due if schedule.score_due(step)]
    exact = (
        sum(map(schedule.cost, due))
        + len(scored) * schedule.score_cost
        + schedule.cost(last, last=True)
    )
    exact += schedule.score_cost if schedule.score_every else 0
    assert schedule.cost_within(first, last) == pytest.approx(exact)


def test_early_in_a_run_they_are_twice_as_far_apart_each_time():
    due = [step for step in range(1, 4600) if MNIST.due(step)]
    assert due == [FIRST, 2 * FIRST, 4 * FIRST, 1500, 3000, 4500]
    assert MNIST.when(0, 10_000) == "after 200, 400, 800 steps, every 1,500 steps, at the end"
    assert MNIST.when(200, 500) == "after 400 steps, at the end"
    assert MNIST.when(0, 30) == "at the end"


@pytest.mark.parametrize("name", PRESETS)
def test_by_default_they_take_less_than_three_percent_of_a_long_run(name):
    schedule, steps = ValidationSchedule.of(PRESETS[name]), 50_000
    assert schedule.cost_within(0, steps) < 0.03 * steps
    assert schedule.cost_within(0, steps) > 0.02 * steps  # control: and are not rarer than needed


@pytest.mark.parametrize("batch", [1, 4, 32, 128, 512])
@pytest.mark.parametrize("name", PRESETS)
def test_at_no_step_have_they_taken_more_than_their_share(name, batch):
    schedule, whole = ValidationSchedule.of(PRESETS[name].override(batch_size=batch)), 0.0
    assert any(schedule.due(step) for step in range(1, 20_000)) or batch == 1
    for step in range(1, 20_000):
        if schedule.due(step):
            assert schedule.cost_up_to(step) <= SHARE * step
            whole += schedule.cost(10**6)
    if batch == 32:  # control: with whole ones they would
        early = [step for step in range(1, 3 * schedule.every) if schedule.due(step)]
        assert len(early) * schedule.cost(10**6) > SHARE * early[-1]


@pytest.mark.parametrize(
    ("steps", "most"),
    [(500, 0.06), (1000, 0.041), (2000, 0.03), (3700, 0.03), (10_000, 0.03), (56_250, 0.03)],
)
def test_a_short_run_takes_the_one_at_the_end_and_little_more(steps, most):
    """On mnist, and 100 samples at the end."""
    assert MNIST.share(0, steps) <= most
    assert MNIST.size(steps, last=True).samples == SAMPLES


def test_what_is_measured_is_in_proportion_to_the_training_before_it():
    schedule = ValidationSchedule.of(PRESETS["original"])
    assert schedule.size(2, last=True).samples == 4  # 0.3 of the work of two steps
    assert schedule.cost(2, last=True) < 2
    assert schedule.size(10_000, last=True) == schedule.size(10_000)
    for schedule in SCHEDULES:
        sizes = [schedule.size(step, last=True) for step in range(1, 5000)]
        assert sizes == sorted(sizes, key=lambda size: (size.points, size.samples))
        assert all(math.log2(size.points).is_integer() for size in sizes)
        assert schedule.size(10**6).points == POINTS
        assert schedule.size(schedule.steady) == schedule.size(10**6)


def test_the_last_one_is_whole_where_one_at_that_step_would_be_small():
    assert MNIST.size(3000).samples == 10
    assert MNIST.size(3000, last=True).samples == SAMPLES
    assert MNIST.size(4500).samples == SAMPLES


def test_they_are_where_they_are_asked_for():
    schedule = ValidationSchedule.of(PRESETS["mnist"].override(eval_every=50, score_every=75))
    assert [step for step in range(1, 301) if schedule.due(step)] == [
        50,
        75,
        100,
        150,
        200,
        225,
        250,
        300,
    ]
    assert [step for step in range(1, 301) if schedule.score_due(step)] == [75, 150, 225, 300]


def test_the_share_of_scores_is_one_of_the_whole_run():
    """1,000 samples of the default cost 188 steps, every 300 of which they are drawn."""
    schedule = ValidationSchedule.of(PRESETS["mnist"].override(score_every=300))
    assert schedule.score_cost == pytest.approx(187.5)
    alone = schedule.score_cost / (300 + schedule.score_cost)
    assert 0.85 * alone < schedule.score_share() < alone < schedule.score_cost / 300
