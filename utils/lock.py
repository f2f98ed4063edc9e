"""One writer per folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "writer.lock"


class LockError(Exception):
    """A folder that another process writes to; names the folder and the process."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """No other process writes to the folder while ``with`` lasts.

    The system lets go of the lock when its process ends, however that comes about, so the lock of
    a dead one is simply taken over. Raises LockError at once where a living one holds it.
    """
    path = folder / NAME
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
            path.unlink()  # while it is held, so that nobody else's is deleted
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
    """What the lock's file says; it may be new, or gone by now."""
    with suppress(OSError):
        return path.read_text().strip() or "another process"
    return "another process"
