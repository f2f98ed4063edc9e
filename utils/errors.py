"""The two ways a program ends early: one line, no traceback."""


class InputError(Exception):
    """Bad input, exit code 2: what was wrong, where, and what to do."""


class StoppedError(Exception):
    """A run that cannot continue, exit code 1: where it stopped, why, and what to do."""
