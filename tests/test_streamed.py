"""Runs on images that worker processes read: killed, resumed, and with workers that die."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from faults import AGAIN, ROOT, Process, checkpoints, count, folder, leftovers, result, run

from utils import images


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """The command of a small run on a folder of images: 36 to train on, 5 steps an epoch."""
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
    """What a run with one worker comes to that nobody disturbs."""
    with folder() as where:
        ended = run(where, flags, "sabotage.workers", 1)
        assert ended.code == 0, ended.err
        return result(where)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_the_number_of_workers_changes_nothing(flags, unbroken, n):
    with folder() as where:
        assert run(where, flags, "sabotage.workers", n).code == 0
        assert result(where) == unbroken


@pytest.mark.slow
def test_killed_and_resumed_with_other_workers_changes_nothing(flags, unbroken):
    with folder() as where:
        for step, workers in ((7, 1), (13, 4)):
            process = Process(where, flags, "sabotage.workers", workers)
            assert process.wait_for(step)
            process.kill()
            assert process.end().code == -signal.SIGKILL
        assert run(where, flags, "sabotage.workers", 2).code == 0
        assert not leftovers(where)
        assert result(where) == unbroken
    count("SIGKILL while workers read the images", 2, 2, "equal to the bit with 1, 2 or 4 workers")


@pytest.mark.slow
def test_with_another_seed_the_result_differs(flags, unbroken):
    """The control of the tests above."""
    with folder() as where:
        assert run(where, [*flags, "--seed", "1"], "sabotage.workers", 1).code == 0
        assert result(where) != unbroken


@pytest.mark.parametrize("step", [pytest.param(20, marks=pytest.mark.slow), 24])
def test_a_killed_worker_is_one_line_and_costs_nothing(flags, step):
    """Early in an epoch of 18 steps, when most of it is still to be read."""
    long = [*flags, "--batch-size", "2", "--max-steps", "36"]
    with folder() as where, folder() as other:
        ended = run(where, long, "sabotage.kill_a_worker", step)
        assert ended.code == 1
        assert "Traceback" not in ended.err
        assert ended.err.splitlines()[-1].startswith("train.py: stopped: cannot read images of ")
        assert list(checkpoints(where)) == [18]
        assert not leftovers(where)
        assert run(where, long).code == 0
        assert run(other, long).code == 0
        assert result(where) == result(other)
    count("SIGKILL of a worker that reads images", 1, 1, "one line, exit code 1, equal to the bit")


@pytest.mark.parametrize("ended", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_error_that_nobody_catches_ends_the_program(flags, ended):
    """Without `end_workers`, the control, its workers would keep it waiting for ever."""
    root = flags[flags.index("--data-root") + 1]
    lines = ["import atexit, torch, data, data.image_set"]
    lines += [] if ended else ["atexit.unregister(data.image_set.end_workers)"]
    lines += [f"images = data.load('folder', {root!r}, 16).to(torch.device('cpu'))"]
    lines += ["next(images.batches(torch.tensor([99]), 2))"]  # there is no such image
    command = [sys.executable, "-c", "\n".join(lines)]
    program = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while "IndexError: " not in (line := program.stderr.readline()):
            assert line
        program.wait(10)
        assert ended
    except subprocess.TimeoutExpired:
        assert not ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.stderr.close()
        program.wait()
