"""The faults that tests/faults.py injects into a training of its own process, from the inside.

Every function takes one number, and is called before the training starts.
"""

import _multiprocessing
import _posixshmem
import errno
import os
import resource
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

import data.datasets
import data.image_set
import data.reading
import data.threads
import train
import training.state
import training.validate
from data import ReadError
from training import events
from training.clock import Clock
from utils import checkpoint, files, runs


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


def before_step(action) -> None:
    """Call action(state) at the beginning of every step."""
    original = train.train_step

    def train_step(state, x_0, y):
        action(state)
        return original(state, x_0, y)

    train.train_step = train_step


# Inside a save.


def within_save(module, name: str, n: int, instead) -> None:
    """``module.name`` is ``instead`` in the n-th checkpoint.save, and in no other write."""
    save, original = checkpoint.save, getattr(module, name)

    def broken(*arguments, **options):
        setattr(module, name, instead)
        try:
            return save(*arguments, **options)
        finally:
            setattr(module, name, original)

    checkpoint.save = nth(n, save, broken)


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
    def naive(path, _):
        with open(path, "wb") as file:
            yield file

    checkpoint.whole_file = naive
    die_half_written(n)


def full_disk(n: int) -> None:
    """The n-th checkpoint goes to /dev/full, where every write fails with ENOSPC."""
    save = checkpoint.save

    def to_full(path, *arguments, **options):
        os.symlink("/dev/full", path.with_name(f".{path.name}.{os.getpid()}.partial"))
        return save(path, *arguments, **options)

    checkpoint.save = nth(n, save, to_full)


def slow_save(n: int, seconds: float) -> None:
    """The n-th checkpoint takes this long to write; the file ``saving`` appears as it begins."""
    save = checkpoint.save

    def slow(*arguments, **options):
        Path("saving").touch()
        time.sleep(seconds)
        return save(*arguments, **options)

    checkpoint.save = nth(n, save, slow)


def sleep_in_save(n: int) -> None:
    """So that a signal finds the process inside a save."""
    slow_save(n, 1.0)


def hang_in_save(n: int) -> None:
    """So that only what does not wait for the save ends before it."""
    slow_save(n, 30.0)


# Controls: programs without a property that ours has.


def randomness_of_the_process(_: int) -> None:
    """Keys count the steps of this process, so that a resumed one repeats the first ones."""
    original, taken = train.train_step, 0

    def train_step(state, x_0, y):
        nonlocal taken
        taken += 1
        keyed = state.config
        state.config = keyed.override(seed=taken)
        try:
            return original(state, x_0, y)
        finally:
            state.config = keyed

    train.train_step = train_step


def log_without_purge(_: int) -> None:
    """Curves without the step from which they replace earlier ones."""
    events.EventWriter.purge = lambda *_: None


# The machine.


def file_size_limit(limit: int) -> None:
    """No file may grow past this size: a real write that fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def memory_limit(megabytes: int) -> None:
    """While a checkpoint is read, the process may take so much more memory: a real shortage."""
    load = checkpoint.load

    def limited(*arguments):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + megabytes * 2**20
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
        try:
            return load(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    checkpoint.load = limited


def little_memory(module, name: str, megabytes: int) -> None:
    """From the first call of module.name on, the process may take so much more: a real shortage."""
    original = getattr(module, name)

    def limited(*arguments, **options):
        if not resource.getrlimit(resource.RLIMIT_AS)[0] > 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * resource.getpagesize() + megabytes * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        return original(*arguments, **options)

    setattr(module, name, limited)


def little_memory_in_creation(megabytes: int) -> None:
    little_memory(training.state, "build", megabytes)


def little_memory_in_a_step(megabytes: int) -> None:
    little_memory(train, "backward", megabytes)


def little_memory_in_validation(megabytes: int) -> None:
    little_memory(training.validate, "held_out_losses", megabytes)


def little_memory_in_drawing(megabytes: int) -> None:
    little_memory(sys.modules["diffusion.generate"], "generate", megabytes)


def no_memory(step: int) -> None:
    """What this step needs is not to be had: torch's allocator says so."""
    before_step(lambda state: state.step == step and torch.empty(2**50))


def no_memory_for_python(step: int) -> None:
    before_step(lambda state: state.step == step and bytearray(2**50))


def no_memory_for_creation(_: int) -> None:
    training.state.build = lambda _: bytearray(2**50)


def no_memory_on_the_gpu(step: int) -> None:
    """The error as CUDA has it, as there is none here."""

    def fail(state) -> None:
        if state.step == step:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ..."
            )

    before_step(fail)


def no_threads(threads: int) -> None:
    """torch wants so many, and the system starts none."""
    be_nobody(0)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    torch.set_num_threads(threads)


def without_tensorboard(_: int) -> None:
    """It is not installed."""
    for name in [name for name in sys.modules if "tensorboard" in name]:
        del sys.modules[name]
    sys.modules["tensorboard"] = None


def with_a_broken_tensorboard(_: int) -> None:
    """One that does not fit another package fails in its own way."""

    def fail(_) -> None:
        raise TypeError("Descriptors cannot be created directly.")

    events.EventWriter.open = fail


