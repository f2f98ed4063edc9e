"""This process: exit codes, stop signals, output that nobody reads."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TextIO

from utils.devices import memory_errors
from utils.distributed import ALONE, Ranks
from utils.errors import InputError, StoppedError
from utils.runs import ROOT

# Ctrl-C, kill, a closed terminal, and what clusters (Slurm, SGE, LSF) send before they take the
# machine. Windows has the first two.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def exit_code(program: str, work: Callable[[], int], interrupted: str) -> int:
    """That of the work; 1 where it stopped on the way, 2 for bad input, 128 + N for signal N."""
    with steady_output():
        try:
            with interruptible(), memory_errors(lambda: "lower --batch-size"), refusals():
                return work()
        except InputError as e:
            print(f"{program}: error: {e}", file=sys.stderr)
            return 2
        except StoppedError as e:
            print(f"{program}: stopped: {e}", file=sys.stderr)
        except OSError as e:
            reason = f"{e.filename or 'a file'}: {e.strerror or e}"
            print(f"{program}: stopped: {reason}", file=sys.stderr)
        except Interrupted as e:
            print(f"{program}: {e.line or interrupted}", file=sys.stderr)
            return 128 + e.number
        return 1


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a thread or process that the system does not start into a StoppedError."""
    try:
        yield
    except (RuntimeError, BlockingIOError) as e:  # Python's threads; C++'s, and processes
        if not re.search("can't start new thread|temporarily unavailable", str(e)):
            raise
        limit = "raise the limit (ulimit -u), or stop other programs"
        raise StoppedError(f"the system starts no more threads or processes: {limit}") from e


class Interrupted(KeyboardInterrupt):
    """A stop signal that ends the program at once; ``line``: what to say, if not the usual."""

    def __init__(self, number: int, line: str = "") -> None:
        super().__init__(number)
        self.number, self.line = number, line


def handlers() -> dict[int, Any]:
    """The stop signals with their handlers, but for those that were ignored when the program
    started, as nohup ignores SIGHUP. None outside the main thread, where Python handles none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    known = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in known}
    return {n: handler for n, handler in found.items() if handler != signal.SIG_IGN}


def restore(before: dict[int, Any]) -> None:
    """Set the handlers of these signals, as ``handlers`` returned them."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it a stop signal raises Interrupted; a second one kills the process."""
    before = handlers()

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        restore(dict.fromkeys(before, signal.SIG_DFL))
        raise Interrupted(number)

    restore(dict.fromkeys(before, interrupt))
    try:
        yield
    finally:
        restore(before)


class StopSignal:
    """Within ``with``: the first stop signal is recorded; a second one ends the program at once.

    Not under a launcher: a cluster signals each rank, and so does their launcher, which kills them
    in the end.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.number, self.ranks = 0, ranks
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.before = handlers()
        restore(dict.fromkeys(self.before, self.note))
        return self

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        self.number = number
        if self.ranks.launched:
            return
        restore(dict.fromkeys(self.before, signal.SIG_DFL))
        if signal.SIGINT in self.before:
            signal.signal(signal.SIGINT, self.interrupt)

    @contextmanager
    def cuts_short(self) -> Iterator[None]:
        """The first stop signal ends what is within this ``with`` at once, and is recorded."""
        before = handlers()

        def end(number: int, _frame: FrameType | None) -> NoReturn:
            restore(before)
            self.note(number)
            raise Interrupted(number)

        restore(dict.fromkeys(before, end))
        try:
            yield
        except Interrupted as e:
            if e.line:  # a second one
                raise
        finally:
            if not self.number:
                restore(before)

    @staticmethod
    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(number, "interrupted at once; go on with --resume auto")

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop; then all of them are."""
        (number,) = ranks.highest(self.number)
        if number:
            self.note(number)
        return bool(number)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        restore(self.before)

    @property
    def exit_code(self) -> int:
        """What a shell expects: 130 after SIGINT, 143 after SIGTERM, 138 after SIGUSR1."""
        return 128 + self.number


def command(script: str, *words: object) -> str:
    """A command line that runs one of the scripts, from this folder and by this interpreter."""
    found = Path(shutil.which("python") or "")
    same = found.parent == Path(sys.executable).parent and found.samefile(sys.executable)
    python = "python" if same else sys.executable
    here = os.path.exists(script) and os.path.samefile(script, ROOT / script)
    return shell(python, script if here else ROOT / script, *words)


def shell(*words: object) -> str:
    """A command line to be pasted, whatever characters the paths and the terminal have."""
    line = list(map(str, words))
    return subprocess.list2cmdline(line) if os.name == "nt" else " ".join(map(quoted, line))


def quoted(word: str) -> str:
    """For bash, zsh and ksh; as $'...' where the terminal cannot show it, or shows other bytes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    raw = word.encode("utf-8", "surrogateescape")
    if word.isprintable() and word.encode(encoding, "ignore") == raw:
        return shlex.quote(word)
    plain = {*range(32, 127)} - {*b"'\\"}
    return "$'" + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in raw) + "'"


class Steady:
    """A stream whose reader may leave, as ``| head`` does, or know ASCII alone."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
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
    """Within it nobody has to listen: stdout and stderr may be closed, at any time."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed from the start: otherwise the next file opened would be stdout
            os.open(os.devnull, os.O_RDWR)
    with open(os.devnull, "w") as nowhere:
        out, err = (Steady(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(err):
            try:
                yield
            finally:
                out.flush()
                err.flush()
