"""Files that are whole under their name or not there, even after kill -9 or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name at the end of ``with``; before, the old one has it.

    Written beside its place, flushed to the disk, renamed, and the folder flushed too. Raises
    OSError; then, as after any other error inside ``with``, what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e  # the name that was asked for
    finally:
        with suppress(OSError):  # where the folder itself is gone
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: Path) -> None:
    """Delete what killed processes left half-written; only for the folder's one writer."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)