def remove_checkpoints(step: int) -> None:
    before_step(lambda state: state.step == step and shutil.rmtree(run_of(state).checkpoints))


def remove_logs(step: int) -> None:
    before_step(lambda state: state.step == step and shutil.rmtree(run_of(state).logs))


def lose_folders(step: int) -> None:
    """The version's folders are renamed when this step begins; it goes on once ``go`` is there."""

    def lose(state) -> None:
        if state.step == step:
            move_folders(run_of(state))

    before_step(lose)


def move_folders(run: runs.Run) -> None:
    """And wait until another run may have taken their place."""
    for path in (run.logs, run.checkpoints):
        path.rename(path.with_name("moved"))
    wait_for_go()


def lose_folders_in_save(step: int) -> None:
    """They are renamed while the next checkpoint is written: it looked whose folder it is."""
    states, lost, original = [], [], checkpoint.not_finite
    before_step(states.append)

    def not_finite(content):
        if content.get("step", 0) >= step and not lost:
            lost.append(True)
            move_folders(run_of(states[-1]))
        return original(content)

    checkpoint.not_finite = not_finite


def lose_folders_in_save_unclaimed(step: int) -> None:
    """A control: a run that looks before and after writing, but not right before it replaces."""
    whole = checkpoint.whole_file
    checkpoint.whole_file = lambda path, _: whole(path)
    lose_folders_in_save(step)


def delete_owner(step: int) -> None:
    """Before every step from this one on, the file that names the writer is gone."""
    before_step(
        lambda state: state.step >= step and (run_of(state).checkpoints / files.OWNER).unlink(True)
    )


def lose_folders_unclaimed(step: int) -> None:
    """A control: a run that writes to whatever has the name of its folder."""
    files.Claim.check = lambda _: None
    lose_folders(step)


def delete_folders(step: int) -> None:
    """They are deleted."""

    def delete(state) -> None:
        if state.step == step:
            run = run_of(state)
            shutil.rmtree(run.logs)
            shutil.rmtree(run.checkpoints)
            wait_for_go()

    before_step(delete)


def wait_for_go() -> None:
    """Say so in the file ``lost``, and wait for the file ``go``."""
    Path("lost").touch()
    ends = time.monotonic() + 60
    while not Path("go").exists() and time.monotonic() < ends:
        time.sleep(0.005)


def run_of(state) -> runs.Run:
    """The run of a training that has saved a checkpoint."""
    return runs.run_of(state.saved)


def clock_of_steps(seconds) -> None:
    """A clock of training that the steps alone advance: no result depends on the machine's load.

    seconds(n): those of the n-th step of this process.
    """
    now, taken = 1000.0, 0

    def advance(_) -> None:
        nonlocal now, taken
        taken += 1
        now += seconds(taken)

    train.Clock = partial(Clock, clock=lambda: now)
    before_step(advance)


def steps_take(milliseconds: int) -> None:
    clock_of_steps(lambda _: milliseconds / 1000)


def busy_at_first(steps: int) -> None:
    """The machine does something else as well, until so many steps of two seconds are done."""
    clock_of_steps(lambda n: 2.0 if n <= steps else 0.4)


def resolve_links(_: int) -> None:
    """A control: the run of a checkpoint is looked for where its links lead."""
    runs.placed = lambda path: path.resolve()


def set_clock(seconds: int) -> None:
    """The system's clock is ahead by so many seconds."""
    now = time.time
    time.time = lambda: now() + seconds


def set_clock_and_trust_it(seconds: int) -> None:
    """A control: event files are named by the clock alone, as by TensorBoard's own writer."""
    set_clock(seconds)
    events.next_number = lambda _: int(time.time())


