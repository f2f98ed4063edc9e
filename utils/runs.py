"""Numbered run folders: <root>/Inference/version_N and <root>/checkpoints/version_N."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import has_bf16
from utils.distributed import Ranks
from utils.errors import InputError, StoppedError, listed
from utils.files import (
    LOCK,
    OWNER,
    Claim,
    LockError,
    anything_goes,
    only_writer,
    remove_partial,
    whole_file,
)
from utils.pytree import not_finite
from utils.run_names import run_title, version_of

ROOT = Path(__file__).resolve().parent.parent  # of this repository
MOST_PATHS = 40  # of a checkpoint that are tried; links may lead in circles


class RunError(InputError):
    """A run folder that cannot be made or found; the message names the path and the reason."""


@dataclass(frozen=True)
class Run:
    """The two folders of one version."""

    logs: Path
    checkpoints: Path
    claim: Claim | None = field(default=None, compare=False)  # of the one that may write to them

    def save(self, step: int, content: Mapping[str, Any], best: Collection[int], keep: int) -> Path:
        """Write the checkpoint of this step; then delete all but the newest ``keep`` and the best.

        best: steps whose checkpoints are kept in any case. keep: 0 keeps all. CheckpointError where
        it cannot be written, and unless the folder is this run's, before and after.
        """
        path = self.checkpoints / checkpoint.filename(step)
        try:
            self.claim.check()
            checkpoint.save(path, content, check=self.claim.check)
            self.claim.check()
        except OSError as e:
            raise CheckpointError(f"cannot write {path}: {e.strerror}") from e
        if keep:
            checkpoint.prune(self.checkpoints, best, keep)
        return path

    def save_ema(self, step: int, content: Mapping[str, Any]) -> None:
        """Write the EMA weights of this step. Raises CheckpointError and OSError."""
        self.claim.check()
        path = self.checkpoints / checkpoint.ema_filename(step)
        checkpoint.save(path, content, check=self.claim.check)

    def go_back_to(self, step: int) -> None:
        """Rename later checkpoints and EMA weights: their steps will be trained again."""
        taken = [checkpoint.steps(self.checkpoints, kind) for kind in ("step", "ema")]
        later = [path for own in taken for n, path in own.items() if n > step]
        checkpoint.set_aside(later, "replaced")
        for path in later:
            print(f"{path}: that step is taken anew; kept as {path.name}.replaced", flush=True)

    def remove_unused(self, ranks: Ranks) -> None:
        """Delete both folders, if nothing was ever saved in that of the checkpoints."""
        with suppress(OSError):
            if ranks.first:
                self.checkpoints.rmdir()  # while the logs are there, no other run takes the number
                shutil.rmtree(self.logs)

    def sweep(self) -> None:
        """Delete what killed processes left in this and other runs: partial files, locks.

        Not where a living process holds the lock, nor where deleting is not allowed.
        """
        for folder in self.checkpoints.parent.glob("version_*"):
            other = run_of(folder / "any")
            with suppress(LockError, OSError):
                if any(path.name.endswith((".partial", LOCK, OWNER)) for path in folder.iterdir()):
                    with only_writer(folder):
                        remove_partial(other.checkpoints)
                        remove_partial(other.logs)


@contextmanager
def open_run(root: Path, resumed: Path | None, ranks: Ranks) -> Iterator[Run]:
    """The run that the resumed checkpoint lies in, or a new one; rank 0 is its only writer.

    A new run that a signal stops before its first step leaves nothing; one that fails leaves logs.
    """
    run = ranks.from_first(lambda: run_for(root, resumed))
    if ranks.first:
        run.sweep()
    print(f"Logging at: {run.logs}\nModel Checkpoint at: {run.checkpoints}", flush=True)
    try:
        with ranks.alone(only_writer(run.checkpoints)) as claim:
            yield replace(run, claim=claim)
    except KeyboardInterrupt:
        run.remove_unused(ranks)
        raise
    run.remove_unused(ranks)


def new_run(root: Path) -> Run:
    """Claim the next free version, the same number in both trees.

    ``mkdir`` decides who gets a number, so that two runs which start together cannot share one;
    names that are not version_<number> are ignored. Raises RunError where nothing can be written.
    """
    try:
        (root / "Inference").mkdir(parents=True, exist_ok=True)
        (root / "checkpoints").mkdir(exist_ok=True)
        number = max(versions(root), default=-1) + 1
        while not claim(root, number):
            number += 1
    except OSError as e:
        raise RunError(f"cannot make a run folder in {root}: {e.strerror}") from e
    return run_at(root, number)


def claim(root: Path, number: int) -> bool:
    """Make version_<number> in both trees; False where it was already taken in either."""
    run = run_at(root, number)
    if run.checkpoints.exists():
        return False
    try:
        os.mkdir(run.logs)
    except FileExistsError:
        return False
    os.mkdir(run.checkpoints)
    return True


def versions(root: Path) -> list[int]:
    """The numbers taken in either tree, rising."""
    names = [path.name for path in root.glob("*/version_*")]
    return sorted({int(m[1]) for name in names if (m := re.fullmatch(r"version_(\d+)", name))})


def upcoming(root: Path, resumed: Path | None) -> Path:
    """The logs of the run that comes next, which is not made: the resumed one's, or a new one's.

    Raises RunError where the run root cannot be read.
    """
    if resumed and is_in_run(resumed):
        return run_of(resumed).logs
    try:
        return run_at(root, max(versions(root), default=-1) + 1).logs
    except OSError as e:
        raise RunError(f"cannot make a run folder in {root}: {e.strerror}") from e


def run_at(root: Path, number: int) -> Run:
    """The two folders of a number."""
    name = f"version_{number}"
    return Run(root / "Inference" / name, root / "checkpoints" / name)


def run_for(root: Path, resumed: Path | None) -> Run:
    """The run that the resumed checkpoint lies in; a new one for a copied file, and without one.

    Raises RunError where its logs cannot be: they may have been deleted, or be a link to nothing.
    """
    if not (resumed and is_in_run(resumed)):
        return new_run(root)
    run = run_of(resumed)
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunError(f"cannot make {run.logs}: {e.strerror}") from e
    return run


def in_version(path: Path) -> bool:
    """Whether the names of its folders are those of a run."""
    folder = path.parent
    return folder.parent.name == "checkpoints" and bool(re.fullmatch(r"version_\d+", folder.name))


def placed(path: Path) -> Path:
    """The absolute path of a checkpoint, as it lies in its run.

    The folders of a run may be links to other disks, so no more links are followed than it takes to
    come to a path that is one of a run; all of them where none is.
    """
    reached = [without_dots(path.absolute())]  # by following no link, one, two, ...
    for known in reached:
        if in_version(known):
            return known
        for link in filter(os.path.islink, (known, *known.parents)):
            further = without_dots(link.parent / os.readlink(link) / known.relative_to(link))
            if further not in reached and len(reached) < MOST_PATHS:
                reached.append(further)
    return Path(os.path.realpath(path))


def without_dots(path: Path) -> Path:
    """Without "..": as the words say, unless a link before it makes that another folder."""
    plain = Path(os.path.normpath(path))
    said, real = plain.parent, path.parent
    if os.path.exists(real) and not (os.path.exists(said) and said.samefile(real)):
        return Path(os.path.realpath(real), path.name)
    return plain


def is_in_run(path: Path) -> bool:
    """Whether this checkpoint file lies in the folder of a run, or was copied elsewhere."""
    return in_version(placed(path))


def run_of(path: Path) -> Run:
    """The run that wrote this checkpoint file."""
    folder = placed(path).parent
    return Run(folder.parent.parent / "Inference" / folder.name, folder)


def logs_of(path: Path) -> Path:
    """The folder for outputs made from a checkpoint: its run's logs; beside it, if it is a copy."""
    return run_of(path).logs if is_in_run(path) else placed(path).parent


