"""Checkpoints: one file of plain values and tensors, written atomically.

``torch.load`` does not notice flipped bits, so every file carries a SHA-256 of its content, which
is compared on load. They are read by utils.safe_load and in no other way.
"""

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from utils.devices import out_of_memory
from utils.errors import InputError
from utils.files import anything_goes, whole_file
from utils.pytree import digest, mismatches, not_finite
from utils.run_names import version_of
from utils.safe_load import check_archive, check_size, safe_load

FORMAT, FORMAT_VERSION = "ddpm-checkpoint", 1
EXPORTED = "model.safetensors"  # in the folder of an exported model, see utils.exported
PARTS = ("config", "step", "epoch", "model", "ema", "optimizer", "scheduler", "best")
TRAINING = frozenset({"model", "optimizer"})  # what sampling does without
SAMPLING = tuple(part for part in PARTS if part not in TRAINING)
# What training computed: a run that was interrupted and resumed has it bit for bit.
RESULT = ("step", "epoch", "model", "ema", "optimizer", "scheduler", "best", "x0_error")
RESULT += ("by_quarter", "loss_moments", "value_prior")


class CheckpointError(InputError):
    """A checkpoint that cannot be written, found or trusted; names the path and the reason."""


class DamagedError(CheckpointError):
    """A checkpoint whose content is not what was written."""


def save(
    path: Path,
    state: Mapping[str, Any],
    kind: str = FORMAT,
    check: Callable[[], None] = anything_goes,
) -> None:
    """Write the state so that at no instant, not even under kill -9, half a file has the name.

    Raises CheckpointError, also for values that are not finite; an earlier file of this name is
    then as it was. check: as of whole_file.
    """
    content = {"format": kind, "format_version": FORMAT_VERSION, **state}
    try:
        check_size(content)
        if name := not_finite(content):
            raise ValueError(f"{name} is not finite")
        with whole_file(path, check) as file:
            torch.save({**content, "sha256": digest(content)}, file)
            file.flush()
            check_archive(Path(file.name))  # what load would refuse is not to be kept
    except ValueError as e:
        raise CheckpointError(f"cannot write {path}: {e}") from e
    except OSError as e:
        raise CheckpointError(f"cannot write {path}: {e.strerror}") from e
    except RuntimeError as e:  # torch hides a full disk behind one of these
        reason = e.__context__.strerror if isinstance(e.__context__, OSError) else e
        raise CheckpointError(f"cannot write {path}: {reason}") from e


def load(path: Path, kind: str = FORMAT, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """The verified content, tensors on the CPU. Raises CheckpointError.

    kind: what it was saved as; parts: what it must have. DamagedError is for a file that was read
    and is not what was written: lack of memory, or a disk that fails, say nothing about it.
    """
    if path.name == EXPORTED:
        raise CheckpointError(f"{path} is an exported model: it has nothing to resume from")
    try:
        return check(path, safe_load(path), kind, parts)
    except CheckpointError:
        raise
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception as e:
        if out_of_memory(e):
            size = path.stat().st_size / 2**20
            reason = f"not enough memory for its {size:,.0f} MB; free some, and try again"
            raise CheckpointError(f"cannot read {path}: {reason}") from e
        if not is_of_content(path, e):
            raise CheckpointError(f"cannot read {path}: {type(e).__name__}: {e}") from e
        raise DamagedError(f"{path} is damaged or not a checkpoint ({type(e).__name__})") from e


def is_of_content(path: Path, error: Exception) -> bool:
    """Whether it is the bytes of the file that made safe_load fail."""
    if isinstance(error, ValueError | zipfile.BadZipFile | pickle.UnpicklingError):
        return True
    if "PytorchStreamReader" in str(error):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None  # by the CRC-32 of each entry
    except (ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return True


def check(path: Path, content: Any, kind: str, parts: Collection[str]) -> dict[str, Any]:
    """The content, verified. Raises CheckpointError."""
    if not isinstance(content, dict) or content.get("format") != kind:
        raise DamagedError(f"{path} is not a checkpoint of this program")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('format_version')}, this program reads "
            f"version {FORMAT_VERSION}: use the release that wrote it"
        )
    if not is_intact(content):
        raise DamagedError(f"{path} is damaged: its content does not match its SHA-256")
    if missing := [part for part in parts if part not in content]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    if name := not_finite(content):
        raise CheckpointError(f"{path} cannot be used: {name} is not finite")
    return content


