"""Runs on image files that are decoded anew in every epoch: killed, resumed, damaged under way."""

import re
import shutil
import signal
import time

import pytest
import torch
from faults import (
    AGAIN,
    SECONDS,
    SMALL,
    Process,
    a_dozen_times,
    checkpoints,
    count,
    folder,
    leftovers,
    result,
    run,
)

from utils import images


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """The command of a small run on a folder of images: 36 to train on, 4 held out."""
    root = tmp_path_factory.mktemp("images")
    random = torch.Generator().manual_seed(0)
    for i in range(40):
        path = root / f"class_{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        side = 18 + i % 5
        picture = torch.randint(0, 256, (3, side, 20), generator=random, dtype=torch.uint8)
        images.save_png(picture, path)
    own = ["--dataset", "folder", "--data-root", str(root), "--image-size", "14"]
    return [*AGAIN, *own, "--batch-size", "8"]


@pytest.fixture(scope="module")
def unbroken(flags) -> str:
    """What a run with one thread comes to that nobody disturbs."""
    with folder() as where:
        ended = run(where, flags, "sabotage.stream", 1)
        assert ended.code == 0, ended.err
        return result(where)


def test_in_memory_or_streamed_changes_nothing(flags, unbroken):
    with folder() as where:
        ended = run(where, flags)
        assert ended.code == 0, ended.err
        assert result(where) == unbroken
        cached = next((where / "Logs_Checkpoints/cache").glob("*.pt"))
        assert cached.stat().st_size > 40 * 3 * 14 * 14  # control: they were in memory


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_the_number_of_threads_changes_nothing(flags, unbroken, n):
    with folder() as where:
        assert run(where, flags, "sabotage.stream", n).code == 0
        assert result(where) == unbroken


@pytest.mark.slow
def test_killed_and_resumed_with_other_threads_changes_nothing(flags, unbroken):
    hits = 0
    for step in range(3, 9):
        with folder() as where:
            for kill, threads in ((step, 1), (step + 6, 4)):
                process = Process(where, flags, "sabotage.stream", threads)
                assert process.wait_for(kill)
                process.kill()
                hits += process.end().code == -signal.SIGKILL
            assert run(where, flags, "sabotage.stream", 2).code == 0
            assert not leftovers(where)
            assert result(where) == unbroken
    assert hits == 12
    end = "bit-identical with 1, 2, 4 threads"
    count("SIGKILL while threads decode the images", 12, hits, end)


@pytest.mark.slow
def test_with_another_seed_the_result_differs(flags, unbroken):
    """The control of the tests above."""
    with folder() as where:
        assert run(where, [*flags, "--seed", "1"], "sabotage.stream", 1).code == 0
        assert result(where) != unbroken


def with_copy(flags: list[str], where) -> list[str]:
    """The same command on a copy of the images, which may be damaged."""
    at = flags.index("--data-root") + 1
    shutil.copytree(flags[at], where / "images")
    return [*flags[:at], str(where / "images"), *flags[at + 1 :]]


@a_dozen_times
def test_a_file_damaged_under_way_costs_nothing(flags, unbroken):
    with folder() as where:
        ended = run(where, with_copy(flags, where), "sabotage.damage", 1)
        assert ended.code == 0, ended.err
        assert ended.err.count("the next image takes its place") == 1
        assert "class_0/00.png" in ended.err
        assert "Traceback" not in ended.err
        assert result(where) != unbroken  # control: the file was used
    end = "named, another takes its place, the run goes on"
    count("an image file is cut short while training", 1, 1, end)


def stopped_while_waiting(where, argv, hook: str, step: int):
    """How a run ends that is told to stop once it waits for a file that does not arrive."""
    process, ends = Process(where, argv, hook, step), time.monotonic() + SECONDS
    while "waiting for" not in (where / "err").read_text() if (where / "err").exists() else True:
        assert time.monotonic() < ends
        assert process.process.is_alive()
        time.sleep(0.02)
    process.kill(signal.SIGTERM)
    return process.end()


@pytest.mark.parametrize("steps", [[7], pytest.param(range(3, 15), marks=pytest.mark.slow)])
def test_a_file_that_does_not_arrive_is_named_and_a_stop_signal_heard(flags, unbroken, steps):
    for step in steps:
        with folder() as where:
            ended = stopped_while_waiting(where, flags, "sabotage.hang", step)
            assert ended.code == 128 + signal.SIGTERM, ended.err
            (line,) = ended.err.splitlines()
            assert re.fullmatch(r"waiting for class_\d/\d\d.png: is the disk, .* in order\?", line)
            assert ended.step >= step
            assert max(checkpoints(where)) == ended.step  # the last completed step
            assert not leftovers(where)
            assert run(where, flags, "sabotage.stream", 2).code == 0
            assert result(where) == unbroken
    n = len(steps)
    end = "named, SIGTERM is heard, 0 steps lost, bit-identical"
    count("image files that never arrive", n, n, end)


@pytest.mark.parametrize(
    ("place", "code", "saved"),
    [("in_validation", 143, [5]), ("before_the_first_step", 143, []), ("while_opening", 143, None)],
)
def test_wherever_files_are_read_a_stop_signal_is_heard(flags, place, code, saved):
    with folder() as where:
        ended = stopped_while_waiting(where, flags, f"sabotage.hang_{place}", 0)
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err
        assert saved is None or list(checkpoints(where)) == saved
        assert not leftovers(where)


def test_images_need_no_shared_memory(flags, unbroken):
    with folder() as where:
        ended = run(where, flags, "sabotage.without_shared_memory", 2)
        assert ended.code == 0, ended.err
        assert result(where) == unbroken
        count("streamed images without /dev/shm", 1, 1, "the same result to the bit")
    with folder() as where:  # control
        ended = run(where, flags, "sabotage.batches_through_shared_memory", 2)
        assert ended.code == 1
        assert "/dev/shm: No space left on device" in ended.err


def test_a_pipe_in_the_place_of_a_file_is_replaced_and_not_waited_for(flags):
    with folder() as where:
        ended = run(where, with_copy(flags, where), "sabotage.pipes", 2)
        assert ended.code == 0, ended.err
        assert ended.err.count("any more: not a regular file; the next image takes its") == 2


def test_a_validation_that_meets_the_tenth_damaged_file_costs_no_step():
    with folder() as where:
        ended = run(where, SMALL, "sabotage.unreadable_in_validation", 1)
        assert ended.code == 1
        assert "that is file 10" in ended.err.splitlines()[-1]
        assert list(checkpoints(where)) == [5]


@a_dozen_times
def test_from_the_tenth_damaged_file_on_the_run_saves_and_stops(flags):
    with folder() as where:
        ended = run(where, with_copy(flags, where), "sabotage.damage", 20)
        assert ended.code == 1
        assert "Traceback" not in ended.err
        last = ended.err.splitlines()[-1]
        assert last.startswith("train.py: stopped: cannot read ")
        assert "that is file 10: is the disk in order?" in last
        assert ended.err.count("takes its place") == 9
        assert max(checkpoints(where)) >= 5
        assert not leftovers(where)
    end = "saved, one line, exit code 1"
    count("ten image files are cut short while training", 1, 1, end)
