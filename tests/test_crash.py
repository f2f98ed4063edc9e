"""Killed, interrupted and resumed: no saved step is lost, and the result is equal bit for bit.

The same command is given again until it succeeds, as a scheduler would.
"""

import random
import re
import shutil
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

NAMES = "SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU"
STOP = [getattr(signal, name) for name in re.findall("SIG[A-Z0-9]+", NAMES)]
TWO = [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
SCRIPTS = ("train", "sample", "evaluate", "edit")
RUN_ROOT = "Logs_Checkpoints"


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
    killed(2, 1)


@pytest.mark.slow
def test_kill_9_at_any_step_changes_nothing_many_times():
    killed(220, 200)


def kill_in_save(seed: int, hook: str) -> bool:
    """Whether it died there."""
    n = 2 + seed % 3  # of four saves; before the second there is no older file to keep
    with folder() as where:
        hit = run(where, AGAIN, hook, n).code == -signal.SIGKILL
        verify(where)
        assert checkpoints(where)
        assert finish(where) == unbroken()
    return hit


@pytest.mark.parametrize("hook", ["die_half_written", "die_before_replace"])
def test_kill_9_inside_a_save_leaves_the_old_or_the_new_file(hook):
    assert kill_in_save(2, f"sabotage.{hook}")


@pytest.mark.slow
@pytest.mark.parametrize("hook", [hook.__name__ for hook in IN_SAVE])
def test_kill_9_inside_a_save_leaves_the_old_or_the_new_file_many_times(hook):
    hits = sum(two_at_a_time(lambda seed: kill_in_save(seed, f"sabotage.{hook}"), 20))
    assert hits == 20
    name = hook.removeprefix("die_").replace("_", " ")
    count(f"SIGKILL inside a save: {name}", 20, hits, "old or new file whole, equal to the bit")


def test_saving_in_place_would_leave_half_a_file():
    """The control of the tests above."""
    with folder() as where:
        assert run(where, AGAIN, "sabotage.save_in_place", 3).code == -signal.SIGKILL
        with pytest.raises(CheckpointError, match="damaged"):
            verify(where)


@pytest.mark.slow
def test_several_kills_in_one_run():
    assert kill_at_random(1000, kills=3) >= 2


@pytest.mark.slow
def test_several_kills_in_one_run_many_times():
    kills = [3 + i % 3 for i in range(40)]
    hits = sum(two_at_a_time(lambda i: kill_at_random(2000 + i, kills[i]), 40))
    assert hits >= 0.7 * sum(kills)
    count("3 to 5 SIGKILLs in one run, 40 runs", sum(kills), hits, "every result equal to the bit")


def interrupt(seed: int) -> bool:
    """The process finishes its step, saves it, and says by its exit code what happened.

    Whether it was running when the signal came.
    """
    number = STOP[seed % len(STOP)]
    draw = random.Random(3000 + seed)
    with folder() as where:
        process = Process(where, AGAIN)
        hit = process.wait_for(draw.randint(1, STEPS - 2)) and process.process.is_alive()
        process.kill(number)
        ended = process.end()
        assert ended.code == 128 + number, ended.err
        assert newest(where)["step"] == ended.step  # not one step is lost
        assert finish(where) == unbroken()
    return hit


def interrupted(trials: int) -> None:
    hits = sum(two_at_a_time(interrupt, trials))
    assert hits == trials
    count(f"{NAMES} at a random step", trials, hits, "0 steps lost, exit code 128 + N")


def test_signals_lose_no_step():
    interrupted(3)


@pytest.mark.slow
def test_signals_lose_no_step_many_times():
    interrupted(100)


def in_second_save(where, hook: str) -> Process:
    """A process that is inside its second save, and will be for a while."""
    process = Process(where, AGAIN, hook, 2)
    ends = time.monotonic() + SECONDS
    while not (where / "saving").exists():
        assert time.monotonic() < ends
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("number", TWO)
def test_a_second_signal_ends_it_at_once(number):
    """Within a save that would take half a minute, for which the first one waits.

    Had it waited, there would be a second checkpoint.
    """
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


@pytest.mark.parametrize("number", TWO)
def test_a_signal_inside_a_save_waits_for_it(number):
    with folder() as where:
        process = in_second_save(where, "sabotage.sleep_in_save")
        process.kill(number)
        ended = process.end()
        assert ended.code == 128 + number, ended.err
        assert newest(where)["step"] == ended.step == 10  # that of the second save
        assert finish(where) == unbroken()


AGAIN_LINE = "Interrupted before the first step; start again with the same command"


def before_the_first_step(number: int) -> bool:
    """One line, and nothing is left, wherever the signal comes; whether there was no step."""
    with folder() as where:
        ended = run(where, AGAIN, "sabotage.signal_while_opening_data", number)
        assert ended.code == 128 + number
        assert ended.err == "train.py: interrupted before the first step\n"
        assert ended.out.splitlines() == [f"Nothing to resume in {RUN_ROOT}: starting fresh"]
        made = run(where, AGAIN, "sabotage.signal_before_the_first_step", number)
        assert made.code == 128 + number
        assert after_the_header(made.out) == [AGAIN_LINE]
        assert made.err == ended.err  # nothing more
        assert not [path for path in (where / RUN_ROOT).rglob("*") if path.is_file()]
        assert not list((where / RUN_ROOT).glob("*/version_*"))
        return (ended.step, made.step) == (0, 0)


def after_the_header(out: str) -> list[str]:
    """What is printed once the run has said what it is, and where its curves are."""
    return out.partition("\ncurves ")[2].splitlines()[1:]


@pytest.mark.parametrize("signals", [STOP[:2], pytest.param(STOP * 4, marks=pytest.mark.slow)])
def test_a_signal_before_the_first_step_is_one_line(signals):
    """In a new run there is no checkpoint whose name could be given."""
    hits = sum(two_at_a_time(lambda i: before_the_first_step(signals[i]), len(signals)))
    assert hits == len(signals)
    count(f"{NAMES} before the first step", hits, hits, "one line, nothing left, code 128 + N")


def test_a_signal_before_the_first_step_of_a_resumed_run_names_its_checkpoint():
    """And leaves it and what the run has logged."""
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        hook = "sabotage.signal_before_the_first_step"
        ended = run(where, AGAIN, hook, signal.SIGTERM)
        assert ended.code == 143
        assert f"--resume {checkpoints(where)[10].relative_to(where)}" in ended.out
        assert (where / RUN_ROOT / "Inference/version_0/history.jsonl").exists()
        shutil.copy(checkpoints(where)[10], where / "copy.pt")  # control: goes on in a new run
        ended = run(where, [*SMALL, "--resume", "copy.pt"], hook, signal.SIGTERM)
        assert ended.code == 143
        assert "version_1" in ended.out
        assert "--resume copy.pt" in ended.out
        assert "report" not in ended.out.rpartition("version_1")[2]
        assert not list((where / RUN_ROOT).glob("*/version_1"))


def test_a_signal_while_the_feature_extractor_is_trained_leaves_nothing_either():
    with folder() as where:
        scored = ["--score-every", "5", "--score-images", "16"]
        hook = "sabotage.signal_while_preparing_scores"
        ended = run(where, [*AGAIN, *scored], hook, signal.SIGTERM)
        assert (ended.code, ended.step) == (143, 0)
        assert ended.err == "train.py: interrupted before the first step\n"
        assert not list((where / RUN_ROOT).glob("*/version_*"))


def test_a_run_that_fails_before_its_first_checkpoint_keeps_what_it_logged():
    """The control."""
    with folder() as where:
        assert run(where, AGAIN, "sabotage.no_memory", 2).code == 1
        assert (where / RUN_ROOT / "Inference/version_0/run.json").exists()


def test_a_signal_that_was_ignored_when_the_program_started_stays_ignored():
    for number in (signal.SIGHUP, signal.SIGINT):
        with folder() as where:
            process = Process(where, AGAIN, "sabotage.ignore", number)
            assert process.wait_for(3)
            process.kill(number)
            assert process.end().code == 0
            assert result(where) == unbroken()


# A script whose n-th import, of those written in it, finds a Ctrl-C.
INTERRUPTED = """
import builtins, os, signal, sys
path, left, original = sys.argv[1], int(sys.argv[2]), builtins.__import__
script = {"__name__": "__main__", "__file__": path}
def count_down(name, names=None, *rest):
    global left
    left -= names is script
    if names is script and left == 0:
        os.kill(os.getpid(), signal.SIGINT)
    return original(name, names, *rest)
builtins.__import__ = count_down
exec(compile(open(path, encoding="utf-8").read(), path, "exec"), script)
"""
BEFORE = 3  # os, signal and sys, which it takes to be heard; the second of them takes 2 ms


def ctrl_c_at_import(script: str, n: int) -> tuple[int, str]:
    """The exit code, and stderr."""
    command = [sys.executable, "-c", INTERRUPTED, str(ROOT / f"{script}.py"), str(n)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_at_the_first_import_that_is_not_the_interpreters_has_no_traceback(script):
    assert ctrl_c_at_import(script, BEFORE + 1) == (-signal.SIGINT, "")
    assert "KeyboardInterrupt" in ctrl_c_at_import(script, 1)[1]  # control: before it is heard


@pytest.mark.slow
def test_ctrl_c_at_any_import_has_no_traceback():
    trials = [(script, BEFORE + n) for script in SCRIPTS for n in (2, 3, 5, 8, 13)]
    ends = [ctrl_c_at_import(*trial) for trial in trials]
    hits = sum(code == -signal.SIGINT for code, _ in ends)
    assert hits == len(trials)
    assert {errors for _, errors in ends} == {""}
    count("Ctrl-C while a script is imported", len(trials), hits, "no traceback, nothing printed")


def test_ctrl_c_while_torch_is_imported_has_no_traceback():
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    next(line for line in process.stderr if "torch._C" in line)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in errors


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
