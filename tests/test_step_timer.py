"""--max-minutes on a machine that sleeps or is busy: two measurements agree, one refit."""

import itertools
import random
import shutil
from functools import cache, partial
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
from utils import checkpoint
from utils.distributed import Ranks
from utils.process import StopSignal

MINUTES, STEP = 10.0, 0.1  # seconds, undisturbed


def trained(
    took, timer: type = StepTimer, stop=lambda _: False, resume=lambda _: None
) -> tuple[float, LRSchedule]:
    """The share of the minutes that a run of steps that take ``took(t)`` takes; its schedule.

    Every 300 steps there is a validation that takes as long as the clock takes it to. Where
    ``stop(state)`` is true for the first time, another process goes on, hours later; resume(state)
    may change what that finds in the checkpoint.
    """
    now = [0.0, 0.0]  # seconds of work; of the time between the processes
    clock = Clock(torch.device("cpu"), lambda: sum(now))
    clock.timer = timer()
    validation_schedule = ValidationSchedule(every=300, early=False, batch_size=32, evaluations=9.0)
    config = Config().override(max_minutes=MINUTES, epochs=0)
    epochs = Epochs(images=9600, batch_size=32)
    state = SimpleNamespace(config=config, epochs=epochs, validation_schedule=validation_schedule)
    state.step, state.schedule, state.ranks = 0, None, Ranks()
    state.seconds, state.minutes_since = 0.0, 0.0
    signals = StopSignal()
    while state.schedule is None or state.step < state.schedule.total_steps:
        state.step += 1
        now[0] += took(now[0])
        if clock.after_step(state, signals).refit:
            state.schedule = clock.fit_schedule(state)
        if validation_schedule.due(state.step):
            now[0] += took(now[0]) * validation_schedule.cost(state.step)
        if not now[1] and stop(state):
            state.seconds, now[1] = clock.seconds, 10_000.0
            resume(state)
            clock = Clock(torch.device("cpu"), lambda: sum(now))
            clock.start(state)
    return now[0] / (60 * MINUTES), state.schedule


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


def keep(state) -> None:
    """As the checkpoint of an earlier version, which says nothing: the schedule is repeated."""
    state.minutes_since = None if state.schedule else state.seconds


@pytest.mark.parametrize(
    ("took", "control"),
    [
        (busy(0, 60, 5), lambda share: share < 0.4),
        (busy(300, 6000, 3), lambda share: share > 1.8),
    ],
    ids=["busy at first", "busy later"],
)
@pytest.mark.parametrize("after", [1, 30, 200], ids=lambda after: f"{after} steps")
def test_a_resumed_run_refits_its_schedule_as_an_unbroken_one_would(took, control, after):
    """Whenever after the fit it was stopped, once at most."""

    def stop(state) -> bool:
        return state.schedule is not None and state.step >= fitted(took) + after

    share, schedule = trained(took, stop=stop)
    assert 0.9 < share <= 0.99
    assert schedule.replanned
    share, schedule = trained(took, stop=stop, resume=keep)
    assert control(share)
    assert schedule.replanned is None


@cache
def fitted(took) -> int:
    """The step after which the schedule is known."""
    found = []

    def stop(state) -> bool:
        found.extend([state.step] if state.schedule else [])
        return False

    trained(took, stop=stop)
    return found[0]


def test_a_schedule_that_was_refitted_is_repeated_by_a_resumed_run():
    """On a machine that has become slower by far."""
    took = [busy(0, 60, 5)]

    def stop(state) -> bool:
        return bool(state.schedule and state.schedule.replanned)

    def slow(state) -> None:
        first = state.schedule
        found.append(first)
        took[0] = busy(0, 1e9, 3)

    found: list[LRSchedule] = []
    share, schedule = trained(lambda t: took[0](t), stop=stop, resume=slow)
    assert share > 1.8
    assert [schedule] == found


def test_the_minutes_of_a_run_that_stopped_before_its_schedule_go_on():
    share, schedule = trained(busy(0, 0, 1), stop=lambda state: state.step == 50)
    assert 0.97 < share <= 0.98
    assert schedule.replanned is None


def test_a_resumed_run_whose_minutes_are_over_ends_once_it_knows():
    took = asleep(100, 1000)  # longer than the minutes

    def stop(state) -> bool:
        return state.step > 1000

    share, schedule = trained(took, stop=stop)
    assert share < 2.2
    assert schedule.replanned[0] == schedule.total_steps  # there
    assert trained(took, stop=stop, resume=keep)[0] > 2.5  # control


def is_step(n: int, state) -> bool:
    return state.step == n


@pytest.mark.slow
def test_schedules_of_runs_that_stop_while_the_machine_is_busy():
    draw, hits = random.Random(1), 0
    for _ in range(200):
        took = busy(0, draw.uniform(20, 75), draw.uniform(2, 10))
        stop = partial(is_step, draw.randint(1, 400))
        assert 0.9 < trained(took, stop=stop)[0] <= 0.99
        hits += trained(took, stop=stop, resume=keep)[0] < 0.85
    assert hits > 100  # the others began when it was free again, or were stopped before the fit
    end = "ends at 90 to 99 % of the minutes"
    count("SIGTERM while --max-minutes has a schedule of a busy machine", 200, hits, end)


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
            assert run(where, FLAGS, "sabotage.steps_take", 1400).code == 0  # slower, by far
            assert result(where) == unbroken
    end = "the stored schedule repeated, bit-identical"
    count("SIGTERM after the schedule was fitted anew", trials, trials, end)


@pytest.mark.slow
def test_a_run_that_stops_while_the_machine_is_busy_is_refitted_when_resumed():
    """Not one whose checkpoint is of an earlier version, which says nothing of it."""
    trials = 12
    for trial in range(trials):
        with folder() as where:
            hook = "sabotage.stop_once_scheduled"
            assert run(where, FLAGS, hook, 1000 - 20 * trial).code == 143
            stopped = newest(where)
            shutil.copytree(where / "Logs_Checkpoints", where / "earlier")
            assert run(where, FLAGS, "sabotage.steps_take", 200).code == 0
            assert newest(where)["step"] > 2 * stopped["scheduler"]["total_steps"]
            assert 0.85 * 30 < newest(where)["seconds"] <= 0.99 * 30
            (path,) = (where / "earlier/checkpoints/version_0").glob("*.pt")
            del stopped["minutes_since"]
            checkpoint.save(path, stopped)
            ended = run(where, [*FLAGS, "--run-root", "earlier"], "sabotage.steps_take", 200)
            assert ended.code == 0, ended.err
            control = checkpoint.load(checkpoint.find("latest", where / "earlier"))
            assert control["scheduler"] == stopped["scheduler"]
    end = "fitted anew, ends within the minutes"
    count("SIGTERM once --max-minutes was scheduled on a busy machine", trials, trials, end)
