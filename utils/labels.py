"""Class names: their order, how they are printed, and the labels that a user's words mean."""

import re
import unicodedata
from collections.abc import Sequence

from utils.errors import InputError


def readable(name: str) -> str:
    """The name as it is printed, stored and typed: NFC, with ``\\xe9`` for what is not UTF-8.

    Control characters are escaped too.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return unicodedata.normalize("NFC", "".join(shown))


def natural_key(name: str) -> list[tuple[int, int, str, str]]:
    """Sorts the numbers in names, of any length, as numbers: 1, 2, ..., 10, 11."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    digits = [p.lstrip("0") if p[0] in "0123456789" else None for p in parts]
    return [
        (1, 0, p, p) if d is None else (0, len(d), d, p) for p, d in zip(parts, digits, strict=True)
    ]


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
