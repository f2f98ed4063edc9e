"""What tests/faults.py breaks in a training of its own process, each from the inside.

Every function takes one number, and is called before the training starts.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import tensorboard

import data.sets
import train
from utils import checkpoint, runs


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth(n: int, original, instead):
    """``original`` until its n-th call, which is ``instead``'s."""
    calls = 0

    def wrapper(*arguments, **options):
        nonlocal calls
        calls += 1
        return (instead if calls == n else original)(*arguments, **options)

    return wrapper


def in_save(patch) -> None:
    """Apply the patch within checkpoint.save alone, not while other files are written."""
    original = checkpoint.save

    def save(path, state):
        with patch():
            return original(path, state)

    checkpoint.save = save


def within_save(module, name: str, n: int, instead) -> None:
    """Inside the n-th save, ``module.name`` is ``instead``."""
    calls = 0
    original = getattr(module, name)

    @contextmanager
    def patch():
        nonlocal calls
        calls += 1
        if calls == n:
            setattr(module, name, instead)
        yield
        setattr(module, name, original)

    in_save(patch)


def die_half_written(n: int) -> None:
    """Half of the bytes are in the file and on the disk."""

    def half(content, file):
        torch.serialization.save(content, "whole")
        whole = Path("whole").read_bytes()
        file.write(whole[: len(whole) // 2])
        file.flush()
        die()

    within_save(torch, "save", n, half)


def die_before_fsync(n: int) -> None:
    within_save(os, "fsync", n, lambda _: die())


def die_before_replace(n: int) -> None:
    within_save(os, "replace", n, lambda *_: die())


def die_after_replace(n: int) -> None:
    replace = os.replace

    def and_die(*names):
        replace(*names)
        die()

    within_save(os, "replace", n, and_die)


def die_while_pruning(n: int) -> None:
    """After the first file is deleted."""
    unlink, prune = Path.unlink, checkpoint.prune

    def and_die(path, **options):
        unlink(path, **options)
        die()

    def instead(*arguments):
        Path.unlink = and_die
        prune(*arguments)
        Path.unlink = unlink  # there was nothing to delete
        die()

    checkpoint.prune = nth(n, prune, instead)


IN_SAVE = (
    die_half_written,
    die_before_fsync,
    die_before_replace,
    die_after_replace,
    die_while_pruning,
)


def save_in_place(n: int) -> None:
    """A control: as most programs save. Dies half-way in the n-th save."""

    @contextmanager
    def naive(path):
        with open(path, "wb") as file:
            yield file

    checkpoint.whole_file = naive
    die_half_written(n)


def draw_from_a_state(_: int) -> None:
    """A control: randomness that goes on instead of being keyed."""
    shared = torch.Generator().manual_seed(0)
    train.generator = lambda *_: shared


def log_without_purge(_: int) -> None:
    """A control: curves that do not say where they go on."""
    original = tensorboard.SummaryWriter
    tensorboard.SummaryWriter = lambda folder, **_: original(folder)


def file_size_limit(limit: int) -> None:
    """No file may grow past this size: a real write that fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def full_disk(n: int) -> None:
    """The n-th checkpoint goes to /dev/full, where every write fails with ENOSPC."""
    original, calls = checkpoint.save, 0

    def save(path, state):
        nonlocal calls
        calls += 1
        if calls == n:
            os.symlink("/dev/full", path.with_name(f".{path.name}.{os.getpid()}.partial"))
        return original(path, state)

    checkpoint.save = save


def at_step(step: int, action) -> None:
    """Call action(run folders) when this step begins."""
    original, folders = train.train_step, []
    only_writer = runs.only_writer

    def noted(folder):
        folders.append(runs.run_of(folder / "x"))
        return only_writer(folder)

    def train_step(training, *rest):
        if training.step == step and folders:
            action(folders.pop())
        return original(training, *rest)

    runs.only_writer, train.train_step = noted, train_step


def remove_checkpoints(step: int) -> None:
    at_step(step, lambda run: shutil.rmtree(run.checkpoints))


def remove_logs(step: int) -> None:
    at_step(step, lambda run: shutil.rmtree(run.logs))


def be_nobody(_: int) -> None:
    """Root may write everywhere; nobody may not."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def broken_images(first: int) -> None:
    """From this step on the images are NaN."""
    poison_images(lambda step: step >= first)


def broken_images_once(step: int) -> None:
    """In this step and in no other."""
    poison_images(lambda now: now == step)


def broken_images_twice(first: int) -> None:
    """In this step and the next, and in no other."""
    poison_images(lambda step: step in (first, first + 1))


def poison_images(broken) -> None:
    original = train.train_step

    def train_step(state, x_0, y):
        x_0 = x_0 * float("nan") if broken(state.step) else x_0
        return original(state, x_0, y)

    train.train_step = train_step


def infinite_loss(first: int) -> None:
    """From this step on the loss is infinite while the gradient would be finite."""
    original = train.train_step

    def train_step(training, *rest):
        if training.step >= first:
            diffusion = training.diffusion
            losses = type(diffusion).losses
            diffusion.losses = lambda *a: losses(diffusion, *a) + float("inf")
        return original(training, *rest)

    train.train_step = train_step


def broken_weight(step: int) -> None:
    """A weight becomes NaN by itself, as by a memory fault."""
    original = train.train_step

    def train_step(training, *rest):
        if training.step == step:
            with torch.no_grad():
                next(training.model.parameters()).view(-1)[0] = float("nan")
        return original(training, *rest)

    train.train_step = train_step


def slow_save(n: int, seconds: float) -> None:
    """The n-th checkpoint takes this long to write, and says by a file that it began."""
    original = checkpoint.torch.save

    def slow(*arguments):
        Path("saving").touch()
        time.sleep(seconds)
        return original(*arguments)

    checkpoint.torch.save = nth(n, original, slow)


def sleep_in_save(n: int) -> None:
    """So that a signal finds the process inside a save."""
    slow_save(n, 1.0)


def hang_in_save(n: int) -> None:
    """So that only what does not wait for the save ends before it."""
    slow_save(n, 30.0)


def stop_at(step: int) -> None:
    """SIGTERM comes while this step is under way."""
    before_step(lambda training: training.step == step and os.kill(os.getpid(), signal.SIGTERM))


def stop_once_planned(_: int) -> None:
    """SIGTERM comes in the first step after the speed is known."""
    before_step(lambda training: training.schedule and os.kill(os.getpid(), signal.SIGTERM))


def explode(step: int) -> None:
    """From this step on the learning rate is absurd."""

    def absurd(training) -> None:
        if training.step == step:
            for group in (group for o in training.optimizers for group in o.param_groups):
                group["initial_lr"] = 1e20

    before_step(absurd)


def workers(n: int) -> None:
    """So many processes read the images."""
    data.sets.workers = lambda: n


def kill_a_worker(step: int) -> None:
    """One of the processes that read the images dies when this step begins."""

    def kill(training) -> None:
        if training.step == step:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(0.3)  # so that its death is noticed within the step, not while waiting

    before_step(kill)


def before_step(action) -> None:
    """Call action(training) at the beginning of every step."""
    original = train.train_step

    def train_step(training, *rest):
        action(training)
        return original(training, *rest)

    train.train_step = train_step


def interrupt_while_opening_data(_: int) -> None:
    original = train.load_data

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    train.load_data = interrupted
