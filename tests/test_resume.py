"""Where a resumed run continues, and what it does with the files that are there."""

import shutil
from pathlib import Path

import pytest
from faults import (
    AGAIN,
    NETWORK,
    SMALL,
    STEPS,
    a_dozen_times,
    checkpoints,
    count,
    folder,
    leftovers,
    newest,
    run,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import checkpoint, runs

HERE = ["--device", "cpu"]
NEWER = ["--resume", "auto", *HERE]


def contents(where: Path) -> dict[Path, bytes]:
    """Every file below it."""
    return {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}


@a_dozen_times
def test_going_back_to_an_older_checkpoint_keeps_the_newer_ones_out_of_the_way():
    """Otherwise --resume auto would take up the run that was left."""
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "10"]).code == 0
        old, new = checkpoints(where).values()
        was = new.read_bytes()
        back = ["--resume", str(old), "--lr", "1e-3", "--max-steps", str(STEPS), *HERE]
        ended = run(where, back, "sabotage.stop_at", 7)
        assert ended.code == 143, ended.err
        assert list(checkpoints(where)) == [5, 7]
        assert new.with_name(f"{new.name}.replaced").read_bytes() == was
        ended = run(where, NEWER)
        assert ended.code == 0, ended.err
        assert "Resuming after step 7" in ended.out
        assert newest(where)["step"] == STEPS
        assert newest(where)["config"]["train"]["lr"] == 1e-3
        assert new.with_name(f"{new.name}.replaced").read_bytes() == was
        count("resumed from an older checkpoint", 1, 1, "the newer one renamed, auto continues")


def test_resuming_the_newest_checkpoint_renames_nothing():
    """The control of the test above."""
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "10"]).code == 0
        path = str(checkpoints(where)[10])
        assert run(where, ["--resume", path, "--max-steps", str(STEPS), *HERE]).code == 0
        assert not list(where.rglob("*.replaced"))


def test_a_checkpoint_that_was_copied_elsewhere_starts_a_new_version():
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "10"]).code == 0
        copy = where / "elsewhere" / checkpoint.filename(10)
        copy.parent.mkdir()
        copy.write_bytes(checkpoints(where)[10].read_bytes())
        before = contents(copy.parent) | contents(where / "Logs_Checkpoints")
        ended = run(where, ["--resume", str(copy), "--max-steps", str(STEPS), *HERE])
        assert ended.code == 0, ended.err
        assert "Resuming after step 10" in ended.out
        assert checkpoints(where, version=1)[STEPS]
        assert list(contents(copy.parent)) == [copy]
        after = contents(where)
        assert {path: after[path] for path in before} == before
        assert not (where / "Inference").exists()
        assert not leftovers(where)


def linked(where: Path, part: str) -> None:
    """This part of the run root lies on another disk, and a link in its place."""
    original, elsewhere = where / "Logs_Checkpoints" / part, where / "disk" / "scratch"
    elsewhere.parent.mkdir()
    original.rename(elsewhere)
    original.symlink_to(elsewhere)


PARTS = [".", "checkpoints", "Inference", "checkpoints/version_0", "Inference/version_0"]
ALL_PARTS = pytest.param(PARTS, 3, marks=pytest.mark.slow)


def resume_linked(done: Path, part: str, hook: str = "") -> list[int]:
    """The versions there are after a run with this link was resumed."""
    with folder() as where:
        shutil.copytree(done / "Logs_Checkpoints", where / "Logs_Checkpoints")
        linked(where, part)
        ended = run(where, [*AGAIN, "--max-steps", str(STEPS)], hook)
        assert ended.code == 0, ended.err
        versions = runs.versions(where / "Logs_Checkpoints")
        if versions == [0]:
            assert list(checkpoints(where)) == [15, STEPS]
            events = EventAccumulator(str(where / "Logs_Checkpoints/Inference/version_0")).Reload()
            steps = [event.step for event in events.Scalars("loss/train")]
            assert steps == list(range(1, STEPS + 1))
        return versions


@pytest.mark.parametrize(("parts", "trials"), [(PARTS[:2], 1), ALL_PARTS])
def test_a_run_root_may_be_put_together_by_links(parts, trials):
    with folder() as done:
        assert run(done, [*SMALL, "--max-steps", "10"]).code == 0
        for part in parts * trials:
            assert resume_linked(done, part) == [0], part
        assert resume_linked(done, "checkpoints", "sabotage.resolve_links") == [0, 1]  # control
    n = trials * len(parts)
    count("a folder of the run root is a link", n, n, "the same version goes on")


def test_a_link_to_a_checkpoint_is_that_checkpoint():
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "10"]).code == 0
        (where / "mine.pt").symlink_to(checkpoints(where)[10])
        assert run(where, ["--resume", "mine.pt", "--max-steps", str(STEPS), *HERE]).code == 0
        assert list(checkpoints(where)) == [15, STEPS]


def test_logs_that_are_a_link_to_nothing_are_one_line():
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "5"]).code == 0
        logs = where / "Logs_Checkpoints/Inference/version_0"
        shutil.rmtree(logs)
        logs.symlink_to(where / "unmounted")
        ended = run(where, AGAIN)
        assert ended.code == 2
        assert ended.err == f"train.py: error: cannot make {logs}: File exists\n"
        logs.unlink()
        assert run(where, AGAIN).code == 0


def test_the_same_minutes_again_keep_the_schedule_and_others_do_not():
    """A scheduler that gives the command again does not begin to count anew."""
    flags = [*NETWORK, "--max-minutes", "0.1", "--resume", "auto"]
    flags += ["--batch-size", "200", "--eval-every", "100"]  # validation costs four steps
    with folder() as where:
        ended = run(where, flags, "sabotage.stop_once_scheduled", 200)
        assert ended.code == 143, ended.err
        schedule, step = newest(where)["scheduler"], newest(where)["step"]
        assert step < schedule["total_steps"]
        copy = shutil.copytree(where / "Logs_Checkpoints", where / "copy")
        ended = run(where, flags, "sabotage.steps_take", 220)  # as long, within a fifth
        assert ended.code == 0, ended.err
        assert newest(where)["scheduler"] == schedule
        assert newest(where)["step"] == schedule["total_steps"]

        other = ["--run-root", str(copy), "--resume", "auto", "--max-minutes", "0.05", *HERE]
        assert run(where, other, "sabotage.steps_take", 300).code == 0
        path = checkpoint.find("latest", copy)
        assert step < checkpoint.load(path)["step"] < schedule["total_steps"]  # control


@a_dozen_times
def test_a_skipped_step_does_not_keep_the_run_from_saving():
    """Within the epoch as well, where its losses were noted and not yet written."""
    with folder() as where:
        flags = [*AGAIN, "--save-minutes", "0"]
        ended = run(where, flags, "sabotage.broken_images_once", 7)
        assert ended.code == 0, ended.err
        assert "not finite, so skipped: step 7" in ended.err
        assert newest(where)["step"] == STEPS
        count("NaN in one step, saved in the next", 1, 1, "the step skipped, the run continues")
