"""Trainings in processes of their own, to be killed from outside; and the table of faults injected.

Every process is forked from a server that has imported torch once, so a trial costs its steps and
not its imports. A counter in shared memory tells the step, so that faults hit where they are meant.
"""

import ctypes
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import torch._dynamo  # a second, which the first optimizer of every trial would take
import torch.utils.flop_counter
from PIL import Image

import data.datasets
import train
from data.digits import draw_digits
from data.image_set import TensorSet
from evaluation.features import LabeledImages, cache_path, load_or_train
from evaluation.tasks import task_of
from utils import checkpoint, pytree

ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # where the server imports from
Image.preinit()
SERVED = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
FORK = multiprocessing.get_context("forkserver" if SERVED else "spawn")
CHILDREN = ("test_command_line", "test_download", "test_environment", "test_hostile_checkpoints")
if SERVED:
    FORK.set_forkserver_preload(["faults", "sabotage", *CHILDREN])  # imported once for all of them
SECONDS = 400  # after which a process counts as hanging: to compile a network takes up to 200
STEPS = 20
FORECAST_SECONDS = 0.1  # of the timed steps of --dry-run; 2 where its numbers are for somebody
NETWORK = [
    *("--dataset", "digits", "--device", "cpu", "--base-channels", "8", "--emb-channels", "16"),
    *("--channel-multipliers", "1", "--attention-levels", "--heads", "2", "--patch-size", "7"),
    *("--timesteps", "50", "--steps", "2", "--warmup-steps", "5", "--dropout", "0.1"),
    *("--batch-size", "20", "--min-epoch-images", "1", "--eval-every", "5"),
]  # 5 steps an epoch, and between validations; 15,000 parameters
SMALL = [*NETWORK, "--epochs", "0", "--max-steps", str(STEPS)]
AGAIN = [*SMALL, "--resume", "auto"]  # the command that is given again and again until it succeeds

ROWS: list[tuple[str, int, int, str]] = []  # fault, trials, faults that hit, outcome


def nobody_can_import() -> bool:
    """Whether another user may enter the folders of what is imported late."""
    if not hasattr(os, "getuid"):  # Windows
        return False
    folders = [*Path(torch.__file__).parents, *Path(__file__).parents]
    return os.getuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in folders)


needs_nobody = pytest.mark.skipif(
    not nobody_can_import(), reason="a user without rights cannot import torch, or this repository"
)


def count(fault: str, trials: int, hits: int, outcome: str) -> None:
    """Note what a test did, for the table at the end."""
    ROWS.append((fault, trials, hits, outcome))


def a_dozen_times(test: Callable) -> Callable:
    """A test that is done once in the fast tier, and twelve times more in the slow one."""
    trials = [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 13))]
    repeated = pytest.mark.parametrize("trial", trials, indirect=True)(test)
    return pytest.mark.usefixtures("trial")(repeated)


def table() -> list[str]:
    """All that was noted, as Markdown: a row for each fault, whichever tests counted it."""
    merged: dict[str, tuple[int, int, str]] = {}
    for fault, trials, hits, end in ROWS:
        before = merged.get(fault, (0, 0, ""))
        merged[fault] = (before[0] + trials, before[1] + hits, end)
    rows = merged.items()
    lines = [f"| {fault} | {trials:,} | {hits:,} | {end} |" for fault, (trials, hits, end) in rows]
    return ["| fault | trials | hits | outcome |", "|---|---|---|---|", *lines]


def two_at_a_time(trial: Callable[[int], object], trials: int) -> list:
    """The results of trial(0), trial(1) ...; threads, as every trial waits for a process."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(trial, range(trials)))


@contextmanager
def folder():
    """A folder of its own, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass
class Ended:
    """How a process ended: its exit code (negative: the signal) and what it printed."""

    code: int
    step: int  # the last that began
    out: str
    err: str


class Process:
    """``train.main(argv)`` in a folder, in a process of its own; ``hook`` names what to break."""

    def __init__(
        self,
        where: Path,
        argv: list[str],
        hook: str = "",
        argument: int = 0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.where = where
        self.steps = FORK.RawValue(ctypes.c_int64, 0)
        arguments = (str(where), argv, self.steps, hook, argument, environment or {})
        self.process = FORK.Process(target=child, args=arguments)
        self.process.start()

    def wait_for(self, step: int) -> bool:
        """True once this step has begun; False where the process ended before."""
        ends = time.monotonic() + SECONDS
        while self.steps.value < step:
            if not self.process.is_alive() or time.monotonic() > ends:
                return False
            time.sleep(0.0005)
        return True

    def kill(self, number: int = 9) -> None:  # SIGKILL
        os.kill(self.process.pid, number)

    def end(self) -> Ended:
        """Wait for the end; a process that hangs is killed, and its code says so."""
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"a process hung in {self.where}")
        out, err = ((self.where / name).read_text() for name in ("out", "err"))
        return Ended(self.process.exitcode, self.steps.value, out, err)


def run(where: Path, argv: list[str], hook: str = "", argument: int = 0) -> Ended:
    """To its end."""
    return Process(where, argv, hook, argument).end()


def child(where: str, argv: list[str], steps, hook: str, argument: int, environment: dict) -> None:
    """The life of a process."""
    os.chdir(where)
    os.environ.update(environment)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    child_prelude()
    original = train.train_step

    def counted(state, x_0, y):
        steps.value = state.step
        return original(state, x_0, y)

    train.train_step = counted
    if hook:
        module, name = hook.split(".")
        getattr(importlib.import_module(module), name)(argument)
    code = train.main(argv)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


def child_prelude() -> None:
    """What every process needs: a small data set, one thread, a quick --dry-run."""
    torch.set_num_threads(1)
    data.datasets.DATASETS["digits"] = few_digits
    train.FORECAST_SECONDS = FORECAST_SECONDS


DRAWN = {part: draw_digits(part, size=100) for part in (True, False)}
DIGITS = tuple("0123456789")


def opener(drawn: dict) -> Callable:
    """An entry of data.DATASETS: these images (and labels) as training and test set."""
    sets = tuple(TensorSet("digits", "drawn", DIGITS, *drawn[part]) for part in (True, False))
    return lambda _options, _loading: sets


few_digits = opener(DRAWN)


def write_pictures(folder: Path) -> None:
    """Twenty PNG files."""
    folder.mkdir(exist_ok=True)
    for i in range(20):
        Image.new("L", (28, 28), 9 * i).save(folder / f"{i}.png")


def store_classifier(root: Path, drawn: dict = DRAWN) -> None:
    """A feature extractor of few steps, where evaluate.py looks for one of these digits."""
    images, _ = opener(drawn)(None, None)
    train_set, test_set = (LabeledImages(*drawn[part]) for part in (True, False))
    task = task_of(images)
    path = cache_path(root / "classifiers", images, task)
    load_or_train(train_set, test_set, task, path, steps=20)


def checkpoints(where: Path, version: int = 0) -> dict[int, Path]:
    """By step."""
    return checkpoint.steps(where / f"Logs_Checkpoints/checkpoints/version_{version}")


def newest(where: Path) -> dict:
    """The newest checkpoint, verified."""
    return checkpoint.load(checkpoint.find("latest", where / "Logs_Checkpoints"))


def leftovers(where: Path) -> list[Path]:
    """Half-written files and locks."""
    return [*where.rglob("*.partial"), *where.rglob("*.lock")]


def result(where: Path) -> str:
    """The digest of all that the newest run computed, bit for bit."""
    return pytree.digest(checkpoint.result(newest(where)))