def find_logs(word: str, root: Path) -> Path:
    """The log folder of a run, by its name or number, ``latest``, or a path of it.

    Raises RunError where there is no such run, RunNameError where several have the name.
    """
    version, path = version_of(word, root), Path(word)
    if version:
        path = root / "Inference" / version
    elif word == "latest":
        path = checkpoint.newest_version(root) or path
    if not os.path.exists(path):  # also of words that can be no path
        known = [run_title(run_at(root, number).logs) for number in versions(root)]
        there = f"there are {listed(known)}" if known else "there are none"
        raise RunError(f"no run {word} under {root}: {there}")
    return logs_of(path / "any" if path.is_dir() else path)


def write_json(
    path: Path, values: Mapping[str, Any], check: Callable[[], None] = anything_goes
) -> None:
    """Readable, and complete or absent. StoppedError for NaN and infinity, which JSON lacks.

    check: as of whole_file.
    """
    try:
        text = json.dumps(values, indent=2, allow_nan=False)
    except ValueError as e:
        raise StoppedError(f"cannot write {path}: {not_finite(values)} is not finite") from e
    with whole_file(path, check) as file:
        file.write((text + "\n").encode())


def environment(device: torch.device) -> dict[str, str | int]:
    """What a result depends on besides the configuration."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "device": str(device),
        "gpu": gpu,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": "yes" if has_bf16(device) else "no",
        "threads": torch.get_num_threads(),
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "git": git_revision(),
    }


@cache
def git_revision(root: Path = ROOT, timeout: float = 5.0) -> str:
    """The commit of the code at the first call, "-dirty" where it was changed since.

    "unknown" without git, and where root is not a repository itself but lies in another one: git
    is told where the repository is, so that it looks for none around it.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"GIT_DIR": str(root / ".git"), "GIT_WORK_TREE": str(root), "GIT_OPTIONAL_LOCKS": "0"}
    captured = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        answer = subprocess.run(command, cwd=root, env=own, timeout=timeout, **captured)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"
