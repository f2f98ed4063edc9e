"""Killed, interrupted and resumed: no saved step is lost, and the result is equal bit for bit.

The same command is given again until it succeeds, as a scheduler would.
"""

import random
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import torch
from faults import (
    AGAIN,
    ROOT,
    SECONDS,
    SMALL,
    STEPS,
    Process,
    checkpoints,
    count,
    folder,
    leftovers,
    newest,
    result,
    run,
    two_at_a_time,
)
from sabotage import IN_SAVE

from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.seeding import permutation

NAMES = "SIGINT, SIGTERM, SIGHUP or SIGUSR1"
STOP = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@cache
def unbroken() -> str:
    """What a run that nobody disturbs comes to."""
    with folder() as where:
        assert run(where, AGAIN).code == 0
        assert not leftovers(where)
        return result(where)


def finish(where) -> str:
    """Give the command once more; the result."""
    ended = run(where, AGAIN)
    assert ended.code == 0, ended.err
    assert "Already finished" in ended.out or not leftovers(where)
    return result(where)


def verify(where) -> None:
    """Every checkpoint that has a name is whole, at whatever instant the process died."""
    for path in checkpoints(where).values():
        checkpoint.load(path)


def kill_at_random(seed: int, kills: int = 1) -> int:
    """Kill at uniformly random steps, finish, compare; how many kills hit a running training."""
    draw, hits = random.Random(seed), 0
    with folder() as where:
        for _ in range(kills):
            process = Process(where, AGAIN)
            begun = max(checkpoints(where), default=0)
            hit = process.wait_for(draw.randint(min(begun + 1, STEPS), STEPS))
            time.sleep(draw.uniform(0, 0.03))  # anywhere within the step, or the save behind it
            process.kill()
            ended = process.end()
            verify(where)
            hits += hit and ended.code == -signal.SIGKILL
        assert finish(where) == unbroken()
    return hits


def killed(trials: int, least: int) -> None:
    hits = sum(two_at_a_time(kill_at_random, trials))
    assert hits >= least
    count("SIGKILL at a random step", trials, hits, "every result equal to the bit")


def test_kill_9_at_any_step_changes_nothing():
    killed(4, 3)


@pytest.mark.slow
def test_kill_9_at_any_step_changes_nothing_many_times():
    killed(220, 200)


def kill_in_save(seed: int, hook: str) -> None:
    n = 2 + seed % 3  # of four saves; before the second there is no older file to keep
    with folder() as where:
        assert run(where, AGAIN, hook, n).code == -signal.SIGKILL
        verify(where)
        assert checkpoints(where)
        assert finish(where) == unbroken()


@pytest.mark.parametrize("hook", [hook.__name__ for hook in IN_SAVE])
def test_kill_9_inside_a_save_leaves_the_old_or_the_new_file(hook):
    kill_in_save(2, f"sabotage.{hook}")


@pytest.mark.slow
@pytest.mark.parametrize("hook", [hook.__name__ for hook in IN_SAVE])
def test_kill_9_inside_a_save_leaves_the_old_or_the_new_file_many_times(hook):
    two_at_a_time(lambda seed: kill_in_save(seed, f"sabotage.{hook}"), 20)
    name = hook.removeprefix("die_").replace("_", " ")
    count(f"SIGKILL inside a save: {name}", 20, 20, "old or new file whole, equal to the bit")


def test_saving_in_place_would_leave_half_a_file():
    """The control of the tests above."""
    with folder() as where:
        assert run(where, AGAIN, "sabotage.save_in_place", 3).code == -signal.SIGKILL
        with pytest.raises(CheckpointError, match="damaged"):
            verify(where)


def test_several_kills_in_one_run():
    assert kill_at_random(1000, kills=3) >= 2


@pytest.mark.slow
def test_several_kills_in_one_run_many_times():
    kills = [3 + i % 3 for i in range(40)]
    hits = sum(two_at_a_time(lambda i: kill_at_random(2000 + i, kills[i]), 40))
    assert hits >= 0.7 * sum(kills)
    count("3 to 5 SIGKILLs in one run, 40 runs", sum(kills), hits, "every result equal to the bit")


def interrupt(seed: int) -> None:
    """The process finishes its step, saves it, and says by its exit code what happened."""
    number = STOP[seed % 4]
    draw = random.Random(3000 + seed)
    with folder() as where:
        process = Process(where, AGAIN)
        assert process.wait_for(draw.randint(1, STEPS - 2))
        process.kill(number)
        ended = process.end()
        assert ended.code == 128 + number, ended.err
        assert newest(where)["step"] == ended.step  # not one step is lost
        assert finish(where) == unbroken()


def test_signals_lose_no_step():
    two_at_a_time(interrupt, 4)
    count(f"{NAMES} at a random step", 4, 4, "0 steps lost, exit code 128 + N")


@pytest.mark.slow
def test_signals_lose_no_step_many_times():
    two_at_a_time(interrupt, 100)
    count(f"{NAMES} at a random step", 100, 100, "0 steps lost, exit code 128 + N")


def in_second_save(where, hook: str) -> Process:
    """A process that is inside its second save, and will be for a while."""
    process = Process(where, AGAIN, hook, 2)
    ends = time.monotonic() + SECONDS
    while not (where / "saving").exists():
        assert time.monotonic() < ends
        time.sleep(0.005)
    return process