def is_intact(content: dict[str, Any]) -> bool:
    """Take the SHA-256 out of the content and compare it with what is left."""
    expected = content.pop("sha256", None)
    try:
        return digest(content) == expected
    except (TypeError, ValueError):  # holds what save never writes
        return False


def result(content: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that training computed; ``pytree.digest`` of them compares two runs."""
    return {part: content.get(part) for part in RESULT}


def check_fits(path: Path, part: str, found: Any, expected: Mapping[str, Any]) -> None:
    """CheckpointError with the first differences unless keys, shapes and types are the expected."""
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not fit: {part} is not a dict of tensors")
    if lines := mismatches(found, expected):
        raise CheckpointError(f"{path} does not fit its configuration: {part}: {'; '.join(lines)}")


def filename(step: int) -> str:
    """The file name of the checkpoint taken after this step."""
    return f"step_{step:08d}.pt"


def ema_filename(step: int) -> str:
    """The file name of the EMA weights alone."""
    return f"ema_{step:08d}.pt"


def steps(folder: Path, kind: str = "step", ending: str = "pt") -> dict[int, Path]:
    """The checkpoints in a folder by step, rising; or other files that are named by a step."""
    name = re.compile(rf"{kind}_([0-9]{{1,18}})\.{ending}")
    found = [(name.fullmatch(path.name), path) for path in folder.glob("*")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a version folder."""
    return next(reversed(steps(folder).values()), None)


def exported(folder: Path) -> Path | None:
    """The file of the weights in the folder of an exported model; None in another folder."""
    path = folder / EXPORTED
    return path if path.exists() else None


def newest_version(root: Path) -> Path | None:
    """The highest version folder under a run root that holds a checkpoint."""
    found = [path for path in root.glob("checkpoints/version_*") if newest(path)]
    numbered = [path for path in found if re.fullmatch(r"version_\d+", path.name)]
    return max(numbered, key=lambda path: int(path.name.removeprefix("version_")), default=None)


def newest_intact(root: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """The newest intact checkpoint, loaded, and newer ones of its version that are damaged.

    By version and step, not by time. None where there is none at all; CheckpointError
    where all are damaged, and for one that is intact but cannot be used.
    """
    folder, damaged = newest_version(root), []
    if folder is None:
        return None
    for path in reversed(steps(folder).values()):
        try:
            return path, load(path), damaged
        except DamagedError as e:
            reason = str(e)
            damaged.append(path)
    raise CheckpointError(
        f"none of the {len(damaged)} checkpoints in {folder} is intact ({reason}): "
        "leave out --resume to start anew"
    )


def set_aside(files: Iterable[Path], why: str) -> None:
    """Rename files to NAME.why; nothing is overwritten."""
    for path in files:
        aside = path.with_name(f"{path.name}.{why}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.{why}")
        path.rename(aside)


def find(where: str | Path, root: Path) -> Path:
    """Resolve what --ckpt and --resume take: ``latest``, a run's name or number, or a path.

    The path is that of a file, a version folder or the folder of an exported model; ./NAME is a
    path also where a run has the name. Raises CheckpointError when nothing is there, RunNameError
    when several runs have the name.
    """
    version = version_of(str(where), root)
    path = root / "checkpoints" / version if version else Path(where)
    if str(where) == "latest":
        path = newest_version(root)
    if path is None:
        raise CheckpointError(f"no checkpoint under {root}: train one first with python train.py")
    try:
        path.stat()
    except OSError as e:
        raise CheckpointError(f"no checkpoint at {path}: {e.strerror}") from e
    if path.is_dir():
        folder, path = path, newest(path) or exported(path)
        if path is None:
            raise CheckpointError(f"no checkpoint step_*.pt in {folder}, and no {EXPORTED}")
    return path


def prune(folder: Path, best: Collection[int], keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and those of the best steps."""
    taken = steps(folder)
    for step in list(taken)[:-keep]:
        if step not in best:
            with suppress(OSError):  # what cannot be deleted only takes space
                taken[step].unlink()
