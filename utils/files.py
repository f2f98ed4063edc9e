"""Files that are whole under their name or not there, even after kill -9; one writer per folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

LOCK = "writer.lock"


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write atomically: a temporary file that replaces ``path`` at the end of ``with``.

    Written beside its place, flushed to the disk, renamed, and the folder flushed too. Raises
    OSError; then, as after any other error inside ``with``, what was there before is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as e:
        raise OSError(
            e.errno, e.strerror, str(path)
        ) from e  # the final name, not the partial file's
    finally:
        with suppress(OSError):  # where the folder itself is gone
            partial.unlink(missing_ok=True)


@contextmanager
def new_folders(folder: Path) -> Iterator[None]:
    """Make the folder and those around it; what is new and still empty at the end goes again.

    Raises OSError where it cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:  # from the inside
            with suppress(OSError):  # not empty, or it was never made
                path.rmdir()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: Path) -> None:
    """Delete the temporary files of killed processes; only for the folder's one writer."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


class LockError(InputError):
    """A folder that another process writes to; names the folder and the process."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """No other process writes to the folder while ``with`` lasts.

    The system lets go of the lock when its process ends, however that comes about, so the lock of
    a dead one is simply taken over. Raises LockError at once where a living one holds it.
    """
    path = folder / LOCK
    handle = None
    try:
        while handle is None:
            handle = take(path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BlockingIOError as e:
        owner = owner_of(path)
        raise LockError(f"{folder} is being written by {owner}: wait for it or stop it") from e
    except OSError as e:
        raise LockError(f"cannot lock {path}: {e.strerror}") from e
    try:
        yield
    finally:
        with suppress(OSError):  # where the folder is gone
            path.unlink()  # while it is held: afterwards it may be another process's
        os.close(handle)


def take(path: Path) -> int | None:
    """The locked file; None where its last owner deleted it meanwhile. BlockingIOError if held."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def owner_of(path: Path) -> str:
    """The owner that the lock file names; the file may be empty, or gone by now."""
    with suppress(OSError):
        return path.read_text().strip() or "another process"
    return "another process"
