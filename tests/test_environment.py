"""Full disks, vanished folders, two writers, NaN, closed pipes: one line, and nothing is lost."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import other_system
import pytest
import sabotage
import torch
from faults import (
    AGAIN,
    FORK,
    NETWORK,
    ROOT,
    SECONDS,
    SMALL,
    STEPS,
    Ended,
    Process,
    a_dozen_times,
    checkpoints,
    child_prelude,
    count,
    folder,
    leftovers,
    needs_nobody,
    newest,
    result,
    run,
    store_classifier,
    write_pictures,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)

import evaluate
from training.events import EventWriter
from training.nonfinite import LIMIT, skip_if_not_finite
from training.optim import Muon
from utils import checkpoint, runs
from utils.files import LOCK, LockError, only_writer
from utils.pytree import digest, not_finite

LOGS = "Logs_Checkpoints/Inference/version_0"
FOLDERS = ("lose_folders", "delete_folders", "lose_folders_in_save")  # of a living run


def verified(where: Path) -> list[int]:
    """The steps of the checkpoints, all of them whole and finite."""
    for path in checkpoints(where).values():
        assert not_finite(checkpoint.load(path)) is None
    return list(checkpoints(where))


def one_line(error: str, *words: str) -> None:
    """The last line says it; no traceback."""
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("train.py: ")
    for word in words:
        assert word in error


@a_dozen_times
@pytest.mark.parametrize(
    ("hook", "argument", "cause"),
    [
        ("sabotage.full_disk", 3, "No space left on device"),
        ("sabotage.file_size_limit", 100_000, "File too large"),
    ],
)
def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay(hook, argument, cause):
    with folder() as where:
        if hook.endswith("limit"):  # the first two saves before, without the limit
            assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        ended = run(where, AGAIN, hook, argument)
        assert ended.code == 1
        one_line(ended.err, cause, "step_00000015.pt")
        assert verified(where) == [5, 10]
        assert not leftovers(where)
        assert run(where, AGAIN).code == 0  # there is room again
        assert newest(where)["step"] == STEPS
        assert events(where) == list(range(1, STEPS + 1))  # the curves can still be read
        count(f"a full disk: {cause}", 1, 1, "one line, exit code 1, earlier checkpoints intact")


@a_dozen_times
def test_a_vanished_checkpoint_folder_is_one_line():
    with folder() as where:
        ended = run(where, AGAIN, "sabotage.remove_checkpoints", 7)
        assert ended.code == 1
        one_line(ended.err, "cannot write", "No such file or directory")
        count("the checkpoint folder vanishes", 1, 1, "one line, exit code 1")


@pytest.mark.parametrize("limits", [[8], pytest.param(range(0, 36, 3), marks=pytest.mark.slow)])
def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(limits):
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        for path in checkpoints(where).values():
            state = checkpoint.load(path)
            checkpoint.save(path, {**state, "more": torch.zeros(10_000_000)})  # 40 MB
        before = contents(where / "Logs_Checkpoints")
        for megabytes in limits:
            ended = run(where, AGAIN, "sabotage.memory_limit", megabytes)
            assert ended.code == 2
            one_line(ended.err, "step_00000010.pt: not enough memory for its 38 MB")
            assert contents(where / "Logs_Checkpoints") == before
        for path in checkpoints(where).values():  # control: what differs is damaged
            path.write_bytes(before[path][:-99] + bytes(99))
        assert "none of the 2 checkpoints" in run(where, AGAIN).err
        end = "one line, exit code 2, nothing renamed"
        count("a checkpoint larger than the memory", len(limits), len(limits), end)


@a_dozen_times
def test_curves_that_cannot_be_written_do_not_cost_the_run():
    with folder() as where, folder() as other:
        ended = run(where, AGAIN, "sabotage.remove_logs", 7)
        assert ended.code == 0
        assert ended.err.count("no more curves") == 1
        assert run(other, AGAIN).code == 0
        assert result(where) == result(other)
        count("the folder of the curves vanishes", 1, 1, "a warning, the same result to the bit")


@pytest.mark.parametrize("trials", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("without_tensorboard", "No module named 'tensorboard.compat'"),
        ("with_a_broken_tensorboard", "Descriptors cannot be created directly"),
    ],
)
def test_tensorboard_costs_the_curves_only(hook, reason, trials):
    for seed in range(trials):
        with folder() as where:
            ended = run(where, [*AGAIN, "--seed", str(seed)], f"sabotage.{hook}")
            assert ended.code == 0
            assert ended.err.count("no more curves") == ended.err.count(reason) == 1
            assert newest(where)["step"] == STEPS
            assert not list((where / LOGS).glob("events*"))
    end = "a warning; the run has no curves"
    count("TensorBoard missing or broken", trials, trials, end)


def test_a_path_that_is_no_text_costs_no_curve(tmp_path):
    writer, path = EventWriter(tmp_path, 1, silent=False), "latin\udcfc"
    writer.write_first("data", path, {"seed": 0}, ["loss/held_out"])
    writer.close()
    assert not writer.failed
    read = EventAccumulator(str(tmp_path)).Reload().Tensors("data/text_summary")[0]
    assert read.tensor_proto.string_val == [rb"latin\udcfc"]
    with pytest.raises(UnicodeEncodeError):  # control
        path.encode()


@pytest.mark.parametrize("steps", [[7], pytest.param([6, 8, 11, 18], marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("hook", "line"),
    [
        ("no_memory", "out of memory, tried to allocate 4503599627370496 bytes: "),
        ("no_memory_for_python", "out of memory: "),
        ("no_memory_on_the_gpu", "out of memory, tried to allocate 20.00 MiB: "),
    ],
)
def test_too_little_memory_is_one_line_with_what_to_lower(hook, line, steps):
    for step in steps:
        with folder() as where:
            ended = run(where, AGAIN, f"sabotage.{hook}", step)
            assert (ended.code, ended.step) == (1, step - 1)  # it failed before it was counted
            saved = checkpoints(where)[(step - 1) // 5 * 5]
            one_line(ended.err, f"train.py: stopped: {line}", "--batch-size", "--grad-accum")
            one_line(ended.err, "--checkpoint-activations", "the last good one is", saved.name)
            assert not leftovers(where)
    end = "one line, exit code 1, names the last checkpoint"
    count("out of memory", len(steps), len(steps), end)


WIDE = ["--patch-size", "1", "--base-channels", "64"]  # 20 MB for each feature map of 100 images
PLACES = {  # where memory ends, with flags by which that is more than is left, and what was saved
    "creation": (["--base-channels", "1024"], "there is no earlier one"),
    "a_step": ([*WIDE, "--batch-size", "100"], "there is no earlier one"),
    "validation": ([*WIDE, "--batch-size", "1"], "there is no earlier one"),
    "drawing": ([*WIDE, "--patch-size", "2", "--batch-size", "1"], "the last good one is"),
}
MOST = {"drawing": 2}  # megabytes up to which it lacks some; elsewhere 4
MORE = [pytest.param(p, range(MOST.get(p, 4)), marks=pytest.mark.slow) for p in PLACES]


@pytest.mark.parametrize(("place", "limits"), [*((p, [0]) for p in PLACES), *MORE])
def test_memory_that_ends_is_one_line_with_what_to_lower(place, limits):
    """A real limit of the process, and whatever words oneDNN, C++, the loader and Python have."""
    flags, saved = PLACES[place]
    for megabytes in limits:
        with folder() as where:
            argv = [*SMALL, *flags, "--max-steps", "1"]
            ended = run(where, argv, f"sabotage.little_memory_in_{place}", megabytes)
            if torch.__version__ < "2.12" and ended.code == -signal.SIGSEGV:
                pytest.xfail("PyTorch 2.11 crashes by itself: docs/robustness.md, Limits")
            assert ended.code == 1
            one_line(ended.err, "train.py: stopped: out of memory", "--batch-size", saved)
            one_line(ended.err, "--grad-accum", "--checkpoint-activations")
    end = "one line, exit code 1, names the last checkpoint"
    count("out of memory", len(limits), len(limits), end)


def test_memory_that_suffices_is_none_of_it():
    """The control."""
    with folder() as where:
        flags = [*SMALL, "--max-steps", "1"]
        assert run(where, flags, "sabotage.little_memory_in_creation", 4_000).code == 0


def test_memory_that_ends_before_a_resumed_run_goes_on_names_its_checkpoint():
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "5"]).code == 0
        ended = run(where, AGAIN, "sabotage.no_memory_for_creation")
        assert ended.code == 1
        one_line(ended.err, "out of memory: lower --batch-size", "--checkpoint-activations")
        one_line(ended.err, "the last good one is", checkpoints(where)[5].name)


@needs_nobody
@pytest.mark.parametrize("trials", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_threads_that_the_system_refuses(trials):
    for _ in range(trials):
        refuse_threads()
    n = 3 * trials
    count("the system starts no threads", n, n, "one line, exit code 1; one thread suffices")


def refuse_threads() -> None:
    """To OpenMP, which ends the process; with one thread; to those that decode images."""
    with folder() as where:
        for name in ("out", "err"):
            (where / name).touch(mode=0o666)
            (where / name).chmod(0o666)
        where.chmod(0o777)
        ended = run(where, AGAIN, "sabotage.no_threads", 2)
        assert ended.code == 1
        assert "Thread creation failed" in ended.err.splitlines()[-1]  # OpenMP ends the process
        assert "Traceback" not in ended.err
        assert run(where, AGAIN, "sabotage.no_threads", 1).code == 0
        assert newest(where)["step"] == STEPS
        write_pictures(where / "pictures")
        files = ["--dataset", "folder", "--data-root", "pictures", "--run-root", "other"]
        ended = run(where, [*SMALL, *files], "sabotage.no_threads", 1)  # threads decode
        assert ended.code == 1
        one_line(ended.err, "the system starts no more threads or processes: raise the limit")
        assert not (where / "other").exists()


@a_dozen_times
@needs_nobody
def test_a_folder_that_may_not_be_written_is_one_line_before_any_work():
    with folder() as where:
        for name in ("out", "err"):
            (where / name).touch(mode=0o666)
            (where / name).chmod(0o666)
        where.chmod(0o555)
        ended = run(where, AGAIN, "sabotage.be_nobody")
        assert (ended.code, ended.step) == (2, 0)
        one_line(ended.err, "cannot make a run folder", "Permission denied")
        where.chmod(0o755)
        count("a folder that may not be written", 1, 1, "one line, exit code 2, before any work")


def evaluate_as_nobody(where: str, argv: list[str]) -> None:
    """Its output goes into files."""
    os.chdir(where)
    sys.stdout, sys.stderr = open("out", "w"), open("err", "w")  # noqa: SIM115
    child_prelude()
    sabotage.be_nobody(0)
    sys.exit(evaluate.main(["--ckpt", "latest", "--device", "cpu", "--num", "4", *argv]))


def evaluated(where: Path, *argv: str) -> tuple[int, str, str]:
    process = FORK.Process(target=evaluate_as_nobody, args=(str(where), list(argv)))
    process.start()
    process.join(SECONDS)
    return process.exitcode, *((where / name).read_text() for name in ("out", "err"))


@needs_nobody
@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_may_not_be_written_can_be_evaluated_elsewhere(trials):
    """And without --out it is one line, before anything is drawn."""
    for _ in range(trials):
        evaluate_without_rights()
    end = "one line, before any work; --out works"
    count("evaluate.py on a run that may not be written", trials, trials, end)


def evaluate_without_rights() -> None:
    with folder() as where:
        assert run(where, [*SMALL, "--max-steps", "5"]).code == 0
        store_classifier(where / "Logs_Checkpoints")
        where.chmod(0o777)
        for name in ("out", "err"):
            (where / name).chmod(0o666)
        before = contents(where / "Logs_Checkpoints")
        code, out, err = evaluated(where)
        logs = where / "Logs_Checkpoints/Inference/version_0"
        assert err == (
            f"evaluate.py: error: cannot write to {logs}: Permission denied: choose another --out\n"
        )
        assert (code, out) == (2, "")
        code, out, err = evaluated(where, "--out", "mine", "--only", "memory,held-out")
        assert code == 0, err
        assert {path.name for path in (where / "mine").iterdir()} == {
            "metrics.json", "nearest_pairs.png"
        }  # fmt: skip
        assert "drawing" in out
        assert contents(where / "Logs_Checkpoints") == before


def prune_as_nobody(where: str) -> None:
    sabotage.be_nobody(0)
    checkpoint.prune(Path(where), best=(), keep=2)


@a_dozen_times
@needs_nobody
def test_a_checkpoint_that_cannot_be_deleted_only_takes_space():
    with folder() as where:
        where.chmod(0o755)
        for step in range(1, 6):
            (where / checkpoint.filename(step)).write_bytes(b"")
        process = FORK.Process(target=prune_as_nobody, args=(str(where),))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert list(checkpoint.steps(where)) == [1, 2, 3, 4, 5]
        checkpoint.prune(where, best=(), keep=2)
        assert list(checkpoint.steps(where)) == [4, 5]  # control
        count("a checkpoint that cannot be deleted", 1, 1, "it stays, the run continues")


@a_dozen_times
def test_a_run_has_one_writer():
    with folder() as where:
        first = Process(where, AGAIN)
        assert first.wait_for(7)
        first.kill(signal.SIGSTOP)  # asleep, not dead
        second = run(where, AGAIN)
        assert second.code == 2
        one_line(second.err, f"process {first.process.pid} on {socket.gethostname()}")
        first.kill()
        assert first.end().code == -signal.SIGKILL
        assert (where / "Logs_Checkpoints/checkpoints/version_0" / LOCK).exists()
        assert run(where, AGAIN).code == 0  # a dead owner's lock is taken over
        assert not leftovers(where)
        count("a second process resumes a running run", 1, 1, "refused, naming process and host")


def contents(where: Path) -> dict[Path, bytes]:
    """Every file below it."""
    return {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}


def second_run_in_its_place(where: Path, hook: str) -> tuple[Ended, bool]:
    """How a run ends whose folders another takes over; whether all of the other's files stay."""
    first = Process(where, SMALL, hook, 7)
    ends = time.monotonic() + SECONDS
    while not (where / "lost").exists() and time.monotonic() < ends:
        time.sleep(0.005)
    assert run(where, [*SMALL, "--seed", "1"]).code == 0
    assert list(checkpoints(where)) == [15, 20]  # of version_0, the number that was free again
    trees = [
        where / "Logs_Checkpoints" / tree / "version_0" for tree in ("Inference", "checkpoints")
    ]
    before = [contents(tree) for tree in trees]
    (where / "go").touch()
    ended = first.end()
    return ended, [contents(tree) for tree in trees] == before


