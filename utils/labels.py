"""Class names: their order, how they are printed, and the labels that a user's words mean."""

import os
import re
from collections.abc import Sequence

from utils.errors import InputError


def readable(name: str) -> str:
    """The name with bytes that are not UTF-8 written as ``\\xe9``: it can be printed and stored."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts the numbers in names as numbers: 1, 2, ..., 10, 11."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts]


def match_classes(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels of class names, and of ranges like ``3-7`` between two of them.

    Where no name is a number, a number means the label itself, 0 ... K - 1. Raises InputError.
    """
    by_name = {name: label for label, name in enumerate(names)}
    if not any(name.isdecimal() for name in names):
        by_name = {str(label): label for label in range(len(names))} | by_name
    labels = []
    for word in map(readable, words):
        first, _, last = word.partition("-")
        if word in by_name:
            labels.append(by_name[word])
        elif first in by_name and last in by_name and by_name[first] <= by_name[last]:
            labels += range(by_name[first], by_name[last] + 1)
        else:
            raise InputError(f"--classes: no class {word!r}; the classes are {listed(names)}")
    return labels


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names with commas between them, the first few where they are many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
