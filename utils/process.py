"""This process: exit codes, stop signals, closed pipes."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from utils.distributed import Ranks
from utils.errors import InputError, StoppedError


def exit_code(program: str, work: Callable[[], int], interrupted: str) -> int:
    """That of the work; 1 where it stopped on the way, 2 for bad input, 130 for Ctrl-C."""
    try:
        return work()
    except InputError as e:
        print(f"{program}: error: {e}", file=sys.stderr)
        return 2
    except StoppedError as e:
        print(f"{program}: stopped: {e}", file=sys.stderr)
    except OSError as e:
        reason = f"{e.filename or 'a file'}: {e.strerror or e}"
        print(f"{program}: stopped: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    return 1


class StopSignal:
    """Within ``with``: the first SIGINT or SIGTERM is recorded, a second has its default effect."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        self.before = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        self.number = number
        self.restore()

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop; then all of them are."""
        (number,) = ranks.highest(self.number)
        if number:
            self.note(number)
        return bool(number)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.restore()

    @property
    def exit_code(self) -> int:
        """What a shell expects: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number


class Steady:
    """A stream whose reader may close it, as by ``| head``."""

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
        """Redirect what is left in the stream, and all that follows, to /dev/null."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def steady_output() -> Iterator[None]:
    """A closed stdout or stderr does not end a training."""
    with redirect_stdout(Steady(sys.stdout)), redirect_stderr(Steady(sys.stderr)):
        yield
