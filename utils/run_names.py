"""Names of runs: which are allowed, and the version folder that a word means."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import InputError

RUN_FILE = "run.json"  # in the logs of a run, with its name; "" where it has none
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
VERSION = r"(?:version_)?([0-9]{1,18})"
TAKEN = rf"latest|auto|{VERSION}|[0-9]+"  # words that mean something else


class RunNameError(InputError):
    """A name that a run cannot have, or that several runs have."""


def check_name(name: Any) -> str:
    """The name, where a run can have it. Raises RunNameError."""
    if isinstance(name, str) and re.fullmatch(TAKEN, name):
        raise RunNameError(f"--name must not be {name}, which means a run already")
    if not is_name(name):
        raise RunNameError(
            "--name takes 1 to 64 letters, digits, '.', '-' and '_', the first a letter or digit, "
            f"got {name!r}"
        )
    return name


def is_name(name: Any) -> bool:
    """Whether a run can have this name, which is then part of a path, too."""
    fits = isinstance(name, str) and re.fullmatch(NAME, name)
    return bool(fits and not re.fullmatch(TAKEN, name))


def version_of(word: str, root: Path) -> str | None:
    """The version folder under the run root that a word means: version_3 for 3, version_3, a name.

    None where no run has that number or name; RunNameError where several have the name.
    """
    if match := re.fullmatch(VERSION, word):
        folder = f"version_{match[1]}"
        return folder if any(root.glob(f"*/{folder}")) else None
    if not is_name(word):
        return None
    found = sorted(path.name for path in root.glob("Inference/version_*") if name_of(path) == word)
    if len(found) > 1:
        raise RunNameError(f"{word} is the name of {', '.join(found)} in {root}: type one of these")
    return found[0] if found else None


def run_title(logs: Path) -> str:
    """Name and version of the run with this log folder; the version alone where it has no name."""
    name = name_of(logs)
    return f"{name} ({logs.name})" if name else logs.name


def name_of(logs: Path) -> str:
    """The name in the log folder of a run; "" where it has none, or none that it can have."""
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads((logs / RUN_FILE).read_bytes())
        if isinstance(record, dict) and is_name(record.get("name")):
            return record["name"]
    return ""
