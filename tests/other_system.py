"""``other_system.py NAME,... ARGUMENT...``: train.py where a system lacks what Linux has.

It trains, resumes to one step more, and samples. Things are hidden before the project and its file
locks are imported; torch itself is there already.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def hide_folders() -> None:
    """Windows cannot open a folder."""
    del os.O_DIRECTORY
    original = os.open

    def open_file(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *arguments, **options)

    os.open = open_file


def hide_c_library() -> None:
    original = ctypes.CDLL

    def load(name, *arguments, **options):
        if name == "libc.so.6":
            raise OSError("not found")
        return original(name, *arguments, **options)

    ctypes.CDLL = load


HIDE = {
    "fcntl": lambda: sys.modules.update(fcntl=None),
    "resource": lambda: sys.modules.update(resource=None),
    "sysconf": lambda: delattr(os, "sysconf"),
    "sched_getaffinity": lambda: delattr(os, "sched_getaffinity"),
    "SIGHUP": lambda: delattr(signal, "SIGHUP"),
    "SIGUSR1": lambda: delattr(signal, "SIGUSR1"),
    "SIGKILL": lambda: delattr(signal, "SIGKILL"),
    "folders": hide_folders,
    "libc": hide_c_library,
}


def main(names: list[str], argv: list[str]) -> int:
    for name in names:
        HIDE[name]()
    from faults import child_prelude

    import sample
    import train

    child_prelude()
    code = train.main([*argv, "--max-steps", "4"])
    code = code or train.main(["--resume", "auto", "--max-steps", "5", "--device", "cpu"])
    return code or sample.main(["--ckpt", "latest", "--num", "2", "--device", "cpu"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].split(","), sys.argv[2:]))
