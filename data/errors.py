"""What can go wrong with data."""

from utils.errors import InputError, StoppedError


class DataError(InputError):
    """Images that cannot be used; one line: what is wrong, where, and what to do."""


class DataNotFound(DataError):
    """Images that are neither on disk nor downloadable."""


class ReadError(StoppedError):
    """An image that cannot be read in the middle of a run; one line: the set and the cause."""


class WaitError(StoppedError):
    """A stop signal came while an image file did not arrive; one line: the file."""