def be_nobody(_: int) -> None:
    """Root may write everywhere; nobody may not."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def stream(threads: int) -> None:
    """Images are decoded anew in every epoch, by so many threads."""
    data.reading.MAX_BYTES = 0
    data.image_set.num_threads = lambda: threads


def damage(files: int) -> None:
    """They stream, and before the fifth step so many files are cut short."""
    replace_files(files, lambda path: path.write_bytes(path.read_bytes()[:50]))


def replace_files(files: int, replace) -> None:
    """They stream, and before the fifth step so many files are replaced."""
    stream(2)

    def now(state) -> None:
        if state.step == 5:
            root = Path(state.config.data.data_root)
            for path in sorted(root.rglob("*.png"))[:files]:
                replace(path)

    before_step(now)


def hang(step: int) -> None:
    """They stream, and from this step on no file arrives: a network disk whose server is gone."""
    stream(2)
    data.threads.PATIENCE = 0.1

    def gone(state) -> None:
        if state.step == step:
            data.reading.read = lambda *_: threading.Event().wait()

    before_step(gone)


def hang_in_validation(_: int) -> None:
    """The first validation reads what does not arrive."""
    stream(2)
    data.threads.PATIENCE = 0.1
    measure = train.Validation.measure

    def gone(validation, state):
        data.reading.read = lambda *_: threading.Event().wait()
        next(validation.train_set.batches(torch.arange(4), 4))
        return measure(validation, state)

    train.Validation.measure = gone


def hang_before_the_first_step(_: int) -> None:
    """What is read of a set to validate on does not arrive."""
    hang_in_validation(0)
    original = train.Validation

    def gone(state, train_set, test_set):
        data.reading.read = lambda *_: threading.Event().wait()
        return original(state, train_set, test_set)

    train.Validation = gone


def hang_while_opening(_: int) -> None:
    """Files are listed, but do not arrive."""
    stream(2)
    data.threads.PATIENCE = 0.1
    data.reading.read = lambda *_: threading.Event().wait()


def pipes(files: int) -> None:
    """They stream, and before the fifth step so many files are pipes that nobody writes to."""
    replace_files(files, lambda path: (path.unlink(), os.mkfifo(path)))


def without_shared_memory(threads: int) -> None:
    """They stream where /dev/shm is not: neither a file in it nor a semaphore can be had."""
    stream(threads)
    remove_shared_memory()


def batches_through_shared_memory(threads: int) -> None:
    """A control: as workers that are processes hand over what they decoded."""
    stream(threads)
    before_step(lambda _: torch.zeros(9).share_memory_())
    remove_shared_memory()


def remove_shared_memory() -> None:
    def none(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm")

    def look(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith("/dev/shm"):
            none()

    sys.addaudithook(look)
    _posixshmem.shm_open = _multiprocessing.SemLock = none
    for name in ("_share_filename_cpu_", "_share_fd_cpu_"):
        setattr(torch.UntypedStorage, name, none)


def unreadable_in_validation(n: int) -> None:
    """The n-th validation meets one file too many that cannot be read."""

    def unreadable(*_) -> None:
        raise ReadError("cannot read a.png: cut short; that is file 10: is the disk in order?")

    train.Validation.measure = nth(n, train.Validation.measure, unreadable)


# Numbers that are not finite.


def broken_images(first: int) -> None:
    """From this step on the images are NaN."""
    break_images(lambda step: step >= first)


def broken_images_once(step: int) -> None:
    """In this step and in no other."""
    break_images(lambda now: now == step)


def broken_images_twice(first: int) -> None:
    """In this step and the next, and in no other."""
    break_images(lambda step: step in (first, first + 1))


def break_images(broken) -> None:
    original = train.train_step

    def train_step(state, x_0, y):
        x_0 = x_0 * float("nan") if broken(state.step) else x_0
        return original(state, x_0, y)

    train.train_step = train_step


def infinite_loss(first: int) -> None:
    """From this step on the loss is infinite while the gradient would be finite."""

    def add_infinity(state) -> None:
        if state.step >= first:
            diffusion = state.diffusion
            losses = type(diffusion).losses
            diffusion.losses = lambda *a: losses(diffusion, *a) + float("inf")

    before_step(add_infinity)


def broken_weight(step: int) -> None:
    """A weight becomes NaN by itself, as by a memory fault."""

    def set_nan(state) -> None:
        if state.step == step:
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0] = float("nan")

    before_step(set_nan)


def explode(step: int) -> None:
    """From this step on the learning rate is absurd."""

    def absurd(state) -> None:
        if state.step == step:
            for group in (group for o in state.optimizers for group in o.param_groups):
                group["initial_lr"] = 1e20

    before_step(absurd)


# Signals.


def stop_at(step: int) -> None:
    """SIGTERM comes while this step is under way."""
    before_step(lambda state: state.step == step and os.kill(os.getpid(), signal.SIGTERM))


def stop_once_scheduled(milliseconds: int) -> None:
    """SIGTERM comes in the first step after the throughput, and so the schedule, is known."""
    steps_take(milliseconds)
    before_step(lambda state: state.schedule and os.kill(os.getpid(), signal.SIGTERM))


def stop_once_refitted(steps: int) -> None:
    """SIGTERM comes so many steps after the schedule of --max-minutes was fitted anew."""
    busy_at_first(6)

    def stop(state) -> None:
        replanned = state.schedule and state.schedule.replanned
        if replanned and state.step == replanned[0] + steps:
            os.kill(os.getpid(), signal.SIGTERM)

    before_step(stop)


def signal_while_opening_data(number: int) -> None:
    """It comes before the first step, where nothing waits for it."""
    original = data.datasets.DATASETS["digits"]

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    data.datasets.DATASETS["digits"] = interrupted


def signal_before_the_first_step(number: int) -> None:
    """It comes when the folders of the run are made."""
    original = train.Validation

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    train.Validation = interrupted


def signal_while_preparing_scores(number: int) -> None:
    """It comes when --score-every has no feature extractor yet."""
    original = train.Scorer.of

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    train.Scorer.of = interrupted


def ignore(number: int) -> None:
    """As nohup does with SIGHUP, and a shell with its background jobs' SIGINT."""
    signal.signal(number, signal.SIG_IGN)


# Output.


def close_output(number: int) -> None:
    """As ``>&-`` and ``2>&-``: Python then has no such stream."""
    os.close(number)
    setattr(sys, {1: "stdout", 2: "stderr"}[number], None)


def leave_output(number: int) -> None:
    """As ``| head -0``: whoever read it is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)
