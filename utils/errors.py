"""The two ways a program ends early, in one line without a traceback; names in such a line."""

from collections.abc import Sequence


class InputError(Exception):
    """Bad input, exit code 2: what was wrong, where, and what to do."""


class StoppedError(Exception):
    """A run that cannot continue, exit code 1: where it stopped, why, and what to do."""


def number(count: int, one: str, many: str) -> str:
    """``1 image``, ``2,000 images``: the count with the words for it."""
    return f"{count:,} {one if count == 1 else many}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names with commas between them, the first few where they are many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
