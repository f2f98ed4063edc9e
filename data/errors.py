"""What can go wrong with data."""


class DataError(Exception):
    """Images that cannot be used; one line: what was wrong, where, and what to do."""


class DataNotFound(DataError):
    """Images that are neither on disk nor to be had."""


class ReadError(Exception):
    """An image that could not be read in the middle of a run; names the set and the cause."""