@pytest.mark.parametrize(
    ("trials", "fault"),
    [*((1, f) for f in FOLDERS), *(pytest.param(12, f, marks=pytest.mark.slow) for f in FOLDERS)],
)
def test_a_living_run_touches_no_folder_that_is_another_runs_by_now(trials, fault):
    for _ in range(trials):
        with folder() as where:
            ended, untouched = second_run_in_its_place(where, f"sabotage.{fault}")
            assert untouched
            assert ended.code == 1
            one_line(ended.err, "cannot write", "there is no earlier one")
            assert ended.step == 10  # its next save
    count("another run takes the number of a living one", trials, trials, "neither loses a file")


IN_SAVE = pytest.param("lose_folders_in_save", marks=pytest.mark.slow)


@pytest.mark.parametrize("fault", ["lose_folders", IN_SAVE])
def test_a_run_that_does_not_look_destroys_the_other(fault):
    """The control."""
    with folder() as where:
        ended, untouched = second_run_in_its_place(where, f"sabotage.{fault}_unclaimed")
        assert ended.code == (0 if fault == "lose_folders" else 1)  # which looks afterwards
        assert not untouched


@pytest.mark.parametrize("steps", [[7], pytest.param(range(6, 18), marks=pytest.mark.slow)])
def test_the_file_that_names_the_writer_may_go(steps):
    """The folder is still the same, and the run's."""
    with folder() as other:
        assert run(other, AGAIN).code == 0
        for step in steps:
            with folder() as where:
                ended = run(where, AGAIN, "sabotage.delete_owner", step)
                assert (ended.code, ended.err) == (0, "")
                assert result(where) == result(other)
                assert not leftovers(where)
    trials = len(steps)
    count("writer.txt deleted from a living run", trials, trials, "written again, bit-identical")


