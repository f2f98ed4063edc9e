"""--max-minutes on a machine that sleeps or is busy: two measurements agree, one refit."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from faults import NETWORK, count, folder, newest, result, run

from config import Config
from training.clock import Clock
from training.epochs import Epochs
from training.optim import LRSchedule
from training.step_timer import StepTimer
from training.validation_schedule import ValidationSchedule
from utils.distributed import Ranks
from utils.process import StopSignal

MINUTES, STEP = 10.0, 0.1  # seconds, undisturbed


def trained(took, timer: type = StepTimer) -> tuple[float, LRSchedule]:
    """The share of the minutes that a run of steps that take ``took(t)`` takes; its schedule.

    Every 300 steps there is a validation that takes as long as the clock takes it to.
    """
    now = 0.0
    clock = Clock(torch.device("cpu"), lambda: now)
    clock.timer = timer()
    validation_schedule = ValidationSchedule(every=300, early=False, batch_size=32, evaluations=9.0)
    config = Config().override(max_minutes=MINUTES, epochs=0)
    epochs = Epochs(images=9600, batch_size=32)
    state = SimpleNamespace(config=config, epochs=epochs, validation_schedule=validation_schedule)
    state.step, state.schedule, state.ranks = 0, None, Ranks()
    stop = StopSignal()
    while state.schedule is None or state.step < state.schedule.total_steps:
        state.step += 1
        now += took(now)
        if clock.after_step(state, stop).refit:
            state.schedule = clock.fit_schedule(state)
        if validation_schedule.due(state.step):
            now += took(now) * validation_schedule.cost(state.step)
    return now / (60 * MINUTES), state.schedule


class Credulous(StepTimer):
    """A control: the first measurement is believed, and its schedule kept."""

    def end(self, work: float, now: float) -> float:
        super().end(work, now)
        return self.seconds


def kept(took) -> float:
    """As above, for the control."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "refit_is_due", lambda _, state: state.schedule is None)
        return trained(took, Credulous)[0]


def busy(since: float, until: float, factor: float):
    """Between these seconds every step takes so many times as long."""
    return lambda t: STEP * (factor if since <= t < until else 1)


def asleep(at: float, seconds: float):
    """One step takes so long."""
    return lambda t: seconds if at <= t < at + STEP else STEP


def test_a_machine_that_does_nothing_else_is_fitted_once():
    share, schedule = trained(busy(0, 0, 1))
    assert 0.97 < share <= 0.98  # 2 % are for the end
    assert schedule.replanned is None


@pytest.mark.parametrize("took", [busy(0, 12, 5), asleep(3, 60)], ids=["busy", "asleep"])
def test_a_measurement_that_was_disturbed_is_repeated(took):
    share, schedule = trained(took)
    assert 0.9 < share <= 0.99
    assert schedule.replanned is None
    assert kept(took) < 0.85  # control


@pytest.mark.parametrize(
    ("took", "control"),
    [
        (busy(0, 60, 5), lambda share: share < 0.4),
        (busy(300, 6000, 3), lambda share: share > 1.8),
        (asleep(200, 200), lambda share: share > 1.3),
    ],
    ids=["busy at first", "busy later", "asleep"],
)
def test_a_schedule_that_is_off_by_more_than_a_fifth_is_refitted_once(took, control):
    share, schedule = trained(took)
    assert 0.9 < share <= 0.99
    assert schedule.replanned
    assert control(kept(took))


def test_a_schedule_that_is_off_by_less_is_kept():
    assert trained(busy(300, 6000, 1.15))[1].replanned is None


@pytest.mark.slow
def test_schedules_of_machines_that_are_busy_at_first():
    draw, hits = random.Random(0), 0
    for _ in range(200):
        since = draw.uniform(0, 4)
        took = busy(since, since + draw.uniform(5, 200), draw.uniform(2, 10))
        assert 0.9 < trained(took)[0] <= 0.99
        hits += kept(took) < 0.85
    assert hits == 200  # schedules that one measurement would have made too short
    end = "ends at 90 to 99 % of the minutes"
    count("a machine that is busy while the schedule is fitted", 200, hits, end)


def test_what_is_left_of_the_curve_is_stretched_to_the_new_end():
    schedule = LRSchedule.over(1000, 100, "cosine")
    for step, total in ((30, 200), (250, 400), (250, 4000), (999, 1001)):
        other = schedule.refit(step, total)
        assert [other.factor(n) for n in range(1, step + 1)] == [
            schedule.factor(n) for n in range(1, step + 1)
        ]
        assert other.factor(total) == pytest.approx(schedule.factor(1000))
        most = max(1, (1000 - step) / (total - step)) * 0.01  # warm-up rises by 0.01 a step
        rates = [other.factor(n) for n in range(1, total + 1)]
        assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= most + 1e-9
    assert schedule.refit(250, 1000).factor(700) == schedule.factor(700)
    anew = LRSchedule.over(400, 100, "cosine")  # control: a curve of its own would jump
    assert abs(anew.factor(251) - schedule.factor(250)) > 0.3


FLAGS = [*NETWORK, "--max-minutes", "0.5", "--resume", "auto"]
FLAGS += ["--batch-size", "200", "--eval-every", "100"]  # a validation costs four steps


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_resumed_run_repeats_the_refitted_schedule_bit_for_bit(trials):
    with folder() as where:
        assert run(where, FLAGS, "sabotage.busy_at_first", 6).code == 0
        unbroken, schedule = result(where), newest(where)["scheduler"]
    assert schedule["replanned"][1] < schedule["total_steps"] / 2
    for trial in range(trials):
        with folder() as where:
            ended = run(where, FLAGS, "sabotage.stop_once_refitted", 1 + trial)
            assert ended.code == 143, ended.err
            assert newest(where)["scheduler"] == schedule
            assert run(where, FLAGS, "sabotage.steps_take", 700).code == 0  # slower, by far
            assert result(where) == unbroken
    end = "the stored schedule repeated, bit-identical"
    count("SIGTERM after the schedule was fitted anew", trials, trials, end)


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_stopped_before_the_second_measurement_makes_it_when_it_is_resumed(trials):
    """Else a machine that was busy at first would make it far too short, for good."""
    for trial in range(trials):
        with folder() as where:
            slow = 1000 + 100 * trial
            assert run(where, FLAGS, "sabotage.stop_once_scheduled", slow).code == 143
            schedule = newest(where)["scheduler"]
            assert schedule["replanned"] is None
            assert run(where, FLAGS, "sabotage.steps_take", 200).code == 0
            content = newest(where)
            assert content["scheduler"]["replanned"][1] == schedule["total_steps"]
            assert 0.9 * 30 < content["seconds"] <= 30
    end = "measured again when resumed, ends at 90 to 100 % of the minutes"
    count("SIGTERM between the fit of the schedule and its check", trials, trials, end)


def test_a_run_that_stopped_after_the_second_measurement_keeps_its_schedule():
    """The control: on whatever machine it goes on."""
    with folder() as where:
        assert run(where, FLAGS, "sabotage.stop_after_a_fifth", 200).code == 143
        schedule = newest(where)["scheduler"]
        assert run(where, FLAGS, "sabotage.steps_take", 700).code == 0
        assert newest(where)["scheduler"] == schedule
        assert schedule["replanned"] is None
