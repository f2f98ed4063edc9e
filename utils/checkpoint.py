"""Checkpoints: one file of plain values and tensors that is either whole or not there.

``torch.load`` does not notice flipped bits, so every file carries a SHA-256 of its content, which
is compared on load. Files are read with ``weights_only=True`` and nothing else is ever tried.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, FORMAT_VERSION = "ddpm-checkpoint", 1
PARTS = ("config", "step", "epoch", "model", "ema", "optimizer", "scheduler", "best")


class CheckpointError(Exception):
    """A checkpoint that cannot be written, found or trusted; names the path and the reason."""


def save(path: Path, state: Mapping[str, Any], kind: str = FORMAT) -> None:
    """Write the state so that at no instant, not even under kill -9, half a file has the name.

    Written beside its place, flushed to the disk, renamed, and the folder flushed too.
    Raises CheckpointError; an earlier file of this name is then as it was.
    """
    content = {"format": kind, "format_version": FORMAT_VERSION, **state}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save({**content, "sha256": digest(content)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as e:
        raise CheckpointError(f"cannot write {path}: {e.strerror}") from e
    except RuntimeError as e:  # torch hides a full disk behind one of these
        reason = e.__context__.strerror if isinstance(e.__context__, OSError) else e
        raise CheckpointError(f"cannot write {path}: {reason}") from e
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, kind: str = FORMAT, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """The verified content, tensors on the CPU. Raises CheckpointError.

    kind: what it was saved as; parts: what it must have.
    """
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception as e:  # what a damaged file makes the unpickler raise has no common class
        kind = type(e).__name__
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({kind})") from e
    if not isinstance(content, dict) or content.get("format") != kind:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('format_version')}, this program reads "
            f"version {FORMAT_VERSION}: use the release that wrote it"
        )
    if not is_intact(content):
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256")
    if missing := [part for part in parts if part not in content]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    return content


def is_intact(content: dict[str, Any]) -> bool:
    """Take the SHA-256 out of the content and compare it with what is left."""
    expected = content.pop("sha256", None)
    try:
        return digest(content) == expected
    except (TypeError, ValueError):  # holds what save never writes
        return False


def check_archive(path: Path) -> None:
    """ValueError unless it is an uncompressed zip that does not claim more than the file holds."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("larger inside than outside")


def digest(value: Any) -> str:
    """SHA-256 over the structure, types, shapes and bytes of plain values and tensors."""
    sha = hashlib.sha256()
    feed(sha, value)
    return sha.hexdigest()


def feed(sha: "hashlib._Hash", value: Any) -> None:
    """Every value is preceded by its type and size, so that no two contents read the same.

    Raises TypeError for what does not belong in a checkpoint, ValueError for a tensor whose
    strides claim more than its storage holds.
    """
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than its storage")
        sha.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        sha.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            feed(sha, key)
            feed(sha, item)
    elif isinstance(value, list | tuple):
        sha.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            feed(sha, item)
    elif value is None or type(value) in (bool, int, float, str):
        text = repr(value).encode()
        sha.update(f"{type(value).__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(f"{type(value).__name__} does not belong in a checkpoint")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def name(step: int) -> str:
    """The file name of the checkpoint taken after this step."""
    return f"step_{step:08d}.pt"


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by step, rising."""
    found = [(re.fullmatch(r"step_(\d+)\.pt", path.name), path) for path in folder.glob("*")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a version folder."""
    return next(reversed(steps(folder).values()), None)


def newest_of_all(root: Path) -> Path | None:
    """The checkpoint written last under a run root, over all versions."""
    files = [path for folder in root.glob("checkpoints/version_*") if (path := newest(folder))]
    return max(files, key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def find(where: str, root: Path) -> Path:
    """Resolve what --ckpt and --resume take: a file, a version folder, or ``latest``.

    Raises CheckpointError when nothing is there.
    """
    path = newest_of_all(root) if where == "latest" else Path(where)
    if path is None:
        raise CheckpointError(f"no checkpoint under {root}: train one first with python train.py")
    if path.is_dir():
        folder, path = path, newest(path)
        if path is None:
            raise CheckpointError(f"no checkpoint step_*.pt in {folder}")
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    return path


def prune(folder: Path, best_step: int | None, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    taken = steps(folder)
    for step in list(taken)[:-keep]:
        if step != best_step:
            taken[step].unlink(missing_ok=True)