def hold(path: str, held, most) -> None:
    """Take the lock 50 times; ``most`` is how many held it at once, at most."""
    taken = 0
    while taken < 50:
        try:
            with only_writer(Path(path)):
                held[0] += 1
                most[0] = max(most[0], held[0])
                time.sleep(0.0002)
                held[0] -= 1
                taken += 1
        except LockError:
            time.sleep(0.0001)


def test_a_lock_is_never_held_twice(tmp_path):
    held, most = FORK.RawArray("l", 1), FORK.RawArray("l", 1)
    processes = [FORK.Process(target=hold, args=(str(tmp_path), held, most)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert most[0] == 1
    assert list(tmp_path.iterdir()) == []


def max_plus_one(root: Path, together: Barrier) -> Path:
    """A control: how most programs choose a number, all of them before one has made its folder."""
    folder = root / f"version_{max(runs.versions(root.parent), default=-1) + 1}"
    together.wait(60)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_runs_that_start_together_get_numbers_of_their_own(tmp_path, rounds):
    made, shared, together = [], 0, Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        for i in range(rounds):
            roots = [tmp_path / str(i)] * 16
            made += pool.map(lambda root: runs.new_run(root).logs, roots)
            roots = [tmp_path / f"naive_{i}" / "checkpoints"] * 16
            naive = list(pool.map(lambda root: max_plus_one(root, together), roots))
            shared += 16 - len(set(naive))
    assert len(set(made)) == 16 * rounds
    assert shared > 0  # control: numbers by max + 1 collide
    end = f"a number each; by max + 1, {shared} would have shared one"
    count("16 runs that start together", 16 * rounds, 16 * rounds, end)


@a_dozen_times
def test_what_is_not_finite_stops_the_run_and_never_reaches_a_checkpoint():
    first = "first output that is not finite: "
    for hook, blame in (
        ("broken_images", f"{first}stem"),
        ("infinite_loss", "all outputs finite"),
        ("broken_weight", first),
    ):
        with folder() as where:
            ended = run(where, [*AGAIN, "--lr", "2e-3"], f"sabotage.{hook}", 12)
            assert ended.code == 1
            assert "step 12 (seed 0): loss" in ended.err
            for word in ("learning rate", "--lr 0.001", "--replay 12", "step_00000010.pt", blame):
                assert word in ended.err, word
            assert verified(where) == [5, 10]
            assert not leftovers(where)
            count(f"NaN: {hook.replace('_', ' ')}", 1, 1, "stopped, no checkpoint with NaN")


def test_two_steps_that_are_not_finite_are_skipped_and_named():
    with folder() as where:
        ended = run(where, AGAIN, "sabotage.broken_images_twice", 7)
        assert ended.code == 0
        assert "not finite, so skipped: step 7, 8" in ended.err
        assert newest(where)["step"] == STEPS
        assert len(verified(where)) >= 2


@a_dozen_times
def test_a_learning_rate_that_explodes_leaves_only_good_checkpoints():
    with folder() as where:
        ended = run(where, AGAIN, "sabotage.explode", 11)
        assert ended.code == 1
        for word in ("step 12 (seed 0): loss", "that is not finite", "step_00000010.pt"):
            assert word in ended.err, word
        assert "Traceback" not in ended.err
        assert verified(where) == [5, 10]
        assert not leftovers(where)
        count("a learning rate of 1e20", 1, 1, "stopped, no checkpoint with NaN")


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_skipped_update_changes_nothing_at_all(kind):
    def trained(skip: bool) -> tuple[list, dict]:
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(4, 3))
        adamw = torch.optim.AdamW([w], 0.1, weight_decay=0.1, fused=True)
        optimizer = Muon([w], 0.1) if kind == "muon" else adamw
        in_a_row = torch.zeros(())
        for step in range(6):
            w.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            norm = w.grad.norm()
            if step in (2, 3):
                if not skip:
                    continue
                norm = norm * float("nan")
                w.grad[0, 0] = float("nan")
            skip_if_not_finite([optimizer], norm, in_a_row)
            optimizer.step()
        return [w.detach()], optimizer.state_dict()["state"]

    skipped, never = trained(True), trained(False)
    assert digest(skipped) == digest(never)


def test_after_three_in_a_row_nothing_moves_any_more():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer, in_a_row = torch.optim.AdamW([w], 0.1, fused=True), torch.zeros(())
    for norm in [float("inf")] * LIMIT + [1.0, 1.0]:
        w.grad = torch.ones(2)
        skip_if_not_finite([optimizer], torch.tensor(norm), in_a_row)
        optimizer.step()
    assert torch.equal(w, torch.ones(2))
    assert in_a_row == LIMIT + 2  # counts on, so that the first of them is known


def test_a_step_can_be_seen_again():
    """From each checkpoint before it, with the numbers that training had; nothing is written."""
    with folder() as where:
        ended = run(where, AGAIN, "sabotage.broken_images", 12)
        line = next(line for line in ended.err.splitlines() if "step 12 (seed 0)" in line)
        names = sorted(where.rglob("*"))
        for step in (5, 10):
            path = str(checkpoints(where)[step])
            replay = ["--resume", path, "--replay", "12", "--device", "cpu"]
            again = run(where, replay, "sabotage.broken_images", 12)
            assert again.code == 0
            assert again.out.splitlines()[-1] == line.removeprefix("train.py: stopped: ")
        assert sorted(where.rglob("*")) == names
        for bad in ("10", "0", "21"):
            ended = run(where, [*replay, "--replay", bad])
            assert ended.code == 2


def events(where: Path, reader: type = EventAccumulator) -> list[int]:
    """The steps of the loss curve, as TensorBoard's own reader has them."""
    accumulator = reader(str(where / LOGS)).Reload()
    if reader is EventAccumulator:
        return [event.step for event in accumulator.Scalars("loss/train")]
    return [event.step for event in accumulator.Tensors("loss/train")]


def killed_thrice(where: Path, hook: str = "") -> None:
    """Saves at every step, so that curves and checkpoints end in different places."""
    flags = [*AGAIN, "--save-minutes", "0"]
    for step in (6, 11, 17):
        process = Process(where, flags, hook)
        assert process.wait_for(step)
        process.kill()
        assert process.end().code == -signal.SIGKILL
    assert run(where, flags, hook).code == 0


@a_dozen_times
def test_every_step_is_in_the_curves_once_and_in_order_after_three_kills():
    with folder() as where:
        killed_thrice(where)
        for reader in (EventAccumulator, PluginEventAccumulator):
            assert events(where, reader) == list(range(1, STEPS + 1))
        accumulator = EventAccumulator(str(where / LOGS)).Reload()
        pictures = [event.step for event in accumulator.Images("samples/grid")]
        assert pictures == [5, 10, 15, 20]
        count(
            "3 SIGKILLs, curves read by TensorBoard's own reader", 3, 3, "every step once, in order"
        )


def test_a_torn_record_at_the_end_of_the_curves_costs_nothing_else():
    with folder() as where:
        process = Process(where, AGAIN)
        assert process.wait_for(12)
        process.kill()
        process.end()
        *_, path = sorted((where / LOGS).glob("events*"))
        path.write_bytes(path.read_bytes()[:-7])
        assert run(where, AGAIN).code == 0
        assert events(where) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_without_purge_step_the_curves_would_repeat_themselves():
    """The control: killed behind its last checkpoint, with the curves further than that."""
    with folder() as where:
        hook = "sabotage.log_without_purge"
        assert run(where, [*AGAIN, "--max-steps", "15"], hook).code == 0
        checkpoints(where)[15].unlink()
        assert run(where, AGAIN, hook).code == 0
        assert events(where) != list(range(1, STEPS + 1))
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "15"]).code == 0
        checkpoints(where)[15].unlink()
        assert run(where, AGAIN).code == 0
        assert events(where) == list(range(1, STEPS + 1))