def test_a_second_signal_ends_it_at_once():
    """Within a save that would take half a minute, for which the first one waits.

    Had it waited, there would be a second checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        with folder() as where:
            process = in_second_save(where, "sabotage.hang_in_save")
            process.kill(number)
            time.sleep(0.3)
            assert process.process.is_alive()  # the first alone does not end it
            process.kill(number)
            ended = process.end()
            if number == signal.SIGINT:
                assert ended.code == 130
                assert "interrupted at once" in ended.err
            else:
                assert ended.code == -number
            assert list(checkpoints(where)) == [5]
            verify(where)
            assert finish(where) == unbroken()


def test_a_signal_inside_a_save_waits_for_it():
    for number in (signal.SIGINT, signal.SIGTERM):
        with folder() as where:
            process = in_second_save(where, "sabotage.sleep_in_save")
            process.kill(number)
            ended = process.end()
            assert ended.code == 128 + number, ended.err
            assert newest(where)["step"] == ended.step == 10  # that of the second save
            assert finish(where) == unbroken()


@pytest.mark.parametrize("trials", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_signal_before_the_first_step_is_one_line(trials):
    """In a new run there is no checkpoint whose name could be given."""
    for number in STOP * trials:
        with folder() as where:
            ended = run(where, AGAIN, "sabotage.signal_while_opening_data", number)
            assert ended.code == 128 + number
            assert ended.err == "train.py: interrupted before the first step\n"
            assert not checkpoints(where)
            ended = run(where, AGAIN, "sabotage.signal_before_the_first_step", number)
            assert ended.code == 128 + number
            assert ended.out.splitlines()[-1].startswith("Interrupted before the first step")
            assert ".pt" not in ended.out
            assert not list(where.rglob("*.pt"))
        count(f"{NAMES} before the first step", 2, 2, "one line, exit code 128 + N")


def test_a_signal_before_the_first_step_of_a_resumed_run_names_its_checkpoint():
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        hook = "sabotage.signal_before_the_first_step"
        ended = run(where, AGAIN, hook, signal.SIGTERM)
        assert ended.code == 143
        assert f"--resume {checkpoints(where)[10].relative_to(where)}" in ended.out


def test_a_signal_that_was_ignored_when_the_program_started_stays_ignored():
    for number in (signal.SIGHUP, signal.SIGINT):
        with folder() as where:
            process = Process(where, AGAIN, "sabotage.ignore", number)
            assert process.wait_for(3)
            process.kill(number)
            assert process.end().code == 0
            assert result(where) == unbroken()


def interrupted_import(*command: str, module: str = "torch._C") -> tuple[int, str]:
    """Ctrl-C once this was imported: the exit code, and what is left of stderr."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if module in line:
            break
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=SECONDS)[1]
    return process.returncode, errors


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        *(pytest.param(f"{s}.py", marks=pytest.mark.slow) for s in ("sample", "evaluate")),
    ],
)
def test_ctrl_c_in_the_first_second_has_no_traceback(script):
    """From the first import that takes time on."""
    for module in ("torch._C", {"train.py": "statistics"}.get(script, "dataclasses")):
        code, errors = interrupted_import(str(ROOT / script), module=module)
        assert code == -signal.SIGINT
        assert "Traceback" not in errors
    code, errors = interrupted_import("-c", "import torch")
    assert "Traceback" in errors  # control


def test_without_keyed_randomness_the_result_would_differ():
    """The control: the same harness finds what it is meant to find."""
    hook = "sabotage.randomness_of_the_process"
    with folder() as where, folder() as other:
        assert run(where, AGAIN, hook).code == 0
        process = Process(other, AGAIN, hook)
        assert process.wait_for(10)
        process.kill()
        assert process.end().code == -signal.SIGKILL
        assert run(other, AGAIN, hook).code == 0
        assert result(where) != result(other)


def test_what_is_done_stays_done():
    """After the end the command says so, and touches nothing."""
    with folder() as where:
        assert run(where, AGAIN).code == 0
        before = times(where)
        ended = run(where, AGAIN)
        assert ended.code == 0
        assert "Already finished" in ended.out
        assert times(where) == before


def times(where) -> dict:
    """When each file of the run was last written."""
    return {path: path.stat().st_mtime_ns for path in where.glob("Logs_Checkpoints/**/*")}


def test_the_order_of_the_images_goes_on_at_every_step():
    """Each image once an epoch, in one order, wherever the run stops."""
    for n, batch in ((20, 3), (21, 7)):
        whole = permutation(n, 5, 2)
        assert sorted(whole.tolist()) == list(range(n))
        for done in range(-(-n // batch)):
            rest = permutation(n, 5, 2)[done * batch :]
            assert torch.equal(torch.cat([whole[: done * batch], rest]), whole)
    assert not torch.equal(permutation(20, 5, 2), permutation(20, 5, 3))  # control


def test_a_changed_setting_is_named_and_recorded():
    with folder() as where:
        assert run(where, [*SMALL, "--lr", "2e-3", "--max-steps", "8"]).code == 0
        again = ["--resume", "auto", "--device", "cpu"]
        ended = run(where, [*again, "--lr", "1e-3", "--max-steps", "12"])
        assert ended.code == 0, ended.err
        assert "--lr: 0.002 -> 0.001 (changes the result)" in ended.out
        state = newest(where)
        assert state["config"]["train"]["lr"] == 1e-3
        assert any("--lr: 0.002 -> 0.001" in line for line in state["changes"])
        for flags in (["--heads", "1"], ["--prediction", "eps"]):
            ended = run(where, [*again, *flags])
            assert ended.code == 2
            assert "does not fit the weights" in ended.err
