"""Validations: when they are due, what they cost, and the share of a run that they take."""

import pytest

from config import PRESETS
from training.plan import FIRST, Validations

PLANS = [
    Validations(every=1000, early=True, cost=40.0),
    Validations(every=7, early=False, cost=3.0),
    Validations(every=1500, early=True, cost=40.0, score_every=400, score_cost=90.0),
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 5000), (199, 200), (800, 4100)])
def test_the_cost_is_never_less_than_that_of_the_steps_that_are_due(plan, first, last):
    """A step that is due for two reasons may count twice; one at the end counts always."""
    due = [step for step in range(first + 1, last + 1) if plan.due(step) or step == last]
    scored = [step for step in due if plan.score_due(step) or (plan.score_every and step == last)]
    exact = len(due) * plan.cost + len(scored) * plan.score_cost
    twice = sum(plan.score_due(step) or step == last for step in due) + 1
    assert exact <= plan.cost_within(first, last) <= exact + twice * (plan.cost + plan.score_cost)


def test_early_in_a_run_they_are_twice_as_far_apart_each_time():
    due = [step for step in range(1, 3100) if PLANS[0].due(step)]
    assert due == [FIRST, 2 * FIRST, 4 * FIRST, 1000, 2000, 3000]


@pytest.mark.parametrize("name", PRESETS)
def test_by_default_they_take_less_than_three_percent_of_a_long_run(name):
    plan, steps = Validations.of(PRESETS[name]), 50_000
    assert plan.cost_within(0, steps) < 0.03 * steps
    assert plan.cost_within(0, steps) > 0.02 * steps  # control: and are not rarer than needed


def test_they_are_where_they_are_asked_for():
    plan = Validations.of(PRESETS["mnist"].override(eval_every=50, score_every=75))
    assert [step for step in range(1, 301) if plan.due(step)] == [
        50,
        75,
        100,
        150,
        200,
        225,
        250,
        300,
    ]
    assert [step for step in range(1, 301) if plan.score_due(step)] == [75, 150, 225, 300]