def resumed_by_a_clock(ahead: int, hook: str) -> list[int]:
    """The steps in the curves, where the clock was ahead at the resume by so many seconds."""
    with folder() as where:
        assert run(where, [*AGAIN, "--max-steps", "10"]).code == 0
        assert run(where, AGAIN, f"sabotage.{hook}", ahead).code == 0
        return events(where)


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_curves_do_not_depend_on_the_clock(trials):
    for trial in range(trials):
        back = -3600 * (1 + trial)
        assert resumed_by_a_clock(back, "set_clock") == list(range(1, STEPS + 1))
    count("the clock is set back before a resume", trials, trials, "every step once, in order")


@pytest.mark.slow
def test_curves_named_by_the_clock_would_end_at_the_resume():
    """The control."""
    assert resumed_by_a_clock(-3600, "set_clock_and_trust_it") == list(range(1, 11))


@pytest.mark.slow
def test_at_every_instant_there_are_two_whole_checkpoints():
    """Watched from outside while it saves at every step of one epoch."""
    with folder() as where:
        flags = ["--save-minutes", "0", "--max-steps", "40", "--min-epoch-images", "9600"]
        process, looks = Process(where, [*AGAIN, *flags]), 0
        assert process.wait_for(4)
        while process.process.is_alive():
            there = list(checkpoints(where).values())
            assert len(there) >= 2
            try:
                checkpoint.load(there[-1])
                looks += 1
            except checkpoint.CheckpointError:
                assert not there[-1].exists()  # it was pruned meanwhile
        assert process.end().code == 0
        assert looks > 5


