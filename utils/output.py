"""Printing for whoever listens, and going on when nobody does any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class Steady:
    """A stream to print to that may be closed at its other end, as by ``| head``."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.silence()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.silence()

    def silence(self) -> None:
        """What is left in the stream, and all that follows, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def steady_output() -> Iterator[None]:
    """Nobody has to listen to a training for it to go on."""
    with redirect_stdout(Steady(sys.stdout)), redirect_stderr(Steady(sys.stderr)):
        yield
