"""Files that are whole under their name or not there, even after kill -9; one writer per folder."""

import errno
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from utils.errors import InputError

LOCK, OWNER = "writer.lock", "writer.txt"
PATIENCE = 0.2  # seconds for a lock: the process before may be about to delete its own


def anything_goes() -> None:
    """No check."""


@contextmanager
def whole_file(path: str | Path, check: Callable[[], None] = anything_goes) -> Iterator[BinaryIO]:
    """Write atomically: a temporary file that replaces ``path`` at the end of ``with``.

    Written beside its place, flushed to the disk, renamed, and the folder flushed too. Raises
    OSError; then, as after any other error inside ``with``, what was there before is untouched.
    check: raises OSError where the file must not be replaced; called right before it is.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        check()
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as e:
        raise OSError(
            e.errno, e.strerror, str(path)
        ) from e  # the final name, not the partial file's
    finally:
        with suppress(OSError):  # where the folder itself is gone
            partial.unlink(missing_ok=True)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one folder: all of them or, where one cannot be written, none.

    Each is written whole before the first takes its name. Raises OSError.
    """
    with new_folders(folder), ExitStack() as stack:
        for name, content in contents.items():
            file = stack.enter_context(whole_file(folder / name))
            file.write(content)
            file.flush()


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


def check_writable(folder: Path) -> None:
    """OSError unless files can be made in the folder, or it in its parent. Left as it was."""
    with new_folders(folder), tempfile.TemporaryFile(dir=folder):
        pass


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can: Windows cannot."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno != errno.EINVAL:  # of file systems that only flush files
            raise
    finally:
        os.close(handle)


def remove_partial(folder: Path) -> None:
    """Delete the temporary files of killed processes; only for the folder's one writer."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


class LockError(InputError):
    """A folder that another process writes to; names the folder and the process."""


@dataclass(frozen=True)
class Claim:
    """A folder that this process alone writes to."""

    folder: Path
    owner: str  # the text of its file OWNER, which no other process shares
    inode: tuple[int, int]  # of the folder, with its device

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The claim of this process. Raises OSError where there is no such folder."""
        who = f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4()}\n"
        return cls(folder, who, inode_of(folder))

    def check(self) -> None:
        """OSError where the folder was moved or removed; another process's may be in its place.

        Where OWNER alone was deleted, it is written again.
        """
        path = self.folder / OWNER
        try:
            if not path.exists() and inode_of(self.folder) == self.inode:
                with path.open("x", encoding="utf-8") as file:
                    file.write(self.owner)
            owner = path.read_text(encoding="utf-8")
        except OSError as e:
            raise OSError(e.errno, f"{path}: {e.strerror}") from e
        if owner != self.owner:
            raise OSError(errno.ESTALE, f"{path}: now the folder of {owner_of(self.folder)}")


def inode_of(path: Path) -> tuple[int, int]:
    """What no other folder has while this one is open. Raises OSError."""
    about = path.stat()
    return about.st_dev, about.st_ino


@contextmanager
def kept_open(folder: Path) -> Iterator[None]:
    """Its inode is that of no other folder meanwhile, even if it is deleted. Raises OSError.

    Windows opens no folders, and deletes none in which a file is open.
    """
    handle = os.open(folder, os.O_RDONLY) if hasattr(os, "O_DIRECTORY") else None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def only_writer(folder: Path) -> Iterator[Claim]:
    """No other process writes to the folder while ``with`` lasts.

    The system lets go of the lock when its process ends, however that comes about, so the lock of
    a dead one is simply taken over. Raises LockError where a living one holds it.
    """
    lock = FileLock(folder / LOCK, timeout=PATIENCE, poll_interval=PATIENCE / 10)
    with ExitStack() as stack:
        try:
            stack.enter_context(kept_open(folder))
            claim = Claim.of(folder)
            lock.acquire()
            stack.callback(release, claim, lock)
            (folder / OWNER).write_text(claim.owner, encoding="utf-8")
        except Timeout as e:
            owner = owner_of(folder)
            raise LockError(f"{folder} is being written by {owner}: wait for it or stop it") from e
        except (OSError, NotImplementedError) as e:  # the latter where the file system has no locks
            reason = e.strerror if isinstance(e, OSError) else e
            raise LockError(f"cannot lock {folder / LOCK}: {reason}") from e
        yield claim


def release(claim: Claim, lock: FileLock) -> None:
    """Delete what marks the folder, unless it is another process's by now, and unlock it."""
    with suppress(OSError):
        claim.check()
        (claim.folder / OWNER).unlink()
        (claim.folder / LOCK).unlink()  # while it is held: afterwards it may be another process's
    lock.release()


def owner_of(folder: Path) -> str:
    """The process that the folder names as its writer, if any is named."""
    with suppress(OSError):
        text = (folder / OWNER).read_text(encoding="utf-8")
        return text.partition("\n")[0] or "another process"
    return "another process"