def train_py(*argv: str, **options) -> subprocess.Popen:
    """A real one, with nothing prepared."""
    smoke = ["--preset", "smoke", "--device", "cpu", "--max-steps", "4", "--steps", "2"]
    command = [sys.executable, str(ROOT / "train.py"), *smoke, *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.slow
def test_nobody_has_to_listen():
    with folder() as where:
        process = train_py(cwd=where)
        process.stdout.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(120) == 0
        assert len(checkpoints(where)) == 1


@pytest.mark.slow
def test_it_runs_in_a_bare_environment():
    """No home, no locale, no colours, from another folder; the same result with any hash seed."""
    results = set()
    for seed in ("0", "1"):
        bare = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TERM": "dumb", "PYTHONHASHSEED": seed}
        with folder() as where:
            process = train_py(cwd=where, env={**bare, "OMP_NUM_THREADS": "1"})
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert "\r" not in out + err
            results.add(result(where))
    assert len(results) == 1


EVERYTHING = [name for name in other_system.HIDE if name != "fsync of folders"]  # nor any folder
SINGLE = [pytest.param([name], id=name) for name in other_system.HIDE]


@pytest.mark.slow
@pytest.mark.parametrize("names", [pytest.param(EVERYTHING, id="everything"), *SINGLE])
def test_it_runs_where_a_system_lacks_what_linux_has(names):
    with folder() as where:
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=other_system.main, args=(where, names, NETWORK))
        process.start()
        process.join(SECONDS)
        out = (where / "out").read_text()
        assert process.exitcode == 0, out
        assert list(checkpoints(where)) == [4, 5]
        assert "grid.png" in out
        end = "trains, resumes and samples in a spawned process"
        count("a system that lacks one of 14 things that Linux has, or all", 1, 1, end)


