"""Class names: their order, how they are printed, and the labels that a user's words mean."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal

from utils.errors import InputError, listed

NUMBER = r"[+-]?[0-9]+(\.[0-9]+)?"


def readable(name: str) -> str:
    """The name as it is printed, stored and typed: NFC, with ``\\xe9`` for what is not UTF-8.

    Control characters are escaped too.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return unicodedata.normalize("NFC", "".join(shown))


def natural_key(name: str) -> list[tuple[int, Decimal, str]]:
    """Sorts names that are numbers, and numbers in names, of any length, as numbers.

    -1, 0.5, 1, 2, 10, a9, a10.
    """
    if re.fullmatch(NUMBER, name):
        return [(0, Decimal(name), name)]
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, Decimal(p), p) if p[0] in "0123456789" else (1, Decimal(0), p) for p in parts]


def match_classes(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels of class names, and of ranges like ``3-7`` between two of them.

    Successive words that are a name with commas in between are that name. Where no name is a
    number, a number means the label itself, 0 ... K - 1. Raises InputError.
    """
    by_name = {name: label for label, name in enumerate(names)}
    if not any(re.fullmatch(NUMBER, name) for name in names):
        by_name = {str(label): label for label in range(len(names))} | by_name
    most = max((name.count(",") for name in names), default=0) + 1  # words in a name
    labels, rest = [], [readable(word) for word in words]
    while rest:
        joined = [(n, ",".join(rest[:n])) for n in range(min(most, len(rest)), 0, -1)]
        n, found = next(((n, r) for n, name in joined if (r := meant(name, by_name))), (0, []))
        if not found:
            known = listed([repr(name) if "," in name else name for name in names])
            raise InputError(f"--classes: no class {rest[0]!r}; the classes are {known}")
        labels, rest = labels + found, rest[n:]
    return labels


def meant(word: str, by_name: Mapping[str, int]) -> list[int]:
    """The labels of a name or a range; none for another word."""
    if word in by_name:
        return [by_name[word]]
    for dash in (i for i, c in enumerate(word) if c == "-"):
        first, last = by_name.get(word[:dash]), by_name.get(word[dash + 1 :])
        if first is not None and last is not None and first <= last:
            return list(range(first, last + 1))
    return []
