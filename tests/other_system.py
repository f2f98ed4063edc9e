"""train.py where a system lacks what Linux has, in a spawned process, as Windows and macOS have.

It trains, resumes to one step more, and samples. Things are hidden before the project and its file
locks are imported; torch itself is there already.
"""

import asyncio  # noqa: F401  # which reads os.sysconf, and knows by itself where there is none
import ctypes
import errno
import multiprocessing.reduction
import os
import signal
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def hide_fork() -> None:
    """Windows starts processes anew."""
    del os.fork
    multiprocessing.reduction.HAVE_SEND_HANDLE = False  # then there is no forkserver


def hide_users() -> None:
    del os.getuid
    sys.modules.update(pwd=None)


def hide_folders() -> None:
    """Windows cannot open a folder."""
    del os.O_DIRECTORY
    original = os.open

    def open_file(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *arguments, **options)

    os.open = open_file


def hide_fsync_of_folders() -> None:
    """Some network file systems flush files alone."""
    original = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(handle)

    os.fsync = fsync


def hide_c_library() -> None:
    original = ctypes.CDLL

    def load(name, *arguments, **options):
        if name == "libc.so.6":
            raise OSError("not found")
        return original(name, *arguments, **options)

    ctypes.CDLL = load


HIDE = {
    "fork": hide_fork,
    "fcntl": lambda: sys.modules.update(fcntl=None),
    "resource": lambda: sys.modules.update(resource=None),
    "getuid": hide_users,
    "sysconf": lambda: delattr(os, "sysconf"),
    "sched_getaffinity": lambda: delattr(os, "sched_getaffinity"),
    "SIGHUP": lambda: delattr(signal, "SIGHUP"),
    "SIGUSR1": lambda: delattr(signal, "SIGUSR1"),
    "SIGUSR2": lambda: delattr(signal, "SIGUSR2"),
    "SIGXCPU": lambda: delattr(signal, "SIGXCPU"),
    "SIGKILL": lambda: delattr(signal, "SIGKILL"),
    "folders": hide_folders,
    "fsync of folders": hide_fsync_of_folders,
    "libc": hide_c_library,
}


def enter(out: Path, names: list[str]) -> None:
    """Hide these things; print into this file."""
    sys.stdout = sys.stderr = out.open("w")
    for name in names:
        HIDE[name]()


def portable_tests(out: Path, names: list[str]) -> None:
    """Those that the workflow runs on Windows and macOS."""
    enter(out, names)
    import pytest

    os.chdir(ROOT)
    sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "@.ci/portable"]))


def main(where: Path, names: list[str], argv: list[str]) -> None:
    os.chdir(where)
    enter(where / "out", names)
    from faults import child_prelude

    import sample
    import train

    child_prelude()
    code = train.main([*argv, "--max-steps", "4"])
    code = code or train.main(["--resume", "auto", "--max-steps", "5", "--device", "cpu"])
    sys.exit(code or sample.main(["--ckpt", "latest", "--num", "2", "--device", "cpu"]))