@pytest.mark.slow
def test_what_is_tested_on_other_systems_needs_nothing_that_they_lack(tmp_path):
    """But Windows itself: what it writes differently, for example."""
    names = [name for name in EVERYTHING if name not in ("folders", "getuid")]  # pytest needs them
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=other_system.portable_tests, args=(tmp_path / "out", names))
    process.start()
    process.join(5 * SECONDS)
    assert process.exitcode == 0, (tmp_path / "out").read_text()
    end = "they pass"
    count("the tests that other systems run, on one without what Linux has", 1, 1, end)


def memory_and_handles(pid: int) -> tuple[float, int]:
    """MB, and open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
def test_memory_and_handles_stay_flat_over_ten_thousand_steps():
    with folder() as where:
        flags = ["--batch-size", "1", "--max-steps", "10000", "--base-channels", "8"]
        process = Process(where, [*SMALL, *flags])
        measured = []
        for step in (2000, 6000, 9900):
            while process.steps.value < step and process.process.is_alive():
                time.sleep(0.01)
            measured.append(memory_and_handles(process.process.pid))
        process.process.join(300)
        assert process.end().code == 0
    (first, handles), _, (last, handles_at_the_end) = measured
    assert last - first < 20
    assert handles_at_the_end == handles
    end = f"{last - first:+.1f} MB from step 2,000 to 9,900, {handles} open files throughout"
    count("10,000 steps", 1, 1, end)
